"""Metrics that compare outputs with inputs: everywhere, or outside the mask."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dds_train.evaluation.metrics.metric import Batch, Metric, has_mask

Distance = Callable[[Tensor, Tensor], Tensor]  # [B,3,H,W] in [-1,1], twice -> [B]


def to_input(name: str, distance: Distance, direction: int, meaning: str, **more: Any) -> Metric:
    def measure(batch: Batch) -> Tensor:
        return distance(batch.outputs, batch.inputs)

    return Metric(name, direction, f"{meaning}, to the input", per_image=measure, **more)


def outside_mask(name: str, distance: Distance, direction: int, meaning: str, **more: Any) -> Metric:
    """As in PIE-Bench: both images are black where the mask is, and black counts as equal. NaN where the mask is everywhere."""

    def measure(batch: Batch) -> Tensor:
        masks = batch.masks
        values = distance(outside(batch.outputs, masks), outside(batch.inputs, masks))
        return torch.where((masks > 0.5).all(dim=(1, 2, 3)), torch.nan, values)

    meaning = f"{meaning}, to the input outside the mask (PIE-Bench)"
    return Metric(f"{name} outside", direction, meaning, per_image=measure, applies=has_mask, **more)


def outside(images: Tensor, mask: Tensor) -> Tensor:
    """`images`, black where `mask` [B,1,H,W] in {0,1} is 1."""
    return torch.where(mask > 0.5, -1.0, images)
