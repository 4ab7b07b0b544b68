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
from dds_train.images.grids import SHOWN, save_before_after
from dds_train.runs.files import atomic_write

FAILED = "failed.csv"


def stops(on_error: str, spec: str | Sequence[str]) -> bool:
    """Whether an image that fails ends the run: on_error=auto stops for a single file."""
    single = isinstance(spec, str) and os.path.isfile(spec) and not is_edit_list(spec)
    return on_error == "stop" or (on_error == "auto" and single)


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
    def leaving_out(self, image: Path, edits: int = 1) -> Iterator[None]:
        """What goes wrong in this block is the image's own fault, failures of the storage aside; it fails all its `edits`."""
        try:
            yield
        except (UserError, OSError) as error:
            if self.stop:
                raise
            if storage := storage_error(error, str(image)):
                raise storage from error
            self.failed += [(str(image), str(error).removeprefix(f"{image}: "))] * edits

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

    def report(self, folder: Path, pairs: Sequence[tuple[Path, Path]], expected: int, what: str) -> None:
        """Write before_after.png of the first `pairs` of input and result, and failed.csv; without failures there is none.

        Raises:
            PartlyDone: if not all of the `expected` are done.
        """
        shown = pairs[:SHOWN] if what == "image" or len(pairs) > 1 else ()  # an edit has one of its own
        save_before_after(shown, folder / "before_after.png")
        if self.found:
            print(f"{self.found} of {expected} {what}s are in {folder} already")
        more = f"; before and after: {folder / 'before_after.png'}" if shown else ""
        print(f"{len(pairs)} {what}{'' if len(pairs) == 1 else 's'} in {folder}{more}", flush=True)
        (folder / FAILED).unlink(missing_ok=True)
        if self.failed:
            with (
                atomic_write(folder / FAILED) as partial,
                partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
            ):
                csv.writer(file).writerows([("image", "reason"), *sorted({*map(tuple, self.failed)})])
            raise PartlyDone(f"{len(self.failed)} of {expected} {what}s failed; the reasons are in {folder / FAILED}")
        if (missing := expected - len(pairs)) > 0:  # ranks have seen other images, such as new ones
            raise PartlyDone(f"{missing} of {expected} {what}s are missing; run the same command again")
