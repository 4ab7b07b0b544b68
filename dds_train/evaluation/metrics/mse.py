"""Mean squared error of pixels."""

from torch import Tensor

from dds_train.evaluation.metrics.full_reference import outside_mask
from dds_train.evaluation.metrics.metric import LOWER


def mse(a: Tensor, b: Tensor) -> Tensor:
    """[B,3,H,W] in [-1,1], twice -> [B], float64, for pixels in [0,1] as in PIE-Bench."""
    return ((a.double() - b.double()) / 2).square().mean(dim=(1, 2, 3))


MSE_OUTSIDE = outside_mask("MSE", mse, LOWER, "mean squared error of pixels in [0,1]")
