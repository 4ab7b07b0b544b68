"""Which files are meant. Knows nothing of their contents, nor of torch: the command line asks before loading anything."""

import glob
from collections.abc import Sequence
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


def find_inputs(spec: str | Sequence[str], output_dir: str | Path) -> list[tuple[str, Path]]:
    """Names for the results, and paths: of a file, a folder, a pattern, or a list of them. A name has the picture's own folders
    below the one that was asked for, and no extension unless two would be the same. What lies in `output_dir` is left out.

    Raises:
        UserError: if there are none.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    found = {path: path.relative_to(folder_of(one)).with_suffix("") for one in specs for path in find_images(one)}
    results = Path(output_dir).resolve()
    found = {path: name for path, name in found.items() if results not in path.resolve().parents}
    if not found:
        raise UserError(f"image={spec}: nothing but results of {output_dir} there")
    stems = list(found.values())
    names: list[str] = []
    for path, stem in found.items():
        name = str(stem) if stems.count(stem) == 1 else f"{stem}-{path.suffix[1:]}"
        number = sum(n == name or n.startswith(f"{name}~") for n in names)
        names.append(name if not number else f"{name}~{number + 1}")
    return list(zip(names, found, strict=True))
