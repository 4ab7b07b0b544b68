"""Edit requests: planned from images or an edit list, and put together in batches."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path

from torch import Tensor

from dds_train.images.captions import CaptionFiles
from dds_train.images.edit_list import EditListRow, is_edit_list, read_edit_list
from dds_train.images.find import RESERVED, find_inputs, unique_name
from dds_train.images.input_image import InputImage, header_size, read_input_image
from dds_train.images.mask_image import read_mask
from dds_train.images.masks import AUTO, MaskFinder
from dds_train.images.streaming import batches
from dds_train.methods.outcome import Outcome
from dds_train.methods.prompts import CaptionedPrompts
from dds_train.runs.digest import digest, file_digest
from dds_train.runs.files import relative_name
from dds_train.runs.record import Record

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
    keys: list[str]  # N * M, digests of the requests

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


def group_edits(requests: Iterable[EditRequest]) -> list[list[EditRequest]]:
    """Requests that share a source branch together."""
    groups: dict[tuple[object, ...], list[EditRequest]] = {}
    for request in requests:
        groups.setdefault(request.shared, []).append(request)
    return list(groups.values())


def missing_edits(groups: Iterable[list[EditRequest]], record: Record, outcome: Outcome) -> list[list[EditRequest]]:
    """What `record` lacks of each of `group_edits`.

    Raises:
        UserError: if a result of the same name and of another image is there.
    """

    def is_missing(request: EditRequest) -> bool:
        with outcome.leaving_out(request.image):
            if request.name not in record.results or not record.is_done(request.name, request.digest()):
                return True
            outcome.found += 1
        return False

    missing = [[request for request in group if is_missing(request)] for group in groups]
    record.check_origins({request.name: request.image for group in missing for request in group})
    return [group for group in missing if group]


def make_batches(
    groups: Iterable[list[EditRequest]], batch_size: int, max_side: int | None, outcome: Outcome
) -> Iterator[Batch]:
    """Groups of `group_edits` that run together: for images of one size, with equally many edits each. Files are opened as
    batches are taken: first the headers of some."""

    def sized() -> Iterator[tuple[int, tuple[int, int], list[EditRequest]]]:
        for group in groups:
            with outcome.leaving_out(group[0].image, len(group)):
                yield len(group), header_size(group[0].image, max_side), group

    for alike in batches(sized(), itemgetter(0, 1), lambda key: max(1, batch_size // key[0])):
        loaded = []
        for _, _, group in alike:
            with outcome.leaving_out(group[0].image, len(group)):
                keys, image = [request.digest() for request in group], read_input_image(group[0].image, max_side)
                loaded.append((group, keys, image, read_request_mask(group[0], image)))
        for same in batches(loaded, lambda one: one[2].size, lambda size: batch_size):  # a header may be off by a pixel
            groups_of, keys_of, images, masks = map(list, zip(*same, strict=True))
            yield Batch([*chain(*groups_of)], images, masks, [*chain(*keys_of)])


def read_request_mask(request: EditRequest, image: InputImage) -> Tensor | None:
    if request.mask is None or request.mask == AUTO:
        return None
    height, width = image.original.shape[-2:]
    return read_mask(request.mask, (height, width))[None]
