"""Edit lists: a CSV or JSONL file with one edit request per line. No torch here: the command line imports it."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dds_train.errors import UserError

COLUMNS = ("image", "source", "target", "mask", "seed", "truth")
EXTENSIONS = (".csv", ".jsonl")


@dataclass(frozen=True)
class EditListRow:
    """One line of an edit list; None for what it leaves out."""

    image: Path
    source: str | None = None
    target: tuple[str, ...] | None = None  # prompts of one or several edits of the image
    mask: str | None = None  # a path, or "auto"
    seed: int | None = None
    truth: str | None = None  # path of the ground truth of the edit, for metrics alone


def is_edit_list(spec: object) -> TypeGuard[str]:
    """Whether `spec` is an edit list, or a folder with one: edits.csv or edits.jsonl."""
    return isinstance(spec, str) and edit_list_path(spec) is not None


def edit_list_path(spec: str | Path) -> Path | None:
    path = Path(spec).expanduser()
    candidates = [path] if path.suffix.lower() in EXTENSIONS else [path / f"edits{extension}" for extension in EXTENSIONS]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_edit_list(spec: str | Path) -> list[EditListRow]:
    """Rows of a CSV (with a header) or JSONL file, or of edits.csv or edits.jsonl in a folder.

    The columns are image and, optionally, source, target (in JSONL also a list), mask, seed and truth. Paths are relative to
    the file; ~ is the home folder.

    Raises:
        UserError: naming file and line, for unknown columns, missing files, and what cannot be parsed.
    """
    path = edit_list_path(spec) or Path(spec).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    lines = csv_lines(path, text) if path.suffix.lower() == ".csv" else jsonl_lines(path, text)
    if not lines:
        raise UserError(f"{path}: no lines; give {', '.join(COLUMNS)} (only image is required)")
    return [parse_row(path, number, fields) for number, fields in lines]


def csv_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, {name: value or None for name, value in fields.items()}) for fields in reader]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from error


def jsonl_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number}: not JSON ({error})") from error
            if not isinstance(fields, dict):
                raise UserError(f'{path}: line {number}: give an object such as {{"image": "cat.png", "target": "a lion"}}')
            lines.append((number, fields))
    return lines


def parse_row(path: Path, number: int, fields: dict[str, Any]) -> EditListRow:
    def invalid(reason: str) -> UserError:
        return UserError(f"{path}: line {number}: {reason}")

    def file(column: str, remedy: str = "") -> Path | None:
        cell = fields.get(column)
        if cell is None:
            return None
        file = path.parent / Path(cell).expanduser() if isinstance(cell, str) else None
        if file is None or not file.is_file():
            raise invalid(f"{column}={cell!r}: no such file{remedy}")
        return file

    unknown = [str(name) for name in fields if name not in COLUMNS]
    if unknown:
        raise invalid(f"unknown column {', '.join(unknown)}; the columns are {', '.join(COLUMNS)}")
    _, source, target, mask, seed, _ = (fields.get(name) for name in COLUMNS)
    image, truth = file("image"), file("truth")
    if image is None:
        raise invalid("no image")
    targets = [target] if isinstance(target, str) else target
    if targets is not None and not (isinstance(targets, list) and targets and all(isinstance(one, str) for one in targets)):
        raise invalid(f"target={target!r}: give a prompt, or a list of prompts")
    if source is not None and not isinstance(source, str):
        raise invalid(f"source={source!r}: give a prompt")
    if mask != "auto":
        mask = file("mask", "; give one, or auto")
    try:
        seed = None if seed is None else int(seed)
    except (TypeError, ValueError) as error:
        raise invalid(f"seed={seed!r}: give a whole number") from error
    return EditListRow(
        image=image,
        source=source,
        target=None if targets is None else tuple(targets),
        mask=None if mask is None else str(mask),
        seed=seed,
        truth=None if truth is None else str(truth),
    )
