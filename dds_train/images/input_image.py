"""Input images of editing methods."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from dds_train.images.files import AlphaAndProfile, read_with_alpha_and_profile, upright_size


@dataclass(frozen=True)
class InputImage:
    """An input image, optionally downscaled, with its alpha channel and ICC profile."""

    image: Tensor  # [1,3,H,W] in [-1,1]
    original: Tensor  # [1,3,H0,W0], before downscaling
    alpha_and_profile: AlphaAndProfile

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def read_input_image(path: Path, max_side: int | None) -> InputImage:
    """An image file, downscaled if its longer side has more than `max_side` pixels. One too large to be read whole has an
    `original` that is smaller than its file. Raises UserError as `read_image` does."""
    image, alpha_and_profile = read_with_alpha_and_profile(path, max_side)
    image = original = image[None]
    if max_side is not None and (scale := max_side / max(image.shape[-2:])) < 1:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return InputImage(image, original, alpha_and_profile)


def header_size(path: Path, max_side: int | None) -> tuple[int, int]:
    """(H, W) of `read_input_image`, up to a pixel, by the file's header: nothing is decoded. Raises UserError for what is no
    image."""
    height, width = upright_size(path, str(path))
    scale = 1.0 if max_side is None else min(1.0, max_side / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))
