"""PIE-Bench (arXiv 2310.01506): 700 images with two prompts and a mask each, in its published layout."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from dds_train.errors import UserError

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
    return isinstance(spec, str) and (Path(spec) / "mapping_file.json").is_file()


def read_pie_bench(folder: str | Path) -> list[PieEntry]:
    """A folder with mapping_file.json and annotation_images/.

    Raises:
        UserError: if one of its files is missing or not in that layout.
    """
    path = Path(folder) / "mapping_file.json"
    try:
        entries = []
        for name, row in json.loads(path.read_text(encoding="utf-8")).items():
            source, target = (row[key].replace("[", "").replace("]", "") for key in ("original_prompt", "editing_prompt"))
            image = Path(folder) / "annotation_images" / row["image_path"]
            entries.append(PieEntry(name, image, source, target, row["mask"]))
            decode_mask(row["mask"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not PIE-Bench's mapping file ({type(error).__name__}: {error})") from error
    missing = next((entry.image for entry in entries if not entry.image.is_file()), None)
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
