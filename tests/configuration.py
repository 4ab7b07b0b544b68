"""Configurations as the command line makes them, in this process."""

import os
import sys
from typing import Any
from unittest import mock

from dds_train.cli.launch import Launch


def start(command: str, *overrides: object) -> tuple[Any, list[str]]:
    """The typed configuration (None if it is refused), and the mistakes."""
    configs: list[Any] = [None]
    environment = {**os.environ, "DDS_RUN_STAMP": "stamp"}
    with mock.patch.object(sys, "argv", ["dds_train"]), mock.patch.dict(os.environ, environment):
        mistakes = Launch(command, [str(one) for one in overrides]).start(lambda name, config: configs.append(config))
    return configs[-1], mistakes


def configure(command: str, *overrides: object) -> Any:
    config, mistakes = start(command, *overrides)
    assert not mistakes, mistakes
    return config


def refusals(command: str, *overrides: object) -> list[str]:
    return start(command, *overrides)[1]
