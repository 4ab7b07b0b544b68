"""Tar files as indexes: any sample at any time by its offset, without unpacking."""

import errno
import os
import tarfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dds_train.data.source import unreadable
from dds_train.errors import UserError

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


@dataclass
class ShardSample:
    """Members of one sample in a tar file, by extension: (offset, bytes)."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.shard.name}/{self.key}"


def scan_shard(shard: Path) -> tuple[list[ShardSample], str | None]:
    """The samples of a tar file, and a note if it is damaged; a truncated file has the samples before the cut.

    Raises:
        StorageError: if the file cannot be opened or read.
        UserError: if it is compressed.
    """
    samples: dict[str, ShardSample] = {}
    end = 0
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            if file.read(6).startswith(COMPRESSED):
                raise UserError(f"{shard}: compressed, and read by offset; decompress it first")
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or not extension:
                    continue
                if member.size < 0 or member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                key = f"{folder}/{stem}" if folder else stem
                samples.setdefault(key, ShardSample(shard, key)).members[extension.lower()] = (member.offset_data, member.size)
        if size < end + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end mark")
    except UserError:
        raise
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a seek to where a damaged header points
            raise unreadable(error, str(shard)) from error
        return list(samples.values()), f"{shard}: damaged after {len(samples)} samples ({error})"
    return list(samples.values()), None


class OpenFiles:
    """Random reads from many files, of which the `limit` last used stay open. Every process has its own handles."""

    def __init__(self, limit: int = 32) -> None:
        self.limit = limit
        self._files: dict[Path, BinaryIO] = {}  # the last used one last
        self._lock, self._process = threading.Lock(), os.getpid()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Raises StorageError if the file cannot be opened or read."""
        if self._process != os.getpid():  # forked: a handle has one position for both processes
            self.close()
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            try:
                file = self._files.pop(path, None) or path.open("rb")
                self._files[path] = file
                if len(self._files) > self.limit:
                    self._files.pop(next(iter(self._files))).close()
                file.seek(offset)
                return file.read(size)
            except OSError as error:
                raise unreadable(error, str(path)) from error

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> int:
        return self.limit

    def __setstate__(self, limit: int) -> None:
        OpenFiles.__init__(self, limit)
