"""Configurations as the command line makes them, in this process."""

import os
import sys
from typing import Any
from unittest import mock

from hydra._internal.hydra import Hydra

from dds_train.cli.launch import Launch, Mistakes


def launch(command: str, *arguments: object) -> Launch:
    with (
        mock.patch.object(sys, "argv", ["dds_train"]),
        mock.patch.dict(os.environ, {"DDS_RUN_STAMP": "stamp"}),
        mock.patch.object(Hydra, "get_mode", return_value=None),  # composes once more, to look for hydra.mode alone
    ):
        return Launch(command, [str(one) for one in arguments])


def configure(command: str, *arguments: object) -> Any:
    """The typed configuration of a valid command line."""
    return launch(command, *arguments).config


def refusals(command: str, *arguments: object) -> list[str]:
    """The mistakes of a command line, a line each."""
    try:
        launch(command, *arguments)
    except Mistakes as mistakes:
        return mistakes.lines
    return []
