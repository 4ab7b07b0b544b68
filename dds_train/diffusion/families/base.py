"""What differs between model families, and nothing else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from dds_train.distillation.prompt import Prompt

Config = Mapping[str, Any]  # a part's config.json


class DenoiserShape(NamedTuple):
    channels: int  # C of the latents
    text_dim: int  # D of the prompt embeddings
    size: tuple[int, int]  # (h, w) of the latents it was trained on
    stride: int  # sides of latents should be multiples of it


def kl_factor(config: Config) -> int:
    """Pixels per latent of an AutoencoderKL."""
    number: int = 2 ** (len(config["block_out_channels"]) - 1)
    return number


def kl_encode(vae: Any, image: Tensor) -> Tensor:
    """The posterior's mode, scaled to about unit variance."""
    output: Tensor = (vae.encode(image).latent_dist.mode() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    return output


def kl_decode(vae: Any, z: Tensor) -> Tensor:
    output: Tensor = vae.decode(z / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
    return output


@dataclass(frozen=True)
class Family:
    """A family of text-to-image models. Its functions take diffusers' own networks and configurations."""

    name: str
    denoiser: str  # folder of the denoising network
    network: Any  # its class
    last_layer: str  # of that network: a LoRA translator's head takes its place
    lora_targets: tuple[str, ...]  # names of the layers that get adapters by default
    shape: Callable[[Config], DenoiserShape]
    check: Callable[[Config, Config, Config], None]  # (denoiser, VAE, text encoder), {} if absent; ValueError if not supported
    embed: Callable[[Any, Sequence[str]], Prompt]  # (pipeline of text parts alone, prompts); "" is the null prompt
    denoise: Callable[[Any, Tensor, Tensor, Prompt], Tensor]  # (network, z_t [N,C,h,w], t [N], N prompts) -> [N,C,h,w]
    # The decoder's self-attention layers, each group with the module that gets their input as [N,width,h',w']; for loss cds.
    self_attention: Callable[[Any], Iterable[tuple[nn.Module, Sequence[nn.Module]]]] | None = None
    vae_factor: Callable[[Config], int] = kl_factor  # pixels per latent
    encode: Callable[[Any, Tensor], Tensor] = kl_encode  # (VAE, pixels [B,3,H,W] in [-1,1]) -> scaled latents [B,C,h,w]
    decode: Callable[[Any, Tensor], Tensor] = kl_decode  # (VAE, scaled latents) -> pixels
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)  # of diffusers' pipeline, when made of text parts alone
