"""What `evaluate` has found so far, on disk: a run that was stopped goes on, and scores that could not be had come later."""

import contextlib
import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dds_train.errors import UserError
from dds_train.runs.record import end_last_line


class Results:
    """A folder of edited pictures, and their scores in results.jsonl, written as soon as they are known.

    Args:
        folder: may hold results of earlier runs.
        settings: group -> name -> what results depend on, such as each editor's and each picture's. Names may come and go
            between runs, but what is there must be as it was.

    Raises:
        UserError: if the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.path = folder, folder / "results.jsonl"
        self.scores: dict[tuple[str, str], dict[str, float]] = {}
        self.claim(settings)
        end_last_line(self.path)
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that a kill has cut
                entry = json.loads(line)
                earlier = {} if entry["made"] else self.scores.get((entry["method"], entry["image"]), {})
                self.scores[entry["method"], entry["image"]] = {**earlier, **entry["scores"]}

    def claim(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """From now on results depend on these settings, too. Raises UserError if earlier ones depend on others."""
        known = self.folder / "settings.json"
        kept: dict[str, dict[str, str]] = json.loads(known.read_text()) if known.exists() else {}
        merged = dict(kept)
        for group, values in settings.items():
            hashes = {name: digest(value) for name, value in values.items()}
            before = kept.get(group, {})
            changed = [name for name in hashes if before.get(name, hashes[name]) != hashes[name]]
            if changed:
                raise UserError(f"output_dir={self.folder}: holds results of another {group} {changed[0]}; take another folder")
            merged[group] = {**before, **hashes}
        self.folder.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(merged, indent=2))

    def picture(self, method: str, image: str) -> Path:
        return self.folder / "pictures" / method.replace("/", "-") / f"{image}.png"

    def of(self, method: str, image: str) -> dict[str, float]:
        """All scores of one result; none if it has not been made yet."""
        return self.scores.get((method, image), {}) if self.picture(method, image).exists() else {}

    def start(self, method: str, image: str, scores: Mapping[str, float]) -> None:
        """The picture was made just now: earlier scores are those of another."""
        self._write(method, image, scores, {}, made=True)

    def add(self, method: str, image: str, scores: Mapping[str, float]) -> None:
        self._write(method, image, scores, self.scores[method, image], made=False)

    def _write(self, method: str, image: str, scores: Mapping[str, float], earlier: Mapping[str, float], made: bool) -> None:
        self.scores[method, image] = {**earlier, **scores}
        with self.path.open("a") as file:
            file.write(json.dumps({"method": method, "image": image, "made": made, "scores": dict(scores)}) + "\n")

    def write_csv(self, methods: Sequence[str], images: Sequence[str]) -> Path:
        """per_image.csv: a line for each picture and editor, a column for each score."""
        rows = [{"image": image, "method": method, **self.of(method, image)} for image in images for method in methods]
        with (self.folder / "per_image.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        return self.folder / "per_image.csv"


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
