"""What predict and optimize share: their pictures in, their pictures out."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dds_train.data.paths import find_images, folder_of
from dds_train.data.pictures import read_picture
from dds_train.errors import UserError


def find_pictures(spec: str | Sequence[str], output_dir: str | Path) -> list[tuple[str, Path]]:
    """Names for the results, and paths: of a file, a folder, a pattern, or a list of them. A name has the picture's own folders
    below the one that was asked for, and no extension unless two would be the same. What lies in `output_dir` is left out.

    Raises:
        UserError: if there are none.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    found = {path: path.relative_to(folder_of(one)).with_suffix("") for one in specs for path in find_images(one)}
    results = Path(output_dir).resolve()
    found = {path: name for path, name in found.items() if results not in path.resolve().parents}
    if not found:
        raise UserError(f"image={spec}: nothing but results of {output_dir} there")
    stems = list(found.values())
    names: list[str] = []
    for path, stem in found.items():
        name = str(stem) if stems.count(stem) == 1 else f"{stem}-{path.suffix[1:]}"
        number = sum(n == name or n.startswith(f"{name}~") for n in names)
        names.append(name if not number else f"{name}~{number + 1}")
    return list(zip(names, found, strict=True))


def check_readable(pictures: Sequence[tuple[str, Path]], max_side: int | None = None) -> dict[Path, tuple[int, int]]:
    """Read every picture once before any work is done on the first one; their sizes, (H, W), scaled down.

    Raises:
        UserError: naming the first that cannot be read.
    """
    return {path: read_picture(path, max_side).size for _, path in pictures}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def end_last_line(path: Path) -> None:
    """What a kill has cut stays a line of its own."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")


class Record:
    """Which results are done: a line for each in the folder's results.jsonl, so that a run that was killed can go on.

    Args:
        folder: of the results.
        settings: all that determines their pixels, but for the pictures themselves.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / "results.jsonl"
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.lines: dict[str, dict[str, str]] = {}
        end_last_line(self.path)
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that a kill has cut
                entry = json.loads(line)
                self.lines[entry["result"]] = entry

    def has(self, result: Path, *inputs: Path) -> bool:
        """Whether `result` was made from these files with these settings, and is still there."""
        return self.lines.get(self._name(result)) == self._entry(result, inputs) and result.exists()

    def add(self, result: Path, *inputs: Path) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(self._entry(result, inputs)) + "\n")

    def _entry(self, result: Path, inputs: Sequence[Path]) -> dict[str, str]:
        contents = " ".join(map(sha256, inputs))
        return {"result": self._name(result), "image": str(inputs[0]), "inputs": contents, "settings": self.settings}

    def _name(self, result: Path) -> str:
        return result.relative_to(self.path.parent).as_posix()
