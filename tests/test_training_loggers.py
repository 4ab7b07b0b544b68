"""Loggers of a training run."""

from pathlib import Path

import pytest

from dds_train.training.loggers import resolved_offline

KEY, MODE = "WANDB_API_KEY", "WANDB_MODE"


@pytest.mark.parametrize(
    ("variables", "offline"),
    [
        ({MODE: "disabled"}, False),
        ({MODE: "online"}, False),
        ({MODE: "offline", KEY: "k"}, True),
        ({MODE: "dryrun"}, True),
        ({KEY: "k"}, False),
        ({}, True),
    ],
)
def test_the_mode_in_the_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], offline: bool
) -> None:
    for name in (KEY, MODE):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert resolved_offline({"project": "p", "offline": "auto"}) == {"project": "p", "offline": offline}
    assert resolved_offline({"offline": True}) == {"offline": True}
