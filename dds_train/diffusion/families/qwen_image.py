"""Qwen-Image (arXiv 2508.02324): a rectified flow in packed latents of a video autoencoder, a transformer that reads Qwen2.5-VL
after a system prompt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from dds_train.diffusion.families.base import Config, DenoiserShape, Family, image_attention, pack, unpack
from dds_train.diffusion.families.stable_diffusion import ATTENTION
from dds_train.distillation.prompt import Prompt


def shape(transformer: Config) -> DenoiserShape:
    return DenoiserShape(transformer["in_channels"] // 4, transformer["joint_attention_dim"], (128, 128), 2)


def check(config: Callable[[str], Config]) -> None:
    channels, latents = config("transformer")["in_channels"] // 4, config("vae").get("z_dim")
    if latents not in (None, channels):
        raise ValueError(f"its transformer reads {channels} channels, the VAE's latents have {latents}")


def vae_factor(vae: Config) -> int:
    number: int = 2 ** len(vae["temperal_downsample"])
    return number


def vae_channels(vae: Config) -> int:
    number: int = vae["z_dim"]
    return number


def statistics(vae: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents' channels, [1,C,1,1]."""
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1).to(z) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


def encode(vae: Any, image: Tensor) -> Tensor:
    z = vae.encode(image.unsqueeze(2)).latent_dist.mode().squeeze(2)  # an image is a video of one frame
    mean, deviation = statistics(vae, z)
    output: Tensor = (z - mean) / deviation
    return output


def decode(vae: Any, z: Tensor) -> Tensor:
    mean, deviation = statistics(vae, z)
    output: Tensor = vae.decode((z * deviation + mean).unsqueeze(2)).sample.squeeze(2)
    return output


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    text, mask = pipeline.encode_prompt(list(prompts))
    return Prompt({"text": text, "mask": torch.ones(text.shape[:2], device=text.device) if mask is None else mask.float()})


def denoise(transformer: Any, z_t: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
    height, width = z_t.shape[-2:]
    tokens = transformer(
        pack(z_t),
        timestep=sigma,
        encoder_hidden_states=prompt["text"],
        encoder_hidden_states_mask=prompt["mask"],
        img_shapes=[[(1, height // 2, width // 2)]] * len(z_t),
    ).sample
    return unpack(tokens, height, width)


FAMILY = Family(
    name="Qwen-Image",
    denoiser="transformer",
    network=QwenImageTransformer2DModel,
    last_layer="proj_out",
    lora_targets=(*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    shape=shape,
    check=check,
    embed=embed,
    denoise=denoise,
    self_attention=image_attention,
    is_flow=True,
    vae_factor=vae_factor,
    vae_channels=vae_channels,
    encode=encode,
    decode=decode,
)
