"""Structural similarity."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from dds_train.evaluation.metrics.full_reference import outside_mask, to_input
from dds_train.evaluation.metrics.metric import HIGHER


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """[B,3,H,W] in [-1,1], twice -> [B], float64 (Wang et al. 2004); 1 where the two are equal.

    A Gaussian window of 11 pixels and deviation 1.5, images mirrored at their edges, as in torchmetrics and so in PIE-Bench.
    NaN for images smaller than the window.
    """
    if min(a.shape[-2:]) < 11:
        return torch.full((len(a),), torch.nan, dtype=torch.float64)
    # In [0,1]: the luminance term depends on where zero is. In float32: in float64 it takes 25 times as long on a CPU.
    a, b = a.float() / 2 + 0.5, b.float() / 2 + 0.5
    values = structural_similarity_index_measure(a, b, reduction="none", data_range=1.0)
    assert isinstance(values, Tensor)
    return values.view(len(a)).double()


MEANING = "structural similarity, at most 1"
SSIM = to_input("SSIM", ssim, HIGHER, MEANING)
SSIM_OUTSIDE = outside_mask("SSIM", ssim, HIGHER, MEANING)
