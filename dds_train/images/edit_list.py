"""Edit lists: a table file with one edit request per line. No torch here: the command line imports it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dds_train.errors import UserError
from dds_train.images.table_file import read_table

COLUMNS = ("image", "source", "target", "caption", "mask", "seed", "truth")
EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json")
SEEDS = range(2**32)


@dataclass(frozen=True)
class EditListRow:
    """One line of an edit list; None for what it leaves out."""

    image: Path
    source: str | None = None
    target: tuple[str, ...] | None = None  # prompts of one or several edits of the image
    caption: str | None = None  # what {caption} in a prompt stands for
    mask: str | None = None  # a path, or "auto"
    seed: int | None = None
    truth: str | None = None  # path of the ground truth of the edit, for metrics alone


def is_edit_list(spec: object) -> TypeGuard[str]:
    """Whether `spec` is an edit list, or a folder with one: edits.csv, edits.jsonl and so on."""
    return isinstance(spec, str) and edit_list_path(spec) is not None


def edit_list_path(spec: str | Path) -> Path | None:
    path = Path(spec).expanduser()
    candidates = [path] if path.suffix.lower() in EXTENSIONS else [path / f"edits{extension}" for extension in EXTENSIONS]
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def read_edit_list(spec: str | Path) -> list[EditListRow]:
    """Rows of a table file (see `read_table`), or of edits.csv, edits.jsonl and so on in a folder.

    The columns are image and, optionally, source, target (in JSON also a list), caption, mask, seed and truth. Paths are
    relative to the file; ~ is the home folder.

    Raises:
        UserError: naming file and line, for unknown columns, missing files, and what cannot be parsed.
    """
    path = edit_list_path(spec) or Path(spec).expanduser()
    lines = read_table(path, "image")
    if not lines:
        raise UserError(f"{path}: no lines; give {', '.join(COLUMNS)} (only image is required)")
    return [parse_row(path, number, fields) for number, fields in lines]


def parse_row(path: Path, number: int, fields: dict[str, Any]) -> EditListRow:
    def invalid(reason: str) -> UserError:
        return UserError(f"{path}: line {number}: {reason}")

    def file(column: str, remedy: str = "") -> Path | None:
        cell = fields.get(column)
        if cell is None:
            return None
        for spelling in (cell, cell.replace("\\", "/")) if isinstance(cell, str) else ():  # of Windows
            if os.path.isfile(file := path.parent / Path(spelling).expanduser()):
                return file
        raise invalid(f"{column}={cell!r}: no such file{remedy}")

    # A number that is none, as text; as a prompt it may be a word.
    fields = {name: cell for name, cell in fields.items() if cell != "nan" or name in ("source", "target", "caption")}
    unknown = [str(name) for name in fields if name not in COLUMNS]
    if unknown:
        raise invalid(f"unknown column {', '.join(unknown)}; the columns are {', '.join(COLUMNS)}")
    _, source, target, caption, mask, seed, _ = (fields.get(name) for name in COLUMNS)
    image, truth = file("image"), file("truth")
    if image is None:
        raise invalid("no image")
    targets = [target] if isinstance(target, str) else target
    if targets is not None and not (isinstance(targets, list) and targets and all(isinstance(one, str) for one in targets)):
        raise invalid(f"target={target!r}: give a prompt, or a list of prompts")
    for name, text in (("source", source), ("caption", caption)):
        if text is not None and not isinstance(text, str):
            raise invalid(f"{name}={text!r}: give a prompt")
    if mask != "auto":
        mask = file("mask", "; give one, or auto")
    try:
        value = None if seed is None else float(seed)  # pandas writes 12.0 where a column has gaps
        if isinstance(seed, bool) or (value is not None and not (value.is_integer() and int(value) in SEEDS)):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise invalid(f"seed={seed!r}: give a whole number from 0 to {SEEDS[-1]}") from error
    return EditListRow(
        image=image,
        source=source,
        target=None if targets is None else tuple(targets),
        caption=caption,
        mask=None if mask is None else str(mask),
        seed=None if value is None else int(value),
        truth=None if truth is None else str(truth),
    )
