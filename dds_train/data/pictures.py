"""A picture as editors take it: scaled down if that is wished, with all that its file holds."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from dds_train.data.images import Extras, read_with_extras


@dataclass(frozen=True)
class Picture:
    image: Tensor  # [1,3,H,W] in [-1,1]
    original: Tensor  # [1,3,H0,W0], before it was scaled down
    extras: Extras  # what a file has beside its colours

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def read_picture(path: Path, max_side: int | None) -> Picture:
    """Scaled down if its longer side has more than `max_side` pixels. Raises UserError if it is not a picture."""
    (image, extras) = read_with_extras(path)
    image = original = image[None]
    if max_side is not None:
        scale = max_side / max(image.shape[-2:])
        if scale < 1:
            size = [max(1, round(side * scale)) for side in image.shape[-2:]]
            image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return Picture(image, original, extras)
