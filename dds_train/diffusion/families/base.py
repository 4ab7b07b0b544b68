"""What differs between model families, and nothing else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from torch import Tensor, nn
from torch.nn import functional as F

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


def vae_channels(config: Config) -> int:
    number: int = config["latent_channels"]
    return number


def vae_scale(vae: Any, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Shift and scale that give latents about unit variance."""
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    if vae.config.get("latents_mean") is None or vae.config.get("latents_std") is None:
        return shift, scale
    mean, deviation = (torch.tensor(vae.config[name]).view(1, -1, 1, 1).to(z) for name in ("latents_mean", "latents_std"))
    return mean, scale / deviation


def encode(vae: Any, image: Tensor) -> Tensor:
    """The posterior's mode (of AutoencoderTiny, its one output), scaled to about unit variance."""
    output = vae.encode(image)
    z: Tensor = output.latents if isinstance(output, AutoencoderTinyOutput) else output.latent_dist.mode()
    shift, scale = vae_scale(vae, z)
    return (z - shift) * scale


def decode(vae: Any, z: Tensor) -> Tensor:
    shift, scale = vae_scale(vae, z)
    output: Tensor = vae.decode(z / scale + shift).sample
    return output


def check_channels(denoiser: Config, vae: Config, patch: int = 1) -> None:
    """Raises ValueError if the denoiser reads other latents than the VAE makes, in patches of `patch` x `patch`."""
    expected = patch**2 * vae.get("latent_channels", denoiser["in_channels"] // patch**2)
    if denoiser["in_channels"] != expected:
        raise ValueError(
            f"its denoiser reads {denoiser['in_channels']} channels, the VAE's latents have {expected}: "
            "inpainting and editing checkpoints are not supported"
        )


def check_transformer(config: Callable[[str], Config]) -> None:
    """The check of families whose transformer reads the VAE's latents as they are."""
    check_channels(config("transformer"), config("vae"))


def transformer_shape(transformer: Config, text: str) -> DenoiserShape:
    """The shape of a transformer for latents of one size; `text` is its name for the width of prompts."""
    side = transformer["sample_size"]
    return DenoiserShape(transformer["in_channels"], transformer[text], (side, side), transformer["patch_size"])


def image_attention(transformer: Any, name: str = "attn") -> list[tuple[None, list[nn.Module]]]:
    """The attention of a transformer's blocks, for `Family.self_attention`."""
    return [(None, [getattr(block, name) for block in transformer.transformer_blocks])]


# ---------------------------------------------------------------- tokens of latents, in patches of 2 x 2


def pack(z: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,h w / 4,4 C], the channels of a patch first."""
    return F.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, to latents [B,C,height,width]."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def positions(height: int, width: int, before: int, after: int, device: torch.device) -> Tensor:
    """Row and column of each token, between `before` and `after` zeros, [height width,before + 2 + after]."""
    zeros = [torch.arange(1, device=device)]
    return torch.cartesian_prod(
        *zeros * before, torch.arange(height, device=device), torch.arange(width, device=device), *zeros * after
    )


@dataclass(frozen=True)
class Family:
    """A family of text-to-image models. Its functions take diffusers' own networks and configurations."""

    name: str
    denoiser: str  # folder of the denoising network
    network: Any  # its class
    last_layer: str  # of that network: a LoRA translator's head takes its place
    lora_targets: tuple[str, ...]  # names of the layers that get adapters by default: see `LoRATranslator`
    shape: Callable[[Config], DenoiserShape]
    check: Callable[[Callable[[str], Config]], None]  # configuration of a part ({} if absent); ValueError if not supported
    embed: Callable[[Any, Sequence[str]], Prompt]  # (pipeline of text parts alone, prompts); "" is the null prompt
    # (network, z_t [N,C,h,w], time [N], N prompts) -> [N,C,h,w]. Time is the integer timestep, or, for a rectified flow, sigma.
    denoise: Callable[[Any, Tensor, Tensor, Prompt], Tensor]
    # (pipeline, prompts, tokens): `embed` of prompts of up to so many tokens, where the text encoder alone reads 77 of them.
    embed_chunks: Callable[[Any, Sequence[str], int], Prompt] | None = None
    # The self-attention layers for loss cds, each group with the module that gets their input as [N,width,h',w'], or None if
    # their tokens are squares of the latents, `stride` wide. Of layers that read prompts too the first output is the image's.
    self_attention: Callable[[Any], Iterable[tuple[nn.Module | None, Sequence[nn.Module]]]] | None = None
    vae_factor: Callable[[Config], int] = vae_factor  # pixels per latent
    vae_channels: Callable[[Config], int] = vae_channels  # C of the latents
    encode: Callable[[Any, Tensor], Tensor] = encode  # (VAE, pixels [B,3,H,W] in [-1,1]) -> scaled latents [B,C,h,w]
    decode: Callable[[Any, Tensor], Tensor] = decode  # (VAE, scaled latents) -> pixels
    is_flow: bool = False  # a rectified flow
    # The exponent of a flow's shift, from the number of image tokens; None: as the scheduler's configuration says.
    mu: Callable[[int], float] | None = None
    has_null: bool = True  # whether it was trained on the empty prompt, which guidance needs
    standalone: bool = False  # whether exported translators can run without this package
    pipeline_options: Mapping[str, Any] = field(default_factory=dict)  # of diffusers' pipeline, when made of text parts alone
