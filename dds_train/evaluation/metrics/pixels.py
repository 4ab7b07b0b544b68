"""How much two pictures differ, pixel by pixel. All take [B,3,H,W] in [-1,1] and return [B], in float64."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of pixels in [0, 1], as PIE-Bench counts it."""
    return ((a.double() - b.double()) / 2).square().mean(dim=(1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB; inf where the two are equal."""
    return -10 * mse(a, b).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), 1 where the two are equal: a Gaussian window of 11 pixels with deviation 1.5,
    which over the edge sees the picture mirrored (torchmetrics' way, and so PIE-Bench's). NaN for pictures smaller than it."""
    if min(a.shape[-2:]) < 11:
        return torch.full((len(a),), torch.nan, dtype=torch.float64)
    # In [0, 1]: the luminance term depends on where zero is. In float32: in float64 it takes 25 times as long on a CPU.
    a, b = a.float() / 2 + 0.5, b.float() / 2 + 0.5
    values = structural_similarity_index_measure(a, b, reduction="none", data_range=1.0)
    assert isinstance(values, Tensor)
    return values.view(len(a)).double()


def outside(images: Tensor, mask: Tensor) -> Tensor:
    """`images` made black where `mask` [B,1,H,W] in {0,1} says that they were to be edited: PIE-Bench's convention for scores
    of the background, in which the black part counts as equal."""
    return torch.where(mask > 0.5, -1.0, images)
