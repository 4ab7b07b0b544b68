"""Stable Diffusion 1.x and 2.x: a UNet that reads the last hidden state of CLIP's text model."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dds_train.diffusion.families.base import Config, DenoiserShape, Family
from dds_train.distillation.prompt import Prompt

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EXTRA_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")


def shape(unet: Config) -> DenoiserShape:
    size = unet["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return DenoiserShape(
        unet["in_channels"], unet["cross_attention_dim"], (height, width), 2 ** (len(unet["block_out_channels"]) - 1)
    )


def check(config: Callable[[str], Config]) -> None:
    unet, vae, text_encoder = config("unet"), config("vae"), config("text_encoder")
    inputs, outputs = unet["in_channels"], unet["out_channels"]
    channels, width = vae.get("latent_channels", outputs), text_encoder.get("hidden_size", unet["cross_attention_dim"])
    if (inputs, outputs) != (channels, channels):
        raise ValueError(
            f"its UNet maps {inputs} channels to {outputs}, the VAE's latents have {channels}: "
            "inpainting and InstructPix2Pix checkpoints are not supported"
        )
    if not unet["sample_size"]:
        raise ValueError(
            'its unet/config.json has no sample_size: add the side of its latents, such as "sample_size": 64 (512 pixels)'
        )
    extra = [key for key in EXTRA_INPUTS if unet.get(key) is not None]
    if extra:
        raise ValueError(f"its UNet has inputs besides latent, timestep and prompt ({extra[0]}={unet[extra[0]]})")
    if unet["cross_attention_dim"] != width:
        raise ValueError(
            f"its UNet reads prompts of width {unet['cross_attention_dim']}, its text encoder writes width {width}"
        )


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    """CLIP's last hidden state of the padded prompt. Too long a prompt is cut, with a warning."""
    length = pipeline.tokenizer.model_max_length
    for prompt in prompts:
        tokens = len(pipeline.tokenizer(prompt).input_ids)
        if tokens > length:
            warnings.warn(f"prompt of {tokens} tokens, of which the last {tokens - length} are cut: {prompt!r}", stacklevel=4)
    text, _ = pipeline.encode_prompt(list(prompts), None, 1, do_classifier_free_guidance=False)
    return Prompt({"text": text})


def denoise(unet: Any, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
    output: Tensor = unet(z_t, t, encoder_hidden_states=prompt["text"]).sample
    return output


def self_attention(unet: Any) -> Iterator[tuple[nn.Module, Sequence[nn.Module]]]:
    for block in unet.up_blocks:
        for transformer in getattr(block, "attentions", None) or []:
            yield transformer, [layer.attn1 for layer in transformer.transformer_blocks]


FAMILY = Family(
    name="Stable Diffusion 1.x and 2.x",
    denoiser="unet",
    network=UNet2DConditionModel,
    last_layer="conv_out",
    lora_targets=ATTENTION,
    shape=shape,
    check=check,
    embed=embed,
    denoise=denoise,
    self_attention=self_attention,
    standalone=True,
    pipeline_options={"requires_safety_checker": False},
)
