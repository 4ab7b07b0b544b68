"""The record of what a folder holds, the same for every command: settings and results by digest.

FOLDER/record.jsonl, and record.rank-N.jsonl of other ranks, a line for each event, the last one on a name being the valid one:

{"claim": {SETTINGS}, "command": "predict", "version": ..., "time": ...}
{"result": NAME, "key": DIGEST, "files": {FILE: SHA256}, "values": {...}}    made, from the inputs that the key stands for
{"result": NAME, "values": {...}}                                            more values of it
{"struck": NAME}                                                             about to be made anew
{"turn": N}                                       what follows in this file is later than all of smaller turns in other files
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from dds_train import __version__
from dds_train.errors import UserError
from dds_train.runs.digest import file_digest
from dds_train.runs.files import remove_leavings
from dds_train.runs.lock import CLAIM, locked, tell_first, told_by
from dds_train.runs.ranks import ALONE, Ranks

RECORD, OF_RANK = "record.jsonl", "record.rank-{}.jsonl"
TURN = re.compile(r'\{"turn": (\d+)\}\n')
NONE = object()


class Record:
    """What `folder` holds. As a context manager it is this launch's alone, from the first line of the block to the last:

    with Record(folder, "predict") as record:
        record.claim({"strength": 1.0, ...})
        if not record.is_done("cat.png", key):
            record.strike("cat.png")
            ...
            record.add("cat.png", key)

    Args:
        folder: need not exist yet.
        command: whose results these are.
        ranks: this process among others that work in the folder. Without the name of their launch, the first one locks.

    Raises:
        UserError: at the beginning of the block, if another launch works in the folder, or nobody can write there.
    """

    def __init__(self, folder: str | Path, command: str, ranks: Ranks = ALONE) -> None:
        self.folder, self.command, self.ranks = Path(folder), command, ranks
        self.path = self.folder / (OF_RANK.format(ranks.rank) if ranks.rank else RECORD)
        self.settings: dict[str, Any] = {}
        self.claimed_by: str | None = None
        self.results: dict[str, dict[str, Any]] = {}
        self._stack, self._claims, self._turn = contextlib.ExitStack(), False, 0
        self._load()

    def __enter__(self) -> "Record":
        if self.ranks.rank == 0 or self.ranks.launch:
            self._stack.enter_context(locked(self.folder, self.command, self.ranks))
            end_last_line(self.path)
        if self.ranks.rank == 0 and self.files:
            remove_leavings(self.folder)
        self._load()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stack.close()

    def gather(self, value: Any) -> list[Any] | None:
        """On rank 0 the values (plain data) of all ranks, once each has come here and their records are read; None on others.

        Raises:
            UserError: if a rank has ended before.
        """
        if self.ranks.rank:
            tell_first(self.folder, self.command, self.ranks, value)
            return None
        values = [value, *(told_by(self.folder, self.ranks, rank) for rank in range(1, self.ranks.world))]
        self._load()
        return values

    @property
    def files(self) -> list[Path]:
        """Of this record, those of all ranks."""
        return [path for name in (RECORD, OF_RANK.format("*")) for path in sorted(self.folder.glob(name))]

    # ---------------------------------------------------------------- settings

    def claim(
        self,
        settings: Mapping[str, Any],
        *,
        free: Sequence[str] = (),
        growing: Sequence[str] = (),
        occupied: bool = False,
        remedy: str = "give another output_dir, or delete this one",
    ) -> None:
        """Make the folder that of a run with `settings` (plain data); several claims of a process add up.

        Settings of an earlier run without any results do not count.

        Args:
            free: settings (with all below them) that may differ from those of the results that are there.
            growing: groups whose members may come and go, but not change.
            occupied: there are results besides those of the record, such as checkpoints.

        Raises:
            UserError: if the folder holds results of another command or of other settings; names what differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / CLAIM):  # ranks may come at the same time
            self._load()
            held = self.claimed_by, self.settings
            merged = self.check(settings, free=free, growing=growing, occupied=occupied, remedy=remedy)
            self._claims = True
            if (self.command, merged) != held:
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                self._append({"claim": merged, "command": self.command, "version": __version__, "time": now})

    def check(
        self,
        settings: Mapping[str, Any],
        *,
        free: Sequence[str] = (),
        growing: Sequence[str] = (),
        occupied: bool = False,
        remedy: str = "give another output_dir, or delete this one",
    ) -> dict[str, Any]:
        """`claim` without its effect; the settings that it would record."""
        if occupied and self.claimed_by is None:
            raise UserError(f"output_dir={self.folder}: holds results, and no {RECORD} of their settings; {remedy}")
        binding = bool(self.results) or occupied or self._claims
        if binding and self.claimed_by not in (None, self.command):
            raise UserError(f"output_dir={self.folder}: holds results of {self.claimed_by}; give another output_dir")
        known, plain = self.settings if binding else {}, json.loads(json.dumps(settings))
        merged, differing = {**known, **plain}, []
        for group in plain.keys() & known.keys():
            old, new = known[group], plain[group]
            if group in growing:
                merged[group] = {**old, **new}
                old, new = ({name: one[name] for name in old.keys() & new.keys()} for one in (old, new))
            differing += _differences(dict(_leaves(old, group)), dict(_leaves(new, group)), free)
        if differing:
            shown = ", ".join(sorted(differing)[:8]) + (f" and {len(differing) - 8} more" if len(differing) > 8 else "")
            raise UserError(f"output_dir={self.folder}: holds a run with other settings: {shown}; {remedy}")
        return merged

    def start_over(self, names: Iterable[str]) -> None:
        """Move what an earlier run has left under `names` (glob patterns), and its record, to earlier-1/ and so on."""
        # The record first: see `claim`.
        old = [*self.files, *(path for name in names for path in sorted(self.folder.glob(name)))]
        if old and self.ranks.rank == 0:
            number = 1
            while (folder := self.folder / f"earlier-{number}").exists():
                number += 1
            folder.mkdir()
            for path in old:
                path.rename(folder / path.name)
        self._load()

    # ---------------------------------------------------------------- results

    def is_done(self, name: str, key: str) -> bool:
        """Whether this result was made from what `key` stands for, and its files are as they were made."""
        result = self.results.get(name)
        return (
            result is not None
            and result["key"] == key
            and all(
                (self.folder / file).is_file() and file_digest(self.folder / file) == made
                for file, made in result["files"].items()
            )
        )

    def origin(self, image: Path) -> dict[str, str]:
        """Of a result's values, the image that it is of: a path relative to the folder."""
        return {"image": os.path.relpath(image, self.folder)}

    def check_origins(self, images: Mapping[str, Path]) -> None:
        """Raise UserError if a result of one of these names is there, and is of another image: it is not made anew."""
        for name, image in images.items():
            now = self.origin(image)["image"]
            if name in self.results and (known := self.values(name).get("image")) != now:
                change = f"{name} is there, the result of image={known} (now {now})"
                raise UserError(f"output_dir={self.folder}: {change}; give another output_dir")

    def strike(self, *names: str) -> None:
        """From now on, and until they are added again, these results are not done, whatever happens."""
        lines = [{"struck": name} for name in names if name in self.results]
        if lines:
            self._append(*lines)

    def add(self, name: str, key: str, files: Sequence[str] | None = None, values: Mapping[str, Any] | None = None) -> None:
        """Record a result that has just been made.

        Args:
            key: digest of all that it depends on, beside the settings claimed.
            files: that it consists of, relative to the folder; the one called `name` if not given.
            values: that belong to it, such as scores (plain data).
        """
        made = {file: file_digest(self.folder / file) for file in ([name] if files is None else files)}
        self._append({"result": name, "key": key, "files": made, "values": dict(values or {})})

    def add_values(self, name: str, values: Mapping[str, Any]) -> None:
        """Record more values of a result."""
        self._append({"result": name, "values": dict(values)})

    def values(self, name: str) -> dict[str, Any]:
        """The values of a result; none if it was not made, or struck."""
        return dict(self.results[name]["values"]) if name in self.results else {}

    # ---------------------------------------------------------------- the file

    def _load(self) -> None:
        self.settings, self.claimed_by, self.results = {}, None, {}
        parts = [part for path in self.files for part in _parts(path)]
        for _, lines in sorted(parts, key=itemgetter(0)):
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # cut by a kill
                    self._apply(json.loads(line))
        last = max((turn for turn, _ in parts), default=0)
        self._turn = last + 1 if last or self.ranks != ALONE else 0  # that of what this process writes from now on

    def _apply(self, event: dict[str, Any]) -> None:
        if "claim" in event:
            self.settings, self.claimed_by = dict(event["claim"]), str(event["command"])
        elif "struck" in event:
            self.results.pop(event["struck"], None)
        elif "key" in event:
            self.results[event["result"]] = {part: event[part] for part in ("key", "files", "values")}
        else:
            self.results[event["result"]]["values"].update(event["values"])

    def _append(self, *events: dict[str, Any]) -> None:
        head, self._turn = f'{{"turn": {self._turn}}}\n' if self._turn else "", 0
        with self.path.open("ab", buffering=0) as file:  # one write
            file.write("".join([head, *(f"{json.dumps(event)}\n" for event in events)]).encode())
        for event in events:
            self._apply(json.loads(json.dumps(event)))


def _parts(path: Path) -> list[tuple[int, list[str]]]:
    """Lines of a record by their turns."""
    parts: list[tuple[int, list[str]]] = [(0, [])]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open(errors="replace", encoding="utf-8") as file:
        for line in file:
            if turn := TURN.fullmatch(line):
                parts.append((int(turn[1]), []))
            else:
                parts[-1][1].append(line)
    return parts


def end_last_line(path: Path) -> None:
    """Remove what a kill has cut."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


# ---------------------------------------------------------------- settings that differ


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _leaves(one, f"{name}.{key}")
    else:
        yield name, value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    def is_free(key: str) -> bool:
        return any(key == one or key.startswith(f"{one}.") for one in free)

    keys = [key for key in old.keys() | new.keys() if old.get(key, NONE) != new.get(key, NONE) and not is_free(key)]
    return [f"{key}={_shown(old.get(key, NONE))} (now {_shown(new.get(key, NONE))})" for key in keys]


def _shown(value: Any) -> str:
    if value is NONE:
        return "not there"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]  # a digest
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"
