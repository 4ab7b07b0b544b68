"""Tar files as indexes: any sample at any time by its offset, without unpacking."""

import errno
import os
import tarfile
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from dds_train.data.remote_files import RemoteShard
from dds_train.data.source import unreadable
from dds_train.errors import UserError

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
LATENT = "z.npy"
IMAGES = ("png", "jpg", "jpeg", "webp")
EXTENSIONS = (LATENT, *IMAGES, "json", "txt")  # of the members that are read
Shard = Path | RemoteShard


@dataclass
class ShardSample:
    """Members of one sample in a tar file, by extension: (offset, bytes)."""

    shard: Shard
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.shard.name}/{self.key}"


class SampleSequence(Sequence[ShardSample]):
    """Samples that are made when they are asked for, by `sample`."""

    def sample(self, number: int) -> ShardSample:
        raise NotImplementedError

    @overload
    def __getitem__(self, number: int) -> ShardSample: ...
    @overload
    def __getitem__(self, number: slice) -> list[ShardSample]: ...
    def __getitem__(self, number: int | slice) -> ShardSample | list[ShardSample]:
        if isinstance(number, slice):
            return [self.sample(one) for one in range(*number.indices(len(self)))]
        return self.sample(number)


@dataclass(frozen=True, eq=False)
class ShardIndex(SampleSequence):
    """The N samples of a shard in a few arrays, about 70 bytes for one of three members.

    Raises:
        ValueError: if these are not the arrays of an index.
    """

    shard: Shard
    keys: NDArray[np.uint8]  # all keys one after another, in UTF-8
    ends: NDArray[np.int64]  # [N] where each ends
    extensions: tuple[str, ...]  # E of `EXTENSIONS`
    places: NDArray[np.int64]  # [N,E,2] offset and bytes of each member; -1 where there is none

    def __post_init__(self) -> None:
        count = len(self.ends)
        if (
            any(array.dtype != kind for array, kind in ((self.keys, np.uint8), (self.ends, np.int64), (self.places, np.int64)))
            or (self.keys.ndim, self.ends.ndim, self.places.shape) != (1, 1, (count, len(self.extensions), 2))
            or not set(self.extensions) <= set(EXTENSIONS)
            or (np.diff(self.ends, prepend=0) < 0).any()
            or (count and self.ends[-1] != len(self.keys))
            or (self.places < -1).any()
        ):
            raise ValueError("not an index")

    @classmethod
    def of(cls, shard: Shard, samples: Collection[ShardSample]) -> "ShardIndex":
        """The samples of `shard`; members of other extensions than `EXTENSIONS` are left out."""
        extensions = tuple(one for one in EXTENSIONS if any(one in sample.members for sample in samples))
        keys = [sample.key.encode(errors="surrogateescape") for sample in samples]
        absent = (-1, -1)
        places = [[sample.members.get(one, absent) for one in extensions] for sample in samples]
        return cls(
            shard,
            np.frombuffer(b"".join(keys), np.uint8),
            np.cumsum([len(key) for key in keys], dtype=np.int64),
            extensions,
            np.array(places, np.int64).reshape(len(keys), len(extensions), 2),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def sample(self, number: int) -> ShardSample:
        end = self.ends[number]
        start = self.ends[number - 1] if number % len(self) else 0
        key = self.keys[start:end].tobytes().decode(errors="surrogateescape")
        pairs = zip(self.extensions, self.places[number].tolist(), strict=True)
        return ShardSample(self.shard, key, {extension: (place[0], place[1]) for extension, place in pairs if place[0] >= 0})

    def has(self, extension: str) -> NDArray[np.bool_]:
        """[N], of each sample."""
        if extension not in self.extensions:
            return np.zeros(len(self), bool)
        has: NDArray[np.bool_] = self.places[:, self.extensions.index(extension), 0] >= 0
        return has

    def with_any(self, extensions: Collection[str]) -> "ShardIndex":
        """The samples that have one of these members."""
        kept = np.any([np.zeros(len(self), bool), *(self.has(one) for one in extensions)], axis=0)
        if kept.all():
            return self
        lengths = np.diff(self.ends, prepend=0)
        return replace(self, keys=self.keys[np.repeat(kept, lengths)], ends=np.cumsum(lengths[kept]), places=self.places[kept])


def scan_shard(shard: Shard) -> tuple[ShardIndex, str | None]:
    """The samples of a tar file, and a note if it is damaged; a truncated file has the samples before the cut.

    Raises:
        StorageError: if the file cannot be opened or read.
        UserError: if it is compressed, or a remote one that cannot be had.
    """
    samples: dict[str, ShardSample] = {}
    note = None
    try:
        with shard.open("rb") as file:
            if file.read(6).startswith(COMPRESSED):
                raise UserError(f"{shard}: compressed, and read by offset; decompress it first")
            for path, offset, size in plain_members(file) or tar_members(file):
                folder, _, name = path.rpartition("/")
                stem, _, extension = name.partition(".")
                if extension:
                    key = f"{folder}/{stem}" if folder else stem
                    samples.setdefault(key, ShardSample(shard, key)).members[extension.lower()] = (offset, size)
    except UserError:
        raise
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a seek to where a damaged header points
            raise unreadable(error, str(shard)) from error
        note = f"{shard}: damaged after {len(samples)} samples ({error})"
    return ShardIndex.of(shard, samples.values()), note


Member = tuple[str, int, int]  # path, offset and bytes of a file in a tar file


def plain_members(file: BinaryIO) -> list[Member] | None:
    """The members of a tar file that has nothing but files and folders with short names, several times as fast as tarfile; None
    of any other, and of a damaged one."""
    members: list[Member] = []
    offset = 0
    while True:
        file.seek(offset)
        header = file.read(tarfile.BLOCKSIZE)
        if header == bytes(tarfile.BLOCKSIZE):
            return members
        kind, path, prefix = header[156:157], header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
        try:
            size, checksum = (int(field.rstrip(b" \0"), 8) for field in (header[124:136], header[148:156]))
        except ValueError:
            return None
        if header[257:262] != b"ustar" or kind not in (b"0", b"5") or sum(header) - sum(header[148:156]) + 256 != checksum:
            return None
        offset += tarfile.BLOCKSIZE
        if kind == b"0":
            path = prefix + b"/" + path if prefix else path
            members.append((path.decode(errors="surrogateescape"), offset, size))
            offset += -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def tar_members(file: BinaryIO) -> Iterator[Member]:
    """The members of any tar file.

    Raises:
        tarfile.TarError, ValueError, OSError: where it is damaged.
    """
    file_size, end = os.fstat(file.fileno()).st_size, 0
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if not member.isfile():
                continue
            if member.size < 0 or member.offset_data + member.size > file_size:
                raise tarfile.ReadError("unexpected end of data")
            yield member.name, member.offset_data, member.size
    if file_size < end + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end mark")


class OpenFiles:
    """Random reads from many files, of which the `limit` last used stay open. Every process has its own handles."""

    def __init__(self, limit: int = 32) -> None:
        self.limit = limit
        self._files: dict[Shard, BinaryIO] = {}  # the last used one last
        self._lock, self._process = threading.Lock(), os.getpid()

    def read(self, path: Shard, offset: int, size: int) -> bytes:
        """Raises StorageError if the file cannot be opened or read, LostFile if it is a remote one that cannot be had."""
        if self._process != os.getpid():  # forked: a handle has one position for both processes
            self.close()
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            try:
                file = self._files.pop(path, None) or self._open(path)
                self._files[path] = file
                if len(self._files) > self.limit:
                    self._files.pop(next(iter(self._files))).close()
                file.seek(offset)
                return file.read(size)
            except OSError as error:
                raise unreadable(error, str(path)) from error

    def _open(self, path: Shard) -> BinaryIO:
        for known, file in list(self._files.items()):
            if os.fstat(file.fileno()).st_nlink == 0:  # removed from the cache, and still on the disk while it is open here
                self._files.pop(known).close()
        return path.open("rb")

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> int:
        return self.limit

    def __setstate__(self, limit: int) -> None:
        OpenFiles.__init__(self, limit)
