"""Which files are meant. Knows nothing of their contents, nor of torch: the command line asks before loading anything."""

import glob
from pathlib import Path

from dds_train.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}


def find_images(spec: str | Path, key: str = "image") -> list[Path]:
    """The pictures that a file, a folder (searched to any depth) or a glob pattern stands for, sorted.

    Raises:
        UserError: if there are none; names the configuration's `key`.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()]
        if not found:
            raise UserError(f"{key}={spec}: no pictures in this folder (looked for {', '.join(sorted(EXTENSIONS))})")
        return sorted(found)
    found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    if not found:
        raise UserError(f"{key}={spec}: no such file or folder, and no file matches it as a pattern")
    return sorted(found)


def folder_of(spec: str | Path) -> Path:
    """What the names of `find_images` are relative to: the folder itself, that of a file, or that in front of a pattern."""
    path = Path(spec).expanduser()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


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
