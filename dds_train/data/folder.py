"""A folder of the user's images."""

import csv
import os
from pathlib import Path

import torch
from torch.utils.data import Dataset

from dds_train.data.source import Sample, image_size
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.images.files import read_image, square_crop
from dds_train.images.find import find_images, root_folder

METADATA = "metadata.csv"


class FolderSource:
    """Images of a folder, scaled and cropped to `size` x `size` pixels.

    Captions are in a text file beside each image (cat.jpg, cat.txt), or in metadata.csv in the folder with the columns
    file_name and text. Only tasks with {caption} in a prompt need them.

    Args:
        path: a folder, searched recursively, or a glob pattern.
        checkpoint: the teacher's, for the size of images.
        size: side in pixels, a multiple of the VAE's downsampling factor; default: the teacher's.

    Raises:
        UserError: if there are no images, or the VAE does not support the size.
    """

    def __init__(self, path: str, checkpoint: DiffusionCheckpoint, size: int | None = None) -> None:
        self.size, self.paths = image_size(checkpoint, size), find_images(path, "data.path")
        self.metadata = root_folder(path) / METADATA

    def prepare(self) -> None:
        """Nothing to prepare."""

    @property
    def captions(self) -> list[str]:
        """The caption of each image.

        Raises:
            UserError: naming the first image that has none.
        """
        listed = read_metadata(self.metadata) if self.metadata.is_file() else {}
        return [self._caption(path, listed) for path in self.paths]

    def dataset(self) -> Dataset[Sample]:
        return FolderDataset(self.paths, self.size)

    def _caption(self, path: Path, listed: dict[str, str]) -> str:
        beside = path.with_suffix(".txt")
        if beside.is_file():
            return " ".join(beside.read_text(encoding="utf-8-sig", errors="replace").split())
        if os.path.abspath(path) not in listed:
            raise UserError(
                f"{path}: no caption, and a task has {{caption}} in its prompts: write {beside.name} beside it, or a line in "
                f"{self.metadata}"
            )
        return listed[os.path.abspath(path)]


def read_metadata(path: Path) -> dict[str, str]:
    """Captions of a metadata.csv by the absolute path of the image. File names are relative to it; ~ is the home folder.

    Raises:
        UserError: if it is not CSV in UTF-8 with the columns file_name and text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file_name", "text"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: requires the columns file_name and text, has {', '.join(reader.fieldnames or ())}")
            return {os.path.abspath(path.parent / Path(row["file_name"]).expanduser()): row["text"] or "" for row in reader}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not CSV in UTF-8 ({error})") from error


class FolderDataset(Dataset[Sample]):
    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def __getitem__(self, index: int) -> Sample:
        image = square_crop(read_image(self.paths[index], 4 * self.size), self.size)
        return {"image": image, "caption": torch.tensor(index)}
