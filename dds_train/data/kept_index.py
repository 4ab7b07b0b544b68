"""Indexes of shards, made once: beside the shards by `synthesize`, else in a folder, where the next start finds them."""

import contextlib
import hashlib
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from dds_train.data.remote_files import FileCache, LostFile, RemoteShard
from dds_train.data.tar_index import Shard, ShardIndex, scan_shard
from dds_train.runs.digest import SETTLED, file_identity
from dds_train.runs.files import atomic_write

ENDING = ".index.npz"  # in place of .tar
KEPT_FROM = 2**20  # bytes of a shard on this disk; smaller ones are scanned each time
Indexed = tuple[ShardIndex, str | None]  # with a note if the shard is damaged
Identity = dict[str, Any]
DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile)


def index_beside(shard: Path) -> Path:
    """Where the index of a shard is that goes with it, wherever it is moved to."""
    return shard.with_suffix(ENDING)


def write_beside(shard: Path) -> None:
    _write(index_beside(shard), *scan_shard(shard), {"size": shard.stat().st_size})


def index_local(shard: Path, folder: Path | None) -> Indexed:
    """The index that lies beside the shard or in `folder`, if it is that of the file as it is now; else a new one.

    Raises:
        as `scan_shard`.
    """
    identity = identity_of(shard)
    if identity is None:
        return scan_shard(shard)
    if kept := _read(index_beside(shard), shard, {"size": identity["size"]}):
        return kept
    if folder is None:
        return scan_shard(shard)
    path = index_path(shard, folder)
    if kept := _read(path, shard, identity):
        return kept
    indexed = scan_shard(shard)
    if identity == identity_of(shard):
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time and nothing else
            _write(path, *indexed, identity)
    return indexed


def index_remote(url: str, cache: FileCache, beside: bool) -> Indexed:
    """The index in the cache's folder, unless the server has another file now; else that beside the shard, or one of the shard,
    which is fetched. A shard that cannot be had is an empty one with a note, unless its index is in that folder.

    Args:
        beside: whether to look for one beside the shard.
    """
    path = index_path(url, cache.folder)
    try:
        shard = cache.locate(url)
    except LostFile as error:
        known = _kept_identity(path)
        shard = RemoteShard(url, known.get("size", 0), known.get("version", ""), cache)
        return _read(path, shard, known) or (ShardIndex.of(shard, []), str(error))
    identity = shard.identity
    if kept := _read(path, shard, identity):
        return kept
    with FileLock(cache.locks / path.name):
        if kept := _read(path, shard, identity):  # another process has made it
            return kept
        try:
            indexed = (_fetch_beside(shard) if beside else None) or scan_shard(shard)
        except LostFile as error:
            return ShardIndex.of(shard, []), str(error)
        _write(path, *indexed, identity)
        return indexed


def _fetch_beside(shard: RemoteShard) -> Indexed | None:
    try:
        path = shard.cache.fetch(shard.cache.locate(shard.url.removesuffix(".tar") + ENDING))
    except LostFile:
        return None
    return _read(path, shard, {"size": shard.size})


def kept_captions(index: ShardIndex, folder: Path | None, read: Callable[[], list[list[str]]]) -> list[list[str]]:
    """What `read()` finds for each sample, which is kept in `folder` for the next process.

    Raises:
        as `read`.
    """
    identity = identity_of(index.shard)
    if identity is None or folder is None:
        return read()
    identity["samples"] = hashlib.sha256(index.keys.tobytes()).hexdigest()
    path = index_path(index.shard, folder).with_suffix(".captions.json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            return [[str(caption), str(problem)] for caption, problem in known["captions"]]
    captions = read()
    with contextlib.suppress(OSError), atomic_write(path) as partial:
        partial.write_text(json.dumps({"identity": identity, "captions": captions}), encoding="utf-8")
    return captions


def identity_of(shard: Shard) -> Identity | None:
    """What changes with the content of a shard; None if it is too small to be worth it, or so new that it may still change."""
    if isinstance(shard, RemoteShard):
        return shard.identity
    with contextlib.suppress(OSError):
        identity = file_identity(shard)
        if identity["size"] >= KEPT_FROM and time.time() - max(identity["mtime_ns"], identity["ctime_ns"]) / 1e9 > SETTLED:
            return identity
    return None


def index_path(shard: Shard | str, folder: Path) -> Path:
    text = shard.url if isinstance(shard, RemoteShard) else str(shard)
    return folder / "indexes" / f"{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"


def _write(path: Path, index: ShardIndex, note: str | None, identity: Identity) -> None:
    with atomic_write(path) as partial:
        np.savez(
            partial,
            keys=index.keys,
            ends=index.ends,
            extensions=np.array(index.extensions, np.str_),
            places=index.places,
            about=np.array(json.dumps({"note": note, "identity": identity})),
        )


def _read(path: Path, shard: Shard, identity: Identity) -> Indexed | None:
    """None if there is none of this identity, or a damaged one."""
    with contextlib.suppress(*DAMAGES), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        extensions = tuple(str(one) for one in arrays["extensions"])
        index = ShardIndex(shard, arrays["keys"], arrays["ends"], extensions, arrays["places"])
        if about["identity"] == identity and index.places.sum(-1).max(initial=0) <= identity["size"]:
            return index, about["note"]
    return None


def _kept_identity(path: Path) -> Identity:
    with contextlib.suppress(*DAMAGES), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(json.loads(str(arrays["about"]))["identity"])
    return {}
