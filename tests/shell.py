"""The command line, as a user types it."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

PROMPTS = ("source=a photo of a cat", "target=a photo of a lion")


def environment(cwd: Path) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "DDS_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    return {**{name: value for name, value in os.environ.items() if name != "DDS_RUN_STAMP"}, **own}


@cache
def prefork() -> "subprocess.Popen[str]":
    """One for each process of pytest; it ends with that process, at the end of its stdin."""
    command = [sys.executable, Path(__file__).with_name("prefork.py")]
    return subprocess.Popen(command, env=environment(Path()), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(*argv: object, cwd: Path, code: int = 0, start: tuple[object, ...] = ()) -> str:
    """Run a command to its end and return what it printed; ``start`` names another program, such as torchrun."""
    if start:
        command = [sys.executable, *map(str, (*start, *argv))]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment(cwd)
        )
        status, printed = result.returncode, result.stdout
    else:
        with tempfile.NamedTemporaryFile("r") as output:
            job = {"argv": [*map(str, argv)], "cwd": str(cwd), "environment": environment(cwd), "output": output.name}
            print(json.dumps(job), file=prefork().stdin, flush=True)
            status, printed = int(prefork().stdout.readline()), output.read()
    assert status == code, printed
    return printed


def fit_arguments(teacher: Path, *more: object) -> tuple[object, ...]:
    own_data = any(str(one).startswith("data=") for one in more)
    small = ("held_out=4", "batch_size=2", *(() if own_data else ("data.count=12", "data.steps=2")))
    own_weights = not any(str(one).startswith("translator=") for one in more)
    narrow = ("translator.channels=[16,32]", "translator.groups=8") if own_weights else ()
    often = ("log_every=1", "preview_every=2", "checkpoint_every=2", "trainer.max_steps=4", "trainer.accelerator=cpu")
    return ("fit", *PROMPTS, f"teacher.path={teacher}", "output_dir=run", *small, *narrow, *often, *more)


def fit(teacher: Path, cwd: Path, *more: object, **how: Any) -> str:
    return run(*fit_arguments(teacher, *more), cwd=cwd, **how)
