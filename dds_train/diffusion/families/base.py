"""What differs between model families, and nothing else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from torch import Tensor, nn

from dds_train.distillation.prompt import Prompt
from dds_train.errors import UserError

Config = Mapping[str, Any]  # a part's config.json


class DenoiserShape(NamedTuple):
    channels: int  # C of the latents
    text_dim: int  # D of the prompt embeddings
    size: tuple[int, int]  # (h, w) of the latents it was trained on
    stride: int  # sides of latents should be multiples of it


VAES = ("AutoencoderKL", "AutoencoderTiny")  # of diffusers


def vae_factor(config: Config) -> int:
    """Pixels per latent of one of `VAES`. Raises UserError for another class."""
    name = config.get("_class_name", VAES[0])
    if name not in VAES:
        raise UserError(f"teacher: its VAE is of class {name}; supported: {', '.join(VAES)}")
    widths = config["encoder_block_out_channels" if name == "AutoencoderTiny" else "block_out_channels"]
    number: int = 2 ** (len(widths) - 1)
    return number


def encode(vae: Any, image: Tensor) -> Tensor:
    """The posterior's mode (of AutoencoderTiny, its one output), scaled to about unit variance."""
    output = vae.encode(image)
    z: Tensor = output.latents if isinstance(output, AutoencoderTinyOutput) else output.latent_dist.mode()
    scaled: Tensor = (z - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    return scaled


def decode(vae: Any, z: Tensor) -> Tensor:
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
    vae_factor: Callable[[Config], int] = vae_factor  # pixels per latent
    encode: Callable[[Any, Tensor], Tensor] = encode  # (VAE, pixels [B,3,H,W] in [-1,1]) -> scaled latents [B,C,h,w]
    decode: Callable[[Any, Tensor], Tensor] = decode  # (VAE, scaled latents) -> pixels
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)  # of diffusers' pipeline, when made of text parts alone
