"""Tables as people have them: CSV of any spreadsheet, JSON or JSONL. No torch here: the command line imports it."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dds_train.errors import UserError

DELIMITERS = ",;\t"
Row = tuple[int, dict[str, Any]]  # line, and cells by column


def read_table(path: Path, key_column: str) -> list[Row]:
    """Rows of a .csv or .tsv file with a header, or of objects in a .json or .jsonl file; without cells that are empty.

    Commas, semicolons and tabs separate cells; names of columns count in lower case and without blanks around them. A column
    without a name is left out if it numbers the rows, and so are rows without any cell.

    Args:
        key_column: a column that every such file has, by which its separator is found.

    Raises:
        UserError: naming file and line, for what cannot be parsed, or is there twice.
    """
    text = decoded(path)
    try:
        rows = list(json_rows(path, text) if path.suffix.lower() in (".json", ".jsonl") else csv_rows(text, key_column))
    except TableError as error:
        raise UserError(f"{path}: {error}") from error
    rows = [(number, {name: cell for name, cell in cells.items() if not is_empty(cell)}) for number, cells in rows]
    return [(number, cells) for number, cells in rows if cells]


class TableError(ValueError):
    """What is wrong with a line."""


def decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
        utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: cannot be read as UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def is_empty(cell: Any) -> bool:
    """Also what pandas writes for no value."""
    return cell is None or cell != cell or (isinstance(cell, str) and cell.strip() in ("", "NaN"))


# ---------------------------------------------------------------- CSV


def csv_rows(text: str, key_column: str) -> Iterator[Row]:
    said = text.startswith("sep=") and text.partition("\n")[0]  # Excel's own line
    skipped = text.partition("\n")[2] if said else text
    delimiter = said[4:5] if said else next((one for one in DELIMITERS if key_column in header(text, one)), ",")
    reader = csv.reader(io.StringIO(skipped, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            number = reader.line_num + bool(said)
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip().lower() for cell in cells]
                check_names([name for name in names if name], number)
                continue
            extra = [cell for cell in cells[len(names) :] if cell.strip()]
            unnamed = [cell for name, cell in zip(names, cells, strict=False) if not name and not is_number(cell)]
            if extra or unnamed:
                raise TableError(
                    f"line {number}: unknown column, of {(extra + unnamed)[0]!r}; quote cells that have a {delimiter!r}"
                )
            yield number, {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name}
    except csv.Error as error:
        raise TableError(f"line {reader.line_num + bool(said)}: {error}") from error


def header(text: str, delimiter: str) -> list[str]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return [cell.strip().strip('"').strip().lower() for cell in first.split(delimiter)]


def is_number(cell: str) -> bool:
    return not cell.strip() or cell.strip().isdecimal()


def check_names(names: list[str], number: int) -> None:
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice is not None:
        raise TableError(f"line {number}: the column {twice} is there twice")


# ---------------------------------------------------------------- JSON


def json_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of a list of objects, or of one object a line."""
    lines = enumerate(text.split("\n"), start=1)  # not splitlines, which also splits at U+2028 and the like
    if text.lstrip().startswith("["):
        content = parsed(text, 1)
        lines = ((number, one) for number, one in enumerate(content, start=1))  # type: ignore[assignment]
    for number, line in lines:
        if isinstance(line, str) and not line.strip():
            continue
        fields = parsed(line, number) if isinstance(line, str) else line
        if not isinstance(fields, dict):
            raise TableError(f"line {number}: give an object such as {{...}}")
        yield number, fields


def parsed(text: str, number: int) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name.strip().lower() for name, _ in pairs]
        check_names(names, number)
        return dict(zip(names, (value for _, value in pairs), strict=True))

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TableError(f"line {number}: not JSON ({error})") from error
