"""One run at a time in a folder, of one process or of the ranks of one launch.

FOLDER/.lock          held by rank 0 as long as it works in the folder; .lock.json says who that is
FOLDER/.lock.rank-N   held by rank N, which rank 0 admits; .lock.rank-N.json says who that is and, at last, what it has to tell
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dds_train.errors import UserError
from dds_train.runs.files import HOST, atomic_write, is_alive
from dds_train.runs.ranks import Ranks

LOCK, CLAIM = ".lock", ".claim.lock"
PATIENCE = 15.0  # seconds that the processes of a killed run may take to end
ARRIVAL = 300.0  # seconds that the ranks of a launch may begin apart
POLL = 0.2


@contextlib.contextmanager
def locked(folder: Path, command: str, ranks: Ranks) -> Iterator[None]:
    """`folder`, which is made, as this launch's alone.

    Raises:
        UserError: if another one works there, rank 0 of this one does not come, or nobody can write there.
    """
    path = _lock_path(folder, ranks.rank)
    with _made(folder) if ranks.rank == 0 else contextlib.nullcontext():
        if ranks.rank:
            _await_first(folder, ranks)
        lock = _acquired(path, folder)
        try:
            for other in sorted(folder.glob(f"{LOCK}.rank-*")) if ranks.rank == 0 else ():
                if other.suffix != ".json":  # of ranks that outlive their launch
                    _acquired(other, folder).release()
            _write_state(path, ranks, command=command)
            yield
        finally:
            if ranks.rank == 0:
                _state_path(path).unlink(missing_ok=True)
            lock.release()


def tell_first(folder: Path, command: str, ranks: Ranks, value: Any) -> None:
    """Leave a value, plain data, for rank 0."""
    _write_state(_lock_path(folder, ranks.rank), ranks, command=command, value=value)


def told_by(folder: Path, ranks: Ranks, rank: int) -> Any:
    """The value that another rank of this launch leaves for rank 0, which waits for it.

    Raises:
        UserError: if that rank has ended without, or has not come at all.
    """
    path, begun = _lock_path(folder, rank), time.monotonic()
    while True:
        state = _read_state(path)
        here = state.get("launch") == ranks.launch
        if here and "value" not in state and _is_free(path):
            state = _read_state(path)  # it may have ended since
            if "value" not in state:
                raise UserError(f"rank {rank} of {ranks.world} has ended before its share was done; run the same command again")
        if here and "value" in state:
            _state_path(path).unlink(missing_ok=True)
            return state["value"]
        if not here and time.monotonic() - begun > ARRIVAL:
            raise UserError(f"rank {rank} of {ranks.world} has not come; run the same command again")
        time.sleep(POLL)


def _await_first(folder: Path, ranks: Ranks) -> None:
    begun = time.monotonic()
    while _read_state(folder / LOCK).get("launch") != ranks.launch:
        if time.monotonic() - begun > ARRIVAL:
            raise UserError(f"output_dir={folder}: rank 0 of {ranks.world} does not work there; run the same command again")
        time.sleep(POLL)


def _acquired(path: Path, folder: Path) -> FileLock:
    lock, begun = FileLock(path), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout as error:
            # Processes that a killed run has started end a moment after it.
            found = {**dict.fromkeys(("command", "pid", "host", "since"), "unknown"), **_read_state(path)}
            ending = path.name != LOCK or (found["host"] == HOST and not is_alive(int(found["pid"])))
            if not ending or time.monotonic() - begun > PATIENCE:
                raise UserError(
                    f"output_dir={folder}: in use by {found['command']} (process {found['pid']} on {found['host']}, since "
                    f"{found['since']}); wait until it ends, or give another output_dir"
                ) from error
            time.sleep(POLL)
        except OSError as error:
            raise UserError(f"output_dir={folder}: cannot be written ({error.strerror}); give another folder") from error


def _is_free(path: Path) -> bool:
    with contextlib.suppress(Timeout), FileLock(path, timeout=0):
        return True
    return False


def _lock_path(folder: Path, rank: int) -> Path:
    return folder / (f"{LOCK}.rank-{rank}" if rank else LOCK)


def _state_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_state(path: Path, ranks: Ranks, **state: Any) -> None:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    known = {"pid": os.getpid(), "host": HOST, "since": since, "launch": ranks.launch}
    with atomic_write(_state_path(path)) as partial:
        partial.write_text(json.dumps({**known, **state}), encoding="utf-8")


def _read_state(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        state: dict[str, Any] = json.loads(_state_path(path).read_text(encoding="utf-8"))
        return state
    return {}


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """`folder`; gone again, with the parents made for it, if nothing came into it."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={folder}: cannot be made ({error.strerror}); give another folder") from error
    try:
        yield
    finally:
        names = [path.name for path in folder.iterdir()] if new else []
        if new and all(name == CLAIM or name.startswith(LOCK) for name in names):
            for name in names:
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for one in new:
                    one.rmdir()
