"""Tiled processing of large images."""

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(edit: Callable[[Tensor], Tensor], images: Tensor, tile: int, overlap: int) -> Tensor:
    """`edit` of images [B,3,H,W]: at once if no side is longer than `tile`, else in overlapping tiles, blended linearly over
    `overlap` pixels."""
    height, width = images.shape[-2:]
    if height <= tile and width <= tile:
        return edit(images)
    total, weights = torch.zeros_like(images), torch.zeros(1, 1, height, width)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            crop = images[..., top : top + tile, left : left + tile]
            weight = fade(crop.shape[-2], overlap)[:, None] * fade(crop.shape[-1], overlap)
            total[..., top : top + tile, left : left + tile] += weight * edit(crop)
            weights[..., top : top + tile, left : left + tile] += weight
    return total / weights


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Offsets of tiles along a side, evenly spaced, the last tile ending where the side ends."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def fade(length: int, overlap: int) -> Tensor:
    """Blending weights along a side of a tile, [length]: 1, falling linearly over `overlap` pixels to both ends, never 0."""
    distance = torch.arange(1.0, length + 1)
    return (torch.minimum(distance, distance.flip(0)) / (overlap + 1)).clamp(max=1)
