"""Stable Diffusion XL (arXiv 2307.01952): a UNet that reads two CLIP models side by side, the pooled output of the second, and
the size of the image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dds_train.diffusion.families.base import Config, Family, check_channels
from dds_train.diffusion.families.stable_diffusion import ATTENTION, chunks, self_attention, shape, warn_of_cut
from dds_train.distillation.prompt import Prompt

FACTOR = 8  # pixels per latent of its VAE: the UNet reads the size in pixels


def check(config: Callable[[str], Config]) -> None:
    unet = config("unet")
    check_channels(unet, config("vae"))
    if unet.get("addition_embed_type") != "text_time" or unet.get("time_cond_proj_dim") is not None:
        raise ValueError("its UNet has other inputs than SDXL's base model, such as a guidance that was distilled into it")


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    warn_of_cut(pipeline.tokenizer, prompts, pipeline.tokenizer.model_max_length)
    text, _, pooled, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    return _with_null(pipeline, prompts, text, pooled)


def embed_chunks(pipeline: Any, prompts: Sequence[str], tokens: int) -> Prompt:
    """`embed` of each of a prompt's `chunks`, side by side; pooled is that of the first one."""
    sides = []
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        tokenized = chunks(pipeline, tokenizer, prompts, tokens)
        outputs = [encoder(chunk.to(encoder.device), output_hidden_states=True) for chunk in tokenized]
        sides.append(torch.cat([output.hidden_states[-2] for output in outputs], dim=1))
    return _with_null(pipeline, prompts, torch.cat(sides, dim=-1), outputs[0].text_embeds)


def _with_null(pipeline: Any, prompts: Sequence[str], text: Tensor, pooled: Tensor) -> Prompt:
    if pipeline.config.force_zeros_for_empty_prompt:  # the null prompt that it was trained with
        filled = torch.tensor([prompt != "" for prompt in prompts], device=text.device)
        text, pooled = text * filled.view(-1, 1, 1), pooled * filled.view(-1, 1)
    return Prompt({"text": text, "pooled": pooled})


def denoise(unet: Any, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
    height, width = (FACTOR * side for side in z_t.shape[-2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], device=z_t.device, dtype=z_t.dtype)  # original, crop, target
    more = {"text_embeds": prompt["pooled"], "time_ids": sizes.expand(len(z_t), -1)}
    output: Tensor = unet(z_t, t, encoder_hidden_states=prompt["text"], added_cond_kwargs=more).sample
    return output


FAMILY = Family(
    name="Stable Diffusion XL",
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
    pipeline_options={"add_watermarker": False},
)
