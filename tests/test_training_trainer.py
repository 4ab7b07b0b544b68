"""The trainer inside a batch system's job, and its end when another rank ends."""

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from configuration import configure
from pytorch_lightning.strategies.launchers import subprocess_script

from dds_train.commands.fit import TRAINER
from dds_train.errors import UserError
from dds_train.training.sentinels import Sentinels
from dds_train.training.trainer import make_trainer


def made(folder: Path, *overrides: str) -> pl.Trainer:
    config = configure("fit", "source=a cat", "target=a lion", "trainer.accelerator=cpu", *overrides)
    sentinels = Sentinels(**config.sentinels.model_dump())
    return make_trainer(folder, config.trainer.model_dump(), [], sentinels, **config.model_dump(include=TRAINER))


def test_a_slurm_job_that_srun_did_not_start_is_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "7"), ("SLURM_JOB_NAME", "train")):
        monkeypatch.setenv(name, value)
    assert made(tmp_path).world_size == 1
    assert made(tmp_path, "trainer.devices=2").world_size == 2
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0"), ("SLURM_NODEID", "0"), ("SLURM_STEP_NUM_TASKS", "4")):
        monkeypatch.setenv(name, value)  # by srun
    with pytest.raises(UserError, match="trainer: You set `--ntasks=4`"):
        made(tmp_path, "trainer.devices=4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    with pytest.raises(UserError, match=r"trainer: You set `devices=2` .* `devices=4`"):
        made(tmp_path, "trainer.devices=2")
    assert made(tmp_path, "trainer.devices=4").world_size == 4


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_ranks_wait_minutes_for_one_another_and_signals_are_ours(tmp_path: Path, strategy: str) -> None:
    trainer: Any = made(tmp_path, "trainer.devices=2", f"trainer.strategy={strategy}")
    assert trainer.strategy._timeout <= timedelta(minutes=10)
    trainer._signal_connector.register_signal_handlers()
    assert not trainer._signal_connector._original_handlers


@pytest.mark.parametrize(("code", "own"), [(143, 143), (2, 2), (-15, 143)])
def test_a_rank_that_fails_ends_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, own: int) -> None:
    ended, codes = threading.Event(), []
    monkeypatch.setattr("dds_train.training.trainer.GRACE", 0.1)
    monkeypatch.setattr("dds_train.training.trainer.end_now", lambda code: codes.append(code) or ended.set())  # type: ignore[func-returns-value]
    made(tmp_path)
    program = f"import os, sys; os.kill(os.getpid(), {-code}) if {code} < 0 else sys.exit({code})"
    ranks = [subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE) for text in (program, "input()")]
    subprocess_script._launch_process_observer(ranks)  # type: ignore[attr-defined]
    assert ended.wait(10)
    for rank in ranks:
        rank.communicate(os.linesep.encode())
    assert codes == [own]
