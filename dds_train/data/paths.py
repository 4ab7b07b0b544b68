"""Files of data sets: shards of a path, folder or glob pattern. No torch here: the command line imports it."""

import glob
import re
from pathlib import Path

from braceexpand import braceexpand

from dds_train.errors import UserError
from dds_train.images.find import root_folder

PROMPT_FILES = (".yaml", ".yml", ".txt")


def find_shards(spec: str | Path, key: str = "data.path") -> list[Path]:
    """Tar files of a file, a folder (hidden files aside), a glob pattern or a range such as "shard-{000..012}.tar", sorted.

    Raises:
        UserError: if there are none, one of a range is missing, some are compressed, or `spec` is a URL or a pipe.
    """
    if str(spec).startswith("pipe:") or "://" in str(spec):
        raise UserError(f"{key}={spec}: not a local path; download the shards first")
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
