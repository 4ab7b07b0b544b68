"""The command line: argv -> Hydra -> a typed configuration -> a command's ``run(config)``.

Configuration errors are reported in one line each, before a model is loaded: torch is imported by the commands alone.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dds_train.cli.help import COMMANDS, command_help, usage
from dds_train.errors import UserError, system_error
from dds_train.runs.ranks import end_with_parent, is_first_rank
from dds_train.runs.signals import STOP

BROKEN_PIPE = 141  # as of a process that SIGPIPE ends


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no locale's encoding is worth a crash
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            dispatch(sys.argv[1:])
        finally:
            print(end="", flush=True)  # here, not when Python ends and can only complain
    except BrokenPipeError:  # whoever read the output is gone, as `head` is after its lines
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(BROKEN_PIPE) from None
    except Exception as error:
        if (line := system_error(error)) is None:
            raise
        fail([line])


def dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if argv else 2)
    command, *rest = argv[1:] if argv[0] == "--config-name" else argv  # Lightning's other ranks start with what is made here
    if command not in COMMANDS:
        from dds_train.cli.schema import nearest

        fail([f"no command '{command}'{nearest(command, COMMANDS)}; the commands are {', '.join(COMMANDS)}"])
    if any(one in ("-h", "--help") for one in rest):
        print(command_help(command))
        return
    if command == "fit":  # before the seconds in which torch is imported
        STOP.install()
    from dds_train.cli.launch import Launch, Mistakes

    try:
        prints = is_first_rank()
        if not prints:
            os.environ.setdefault("TQDM_DISABLE", "1")
            end_with_parent()
        launch = Launch(command, rest)
    except UserError as error:
        fail([str(error)])
    except Mistakes as mistakes:
        fail(mistakes.lines if prints else [])  # each rank has the same ones
    if launch.jobs:
        from dds_train.cli.sweep import run_jobs

        STOP.uninstall()  # a job may take its time to save
        raise SystemExit(run_jobs(launch.jobs))
    if launch.config is not None:
        run(command, launch.config)


def run(command: str, config: Any) -> None:
    try:
        importlib.import_module(f"dds_train.commands.{command}").run(config)
    except UserError as error:
        fail([str(error)], error.code)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def fail(lines: Sequence[str], code: int = UserError.code) -> NoReturn:
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code)
