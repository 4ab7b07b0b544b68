"""Edit requests: planned from images or an edit list, and put together in batches."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from torch import Tensor

from dds_train.images.captions import CaptionFiles
from dds_train.images.edit_list import EditListRow, is_edit_list, read_edit_list
from dds_train.images.find import RESERVED, find_inputs, unique_name
from dds_train.images.input_image import InputImage, read_input_image
from dds_train.images.mask_image import read_mask
from dds_train.images.masks import AUTO, MaskFinder
from dds_train.methods.prompts import CaptionedPrompts
from dds_train.runs.digest import digest, file_digest
from dds_train.runs.files import relative_name

PARTS = ("", "_steps", "_mask", "_before_after")  # ends of the names of a result's files


@dataclass(frozen=True)
class EditRequest:
    """One edit of one image."""

    name: str  # of its files
    image: Path
    source: str  # prompt
    target: str  # prompt
    mask: str | None  # a path, or "auto"; None = everywhere
    seed: int

    @property
    def shared(self) -> tuple[object, ...]:
        """What edits must have in common to share a source branch."""
        return self.image, self.source, self.mask, self.seed

    def digest(self) -> str:
        """The identity of prompts, seed and files; their paths do not matter."""
        mask = self.mask if self.mask in (None, AUTO) else file_digest(str(self.mask))
        return digest([file_digest(self.image), self.source, self.target, mask, self.seed])


@dataclass(frozen=True)
class Batch:
    """N images of one size, with M requests each; those of an image follow one another."""

    requests: list[EditRequest]  # N * M
    images: list[InputImage]  # N
    masks: list[Tensor | None]  # N, each [1,1,H,W] in [0,1] at the image's own resolution; None = everywhere, or automatic

    @property
    def edits_each(self) -> int:
        """M."""
        return len(self.requests) // len(self.images)

    @property
    def firsts(self) -> list[EditRequest]:
        """One request of each image."""
        return self.requests[:: self.edits_each]


def plan_edits(
    spec: str | Sequence[str],
    source: str | None,
    target: str | Sequence[str] | None,
    mask: str | None,
    seed: int,
    output_dir: str | Path,
    swap: Mapping[str, str] | None = None,
) -> list[EditRequest]:
    """Requests for each image and each target, named so that no two share a file.

    Args:
        spec: an image file, a folder, a pattern, a list of them, or an edit list, whose lines take precedence over the rest.
        source, target: prompts; {caption} in them is that of the line, or of the image's files (`CaptionFiles`).
        mask: see `MaskFinder`.
        swap: words of captions, and what stands for them in the target.

    Raises:
        UserError: for images, masks and captions that are missing, and captions without a word to swap.
    """
    targets = [target] if isinstance(target, str) or target is None else list(target)
    masks = MaskFinder(mask)
    if is_edit_list(spec):
        rows = [(row.image.stem, row) for row in read_edit_list(spec)]
    else:
        rows = [(name, EditListRow(path)) for name, path in find_inputs(spec, output_dir)]
    prompts = CaptionedPrompts(CaptionFiles([row.image for _, row in rows], spec), swap)
    used, with_target = Counter(RESERVED), is_edit_list(spec) or len(targets) > 1
    requests = []
    for name, row in rows:
        own_mask = row.mask or masks(row.image)
        for one in row.target or targets:
            before, after = prompts(row.image, str(row.source or source), str(one), row.caption)
            own_name = unique_name(f"{name}-{slug(after)}" if with_target else name, used, PARTS)
            requests.append(
                EditRequest(
                    name=relative_name(own_name, f"{PARTS[-1]}.png"),
                    image=row.image,
                    source=before,
                    target=after,
                    mask=own_mask,
                    seed=seed if row.seed is None else row.seed,
                )
            )
    return requests


def slug(text: str) -> str:
    """A prompt as part of a file name: "a photo of a lion" -> "a-photo-of-a-lion"."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60] or "edit"


def make_batches(requests: Sequence[EditRequest], batch_size: int, max_side: int | None) -> list[list[EditRequest]]:
    """Requests that run together: for images of one size, with equally many edits each. Reads every image and mask once.

    Raises:
        UserError: naming the first file that cannot be read, before any edit is made.
    """
    groups: dict[tuple[object, ...], list[EditRequest]] = {}
    for request in requests:
        groups.setdefault(request.shared, []).append(request)
    shapes: dict[tuple[object, ...], tuple[int, int, int]] = {}
    for shared, group in groups.items():
        image = read_input_image(group[0].image, max_side)
        read_request_mask(group[0], image)
        shapes[shared] = (*image.size, len(group))
    ordered = sorted(groups.values(), key=lambda group: shapes[group[0].shared])
    batches = []
    for (_, _, each), alike in groupby(ordered, key=lambda group: shapes[group[0].shared]):
        count, same = max(1, batch_size // each), list(alike)
        for start in range(0, len(same), count):
            batches.append([request for group in same[start : start + count] for request in group])
    return batches


def load_batch(requests: list[EditRequest], max_side: int | None) -> Batch:
    """One of `make_batches`."""
    firsts = [next(group) for _, group in groupby(requests, key=lambda request: request.shared)]
    images = [read_input_image(request.image, max_side) for request in firsts]
    masks = [read_request_mask(request, image) for request, image in zip(firsts, images, strict=True)]
    return Batch(requests, images, masks)


def read_request_mask(request: EditRequest, image: InputImage) -> Tensor | None:
    if request.mask is None or request.mask == AUTO:
        return None
    height, width = image.original.shape[-2:]
    return read_mask(request.mask, (height, width))[None]
