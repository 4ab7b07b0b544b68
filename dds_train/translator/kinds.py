"""The kinds of translators there are, and how each is made."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dds_train.translator.lora import LoRATranslator
from dds_train.translator.teacher_init import TeacherInitTranslator
from dds_train.translator.unet import UNetTranslator


class TranslatorNetwork(Protocol):
    """An `nn.Module` whose parameters are what is trained, saved and averaged."""

    config: dict[str, Any]  # its kind, and what `make_translator` needs to build it again
    latent_channels: int
    text_dim: int
    stride: int  # sides of latents should be multiples of it: UNets resize others on the way, which exported graphs do not

    def __call__(self, z: Tensor, text: Tensor, strength: Tensor) -> Tensor:
        """z [B,C,h,w] scaled latents, text [B,L,D], strength [B] in [0,1] -> [B,C,h,w]; at initialisation exactly z."""
        ...

    def plain_unet(self) -> UNet2DConditionModel:
        """A UNet without anything of ours, whose answer at step 0 is the change at full strength: ``unet(z, 0, text)``."""
        ...

    def enable_gradient_checkpointing(self) -> None: ...


@torch.no_grad()
def translate_latents(network: TranslatorNetwork, z: Tensor, text: Tensor, strength: float = 1.0) -> Tensor:
    """One pass for scaled latents [B,C,h,w] under instructions [B,L,D] or [1,L,D]; on a GPU in half precision."""
    with torch.autocast("cuda", dtype=torch.float16, enabled=z.is_cuda):
        return network(z, text.expand(len(z), -1, -1), torch.full((len(z),), strength, device=z.device))


Base = Callable[[], UNet2DConditionModel]  # delivers the teacher's UNet; called only by the kinds that need it


def _unet(base: Base, **options: Any) -> nn.Module:
    if "latent_channels" not in options:
        config = base().config
        options = {"latent_channels": config.in_channels, "text_dim": config.cross_attention_dim, **options}
    return UNetTranslator(**options)


def _lora(base: Base, **options: Any) -> nn.Module:
    return LoRATranslator(base(), **options)


def _teacher_init(base: Base, **options: Any) -> nn.Module:
    return TeacherInitTranslator(**options) if options else TeacherInitTranslator.copy_of(base())


KINDS: dict[str, Callable[..., nn.Module]] = {"unet": _unet, "lora": _lora, "teacher_init": _teacher_init}


def make_translator(config: Mapping[str, Any], base: Base) -> Any:
    """A new translator from the group `translator` of the configuration, or from a saved translator's `config`.

    Raises:
        ValueError: for an unknown kind, or options that it does not take.
    """
    options = dict(config)
    kind = options.pop("kind", "unet")
    if kind not in KINDS:
        raise ValueError(f"translator.kind={kind}: there are {', '.join(KINDS)}")
    try:
        return KINDS[kind](base, **options)
    except TypeError as error:
        raise ValueError(f"translator: {error}") from error
