"""How far an edit gets from the input to the ground truth."""

import torch
from torch import Tensor

from dds_train.evaluation.metrics.metric import HIGHER, Batch, Metric, has_truth
from dds_train.evaluation.metrics.mse import mse


def gap_closed(batch: Batch) -> Tensor:
    """[B]; NaN where input and ground truth are equal."""
    gap = mse(batch.inputs, batch.truths)
    return torch.where(gap > 0, 1 - mse(batch.outputs, batch.truths) / gap, torch.nan)


GAP_CLOSED = Metric(
    "gap closed",
    HIGHER,
    "1 - mse(output, ground truth) / mse(input, ground truth): 0 for the input itself, 1 for the ground truth",
    per_image=gap_closed,
    applies=has_truth,
    exact=True,
    decimals=3,
)
