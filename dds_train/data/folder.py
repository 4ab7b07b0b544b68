"""The user's own pictures."""

import csv
from pathlib import Path

import torch
from torch.utils.data import Dataset

from dds_train.data.source import Sample, image_size
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.images.files import read_image, square_crop
from dds_train.images.find import find_images

METADATA = "metadata.csv"


class FolderSource:
    """Every picture under `path`, scaled and cropped to `size` x `size` pixels.

    Captions, if there are any, stand in a text file beside each picture (cat.jpg, cat.txt), or in the folder's metadata.csv
    with the columns file_name and text. Only tasks that say {caption} need them.

    Args:
        path: a folder, searched to any depth, or a glob pattern.
        pretrained: the teacher, whose codec the pictures must suit.
        size: side in pixels, a multiple of the codec's factor; the teacher's own size if not given.

    Raises:
        UserError: if there are no pictures, or the size does not suit the codec.
    """

    def __init__(self, path: str, checkpoint: DiffusionCheckpoint, size: int | None = None) -> None:
        self.path, self.size = Path(path), image_size(checkpoint, size)
        self.paths = find_images(path, "data.path")

    def prepare(self) -> None:
        """Nothing takes long."""

    @property
    def captions(self) -> list[str]:
        """One for each picture.

        Raises:
            UserError: naming the first picture that has none.
        """
        listed = read_metadata(self.path / METADATA) if (self.path / METADATA).is_file() else {}
        return [self._caption(path, listed) for path in self.paths]

    def dataset(self) -> Dataset[Sample]:
        return _Folder(self.paths, self.size)

    def _caption(self, path: Path, listed: dict[str, str]) -> str:
        beside = path.with_suffix(".txt")
        if beside.is_file():
            return " ".join(beside.read_text().split())
        name = path.relative_to(self.path).as_posix() if self.path.is_dir() else path.name
        if name not in listed:
            raise UserError(
                f"{path}: has no caption, and a task says {{caption}}: write {beside.name} beside it, or a line in {METADATA}"
            )
        return listed[name]


def read_metadata(path: Path) -> dict[str, str]:
    """file_name -> text. Raises UserError if the columns are not there."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"file_name", "text"} <= set(reader.fieldnames or ()):
            raise UserError(f"{path}: needs the columns file_name and text, has {', '.join(reader.fieldnames or ())}")
        return {row["file_name"]: row["text"] for row in reader}


class _Folder(Dataset[Sample]):
    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        image = square_crop(read_image(self.paths[index]), self.size)
        return {"image": image, "caption": torch.tensor(index)}
