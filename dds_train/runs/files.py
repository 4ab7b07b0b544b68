"""Files that appear complete or not at all."""

import contextlib
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

HOST = re.sub(r"[^\w.]", "_", platform.node())[:32]
PARTIAL = re.compile(r"\.partial-(?P<host>[\w.]+)-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})(\..*)?")
ABANDONED = 24 * 3600  # seconds without a write after which another machine's partial file has no writer any more
NAME_BYTES = 250  # of a file name: file systems take 255
NOT_IN_NAMES = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udc7f\\udd00-\\udfff]")  # control characters, and what is no character
SIMPLE = re.compile(r"[\w-][\w .()~-]{,99}(/[\w-][\w .()~-]{,99})*", re.ASCII)
_own: set[str] = set()  # tokens of the partial files that this process is writing


@contextlib.contextmanager
def atomic_write(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """A hidden file beside `path`, this block's alone and with the same extension, that replaces `path` when the block ends.

    If the block fails, `path` stays as it was. What a killed process leaves, `remove_leavings` removes.

    Args:
        durable: written through to the disk first, so that it survives a power failure too.
    """
    path, token = Path(path), secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{HOST}-{os.getpid()}-{token}{path.suffix}")
    _own.add(token)
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
        _own.discard(token)


def relative_name(name: str, ending: str = "") -> str:
    """`name`, from wherever it comes, as the path of a file inside a folder: without root, drive, ".." and control characters.

    What is longer than a file name can be is cut, and a digest of all of it appended; an extension stays.

    Args:
        ending: the longest that will be appended to it.
    """
    if SIMPLE.fullmatch(name):  # as a hundred thousand of them are
        return name
    path = Path(NOT_IN_NAMES.sub("_", name))
    parts = [part for part in path.parts if part not in ("..", path.anchor, path.drive)] or ["_"]
    return "/".join([*(_short(part, NAME_BYTES) for part in parts[:-1]), _short(parts[-1], NAME_BYTES - len(ending))])


def _short(part: str, limit: int) -> str:
    content = part.encode(errors="surrogateescape")
    if len(content) <= limit:
        return part
    extension = suffix if len(suffix := os.path.splitext(part)[1]) <= 8 else ""
    ending = f"-{hashlib.sha256(content).hexdigest()[:16]}{extension}"
    return content[: limit - len(ending.encode(errors="surrogateescape"))].decode(errors="ignore") + ending


def remove_leavings(folder: Path) -> None:
    """Remove the partial files below `folder` whose writers are gone."""
    for parent, _, names in os.walk(folder):
        for name in names:
            match = PARTIAL.fullmatch(name)
            if match and not _has_writer(Path(parent, name), match):
                Path(parent, name).unlink(missing_ok=True)


def _has_writer(path: Path, match: re.Match[str]) -> bool:
    pid = int(match["pid"])
    if match["host"] != HOST:
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime < ABANDONED
    return match["token"] in _own if pid == os.getpid() else is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number, zombies aside."""
    with contextlib.suppress(OSError, IndexError):  # Linux
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
