"""Edits of image files by a trained translator, with masks."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dds_train.errors import UserError
from dds_train.images.edit_list import is_edit_list, read_edit_list
from dds_train.images.files import file_suffix, save_image
from dds_train.images.find import RESERVED, find_inputs, unique_name
from dds_train.images.input_image import InputImage, read_input_image
from dds_train.images.mask_image import read_mask
from dds_train.images.masks import AUTO, MaskFinder
from dds_train.images.streaming import WriteBehind, batches, read_ahead, within_memory
from dds_train.methods.masking import Masking, upscaled
from dds_train.methods.masks import automatic_mask
from dds_train.runs.digest import digest, file_digest
from dds_train.runs.files import relative_name
from dds_train.translator import Task
from dds_train.translator.pipeline import Translator


@dataclass(frozen=True)
class TranslationRequest:
    """One image file to translate."""

    image: Path
    mask: str | None  # a path, or "auto"; None = everywhere
    result: str  # file name, relative to the output folder

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
    return [
        TranslationRequest(path, own_mask, relative_name(f"{name}{file_suffix(path) if same_format else '.png'}"))
        for name, path, own_mask in inputs
    ]


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

    def __call__(self, items: Sequence[tuple[TranslationRequest, InputImage]]) -> list[Tensor]:
        """Results [3,H,W] of images of one size; NaN where the network's output is not finite."""
        images = torch.cat([image.image for _, image in items])
        after = self.translator.translate(images, self.instruction, self.strength)
        exact = [self.masking.is_exact(request.mask) for request, _ in items]
        before = self.translator.translate(images, self.instruction, 0.0) if any(exact) else images
        results = list(after)
        for number, (request, image) in enumerate(items):
            if exact[number] or request.mask is not None:
                base, decoded = (image.original, before) if exact[number] else (image.image, images)
                mask = self._mask(request, image, (base.shape[-2], base.shape[-1]))
                pair = decoded[number : number + 1], after[number : number + 1]
                results[number] = self.masking.compose(base, mask, *pair)[0]
        return results

    def _mask(self, request: TranslationRequest, image: InputImage, size: tuple[int, int]) -> Tensor | None:
        if request.mask is None:
            return None
        if request.mask != AUTO:
            return read_mask(request.mask, size)[None]
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


def translate_files(
    edit: MaskedTranslator,
    requests: Sequence[TranslationRequest],
    sizes: Mapping[Path, tuple[int, int]],
    folder: Path,
    batch_size: int,
    max_side: int | None,
    done: Callable[[TranslationRequest], None],
) -> list[TranslationRequest]:
    """Translate image files into `folder`, in batches of one size.

    Args:
        sizes: (H, W) of each image, scaled down to `max_side`.
        done: called once a result is written.

    Returns:
        those whose output was NaN or Inf, of which nothing is written.
    """
    failed = []

    def read(batch: Sequence[TranslationRequest]) -> list[InputImage]:
        return [read_input_image(request.image, max_side) for request in batch]

    with tqdm(total=len(requests), desc="predict", unit="image") as bar, WriteBehind() as writer:
        for batch, images in read_ahead(read, batches(requests, lambda request: sizes[request.image], batch_size)):
            results = within_memory(edit, list(zip(batch, images, strict=True)), "give a smaller tile=")
            for request, image, result in zip(batch, images, results, strict=True):
                bar.update()
                if not result.isfinite().all():
                    failed.append(request)
                    continue
                write = partial(save_image, result, folder / request.result, image.alpha_and_profile)
                writer.put(write, partial(done, request))
    return failed
