"""Lists of edits: a CSV or JSONL file with a line for each. No torch here: read before anything is loaded."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dds_train.errors import UserError

COLUMNS = ("image", "source", "target", "mask", "seed", "truth")
EXTENSIONS = {".csv", ".jsonl"}


@dataclass(frozen=True)
class EditLine:
    """One line of a manifest; what it leaves out is None."""

    image: Path
    source: str | None = None
    target: tuple[str, ...] | None = None  # one or several edits of the image
    mask: str | None = None  # a path, or "auto"
    seed: int | None = None
    truth: str | None = None  # a path of the picture that the edit should make, for scores alone


def is_edit_list(spec: object) -> TypeGuard[str]:
    """Whether `spec` is such a file, or a folder that has one: edits.csv or edits.jsonl."""
    return isinstance(spec, str) and edit_list_path(spec) is not None


def edit_list_path(spec: str | Path) -> Path | None:
    path = Path(spec).expanduser()
    candidates = [path] if path.suffix.lower() in EXTENSIONS else [path / f"edits{ending}" for ending in sorted(EXTENSIONS)]
    return next((one for one in candidates if one.is_file()), None)


def read_edit_list(path: str | Path) -> list[EditLine]:
    """The edits that a CSV (with a header) or JSONL file asks for, or edits.csv or edits.jsonl in a folder. Columns are image,
    and if wanted source, target (in JSONL also a list), mask, seed and truth. Paths are relative to the file.

    Raises:
        UserError: naming file and line, for unknown columns, pictures that are not there, and what cannot be read.
    """
    path = edit_list_path(path) or Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    rows = csv_rows(path, text) if path.suffix.lower() == ".csv" else jsonl_rows(path, text)
    if not rows:
        raise UserError(f"{path}: no lines; give {', '.join(COLUMNS)} (only image is needed)")
    return [entry(path, line, row) for line, row in rows]


def csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        return [(reader.line_num, {key: value or None for key, value in row.items()}) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from error


def jsonl_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f'{path}: line {number}: give an object such as {{"image": "cat.png", "target": "a lion"}}')
            rows.append((number, row))
    return rows


def entry(path: Path, line: int, row: dict[str, Any]) -> EditLine:
    def wrong(what: str) -> UserError:
        return UserError(f"{path}: line {line}: {what}")

    unknown = [str(key) for key in row if key not in COLUMNS]
    if unknown:
        raise wrong(f"unknown column {', '.join(unknown)}; there are {', '.join(COLUMNS)}")
    image, source, target, mask, seed, truth = (row.get(name) for name in COLUMNS)
    if not isinstance(image, str):
        raise wrong("no image")
    if not (path.parent / image).is_file():
        raise wrong(f"{path.parent / image}: no such file")
    targets = [target] if isinstance(target, str) else target
    if targets is not None and not (isinstance(targets, list) and targets and all(isinstance(one, str) for one in targets)):
        raise wrong(f"target={target!r}: give a sentence, or several in a list")
    if source is not None and not isinstance(source, str):
        raise wrong(f"source={source!r}: give a sentence")
    if mask is not None and mask != "auto":
        if not isinstance(mask, str) or not (path.parent / mask).is_file():
            raise wrong(f"mask={mask!r}: no such file; give one, or auto")
        mask = str(path.parent / mask)
    if truth is not None:
        if not isinstance(truth, str) or not (path.parent / truth).is_file():
            raise wrong(f"truth={truth!r}: no such file")
        truth = str(path.parent / truth)
    try:
        seed = None if seed is None else int(seed)
    except (TypeError, ValueError) as error:
        raise wrong(f"seed={seed!r}: give a whole number") from error
    return EditLine(path.parent / image, source, None if targets is None else tuple(targets), mask, seed, truth)
