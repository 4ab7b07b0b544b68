"""What predict and optimize share: their pictures in, their pictures out."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dds_train.runs.digest import file_digest


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
        contents = " ".join(map(file_digest, inputs))
        return {"result": self._name(result), "image": str(inputs[0]), "inputs": contents, "settings": self.settings}

    def _name(self, result: Path) -> str:
        return result.relative_to(self.path.parent).as_posix()
