"""Digests of plain data and of files: the identity of settings, weights and results."""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dds_train.errors import UserError

CACHE_FROM = 2**24  # bytes; of smaller files, such as results by the thousand, this process remembers the last ones
REMEMBERED = 1024
SETTLED = 2.0  # seconds after which a file's time tells its next change apart from its last one
_remembered: dict[tuple[Path, str], dict[str, Any]] = {}


def digest(value: Any) -> str:
    """SHA-256 of plain data as canonical JSON: the same for any order of keys, and for tuples and lists."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of all bytes of a file."""
    value: str = cached_by_file(path, "sha256", sha256)
    return value


def cached_by_file(path: str | Path, what: str, compute: Callable[[Path], Any]) -> Any:
    """`compute(path)`, plain data that depends on the content of the file alone; `what` names it.

    Those of large files are cached by path, size and time in the folder of `cache_folder`, others in this process; whatever is
    wrong with that folder costs time and nothing else.
    """
    path = Path(path).absolute()
    before = file_identity(path)
    entry = None
    with contextlib.suppress(UserError):
        if before["size"] >= CACHE_FROM:
            entry = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.{what}.json"
    known = _read_entry(entry) if entry else _remembered.get((path, what))
    if known and known["file"] == before and what in known:
        return known[what]
    value = compute(path)
    settled = time.time() - max(before["mtime_ns"], before["ctime_ns"]) / 1e9 > SETTLED
    if settled and file_identity(path) == before:
        if entry:
            with contextlib.suppress(OSError):
                _write_entry(entry, {"file": before, what: value})
        else:
            _remembered[path, what] = {"file": before, what: value}
            if len(_remembered) > REMEMBERED:
                del _remembered[next(iter(_remembered))]
    return value


def sha256(path: Path) -> str:
    """`file_digest` of the bytes that are on the disk now, whatever is cached."""
    value = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            value.update(block)
    return value.hexdigest()


def cache_folder() -> Path:
    """The folder of everything that can be computed again: $DDS_CACHE, or ~/.cache/dds_train.

    Raises:
        UserError: if nobody knows where the home folder is.
    """
    try:
        return Path(os.environ.get("DDS_CACHE") or "~/.cache/dds_train").expanduser().absolute()
    except RuntimeError as error:
        raise UserError("no home folder for the cache; set the environment variable DDS_CACHE to a folder") from error


def file_identity(path: Path) -> dict[str, Any]:
    """What changes whenever a file of this path does. Raises OSError if there is none."""
    # The inode and its time as well: tools that keep modification times (cp -p, rsync -t, tar) change these.
    stat = path.stat()
    return {
        "path": str(path),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _read_entry(entry: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(entry.read_text(encoding="utf-8"))
        return known if known["file"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_entry(entry: Path, content: dict[str, Any]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = entry.with_name(f".{secrets.token_hex(8)}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, entry)
