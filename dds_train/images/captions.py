"""Captions of image files: a text file beside each, or a metadata file in the folder."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from dds_train.errors import UserError
from dds_train.images.find import root_folder
from dds_train.images.table_file import decoded, read_table

METADATA = ("metadata.csv", "metadata.jsonl")
BESIDE = (".txt", ".TXT", ".caption")


class CaptionFiles:
    """image file -> its caption: that of a text file beside it (cat.jpg: cat.txt or cat.caption), or of metadata.csv or
    metadata.jsonl in its folder or in those of `specs`.

    Args:
        images: the files, whose folders are looked through once.
        specs: folders or patterns that they come from.

    Raises:
        UserError: naming the image, if it has no caption or an empty one; for a metadata file that cannot be read.
    """

    def __init__(self, images: Sequence[Path], specs: str | Path | Sequence[str]) -> None:
        roots = map(root_folder, [specs] if isinstance(specs, (str, Path)) else specs)
        folders = dict.fromkeys([*roots, *(image.parent for image in images)])
        self.metadata = [folder / name for folder in folders for name in METADATA]

    @cached_property
    def _listed(self) -> dict[str, str]:
        return {path: text for file in self.metadata if file.is_file() for path, text in read_metadata(file).items()}

    def find(self, image: Path) -> str | None:
        """The caption of an image; None if it has none, "" if it is empty."""
        beside = _beside(image)
        return " ".join(decoded(beside).split()) if beside else self._listed.get(os.path.abspath(image))

    def __call__(self, image: Path) -> str:
        text = self.find(image)
        if not text:
            where = _beside(image) or " or ".join(METADATA)
            problem = "no caption" if text is None else f"an empty caption in {where}"
            raise UserError(
                f"{image}: {problem}, and a prompt has {{caption}}: write {image.stem}.txt beside it, or a line in "
                f"{self.metadata[0]}, or give source= and target= without {{caption}}"
            )
        return text


def _beside(image: Path) -> Path | None:
    return next((file for name in BESIDE if (file := image.with_suffix(name)).is_file()), None)


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
