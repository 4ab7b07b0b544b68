"""Peak signal-to-noise ratio."""

from torch import Tensor

from dds_train.evaluation.metrics.full_reference import outside_mask, to_input
from dds_train.evaluation.metrics.metric import HIGHER, Metric, has_truth
from dds_train.evaluation.metrics.mse import mse


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """[B,3,H,W] in [-1,1], twice -> [B] in dB, float64; inf where the two are equal."""
    return -10 * mse(a, b).log10()


MEANING = "peak signal-to-noise ratio"
PSNR = to_input("PSNR", psnr, HIGHER, MEANING, unit="dB", decimals=1)
PSNR_OUTSIDE = outside_mask("PSNR", psnr, HIGHER, MEANING, unit="dB", decimals=1)
PSNR_TO_TRUTH = Metric(
    "PSNR to ground truth",
    HIGHER,
    f"{MEANING}, to the ground truth",
    unit="dB",
    per_image=lambda batch: psnr(batch.outputs, batch.truths),
    applies=has_truth,
    decimals=1,
)
