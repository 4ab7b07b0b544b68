"""Augmentation of training images, as a function of a random generator."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def make_augment(flip: bool, zoom: float) -> "FlipAndZoom | None":
    """An augmentation, or None if it would change nothing."""
    return FlipAndZoom(flip, zoom) if flip or zoom < 1 else None


@dataclass(frozen=True)
class FlipAndZoom:
    """Random horizontal flips and random crops, resized to the image's size.

    Attributes:
        flip: whether to flip half of the images.
        zoom: the smallest side of a crop as a fraction of the image's: 1 for no crop.
    """

    flip: bool = False
    zoom: float = 1.0

    def __call__(self, image: Tensor, rng: torch.Generator) -> Tensor:
        """[3,H,W] in [-1,1] -> the same."""
        size = image.shape[-2:]
        mirror, fraction, x, y = torch.rand(4, generator=rng).tolist()
        if self.zoom < 1:
            height, width = (round(side * (self.zoom + (1 - self.zoom) * fraction)) for side in size)
            left, top = round((size[1] - width) * x), round((size[0] - height) * y)
            crop = image[None, :, top : top + height, left : left + width]
            image = F.interpolate(crop, size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        return image.flip(-1) if self.flip and mirror < 0.5 else image
