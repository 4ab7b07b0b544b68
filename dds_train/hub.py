"""The model hub: whether it answers, and repositories fetched from it, or from the cache without asking it."""

import os
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

PATIENCE = 5.0  # seconds for the first answer: the hub's client alone would wait for minutes, or for ever


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def is_switched_off() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


@cache
def reachable() -> bool:
    """Whether the hub answers, and is not switched off (HF_HUB_OFFLINE)."""
    if is_switched_off():
        return False
    try:
        get_session().head(endpoint(), timeout=PATIENCE)
    except Exception:  # of the client's transport, which differs between its versions
        return False
    return True


def cached_snapshot(repository: str) -> Path | None:
    """What the hub's cache has of a repository, complete or not; nobody is asked."""
    try:
        return Path(snapshot_download(repository, allow_patterns=["model_index.json"], local_files_only=True))
    except Exception:  # of several kinds, and others in each version of the client
        return None


def fetch(repository: str, what: str, choose: Callable[[Collection[str]], list[str]]) -> Path:
    """The folder of a repository with the files that `choose` takes from the names of all; `what` says which.

    Raises:
        OSError, or another error of the hub's client, if it does not deliver.
    """
    if is_switched_off():
        raise ConnectionError("HF_HUB_OFFLINE is set")
    print(f"fetching {repository} ({what}) from {endpoint()}", flush=True)
    if not reachable():
        raise ConnectionError("the hub does not answer")
    info = HfApi(endpoint=endpoint()).model_info(repository, timeout=PATIENCE)
    chosen = choose([file.rfilename for file in info.siblings or ()])
    # Without a revision: the cache then knows which snapshot is the current one.
    return Path(snapshot_download(repository, allow_patterns=chosen, endpoint=endpoint()))
