"""FLUX.1 dev: a rectified flow in packed latents, a transformer that reads T5 and CLIP's pooled output, and into which guidance
was distilled: it predicts the guided velocity and knows no null prompt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from dds_train.diffusion.families.base import (
    Config,
    DenoiserShape,
    Family,
    check_channels,
    image_attention,
    pack,
    positions,
    unpack,
)
from dds_train.diffusion.families.stable_diffusion import ATTENTION
from dds_train.distillation.prompt import Prompt

GUIDANCE = 3.5  # that of its pipeline


def shape(transformer: Config) -> DenoiserShape:
    return DenoiserShape(transformer["in_channels"] // 4, transformer["joint_attention_dim"], (128, 128), 2)


def check(config: Callable[[str], Config]) -> None:
    check_channels(config("transformer"), config("vae"), patch=2)
    if not config("transformer").get("guidance_embeds"):
        raise ValueError("it is step-distilled (schnell) and predicts no velocity field; take black-forest-labs/FLUX.1-dev")


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    text, pooled, _ = pipeline.encode_prompt(list(prompts))
    return Prompt({"text": text, "pooled": pooled, "guidance": torch.full((len(text),), GUIDANCE, device=text.device)})


def denoise(transformer: Any, z_t: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
    height, width = z_t.shape[-2:]
    tokens = transformer(
        pack(z_t),
        timestep=sigma,
        guidance=prompt["guidance"],
        pooled_projections=prompt["pooled"],
        encoder_hidden_states=prompt["text"],
        txt_ids=torch.zeros(prompt["text"].shape[1], 3, device=z_t.device),
        img_ids=positions(height // 2, width // 2, 1, 0, z_t.device).to(z_t.dtype),
    ).sample
    return unpack(tokens, height, width)


FAMILY = Family(
    name="FLUX.1 dev",
    denoiser="transformer",
    network=FluxTransformer2DModel,
    last_layer="proj_out",
    lora_targets=(*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    shape=shape,
    check=check,
    embed=embed,
    denoise=denoise,
    self_attention=image_attention,
    is_flow=True,
    has_null=False,
)
