"""Captions of images that have none, by a model that describes images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from dds_train import hub
from dds_train.errors import UserError, first_line
from dds_train.images.files import read_image, to_pil
from dds_train.runs.digest import cache_folder, digest, file_digest
from dds_train.runs.files import atomic_write

BATCH = 8
MAX_TOKENS = 40
MAX_SIDE = 512  # pixels; these models see images of 224 to 480


class Captioner:
    """Captions by a captioning model of transformers (BLIP, GIT, BLIP-2), cached by image and model.

    Args:
        name: a hub id, or a folder.
        device: where it runs.

    Raises:
        UserError: if it cannot be loaded, or describes an image in no words.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name, self.device = name, device
        self.folder = cache_folder() / "captions" / digest(name)[:16]

    def __call__(self, images: Sequence[Path]) -> list[str]:
        files = {image: self.folder / f"{file_digest(image)[:32]}.txt" for image in images}
        missing = [image for image in images if not files[image].is_file()]
        if missing:
            print(f"captioning {len(missing)} images with {self.name}", flush=True)
            self._describe(missing, files)
        return [files[image].read_text(encoding="utf-8") for image in images]

    @torch.no_grad()
    def _describe(self, images: Sequence[Path], files: dict[Path, Path]) -> None:
        offline = not hub.reachable()
        try:
            model = AutoModelForImageTextToText.from_pretrained(self.name, local_files_only=offline).eval().to(self.device)
            processor = AutoProcessor.from_pretrained(self.name, local_files_only=offline)
        except (OSError, ValueError) as error:
            raise UserError(
                f"data.captioner={self.name}: not a captioning model that can be loaded; give a folder or hub id such as "
                f"Salesforce/blip-image-captioning-base ({first_line(error)})"
            ) from error
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            inputs = processor(images=[to_pil(read_image(path, MAX_SIDE)) for path in batch], return_tensors="pt")
            tokens = model.generate(**inputs.to(self.device), max_new_tokens=MAX_TOKENS, do_sample=False)
            for path, text in zip(batch, processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
                if not text.strip():
                    raise UserError(f"data.captioner={self.name}: no words for {path}; write {path.stem}.txt beside it")
                with atomic_write(files[path]) as file:
                    file.write_text(" ".join(text.split()), encoding="utf-8")
