"""The command line, as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

PROMPTS = ("source=a photo of a cat", "target=a photo of a lion")


def environment(cwd: Path) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "DDS_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    return {**{name: value for name, value in os.environ.items() if name != "DDS_RUN_STAMP"}, **own}


def run(*argv: object, cwd: Path, code: int = 0, start: tuple[object, ...] = ("-m", "dds_train")) -> str:
    command = [sys.executable, *map(str, (*start, *argv))]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(cwd))
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr
