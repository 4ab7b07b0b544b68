"""The command line, as a user types it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPTS = ("source=a photo of a cat", "target=a photo of a lion")


def environment(cwd: Path) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "DDS_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    return {**{name: value for name, value in os.environ.items() if name != "DDS_RUN_STAMP"}, **own}


def run(*argv: object, cwd: Path, code: int = 0, start: tuple[object, ...] = ("-m", "dds_train")) -> str:
    command = [sys.executable, *map(str, (*start, *argv))]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(cwd))
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def fit_arguments(teacher: Path, *more: object) -> tuple[object, ...]:
    own_data = any(str(one).startswith("data=") for one in more)
    small = ("held_out=4", "batch_size=2", *(() if own_data else ("data.count=12", "data.steps=2")))
    own_weights = not any(str(one).startswith("translator=") for one in more)
    narrow = ("translator.channels=[16,32]", "translator.groups=8") if own_weights else ()
    often = ("log_every=1", "preview_every=2", "checkpoint_every=2", "trainer.max_steps=4", "trainer.accelerator=cpu")
    return ("fit", *PROMPTS, f"teacher.path={teacher}", "output_dir=run", *small, *narrow, *often, *more)


def fit(teacher: Path, cwd: Path, *more: object, **how: Any) -> str:
    return run(*fit_arguments(teacher, *more), cwd=cwd, **how)
