"""PIE-Bench (arXiv 2310.01506): 700 images with two prompts and a mask each, in its published layout."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from dds_train.errors import UserError
from dds_train.images.find import unique_name
from dds_train.runs.files import relative_name

SIZE = 512  # pixels of a side, of every image


@dataclass(frozen=True)
class PieEntry:
    name: str
    image: Path
    source: str
    target: str
    runs: Sequence[int]  # the mask, see `decode_mask`

    @property
    def mask(self) -> Tensor:
        """[1,1,512,512] in {0,1}, 1 where the edit belongs; for metrics alone."""
        return decode_mask(self.runs)


def is_pie_bench(spec: object) -> TypeGuard[str]:
    return isinstance(spec, str) and os.path.isfile(Path(spec).expanduser() / "mapping_file.json")


def read_pie_bench(folder: str | Path) -> list[PieEntry]:
    """A folder with mapping_file.json and annotation_images/.

    Raises:
        UserError: if one of its files is missing or not in that layout.
    """
    path = Path(folder) / "mapping_file.json"
    try:
        entries = []
        used: Counter[str] = Counter()
        for key, row in json.loads(path.read_text(encoding="utf-8")).items():
            source, target = (row[key].replace("[", "").replace("]", "") for key in ("original_prompt", "editing_prompt"))
            inside = Path(row["image_path"])
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"image_path={inside} leaves the folder")
            image = Path(folder) / "annotation_images" / inside
            entries.append(PieEntry(unique_name(relative_name(key), used), image, source, target, row["mask"]))
            decode_mask(row["mask"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not PIE-Bench's mapping file ({type(error).__name__}: {error})") from error
    missing = next((entry.image for entry in entries if not os.path.isfile(entry.image)), None)
    if missing:
        raise UserError(f"{missing}: no such file; give the folder with mapping_file.json and annotation_images/")
    return entries


def decode_mask(runs: Sequence[int]) -> Tensor:
    """(start, length, start, length ...) over the rows of the image -> [1,1,512,512]. The border counts as edited, as in the
    authors' evaluation: annotations err there."""
    flat = torch.zeros(SIZE * SIZE)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = 1
    mask = flat.view(1, 1, SIZE, SIZE)
    mask[..., [0, -1], :] = mask[..., [0, -1]] = 1
    return mask
