"""FLUX.2 klein, base: a rectified flow in the VAE's own patches, a transformer that reads three layers of Qwen3."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from torch.nn import functional as F

from dds_train.diffusion.families.base import Config, DenoiserShape, Family, check_channels, image_attention, positions
from dds_train.diffusion.families.stable_diffusion import ATTENTION
from dds_train.distillation.prompt import Prompt

STEPS = 50  # of its pipeline, on which its shift depends


def shape(transformer: Config) -> DenoiserShape:
    return DenoiserShape(transformer["in_channels"], transformer["joint_attention_dim"], (64, 64), 1)


def check(config: Callable[[str], Config]) -> None:
    check_channels(config("transformer"), config("vae"), patch=2)
    if config("model_index").get("is_distilled"):
        raise ValueError("it is step-distilled and predicts no velocity field; take black-forest-labs/FLUX.2-klein-base-4B")


def vae_factor(vae: Config) -> int:
    number: int = 2 ** len(vae["block_out_channels"])
    return number


def vae_channels(vae: Config) -> int:
    number: int = 4 * vae["latent_channels"]
    return number


def statistics(vae: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the patches' channels, [1,4 C,1,1]."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(1, -1, 1, 1).to(z), variance.sqrt().view(1, -1, 1, 1).to(z)


def encode(vae: Any, image: Tensor) -> Tensor:
    z = F.pixel_unshuffle(vae.encode(image).latent_dist.mode(), 2)
    mean, deviation = statistics(vae, z)
    return (z - mean) / deviation


def decode(vae: Any, z: Tensor) -> Tensor:
    mean, deviation = statistics(vae, z)
    output: Tensor = vae.decode(F.pixel_shuffle(z * deviation + mean, 2)).sample
    return output


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    return Prompt({"text": pipeline.encode_prompt(list(prompts))[0]})


def denoise(transformer: Any, z_t: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
    height, width = z_t.shape[-2:]
    order = torch.arange(prompt["text"].shape[1], device=z_t.device)
    tokens = transformer(
        z_t.flatten(2).transpose(1, 2),
        timestep=sigma,
        guidance=None,
        encoder_hidden_states=prompt["text"],
        txt_ids=F.pad(order[:, None], (3, 0)),
        img_ids=positions(height, width, 1, 1, z_t.device),
    ).sample
    output: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
    return output


FAMILY = Family(
    name="FLUX.2 klein base",
    denoiser="transformer",
    network=Flux2Transformer2DModel,
    last_layer="proj_out",
    # Most of its blocks have one projection for queries, keys, values and the feed-forward layer, and one back.
    lora_targets=(
        *(*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("to_qkv_mlp_proj", "single_transformer_blocks.*.attn.to_out"),
    ),
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
    mu=partial(compute_empirical_mu, num_steps=STEPS),
)
