"""Sana (arXiv 2410.10629): a rectified flow in the latents of a deep-compression autoencoder, a linear transformer that reads
Gemma 2 after an instruction."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from dds_train.diffusion.families.base import Config, Family, check_transformer, image_attention, transformer_shape
from dds_train.diffusion.families.stable_diffusion import ATTENTION
from dds_train.distillation.prompt import Prompt

INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


def vae_factor(vae: Config) -> int:
    number: int = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
    return number


def encode(vae: Any, image: Tensor) -> Tensor:
    output: Tensor = vae.encode(image).latent * vae.config.scaling_factor
    return output


def decode(vae: Any, z: Tensor) -> Tensor:
    output: Tensor = vae.decode(z / vae.config.scaling_factor).sample
    return output


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    """The null prompt goes without the instruction, as in training."""
    each = [
        pipeline.encode_prompt([prompt], False, complex_human_instruction=INSTRUCTION if prompt else None)[:2]
        for prompt in prompts
    ]
    return Prompt.cat([Prompt({"text": text, "mask": mask}) for text, mask in each])


def denoise(transformer: Any, z_t: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
    output: Tensor = transformer(
        z_t,
        encoder_hidden_states=prompt["text"],
        encoder_attention_mask=prompt["mask"],
        timestep=1000 * transformer.config.timestep_scale * sigma,
    ).sample
    return output


FAMILY = Family(
    name="Sana",
    denoiser="transformer",
    network=SanaTransformer2DModel,
    last_layer="proj_out",
    lora_targets=ATTENTION,
    shape=partial(transformer_shape, text="caption_channels"),
    check=check_transformer,
    embed=embed,
    denoise=denoise,
    self_attention=partial(image_attention, name="attn1"),
    is_flow=True,
    vae_factor=vae_factor,
    encode=encode,
    decode=decode,
)
