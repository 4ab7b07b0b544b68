"""Files of data sets: shards of a path, folder, glob pattern or URL. No torch here: the command line imports it."""

import glob
import re
from pathlib import Path

from braceexpand import braceexpand

from dds_train.errors import UserError
from dds_train.images.find import root_folder

PROMPT_FILES = (".yaml", ".yml", ".txt")
SCHEMES = ("https", "http", "s3", "gs", "hf")


def find_shards(spec: str | Path, key: str = "data.path") -> list[Path]:
    """Tar files of a file, a folder (hidden files aside), a glob pattern or a range such as "shard-{000..012}.tar", sorted.

    Raises:
        UserError: if there are none, one of a range is missing, some are compressed, or `spec` is a pipe.
    """
    if str(spec).startswith("pipe:"):
        raise UserError(f"{key}={spec}: not a path; download the shards first")
    path = Path(spec).expanduser()
    if path.is_dir():
        found = [one for one in path.iterdir() if not one.name.startswith(".") and TAR.search(one.name)]
        names = {one.name for one in found}
        # A compressed shard beside itself, decompressed, has been taken care of.
        shards = [one for one in found if one.suffix.lower() == ".tar" or TAR.sub(".tar", one.name) not in names]
    else:
        found_by = {pattern: matches(pattern) for pattern in expanded(path)}
        shards = [one for found in found_by.values() for one in found]
        gaps = [pattern for pattern, found in found_by.items() if not found]
        if shards and gaps:
            raise UserError(f"{key}={spec}: no file {gaps[0]}")
    if not shards:
        raise UserError(f"{key}={spec}: no shards (*.tar) there")
    compressed = [shard for shard in shards if TAR.search(shard.name) and shard.suffix.lower() != ".tar"]
    if compressed:
        raise UserError(f"{key}={spec}: {compressed[0].name} is compressed, and read by offset; decompress it first (gunzip)")
    return sorted(set(shards))


def is_url(spec: str) -> bool:
    return bool(re.match(r"[\w+.-]{2,}://", spec))


def find_urls(spec: str, key: str = "data.path") -> list[str]:
    """The URLs of a range such as "s3://bucket/{000..012}.tar"; a folder or glob pattern is itself. Asks no server.

    Raises:
        UserError: if the scheme is none of `SCHEMES`, or the shards are compressed.
    """
    scheme = spec.partition("://")[0]
    if scheme not in SCHEMES or "::" in spec:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise UserError(f"{key}={spec}: shards are on this disk or behind {known}; download them first")
    try:
        urls = list(braceexpand(spec))
    except ValueError as error:
        raise UserError(f"{key}={spec}: {error}") from error
    name = urls[0].partition("?")[0]
    if TAR.search(name) and not name.lower().endswith(".tar"):
        raise UserError(f"{key}={spec}: compressed, and read by offset; decompress the shards first (gunzip)")
    return sorted(set(urls))


TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)$", re.IGNORECASE)


def expanded(path: Path) -> list[str]:
    """The paths that a pattern with braces, as of webdataset, stands for; a file of that very name is itself."""
    try:
        return [str(path)] if path.exists() else list(braceexpand(str(path)))
    except ValueError:  # braces that do not pair
        return [str(path)]


def matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    folder = root_folder(path)  # whose brackets are no pattern
    found = glob.glob(f"{glob.escape(str(folder))}/{path.relative_to(folder)}", recursive=True)
    return [path] if path.exists() else [Path(one) for one in found]
