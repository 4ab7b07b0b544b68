"""What predict and optimize share: their pictures in, their pictures out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from dds_train.data.images import read_image
from dds_train.data.paths import find_images


@dataclass(frozen=True)
class Picture:
    image: Tensor  # [1,3,H,W] in [-1,1]
    original: Tensor  # [1,3,H0,W0], before it was scaled down

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def find_pictures(spec: str | Sequence[str]) -> list[tuple[str, Path]]:
    """Names for the results, and paths: of a file, a folder, a pattern, or a list of them."""
    specs = [spec] if isinstance(spec, str) else list(spec)
    paths = list(dict.fromkeys(path for one in specs for path in find_images(one)))
    names: list[str] = []
    for path in paths:
        same = sum(other.stem == path.stem for other in paths)
        name = path.stem if same == 1 else f"{path.stem}-{path.suffix[1:]}"
        number = sum(n == name or n.startswith(f"{name}~") for n in names)
        names.append(name if not number else f"{name}~{number + 1}")
    return list(zip(names, paths, strict=True))


def read_picture(path: Path, max_side: int | None) -> Picture:
    """Scaled down if its longer side has more than `max_side` pixels. Raises UserError if it is not a picture."""
    image = original = read_image(path)[None]
    if max_side is not None:
        scale = max_side / max(image.shape[-2:])
        if scale < 1:
            size = [max(1, round(side * scale)) for side in image.shape[-2:]]
            image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return Picture(image, original)


def check_readable(pictures: Sequence[tuple[str, Path]]) -> None:
    """Read every picture once before any work is done on the first one.

    Raises:
        UserError: naming the first that cannot be read.
    """
    for _, path in pictures:
        read_image(path)
