"""Random changes of training images, each a function of the random numbers that it is given."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class FlipAndZoom:
    """Mirror half of the images, and zoom into a random part of each.

    Attributes:
        flip: whether to mirror.
        zoom: the smallest part that is kept, as a share of the side: 1 keeps everything, 0.8 cuts out at least 80 %.
    """

    flip: bool = False
    zoom: float = 1.0

    def __call__(self, image: Tensor, rng: torch.Generator) -> Tensor:
        """[3,S,S] in [-1,1] -> the same."""
        size = image.shape[-1]
        mirror, share, x, y = torch.rand(4, generator=rng).tolist()
        if self.zoom < 1:
            side = round(size * (self.zoom + (1 - self.zoom) * share))
            left, top = round((size - side) * x), round((size - side) * y)
            part = image[None, :, top : top + side, left : left + side]
            image = F.interpolate(part, (size, size), mode="bicubic", antialias=True)[0].clamp(-1, 1)
        return image.flip(-1) if self.flip and mirror < 0.5 else image
