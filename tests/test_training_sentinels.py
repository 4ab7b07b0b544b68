"""Runs that go wrong are noticed: each sentinel on edits made to set it off, then in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import build, fit, latents, trainer

from dds_train.distillation.inject import inject
from dds_train.errors import UserError
from dds_train.training.data import SourceData
from dds_train.training.sentinels import LEAST, SENTINELS, WINDOW, Sentinels
from dds_train.translator import Task

RANGES: dict[str, Any] = {"diversity": [0.5, 10], "copy": [0.02, 10], "contrast": [0.5, 1.6], "drift": [0, 1]}
Z = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NUDGED = Z + 0.2 * torch.randn(Z.shape, generator=torch.Generator().manual_seed(1))


def outside(z_target: Tensor) -> set[str]:
    measured = {name: sentinel.measure(Z, z_target).item() for name, sentinel in SENTINELS.items()}
    return {name for name, value in measured.items() if not RANGES[name][0] <= value <= RANGES[name][1]}


def test_each_sentinel_fires_for_its_own_failure() -> None:
    assert outside(NUDGED) == set()
    assert outside(NUDGED[:1].expand_as(Z) + 0.01 * Z) == {"diversity"}
    assert outside(Z + 1e-3) == {"copy"}
    assert outside(2.5 * Z) == {"contrast"}
    assert outside(0.3 * Z) == {"contrast", "diversity"}
    assert outside(Z + 2) == {"drift"}


def test_the_worst_task_counts() -> None:
    sentinels = Sentinels("warn", 1, 0, RANGES)
    z_target = NUDGED.repeat_interleave(2, dim=0)
    z_target[1::2] = z_target[1]  # the second task has one output for all inputs
    sentinels.collect(["good", "collapsed"], [0, 1] * 8, Z, z_target)
    value, worst = sentinels.measure()["diversity"]
    assert worst == "collapsed"
    assert value < 1e-3


def test_windows_hold_the_latest_edits_of_each_task_in_bounded_memory() -> None:
    sentinels, names = Sentinels("warn", 1, 0, RANGES), ["often", "rarely"]
    for number in range(1000):
        z = torch.full((1, 4, 8, 8), float(number)).expand(16, -1, -1, -1).contiguous()
        sentinels.collect(names, [int(number % 100 == 0)] * 16, z, z)
    assert {task: len(window) for task, window in sentinels._windows.items()} == {"often": WINDOW // 2, "rarely": WINDOW // 2}
    assert [int(pair[0].max()) for pair in sentinels._windows["rarely"]][-16:] == [900] * 16
    stored = [z.untyped_storage().nbytes() for window in sentinels._windows.values() for pair in window for z in pair]
    assert sum(stored) == 2 * WINDOW * 4 * 8 * 8 * 4
    # However many tasks there are, each has edits enough to be measured.
    many = Sentinels("warn", 1, 0, RANGES)
    for task in list(range(1000)) * 5:
        many.collect([str(number) for number in range(1000)], [task], Z[:1], NUDGED[:1])
    assert len(many._windows["7"]) >= LEAST


@pytest.mark.parametrize(("batch_size", "tasks_per_image"), [(1, 1), (1, 8), (3, 2)])
def test_sentinels_fire_for_many_tasks_and_small_batches(
    tiny: Callable[[str], Path], tmp_path: Path, batch_size: int, tasks_per_image: int
) -> None:
    tasks = {f"task {number}": Task("a cat", f"a lion {number}", f"a lion {number}") for number in range(8)}
    module = build(tiny("epsilon"), tasks, tasks_per_image=tasks_per_image, optimizer=lambda p: torch.optim.AdamW(p, lr=0.0))
    watch = Sentinels("stop", 1, 0, {"copy": [0.02, 10]})
    data = SourceData(latents(), batch_size=batch_size, held_out=4, workers=0, seed=0)
    steps = -(-LEAST * 8 // (batch_size * tasks_per_image))  # in which each task comes four times
    with pytest.raises(UserError, match=r"stopped by a sentinel: step \d+, task task \d: copy is 0, outside \[0\.02, 10\]"):
        trainer(tmp_path, steps, more=[watch], limit_val_batches=0).fit(module, datamodule=data)


def collapsing(*arguments: Any) -> Any:
    """A "loss" that pulls every output to one and the same latent."""
    z_target = arguments[2]
    return inject(z_target, (z_target - 2.0 * torch.ones_like(z_target)).detach())


def lively(**changes: Any) -> dict[str, Any]:
    return {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2), **changes}


@pytest.mark.slow
def test_a_collapsing_run_is_stopped_with_the_reason(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    module = build(tiny("epsilon"), **lively(loss=collapsing))
    watch = Sentinels("stop", 5, 0.2, {"diversity": [0.7, 10]})
    with pytest.raises(UserError, match=r"task (lion|dog): diversity is .*, outside \[0\.7, 10\]: .*collapse"):
        fit(module, trainer(tmp_path, 300, more=[watch]))


def test_a_warning_is_printed_once_and_training_continues(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = build(tiny("epsilon"), optimizer=lambda p: torch.optim.AdamW(p, lr=0.0))
    watch = Sentinels("warn", 2, 0.5, {"copy": [0.02, 10]})
    running = trainer(tmp_path, 8, more=[watch])
    fit(module, running)
    assert running.global_step == 8
    printed = capsys.readouterr().out
    assert printed.count("copy is") == 1
    assert "step 4," in printed  # half of the steps


def test_unknown_actions_sentinels_and_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="take warn or stop"):
        Sentinels("shout", 1, 0, RANGES)
    with pytest.raises(ValueError, match="no sentinel 'colour'"):
        Sentinels("warn", 1, 0, {"colour": [0, 1]})
    with pytest.raises(ValueError, match=r"give \[LOW,HIGH\]"):
        Sentinels("warn", 1, 0, {"drift": [2, 1]})
    assert "drift" not in Sentinels("warn", 1, 0, {"drift": None}).ranges
