"""Edits of image files by a trained translator, with masks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter, itemgetter
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dds_train.errors import UserError
from dds_train.images.edit_list import is_edit_list, read_edit_list
from dds_train.images.files import file_suffix, save_image
from dds_train.images.find import RESERVED, find_inputs, unique_name
from dds_train.images.input_image import InputImage, header_size, read_input_image
from dds_train.images.mask_image import read_mask
from dds_train.images.masks import AUTO, MaskFinder
from dds_train.images.streaming import WriteBehind, batches, within_memory
from dds_train.methods.masking import Masking, upscaled
from dds_train.methods.masks import automatic_mask
from dds_train.methods.outcome import Outcome
from dds_train.runs.digest import digest, file_digest
from dds_train.runs.files import relative_name
from dds_train.runs.record import Record
from dds_train.translator import Task
from dds_train.translator.pipeline import Translator


@dataclass(frozen=True)
class TranslationRequest:
    """One image file to translate."""

    image: Path
    mask: str | None  # a path, or "auto"; None = everywhere
    name: str  # of its result, without extension
    same_format: bool  # of the result as of the image; else PNG

    @cached_property
    def result(self) -> str:
        """File name, relative to the output folder. Raises UserError as `file_suffix` does."""
        return relative_name(f"{self.name}{file_suffix(self.image) if self.same_format else '.png'}")

    def digest(self) -> str:
        """The identity of its files."""
        return digest([file_digest(self.image), self.mask if self.mask in (None, AUTO) else file_digest(str(self.mask))])


def plan_translations(
    spec: str | Sequence[str], mask: str | None, task: Task | None, output_dir: Path, same_format: bool
) -> list[TranslationRequest]:
    """A request for each image, named so that no two share a file.

    Args:
        spec: an image file, a folder, a pattern, a list of them, or an edit list, of which images and masks count.
        mask: see `MaskFinder`.
        same_format: results have the inputs' formats, else PNG.

    Raises:
        UserError: for images and masks that are missing, and for lines of a list whose target is not that of `task`.
    """
    masks, used = MaskFinder(mask), Counter(RESERVED)
    if is_edit_list(spec):
        rows = read_edit_list(spec)
        for row in rows:
            if row.target and (task is None or row.target != (task.filled(row.caption or row.source or "")[1],)):
                has = f"has the target {task.target!r}" if task else "has no target"
                raise UserError(f"image={spec}: target={', '.join(row.target)} of {row.image.name}: the task of predict {has}")
        inputs = [(unique_name(row.image.stem, used), row.image, row.mask or masks(row.image)) for row in rows]
    else:
        inputs = [(name, path, masks(path)) for name, path in find_inputs(spec, output_dir)]
    return [TranslationRequest(path, own_mask, name, same_format) for name, path, own_mask in inputs]


def check_origins(requests: Iterable[TranslationRequest], record: Record) -> None:
    """Raise UserError if results of the same names and of other images are there. Opens no image for its format."""
    for request in requests:
        known = {} if request.same_format else record.values(request.result)
        if known and known != record.origin(request.image) and not record.is_done(request.result, request.digest()):
            record.check_origins({request.result: request.image})


@dataclass(frozen=True)
class TranslationItem:
    """A request with what its files hold."""

    request: TranslationRequest
    key: str  # digest of the files
    image: InputImage
    mask: Tensor | None  # [1,1,H,W] at the size of the result; None = everywhere, or automatic


def read_items(
    requests: Iterable[TranslationRequest],
    record: Record,
    masking: Masking,
    max_side: int | None,
    batch_size: int,
    outcome: Outcome,
) -> Iterator[list[TranslationItem]]:
    """Those that `record` lacks, in batches of one size. Files are opened as batches are taken: first the headers of some."""

    def missing() -> Iterator[tuple[TranslationRequest, tuple[int, int]]]:
        for request in requests:
            with outcome.leaving_out(request.image):
                if request.result in record.results and record.is_done(request.result, request.digest()):
                    outcome.found += 1
                else:
                    yield request, header_size(request.image, max_side)

    for batch in batches(missing(), itemgetter(1), lambda size: batch_size):
        items = []
        for request, _ in batch:
            record.check_origins({request.result: request.image})
            with outcome.leaving_out(request.image):
                key, image = request.digest(), read_input_image(request.image, max_side)
                height, width = (image.original if masking.is_exact(request.mask) else image.image).shape[-2:]
                mask = None if request.mask in (None, AUTO) else read_mask(str(request.mask), (height, width))[None]
                items.append(TranslationItem(request, key, image, mask))
        yield from batches(items, attrgetter("image.size"), lambda size: batch_size)  # a header may be off by a pixel


class MaskedTranslator:
    """A translator at one instruction and strength, for images with masks.

    Args:
        task: its source and target prompts say what automatic masks are about.
        seed: of automatic masks.
    """

    def __init__(
        self,
        translator: Translator,
        instruction: str,
        strength: float,
        masking: Masking,
        task: Task | None = None,
        seed: int = 0,
    ) -> None:
        self.translator, self.instruction, self.strength = translator, instruction, strength
        self.masking, self.task, self.seed = masking, task, seed

    def __call__(self, items: Sequence[TranslationItem]) -> list[Tensor]:
        """Results [3,H,W] of images of one size; NaN where the network's output is not finite."""
        images = torch.cat([item.image.image for item in items])
        after = self.translator.translate(images, self.instruction, self.strength)
        exact = [self.masking.is_exact(item.request.mask) for item in items]
        before = self.translator.translate(images, self.instruction, 0.0) if any(exact) else images
        results = list(after)
        for number, item in enumerate(items):
            if exact[number] or item.request.mask is not None:
                base, decoded = (item.image.original, before) if exact[number] else (item.image.image, images)
                size = base.shape[-2], base.shape[-1]
                mask = self._automatic_mask(item.image, size) if item.request.mask == AUTO else item.mask
                pair = decoded[number : number + 1], after[number : number + 1]
                results[number] = self.masking.compose(base, mask, *pair)[0]
        return results

    def _automatic_mask(self, image: InputImage, size: tuple[int, int]) -> Tensor:
        assert self.task is not None, "automatic masks need a task"
        autoencoder, masking = self.translator.autoencoder, self.masking
        table = self.translator.checkpoint.embedded([self.task.source, self.task.target])
        latents = automatic_mask(
            self.translator.checkpoint.teacher(),
            autoencoder.encode(image.image),
            table.condition([self.task.source]),
            table.condition([self.task.target]),
            timestep=masking.timestep,
            maps=masking.maps,
            threshold=masking.threshold,
            seed=self.seed,
        )
        return upscaled(latents, autoencoder.factor, image, size)


def translate_items(
    edit: MaskedTranslator, groups: Iterable[list[TranslationItem]], record: Record, outcome: Outcome, total: int
) -> None:
    """Translate `groups` of items, each of one size, into the folder of `record`; `total` images are to be seen in all."""

    def done(item: TranslationItem) -> None:
        record.add(item.request.result, item.key, values=record.origin(item.request.image))
        outcome.made += 1

    with tqdm(total=total, desc="predict", unit="image") as bar:
        with WriteBehind() as writer:
            for items in groups:
                record.strike(*(item.request.result for item in items))
                for item, result in zip(items, within_memory(edit, items, "give a smaller tile="), strict=True):
                    finite = bool(result.isfinite().all())
                    with outcome.leaving_out(item.request.image):
                        if not finite:
                            raise UserError(f"{item.request.image}: the translator's output is NaN or Inf")
                    if finite:
                        path = record.folder / item.request.result
                        writer.put(partial(save_image, result, path, item.image.alpha_and_profile), partial(done, item))
                bar.update(outcome.count - bar.n)
        bar.update(outcome.count - bar.n)


def results(requests: Iterable[TranslationRequest], record: Record, outcome: Outcome) -> list[tuple[Path, Path]]:
    """Images and their results, without those that failed."""
    failed = {image for image, _ in outcome.failed}
    good = (request for request in requests if str(request.image) not in failed)
    return [(request.image, record.folder / request.result) for request in good if request.result in record.results]
