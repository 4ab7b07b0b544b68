"""The kinds of translators, and their construction."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dds_train.diffusion.families import Family
from dds_train.distillation.prompt import Prompt
from dds_train.translator.lora import LoRATranslator
from dds_train.translator.teacher_init import TeacherInitTranslator
from dds_train.translator.unet import UNetTranslator


class TranslatorNetwork(Protocol):
    """An `nn.Module` whose parameters are what is trained, saved and averaged."""

    config: dict[str, Any]  # its kind and the options with which `make_translator` builds it again
    latent_channels: int
    text_dim: int
    stride: int  # sides of latents should be multiples of it: UNets resize others internally, which exported graphs do not

    def __call__(self, z: Tensor, prompt: Prompt, strength: Tensor) -> Tensor:
        """z [B,C,h,w] scaled latents, B prompts, strength [B] in [0,1] -> [B,C,h,w]; at initialisation exactly z."""
        ...

    def plain_unet(self) -> UNet2DConditionModel:
        """A plain diffusers UNet whose output at timestep 0 is the change at full strength: ``unet(z, 0, text)``."""
        ...

    def enable_gradient_checkpointing(self) -> None: ...


@torch.no_grad()
def translate_latents(network: TranslatorNetwork, z: Tensor, prompt: Prompt, strength: float = 1.0) -> Tensor:
    """One pass for scaled latents [B,C,h,w] and B instructions, or one; on a GPU in half precision."""
    with torch.autocast("cuda", dtype=torch.float16, enabled=z.is_cuda):
        return network(z, prompt.expand(len(z)), torch.full((len(z),), strength, device=z.device))


Base = Callable[[], Any]  # loads the teacher's denoiser; called only by the kinds that need it


def _unet(base: Base, family: Family, **options: Any) -> nn.Module:
    if "latent_channels" not in options:
        shape = family.shape(base().config)
        options = {"latent_channels": shape.channels, "text_dim": shape.text_dim, **options}
    return UNetTranslator(**options)


def _lora(base: Base, family: Family, **options: Any) -> nn.Module:
    return LoRATranslator(base(), family, **options)


def _teacher_init(base: Base, family: Family, **options: Any) -> nn.Module:
    return TeacherInitTranslator(family=family, **options) if options else TeacherInitTranslator.copy_of(base(), family)


KINDS: dict[str, Callable[..., nn.Module]] = {"unet": _unet, "lora": _lora, "teacher_init": _teacher_init}


# Whole numbers of a configuration, which may come from a downloaded file, and the largest that makes sense of each.
LIMITS = {
    "latent_channels": 2**10, "text_dim": 2**16, "channels": 2**14, "depth": 2**6, "heads": 2**10, "groups": 2**10,
    "rank": 2**12,
}  # fmt: skip


def make_translator(config: Mapping[str, Any], base: Base, family: Family) -> Any:
    """A new translator from its kind and options, or from a saved translator's `config`.

    Raises:
        ValueError: for an unknown kind, or options that it does not take.
    """
    options = dict(config)
    kind = options.pop("kind", "unet")
    if kind not in KINDS:
        raise ValueError(f"translator.kind={kind}: there are {', '.join(KINDS)}")
    for name in LIMITS.keys() & options.keys():
        numbers = options[name] if name == "channels" else [options[name]]
        if not all(type(one) is int and 1 <= one <= LIMITS[name] for one in numbers):
            raise ValueError(f"translator.{name}={options[name]!r}: whole numbers from 1 to {LIMITS[name]} are expected")
    try:
        return KINDS[kind](base, family, **options)
    except TypeError as error:
        raise ValueError(f"translator: {error}") from error
