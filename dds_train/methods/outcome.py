"""What has become of the images of a run: made, there already, or failed, with the reason."""

import contextlib
import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dds_train.data.source import storage_error
from dds_train.errors import PartlyDone, UserError
from dds_train.images.edit_list import is_edit_list
from dds_train.runs.files import atomic_write

FAILED = "failed.csv"


def stops(on_error: str, spec: str | Sequence[str]) -> bool:
    """Whether an image that fails ends the run: on_error=auto stops for a single file."""
    return on_error == "stop" or (on_error == "auto" and isinstance(spec, str) and os.path.isfile(spec) and not is_edit_list(spec))


@dataclass
class Outcome:
    """Of one rank, or of all."""

    stop: bool  # at the first image that fails; else it is left out
    made: int = 0
    found: int = 0  # there already
    failed: list[tuple[str, str]] = field(default_factory=list)  # image, reason

    @property
    def count(self) -> int:
        return self.made + self.found + len(self.failed)

    @contextlib.contextmanager
    def leaving_out(self, image: Path) -> Iterator[None]:
        """What goes wrong in this block is the image's own fault, failures of the storage aside."""
        try:
            yield
        except (UserError, OSError) as error:
            if self.stop:
                raise
            if storage := storage_error(error, str(image)):
                raise storage from error
            self.failed.append((str(image), str(error).removeprefix(f"{image}: ")))

    def values(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @staticmethod
    def of_all(ranks: Iterable[dict[str, Any]]) -> "Outcome":
        """That of all ranks, from the values of each."""
        one, *others = (Outcome(**values) for values in ranks)
        for other in others:
            one.made, one.found, one.failed = one.made + other.made, one.found + other.found, one.failed + other.failed
        return one

    def report(self, folder: Path, expected: int, what: str) -> None:
        """Write failed.csv in `folder`; without failures there is none.

        Raises:
            PartlyDone: if not all of the `expected` are done.
        """
        (folder / FAILED).unlink(missing_ok=True)
        if self.failed:
            with (
                atomic_write(folder / FAILED) as partial,
                partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
            ):
                csv.writer(file).writerows([("image", "reason"), *sorted(self.failed)])
            raise PartlyDone(f"{len(self.failed)} of {expected} {what} failed; the reasons are in {folder / FAILED}")
        if self.count != expected:
            raise PartlyDone(f"{expected - self.count} of {expected} {what} are missing; run the same command again")
