"""A folder of the user's images."""

import os
from pathlib import Path

import torch
from torch.utils.data import Dataset

from dds_train.data.source import Sample, image_size
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.images.files import read_image, square_crop
from dds_train.images.find import find_images_and_others, root_folder
from dds_train.images.table_file import decoded, read_table

METADATA = ("metadata.csv", "metadata.jsonl")
BESIDE = (".txt", ".TXT", ".caption")


class FolderSource:
    """Images of a folder, scaled and cropped to `size` x `size` pixels.

    Captions are in a text file beside each image (cat.jpg: cat.txt or cat.caption), or in metadata.csv or metadata.jsonl in the
    folder, or in that of the image, with the columns file_name and text or caption. Only tasks with {caption} in a prompt need
    them.

    Args:
        path: a folder, searched recursively, or a glob pattern.
        checkpoint: the teacher's, for the size of images.
        size: side in pixels, a multiple of the VAE's downsampling factor; default: the teacher's.

    Raises:
        UserError: if there are no images, or the VAE does not support the size.
    """

    def __init__(self, path: str, checkpoint: DiffusionCheckpoint, size: int | None = None) -> None:
        self.size, self.path = image_size(checkpoint, size), path
        self.paths, self.skipped = find_images_and_others(path, "data.path")
        folders = dict.fromkeys([root_folder(path), *(image.parent for image in self.paths)])
        self.metadata = [folder / name for folder in folders for name in METADATA]

    def prepare(self) -> None:
        if self.skipped:
            print(f"note: data.path={self.path}: {self.skipped}", flush=True)

    @property
    def captions(self) -> list[str]:
        """The caption of each image.

        Raises:
            UserError: naming the first image that has none, or an empty one.
        """
        listed = {path: text for file in self.metadata if file.is_file() for path, text in read_metadata(file).items()}
        return [self._caption(path, listed) for path in self.paths]

    def dataset(self) -> Dataset[Sample]:
        return FolderDataset(self.paths, self.size)

    def _caption(self, path: Path, listed: dict[str, str]) -> str:
        beside = next((file for name in BESIDE if (file := path.with_suffix(name)).is_file()), None)
        text = beside and " ".join(decoded(beside).split())
        if text is None:
            text = listed.get(os.path.abspath(path))
        if not text:
            problem = "no caption" if text is None else f"an empty caption in {beside or ' or '.join(METADATA)}"
            raise UserError(
                f"{path}: {problem}, and a task has {{caption}} in its prompts: write {path.stem}.txt beside it, or a line in "
                f"{self.metadata[0]}"
            )
        return text


def read_metadata(path: Path) -> dict[str, str]:
    """Captions of a metadata file by the absolute path of the image; "" where a line has none. File names are relative to it;
    ~ is the home folder.

    Raises:
        UserError: if it is not a table with the columns file_name and text or caption.
    """
    rows = read_table(path, "file_name")
    columns = {name for _, row in rows for name in row}
    column = next((one for one in ("text", "caption") if one in columns), None)
    if "file_name" not in columns or column is None:
        raise UserError(
            f"{path}: requires the columns file_name and text (or caption), has {', '.join(sorted(columns)) or 'none'}"
        )
    captions = {}
    for number, row in rows:
        name, text = row.get("file_name"), row.get(column, "")
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"{path}: line {number}: file_name={name!r} {column}={text!r}: give a file name and a caption")
        captions[os.path.abspath(path.parent / Path(name).expanduser())] = text
    return captions


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
