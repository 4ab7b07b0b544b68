"""Stable Diffusion XL (arXiv 2307.01952): a UNet that reads two CLIP models side by side, the pooled output of the second, and
the size of the image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dds_train.diffusion.families.base import Config, Family, check_channels
from dds_train.diffusion.families.stable_diffusion import ATTENTION, self_attention, shape
from dds_train.distillation.prompt import Prompt

FACTOR = 8  # pixels per latent of its VAE: the UNet reads the size in pixels


def check(config: Callable[[str], Config]) -> None:
    unet = config("unet")
    check_channels(unet, config("vae"))
    if unet.get("addition_embed_type") != "text_time" or unet.get("time_cond_proj_dim") is not None:
        raise ValueError("its UNet has other inputs than SDXL's base model, such as a guidance that was distilled into it")


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    text, _, pooled, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
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
    denoise=denoise,
    self_attention=self_attention,
    pipeline_options={"add_watermarker": False},
)
