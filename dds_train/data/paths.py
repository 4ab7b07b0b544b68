"""Which shards are meant. No torch here: the command line asks before loading anything."""

import glob
from pathlib import Path

from dds_train.errors import UserError


def find_shards(spec: str | Path, key: str = "data.path") -> list[Path]:
    """The tar files that a file, a folder or a glob pattern stands for, sorted.

    Raises:
        UserError: if there are none, or something that is no local file is asked for.
    """
    if str(spec).startswith("pipe:") or "://" in str(spec):
        raise UserError(f"{key}={spec}: only files on this disk are read; copy the shards here first")
    path = Path(spec).expanduser()
    found = list(path.glob("*.tar")) if path.is_dir() else [Path(p) for p in glob.glob(str(path), recursive=True)]
    if not found:
        raise UserError(f"{key}={spec}: no shards (*.tar) there")
    return sorted(found)
