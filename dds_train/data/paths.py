"""Files of data sets: shards of a path, folder or glob pattern. No torch here: the command line imports it."""

import glob
from pathlib import Path

from dds_train.errors import UserError
from dds_train.images.find import root_folder

PROMPT_FILES = (".yaml", ".yml", ".txt")


def find_shards(spec: str | Path, key: str = "data.path") -> list[Path]:
    """Tar files of a file, a folder (hidden files aside) or a glob pattern, sorted.

    Raises:
        UserError: if there are none, or `spec` is a URL or a pipe.
    """
    if str(spec).startswith("pipe:") or "://" in str(spec):
        raise UserError(f"{key}={spec}: not a local path; download the shards first")
    path = Path(spec).expanduser()
    folder = root_folder(path)  # whose brackets are no pattern
    pattern = "*.tar" if path == folder else path.relative_to(folder)
    matches = [str(path)] if path.is_file() else glob.glob(f"{glob.escape(str(folder))}/{pattern}", recursive=True)
    shards = [Path(one) for one in matches]
    if not shards:
        raise UserError(f"{key}={spec}: no shards (*.tar) there")
    return sorted(shards)
