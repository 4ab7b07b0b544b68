"""A picture as editors take it: scaled down if that is wished, with all that its file holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from dds_train.images.files import AlphaAndProfile, read_with_alpha_and_profile


@dataclass(frozen=True)
class InputImage:
    image: Tensor  # [1,3,H,W] in [-1,1]
    original: Tensor  # [1,3,H0,W0], before it was scaled down
    alpha_and_profile: AlphaAndProfile  # what a file has beside its colours

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def read_input_image(path: Path, max_side: int | None) -> InputImage:
    """Scaled down if its longer side has more than `max_side` pixels. Raises UserError if it is not a picture."""
    (image, alpha_and_profile) = read_with_alpha_and_profile(path)
    image = original = image[None]
    if max_side is not None:
        scale = max_side / max(image.shape[-2:])
        if scale < 1:
            size = [max(1, round(side * scale)) for side in image.shape[-2:]]
            image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return InputImage(image, original, alpha_and_profile)


def check_readable(pictures: Sequence[tuple[str, Path]], max_side: int | None = None) -> dict[Path, tuple[int, int]]:
    """Read every picture once before any work is done on the first one; their sizes, (H, W), scaled down.

    Raises:
        UserError: naming the first that cannot be read.
    """
    return {path: read_input_image(path, max_side).size for _, path in pictures}
