"""Stable Diffusion 1.x and 2.x: a UNet that reads the last hidden state of CLIP's text model."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
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
    """CLIP's last hidden state of the padded prompt."""
    whole = pipeline.maybe_convert_prompt(list(prompts), pipeline.tokenizer)
    warn_of_cut(pipeline.tokenizer, whole, pipeline.tokenizer.model_max_length)
    text, _ = pipeline.encode_prompt(list(prompts), None, 1, do_classifier_free_guidance=False)
    return Prompt({"text": text})


def embed_chunks(pipeline: Any, prompts: Sequence[str], tokens: int) -> Prompt:
    """`embed` of each of a prompt's `chunks`, side by side."""
    encoder = pipeline.text_encoder
    text = [encoder(chunk.to(encoder.device))[0] for chunk in chunks(pipeline, pipeline.tokenizer, prompts, tokens)]
    return Prompt({"text": torch.cat(text, dim=1)})


def chunks(pipeline: Any, tokenizer: Any, prompts: Sequence[str], tokens: int) -> Iterator[Tensor]:
    """Prompts of up to `tokens` tokens in as many chunks as these take, the last ones perhaps empty, each with a start and an
    end of its own [N,77]: as diffusers' community pipelines (lpw_stable_diffusion) do it."""
    size = tokenizer.model_max_length - 2
    whole = -(-tokens // size) * size
    prompts = [pipeline.maybe_convert_prompt(prompt, tokenizer) for prompt in prompts]
    warn_of_cut(tokenizer, prompts, whole + 2)
    numbers = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    for start in range(0, whole, size):
        rows = [[tokenizer.bos_token_id, *own[start : start + size], tokenizer.eos_token_id] for own in numbers]
        yield torch.tensor([row + [tokenizer.pad_token_id] * (size + 2 - len(row)) for row in rows])


def warn_of_cut(tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    for prompt in prompts:
        tokens = len(tokenizer(prompt).input_ids)
        if tokens > length:
            cut = f"prompt of {tokens} tokens, of which the last {tokens - length} are cut: {prompt!r}"
            warnings.warn(f"{cut}; teacher.max_tokens={tokens} reads all", stacklevel=5)


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
    embed_chunks=embed_chunks,
    denoise=denoise,
    self_attention=self_attention,
    standalone=True,
    pipeline_options={"requires_safety_checker": False},
)
