"""Image files of a path, folder or glob pattern, and names for their results. No torch here: the command line imports it."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dds_train.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
RESERVED = ("before_after",)  # files that commands write beside the results


def find_images(spec: str | Path, key: str = "image") -> list[Path]:
    """Images of a file, a folder (searched recursively, hidden files aside) or a glob pattern, sorted.

    Raises:
        UserError: if there are none; names the configuration's `key`.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        images = sorted(images_below(path))
        if not images:
            raise UserError(f"{key}={spec}: no images in this folder (looked for {', '.join(sorted(EXTENSIONS))})")
        return images
    images = sorted(Path(match) for match in glob.iglob(str(path), recursive=True) if os.path.isfile(match))
    if not images:
        raise UserError(f"{key}={spec}: no such file or folder, and no file matches it as a pattern")
    return images


def images_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in EXTENSIONS and not name.startswith(".") and path.is_file():
                yield path


def root_folder(spec: str | Path) -> Path:
    """Folder that names are relative to: the folder itself, that of a file, or the one in front of a pattern."""
    path = Path(spec).expanduser()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def find_inputs(spec: str | Sequence[str], output_dir: str | Path) -> list[tuple[str, Path]]:
    """(name, path) of each image of a file, a folder, a pattern, or a list of them; images in `output_dir` are left out.

    A name is the path below the root folder without extension. Where two would be the same, also on file systems that ignore
    case, the extension is appended ("cat-png"), then a number ("cat-png~2").

    Raises:
        UserError: if there are none.
    """
    stems: dict[Path, str] = {}
    for one in [spec] if isinstance(spec, str) else spec:
        root, images = root_folder(one), find_images(one)
        stems |= {path: str(path.relative_to(root).with_suffix("")) for path in images}
    results = Path(output_dir).resolve()
    inside = {parent: results in (folder := parent.resolve(), *folder.parents) for parent in {path.parent for path in stems}}
    stems = {path: stem for path, stem in stems.items() if not inside[path.parent]}
    if not stems:
        raise UserError(f"image={spec}: only results of {output_dir} there")
    shared, used = Counter(stem.casefold() for stem in stems.values()), Counter(RESERVED)
    names = [
        unique_name(stem if shared[stem.casefold()] == 1 else f"{stem}-{path.suffix[1:]}", used) for path, stem in stems.items()
    ]
    return list(zip(names, stems, strict=True))


def unique_name(name: str, used: Counter[str]) -> str:
    """`name`, or NAME~2 and so on if it is in `used`, which counts names whatever their case; adds the result to `used`."""
    unique = name
    while used[unique.casefold()]:
        used[name.casefold()] += 1
        unique = f"{name}~{used[name.casefold()]}"
    used[unique.casefold()] = 1
    return unique
