"""Edits confined to masks: where to edit, and the input's own pixels everywhere else."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dds_train.images.input_image import InputImage
from dds_train.images.masks import AUTO
from dds_train.methods.masks import feathered, on_background, pixel_mask


@dataclass(frozen=True)
class Masking:
    """How masks are made and applied.

    Args:
        exact_background: keep the input's pixels outside the mask bit for bit; "auto": where there is a mask.
        feather: width of the mask's soft edge in pixels, inwards.
        timestep, maps, threshold: of automatic masks, see `automatic_mask`.
    """

    exact_background: bool | str = AUTO
    feather: float = 2
    timestep: int = 500
    maps: int = 10
    threshold: float = 0.5

    def is_exact(self, mask: str | None) -> bool:
        """Whether an edit with this mask (a path, "auto" or None) keeps its background."""
        return self.exact_background is True or (self.exact_background == AUTO and mask is not None)

    def compose(self, image: Tensor, mask: Tensor | None, before: Tensor, after: Tensor) -> Tensor:
        """The edit within the mask on the input outside of it, [1,3,H,W].

        Args:
            image: [1,3,H,W], the input.
            mask: [1,1,H,W] in [0,1]; None = everywhere.
            before, after: [1,3,H',W'], the input and the edit as the VAE decodes them.
        """
        where = torch.ones_like(image[:, :1]) if mask is None else feathered(mask, self.feather)
        return on_background(image, where, before, after)


def upscaled(mask: Tensor, factor: int, image: InputImage, size: tuple[int, int]) -> Tensor:
    """A mask of latents [1,1,h,w] at `size`, [1,1,H,W]: each pixel as its latent."""
    return F.interpolate(pixel_mask(mask.cpu(), factor, image.size), size, mode="nearest")
