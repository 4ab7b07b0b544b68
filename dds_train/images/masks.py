"""Masks of images by file name. No torch here: the command line imports it."""

import os
from collections import defaultdict
from pathlib import Path

from dds_train.errors import UserError
from dds_train.images.find import find_images

AUTO = "auto"
SUFFIXES = ("_mask", "-mask", ".mask")


class MaskFinder:
    """Masks by image, from the value of `mask=`: None, "auto", one file for all images, or a folder of masks.

    In a folder, a mask has the name of its image, in the same sub-folder (photos/a/cat.jpg: a/cat.png) or in none, with any
    image extension; if there is no such file, the name with the suffix _mask, -mask or .mask. The folder is listed once.

    Raises:
        UserError: if there is no such file or folder, or no image in it.
    """

    def __init__(self, spec: str | None) -> None:
        self._one = spec  # for all images, unless the folder's files are listed below
        self._masks: dict[str, list[Path]] = defaultdict(list)  # path in the folder, without extension -> files
        self._image_of: dict[Path, Path] = {}
        if spec is None or spec == AUTO:
            return
        path = Path(spec).expanduser()
        if not os.path.isfile(path) and not os.path.isdir(path):  # a pipe could not be read twice
            raise UserError(f"mask={spec}: no such file or folder; give an image, a folder of them, or auto")
        self._one = str(path)
        for mask in find_images(path, "mask") if path.is_dir() else ():
            self._masks[mask.relative_to(path).with_suffix("").as_posix()].append(mask)

    def __call__(self, image: Path) -> str | None:
        """Path of the mask of `image`, "auto", or None.

        Raises:
            UserError: if the folder has no mask of that name, several of them, or one that an image of another folder has too.
        """
        if not self._masks:
            return self._one
        candidates = next(filter(None, (self._named(name, image) for name in tails(image))), [])
        if not candidates:
            raise UserError(f"mask={self._one}: no mask named {image.stem}.* or {image.stem}_mask.* there for {image}")
        if len(candidates) > 1:
            raise UserError(f"mask={self._one}: two masks of {image}: {candidates[0]} and {candidates[1]}; keep one")
        other = self._image_of.setdefault(candidates[0], image)
        if other.parent != image.parent and not other.parent.samefile(image.parent):
            raise UserError(f"{candidates[0]}: the mask of both {other} and {image}; put it into the sub-folder of one of them")
        return str(candidates[0])

    def _named(self, name: str, image: Path) -> list[Path]:
        """Masks of `image` in the place `name`: those of the exact name, else those with a suffix. An image is not its own."""
        for spellings in ([name], [f"{name}{suffix}" for suffix in SUFFIXES]):
            masks = [mask for spelling in spellings for mask in self._masks.get(spelling, ()) if not mask.samefile(image)]
            if masks:
                return masks
        return []


def tails(image: Path) -> list[str]:
    """Ends of a path without extension, the longest first: "photos/a/cat", "a/cat", "cat"."""
    parts = image.with_suffix("").parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
