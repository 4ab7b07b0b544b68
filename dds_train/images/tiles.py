"""Large pictures in overlapping squares."""

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(edit: Callable[[Tensor], Tensor], images: Tensor, tile: int, overlap: int) -> Tensor:
    """`edit` applied to [B,3,H,W]: as a whole if no side is longer than `tile`, else to squares of that size one by one, which
    fade into one another over `overlap` pixels."""
    height, width = images.shape[-2:]
    if height <= tile and width <= tile:
        return edit(images)
    total, weights = torch.zeros_like(images), torch.zeros(1, 1, height, width)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            square = images[..., top : top + tile, left : left + tile]
            weight = fade(square.shape[-2], overlap)[:, None] * fade(square.shape[-1], overlap)
            total[..., top : top + tile, left : left + tile] += weight * edit(square)
            weights[..., top : top + tile, left : left + tile] += weight
    return total / weights


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where squares begin along a side, evenly spread, the last one ending where the side ends."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def fade(length: int, overlap: int) -> Tensor:
    """Weights along a side of a square, [length]: 1, falling linearly over `overlap` pixels towards both ends, never to 0."""
    distance = torch.arange(1.0, length + 1)
    return (torch.minimum(distance, distance.flip(0)) / (overlap + 1)).clamp(max=1)
