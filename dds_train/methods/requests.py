"""What `optimize` has to do: which edits, in which batches, and which are done already."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dds_train.images.edit_list import is_edit_list, read_edit_list
from dds_train.images.files import read_mask
from dds_train.images.find import find_inputs
from dds_train.images.input_image import InputImage, read_input_image
from dds_train.images.masks import AUTO, MaskFinder
from dds_train.runs.digest import file_digest


@dataclass(frozen=True)
class EditRequest:
    """One target for one picture."""

    name: str  # of its files
    image: Path
    source: str
    target: str
    mask: str | None  # a picture, or "auto"; None = everywhere
    seed: int

    @property
    def shared(self) -> tuple[object, ...]:
        """Edits that have this in common share a source branch."""
        return self.image, self.source, self.mask, self.seed


@dataclass(frozen=True)
class Batch:
    """N pictures of one size, with M edits each; those of a picture follow one another."""

    edits: list[EditRequest]  # N * M
    pictures: list[InputImage]  # N
    masks: list[Tensor | None]  # N, each [1,1,H,W] in [0,1] at the picture's own resolution; None = everywhere, or automatic

    @property
    def edits_each(self) -> int:
        """M."""
        return len(self.edits) // len(self.pictures)

    @property
    def firsts(self) -> list[EditRequest]:
        """One edit of each picture."""
        return self.edits[:: self.edits_each]

    def picture_of(self, number: int) -> InputImage:
        return self.pictures[number // self.edits_each]

    def mask_of(self, number: int) -> Tensor | None:
        return self.masks[number // self.edits_each]


def plan_edits(cfg: DictConfig) -> list[EditRequest]:
    """`cfg` is that of optimize: its image is a picture, several, or a manifest with a line for each edit.

    Raises:
        UserError: for masks and pictures that are not there.
    """
    targets = [str(t) for t in cfg.target] if OmegaConf.is_list(cfg.target) else [cfg.target]
    masks = MaskFinder(cfg.mask)
    if not is_edit_list(cfg.image):
        pictures = find_inputs(cfg.image, cfg.output_dir)
        rows = [(n, p, cfg.source, targets, masks(p), cfg.seed, len(targets) > 1) for n, p in pictures]
    else:
        rows = []
        for entry in read_edit_list(cfg.image):
            mask = entry.mask or masks(entry.image)
            seed = cfg.seed if entry.seed is None else entry.seed
            wanted = list(entry.target or targets)
            rows.append((entry.image.stem, entry.image, entry.source or cfg.source, wanted, mask, seed, True))
    edits: list[EditRequest] = []
    used: dict[str, int] = {}
    for name, path, source, wanted, mask, seed, with_target in rows:
        for target in wanted:
            full = f"{name}-{slug(target)}" if with_target else name
            used[full] = used.get(full, 0) + 1
            unique = full if used[full] == 1 else f"{full}~{used[full]}"
            edits.append(EditRequest(unique, path, str(source), str(target), mask, int(seed)))
    return edits


def slug(text: str) -> str:
    """Words for a file name: "a photo of a lion" -> "a-photo-of-a-lion"."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60] or "edit"


def keeps_background(choice: bool | str, mask: str | None) -> bool:
    """What `exact_background` means for an edit: auto, where there is a mask."""
    return choice is True or (choice == AUTO and mask is not None)


def make_batches(edits: Sequence[EditRequest], batch_size: int, max_side: int | None) -> list[list[EditRequest]]:
    """The edits that run together: of pictures of one size, with equally many edits each. Reads every picture and mask once.

    Raises:
        UserError: naming the first that cannot be read, before any work is done on others.
    """
    groups: dict[tuple[object, ...], list[EditRequest]] = {}
    for edit in edits:
        groups.setdefault(edit.shared, []).append(edit)
    kinds: dict[tuple[object, ...], tuple[int, int, int]] = {}
    for shared, group in groups.items():
        picture = read_input_image(group[0].image, max_side)
        read_edit_mask(group[0], picture)
        kinds[shared] = (*picture.size, len(group))
    ordered = sorted(groups.values(), key=lambda group: kinds[group[0].shared])
    batches = []
    for (_, _, each), alike in groupby(ordered, key=lambda group: kinds[group[0].shared]):
        batched_call, some = max(1, batch_size // each), list(alike)
        for start in range(0, len(some), batched_call):
            batches.append([edit for group in some[start : start + batched_call] for edit in group])
    return batches


def load_batch(edits: list[EditRequest], max_side: int | None) -> Batch:
    """`edits` as `make_batches` puts them together."""
    firsts = [next(group) for _, group in groupby(edits, key=lambda edit: edit.shared)]
    pictures = [read_input_image(edit.image, max_side) for edit in firsts]
    masks = [read_edit_mask(edit, picture) for edit, picture in zip(firsts, pictures, strict=True)]
    return Batch(edits, pictures, masks)


def read_edit_mask(edit: EditRequest, picture: InputImage) -> Tensor | None:
    if edit.mask is None or edit.mask == AUTO:
        return None
    height, width = picture.original.shape[-2:]
    return read_mask(edit.mask, (height, width))[None]


# ---------------------------------------------------------------- what is done already


def settings(edit: EditRequest, common: Mapping[str, Any]) -> dict[str, Any]:
    """All that determines an edit's pixels: its own part, with the contents of its files, and `common` ones."""
    mask = edit.mask if edit.mask in (None, AUTO) else {"path": edit.mask, "sha256": file_digest(Path(edit.mask))}
    own = {
        "image": {"path": str(edit.image), "sha256": file_digest(edit.image)},
        "source": edit.source,
        "target": edit.target,
        "mask": mask,
        "seed": edit.seed,
    }
    return {**own, **common}


def is_done(output_dir: Path, edit: EditRequest, wanted: Mapping[str, Any]) -> bool:
    """Whether an earlier run has made this edit with these settings."""
    try:
        record = json.loads((output_dir / f"{edit.name}.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return record.get("settings") == wanted and (output_dir / f"{edit.name}.png").exists()
