"""Image files of a path, folder or glob pattern, and names for their results. No torch here: the command line imports it."""

import glob
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path

from dds_train.errors import UserError
from dds_train.runs.files import relative_name
from dds_train.runs.ranks import is_first_rank

# Pillow's name of each format that is read, and its extensions. No other: Pillow would run Ghostscript for some.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),  # several JPEG files in one, of phones; opened as a JPEG
    "PNG": (".png",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
HEIC = (".heic", ".heif")
RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None
if HAS_HEIC:
    FORMATS["HEIF"] = HEIC
EXTENSIONS = {extension for extensions in FORMATS.values() for extension in extensions}
UNREAD = {*HEIC, *RAW} - EXTENSIONS
RESERVED = ("before_after",)  # files that commands write beside the results


def find_images(spec: str | Path, key: str = "image") -> list[Path]:
    """Images of a file, a folder (searched recursively, hidden files aside) or a glob pattern, sorted.

    Brackets in the name of a folder that exists are no pattern.

    Raises:
        UserError: if there are none; names the configuration's `key`.
    """
    return find_images_and_others(spec, key)[0]


def find_images_and_others(spec: str | Path, key: str = "image") -> tuple[list[Path], str]:
    """`find_images`, and what a folder has besides in formats of cameras: "3 .heic and 1 .nef not read: ..."; else ""."""
    path = Path(spec).expanduser()
    if os.path.isfile(path):  # False, too, for what is too long for a path
        return [path], ""
    if os.path.isdir(path):
        images, kinds = [], Counter[str]()
        for file in files_below(path, lambda extension: extension in EXTENSIONS or extension in UNREAD):
            extension = file.suffix.lower()
            if extension in EXTENSIONS:
                images.append(file)
            else:
                kinds[extension] += 1
        if not images:
            others = unread(kinds) or f"looked for {', '.join(sorted(EXTENSIONS))}"
            raise UserError(f"{key}={spec}: no images in this folder ({others})")
        return sorted(images, key=attrgetter("parts")), unread(kinds)
    root = root_folder(path)
    pattern = os.path.join(glob.escape(str(root)), path.relative_to(root) if root != Path() else path)
    images = sorted(Path(match) for match in glob.iglob(pattern, recursive=True) if os.path.isfile(match))
    if not images:
        raise UserError(f"{key}={spec}: no such file or folder, and no file matches it as a pattern")
    return images, ""


def check_images(spec: str | Path, key: str = "image") -> None:
    """Raise UserError as `find_images` does; a folder is searched up to its first image."""
    path = Path(spec).expanduser()
    if not os.path.isdir(path) or next(files_below(path, EXTENSIONS.__contains__), None) is None:
        find_images(spec, key)


def files_below(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Files whose extension, in lower case, is `wanted`, hidden ones aside. Links to folders are followed after all others, and
    no folder is searched twice."""
    waiting, seen = [folder], set()
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0)):
            status = os.stat(parent)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            waiting += [path for name in folders if (path := Path(parent, name)).is_symlink()]
            for name in names:
                wants = not name.startswith(".") and wanted(os.path.splitext(name)[1].lower())
                if wants and os.path.isfile(file := os.path.join(parent, name)):
                    yield Path(file)


def unread(kinds: Counter[str]) -> str:
    found = " and ".join(f"{count} {extension}" for extension, count in sorted(kinds.items()))
    return f"{found} not read: {remedies(kinds)}" if found else ""


def remedies(extensions: Collection[str]) -> str:
    """What makes files readable that are not; empty for others."""
    unreadable = UNREAD.intersection(extensions)
    found = ["pip install pillow-heif"] if unreadable & set(HEIC) else []
    found += ["convert raw files to TIFF"] if unreadable & set(RAW) else []
    return ", ".join(found)


def root_folder(spec: str | Path) -> Path:
    """Folder that names are relative to: the folder itself, that of a file, or the one in front of a pattern."""
    path = Path(spec).expanduser()
    while not os.path.isdir(path) and path != path.parent:
        path = path.parent
    return path


def find_inputs(spec: str | Sequence[str], output_dir: str | Path) -> list[tuple[str, Path]]:
    """(name, path) of each image of a file, a folder, a pattern, or a list of them; images in `output_dir` are left out.

    A name is the path below the root folder without extension. Where two would be the same, also on file systems that ignore
    case, the extension is appended ("cat-png"), then a number ("cat-png~2"). Files of folders that are skipped because of their
    format are said.

    Raises:
        UserError: if there are none.
    """
    stems: dict[Path, str] = {}
    for one in [spec] if isinstance(spec, str) else spec:
        root, (images, skipped) = str(root_folder(one)), find_images_and_others(one)
        start = 0 if root == os.curdir else len(os.path.join(root, ""))
        stems |= {path: (name := str(path)[start:])[: len(name) - len(path.suffix)] for path in images}
        if skipped and is_first_rank():
            print(f"note: {one}: {skipped}", flush=True)
    results = Path(output_dir).resolve()
    inside = cache(lambda parent: results in (folder := Path(parent).resolve(), *folder.parents))
    stems = {path: relative_name(stem) for path, stem in stems.items() if not inside(os.path.dirname(path))}
    if not stems:
        raise UserError(f"image={spec}: only results of {output_dir} there")
    shared, used = Counter(stem.casefold() for stem in stems.values()), Counter(RESERVED)
    names = [
        unique_name(f"{stem}-{path.suffix[1:]}" if path.suffix and shared[stem.casefold()] > 1 else stem, used)
        for path, stem in stems.items()
    ]
    return list(zip(names, stems, strict=True))


def unique_name(name: str, used: Counter[str], parts: Sequence[str] = ("",)) -> str:
    """`name`, or NAME~2 and so on if it or, with any ending of `parts`, a file of it is in `used`, which counts names whatever
    their case; adds them to `used`."""
    unique, key = name, name.casefold()
    while any(used[f"{unique}{part}".casefold()] for part in parts):
        used[key] = max(used[key], 1) + 1
        unique = f"{name}~{used[key]}"
    used.update(f"{unique}{part}".casefold() for part in parts)
    return unique
