"""A process that imports the package once and forks for each command: a start without the seconds of the imports.

Started by shell.py. A line of JSON on stdin is one command; the line that answers it is the exit status. The child runs
``python -m dds_train`` in all but the imports: its own folder, environment, arguments and output, and an end of its own.
"""

import importlib
import json
import os
import runpy
import sys

from dds_train.cli.help import COMMANDS


def become(argv: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv, sys.path[0] = ["dds_train", *argv], cwd  # as of python -m
    runpy.run_module("dds_train", run_name="__main__", alter_sys=True)


def serve() -> None:
    for command in COMMANDS:
        importlib.import_module(f"dds_train.commands.{command}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(**json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
