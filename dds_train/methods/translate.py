"""Edits of image files by a trained translator, with masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dds_train.images.files import save_image
from dds_train.images.input_image import InputImage, read_input_image
from dds_train.images.mask_image import read_mask
from dds_train.images.masks import AUTO
from dds_train.images.streaming import WriteBehind, batches, read_ahead, within_memory
from dds_train.methods.masking import Masking, upscaled
from dds_train.methods.masks import automatic_mask
from dds_train.runs.digest import digest, file_digest
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
        autoencoder, text, masking = self.translator.autoencoder, self.translator.text, self.masking
        latents = automatic_mask(
            self.translator.checkpoint.teacher(),
            autoencoder.encode(image.image),
            text.condition(self.task.source),
            text.condition(self.task.target),
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
