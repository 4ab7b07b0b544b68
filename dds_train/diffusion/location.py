"""Where a checkpoint is: a folder, a model hub's cache, or its repository."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dds_train import hub
from dds_train.diffusion.part_files import files_to_load, is_complete
from dds_train.errors import UserError, first_line

INDEX = "model_index.json"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]*[\w-]")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def origin(path: str) -> str:
    """What finds a file or folder again, from any folder: its absolute path; a hub id as it is."""
    place = os.path.abspath(os.path.expanduser(path))
    return place if os.path.exists(place) else path


def local_folder(path: str, key: str = "teacher.path") -> Path | None:
    """The folder at `path`, of a hub's cache (models--owner--name) its newest snapshot; None for a hub id.

    Args:
        key: the configuration's, for messages.

    Raises:
        UserError: if there is no checkpoint in diffusers' layout, or `path` is none and looks like one.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        snapshots = [one for one in folder.glob("snapshots/*") if (one / INDEX).is_file()]
        if not (folder / INDEX).is_file() and snapshots:
            return max(snapshots, key=lambda one: one.stat().st_mtime_ns)
        if not (folder / INDEX).is_file():
            raise UserError(f"{key}={path}: no {INDEX} there; give a folder in diffusers' layout")
        return folder
    if folder.is_file():
        raise UserError(f"{key}={path}: a file; give a folder in diffusers' layout")
    if path.endswith(SINGLE_FILES):
        raise UserError(f"{key}={path}: no such file")
    if not HUB_ID.fullmatch(path):
        raise UserError(f"{key}={path}: no such folder, and not a hub id such as owner/name")
    if folder.parent.is_dir():
        raise UserError(f"{key}={path}: no such folder ({folder.parent} has none of that name), so it is taken for no hub id")
    return None


@contextmanager
def delivered(key: str, repository: str, what: str = "") -> Iterator[None]:
    """A block that fetches from a hub. Raises UserError, naming the configuration's `key`, if it does not deliver."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the hub's client raises when it cannot deliver
        reason = first_line(error) if isinstance(error, ConnectionError) else type(error).__name__
        raise UserError(
            f"{key}={repository} is not on this disk{what} and the hub did not deliver it ({reason}); download it where there "
            f"is a network (hf download {repository} --local-dir DIR) and give {key}=DIR"
        ) from error


def fetched_folder(repository: str, parts: Collection[str], key: str = "teacher.path") -> Path:
    """The folder of a hub's repository with `parts` and all configurations: from the cache if they are there, else fetched.

    Raises:
        UserError: if they are not there and the hub does not deliver them.
    """
    folder = hub.cached_snapshot(repository)
    if folder and (folder / INDEX).is_file() and all(is_complete(folder / part) for part in parts):
        return folder

    def choose(names: Collection[str]) -> list[str]:
        chosen = [name for name in names if name == INDEX or re.fullmatch(r"[^/]+/(config|scheduler_config)\.json", name)]
        for part in parts:
            own = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
            chosen += [f"{part}/{name}" for name in files_to_load(own)]
        return chosen

    with delivered(key, repository, " as a whole" if folder else ""):
        fetched = hub.fetch(repository, ", ".join(parts) or "configurations", choose)
    if not (fetched / INDEX).is_file():
        raise UserError(f"{key}={repository}: no {INDEX} in that repository; give one in diffusers' layout")
    return fetched
