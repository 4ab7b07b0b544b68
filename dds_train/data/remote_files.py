"""Files of web servers, object stores and the hub, fetched whole into a folder of this disk that stays below a limit."""

import contextlib
import hashlib
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
from aiohttp import ClientTimeout
from filelock import FileLock

from dds_train.errors import UserError, first_line
from dds_train.runs.files import atomic_write, remove_leavings

T = TypeVar("T")
TRIES = 7
FIRST_WAIT = 0.5  # seconds before the second try; doubles, so that a server may be away for half a minute
TIMEOUT = 60  # seconds without a byte
CHUNK = 2**23  # bytes of one request
FETCHERS = 4  # threads
PASSING = {408, 425, 429}  # statuses of the client's that pass, as all of 5xx do
VERSIONS = ("ETag", "etag", "blob_id", "Last-Modified", "LastModified", "mtime")  # where file systems tell a file's version
GIB = 2**30


class LostFile(UserError):
    """A remote file that cannot be had: after all tries, or at once if the server does not have it, or not for us (`final`)."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True)
class RemoteShard:
    """A file behind a URL, read through the cache.

    Args:
        size: in bytes; 0 if the server does not tell.
        version: changes with its content.
    """

    url: str
    size: int
    version: str
    cache: "FileCache" = field(compare=False, repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What changes with its content."""
        return {"size": self.size, "version": self.version}

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    def open(self, mode: str = "rb") -> BinaryIO:
        """Raises LostFile if it cannot be had, OSError if the cache cannot be written."""
        while True:
            path = self.cache.fetch(self)
            try:
                return path.open("rb")
            except FileNotFoundError:  # another process has made room
                continue

    def __str__(self) -> str:
        return self.url.partition("?")[0]  # without what may be a signature


@dataclass
class FileCache:
    """Remote files in a folder that several processes share.

    A file appears there when it is complete. Before one is fetched, those that nobody has opened for the longest time go; a
    process still reads what it has open, on Linux and macOS. What a killed process leaves is removed by the next one.
    """

    folder: Path
    limit: int  # bytes
    _lost: dict[str, str] = field(default_factory=dict, repr=False)  # URL -> why; of this process
    _is_down: bool = field(default=False, repr=False)  # whether the last file was lost; then the next gets a single try

    def prepare(self) -> None:
        """Raises UserError if the folder cannot be written."""
        try:
            for folder in (self.folder, self.locks):
                folder.mkdir(parents=True, exist_ok=True)
            remove_leavings(self.folder)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={self.folder}: cannot be written ({error.strerror}); give data.cache_dir=FOLDER"
            ) from error

    def locate(self, url: str) -> RemoteShard:
        """The file of a URL, with its size and version as the server tells them now.

        Raises:
            LostFile: if it does not tell.
        """
        filesystem = open_filesystem(url)
        info = self._tried(url, lambda: filesystem.info(url))
        version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
        if not info.get("size"):
            raise LostFile(f"{url.partition('?')[0]}: cannot be had (empty, or the server does not tell its size)", final=True)
        return RemoteShard(url, info["size"], version, self)

    def glob(self, pattern: str) -> list[str]:
        """URLs of the files that match a pattern.

        Raises:
            LostFile: if the server does not tell.
        """
        filesystem = open_filesystem(pattern)
        found = self._tried(pattern, lambda: filesystem.glob(pattern))
        return [filesystem.unstrip_protocol(one) for one in found]

    def fetch(self, file: RemoteShard) -> Path:
        """Where it is on this disk, until other files need the room.

        Raises:
            LostFile: if it cannot be had; at once, if it could not before.
            OSError: if the folder cannot be written.
        """
        name = hashlib.sha256(f"{file.url}\n{file.size}\n{file.version}".encode()).hexdigest()[:32]
        path = self.folder / name
        if self._has(path, file):
            return path
        if file.url in self._lost:
            raise LostFile(self._lost[file.url])
        with FileLock(self.locks / name):
            if not self._has(path, file):
                try:
                    self._download(file, path)
                except LostFile as error:
                    self._lost[file.url] = str(error)
                    raise
        return path

    def _has(self, path: Path, file: RemoteShard) -> bool:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == file.size:  # not after a power failure
                os.utime(path)
                return True
        return False

    def _download(self, file: RemoteShard, path: Path) -> None:
        filesystem = open_filesystem(file.url)
        with atomic_write(path) as hidden, hidden.open("wb") as content:
            with FileLock(self.locks / "room"):
                while not self._has_room(file.size, hidden):
                    time.sleep(0.05)
                    remove_leavings(self.folder)
                content.truncate(file.size)  # counts from now on
            for start in range(0, file.size, CHUNK):
                end = min(start + CHUNK, file.size)
                chunk = self._tried(file.url, partial(read_range, filesystem, file, start, end))
                content.write(chunk)
                if content.tell() == file.size:  # a server without ranges sends all at once
                    break

    def _has_room(self, size: int, hidden: Path) -> bool:
        """Whether there is room, for which files have gone; False while others are being fetched that take it."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path != hidden and path.is_file():
                    files.append((status.st_mtime, status.st_size, path))
        total = size + sum(size for _, size, _ in files)
        for _, freed, path in sorted(files):
            if total > self.limit and not path.name.startswith("."):
                path.unlink(missing_ok=True)
                total -= freed
        return total <= self.limit or not any(path.name.startswith(".") and size for _, size, path in files)

    def _tried(self, url: str, call: Callable[[], T]) -> T:
        """`call()`, tried again after failures that may pass.

        Raises:
            LostFile: with the last one.
        """
        tries = 1 if self._is_down else TRIES
        for number in range(tries):
            if number:
                time.sleep(FIRST_WAIT * 2 ** (number - 1) * random.SystemRandom().uniform(0.5, 1))
            try:
                result = call()
            except Exception as error:  # each file system has its own
                reason, final = describe(error)
                if final or number == tries - 1:
                    self._is_down = not final
                    count = "" if final or tries == 1 else f", {tries} tries"
                    raise LostFile(f"{url.partition('?')[0]}: cannot be had ({reason}{count})", final) from None
            else:
                self._is_down = False
                return result
        raise AssertionError

    @property
    def locks(self) -> Path:
        return self.folder / "locks"

    def __getstate__(self) -> tuple[Path, int]:
        return self.folder, self.limit

    def __setstate__(self, state: tuple[Path, int]) -> None:
        FileCache.__init__(self, *state)


def open_filesystem(url: str) -> Any:
    """The fsspec file system of a URL; every process has its own.

    Raises:
        UserError: if a package for it is missing.
    """
    scheme = url.partition("://")[0]
    options = {}
    if scheme in ("http", "https"):
        timeout = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(f"data.path={scheme}://...: needs another package: pip install 'dds_train[{scheme}]'") from error


def read_range(filesystem: Any, file: RemoteShard, start: int, end: int) -> bytes:
    """Bytes `start` to `end`, or all of the file if they are the first and the server has no ranges.

    Raises:
        EOFError: if they are fewer.
    """
    content: bytes = filesystem.cat_file(file.url, start=start, end=end)
    if len(content) != end - start and not (start == 0 and len(content) == file.size):
        raise EOFError(f"{len(content)} bytes in place of {end - start}")
    return content


def describe(error: BaseException) -> tuple[str, bool]:
    """What went wrong, and whether another try is in vain: the server says that it does not have the file, or not for us."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    statuses = [status for one in chain if isinstance(status := getattr(one, "status", None), int)]
    if statuses:
        return f"status {statuses[-1]}", 400 <= statuses[-1] < 500 and statuses[-1] not in PASSING
    return f"{type(chain[-1]).__name__}: {first_line(chain[-1])}", isinstance(chain[-1], (FileNotFoundError, PermissionError))


class FetchAhead:
    """Threads that fetch files in order, those of the last call, until the process ends."""

    def __init__(self) -> None:
        self._waiting: deque[RemoteShard] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def __call__(self, files: Iterable[RemoteShard]) -> None:
        if not self._threads:  # here, since processes are forked before
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(FETCHERS)]
            for thread in self._threads:
                thread.start()
        with self._changed:
            self._waiting = deque(files)
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                file = self._waiting.popleft()
            with contextlib.suppress(LostFile, OSError):  # which the process that reads it will see
                file.cache.fetch(file)
