"""Loggers of a training run."""

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger


def make_loggers(folder: Path, extra: Logger | None = None) -> list[Logger]:
    """The logger of metrics.csv in `folder`, and another one."""
    loggers: list[Logger] = [CSVLogger(folder, name="", version="")]
    return loggers if extra is None else [*loggers, extra]


def keep_earlier_metrics(folder: Path) -> None:
    """Rename the metrics.csv of an earlier part of the run to metrics-1.csv and so on: Lightning's logger deletes it."""
    path = folder / "metrics.csv"
    if path.exists():
        path.rename(next(p for n in count(1) if not (p := path.with_stem(f"{path.stem}-{n}")).exists()))


def resolved_offline(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a logger; `offline: auto` becomes whether Weights & Biases lacks an API key. WANDB_MODE decides first."""
    if options.get("offline") != "auto":
        return dict(options)
    if os.environ.get("WANDB_MODE"):
        return {**options, "offline": os.environ["WANDB_MODE"] in ("offline", "dryrun")}
    netrc = Path(os.path.expanduser("~/.netrc"))
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (
        netrc.is_file() and "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")
    )
    if not has_key:
        print("wandb: no API key found, so it runs offline; upload later with: wandb sync", flush=True)
    return {**options, "offline": not has_key}
