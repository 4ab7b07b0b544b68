"""Two ranks: whatever the batch of one of them is like, they take the same steps and end together."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import Dataset
from training_runs import build, latents, trainer, two_ranks

from dds_train.data.source import Sample
from dds_train.distillation import LOSSES
from dds_train.distillation.inject import inject
from dds_train.errors import UserError
from dds_train.runs.signals import StopRequest
from dds_train.training.checkpoints import SaveOnSignal
from dds_train.training.data import SourceData
from dds_train.training.faults import BadSamples, FiniteSteps
from dds_train.training.sentinels import Sentinels

RANGES = {"diversity": [0.9, 1.0], "copy": [0, 10], "contrast": [0, 10], "drift": [0, 10]}
TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp", "limit_val_batches": 0}


class Images(Dataset[Sample]):
    """Latents with names; some cannot be read, and the loss of one is NaN."""

    def __init__(self, broken: set[int] = frozenset(), failing: int = -1, exploding: int = -1) -> None:  # type: ignore[assignment]
        self.samples, self.broken, self.failing, self.exploding = latents(), broken, failing, exploding

    def __len__(self) -> int:
        return 20

    def name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise UserError(f"{index}.png: broken")
        if index == self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return {"z": torch.full((4, 8, 8), 9.0)} if index == self.exploding else self.samples[index]


def exploding_loss(*arguments: Any) -> Any:
    distilled, z_source, z_target = LOSSES["dds"](*arguments), arguments[1], arguments[2]
    return inject(z_target, distilled.grad.where((z_source != 9.0).any(), torch.nan))


class At(Callback):
    """Something that happens at the end of a training step on one rank."""

    def __init__(self, step: int, rank: int, action: Callable[[], Any]) -> None:
        self.step, self.rank, self.action = step, rank, action

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            self.action()


STEPS = 8  # in which each rank has half of the images


def train(
    teacher: Path, folder: Path, steps: int, images: Images, *more: Callback, resume: Path | None = None
) -> tuple[pl.Trainer, Any]:
    module = build(teacher, loss=exploding_loss)
    data = SourceData(images, batch_size=1, held_out=4, workers=0, seed=0)
    running = trainer(folder, STEPS, more=more, limit_train_batches=steps, **TWO)
    running.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return running, module


def of_second_rank(step: int, *broken: int) -> int:
    """The image that rank 1 has at a step."""
    data = SourceData(Images(set(broken)), batch_size=1, held_out=4, workers=0, seed=0)
    return int(data.names([2 * step + 1])[0].removesuffix(".png"))


def state(running: pl.Trainer) -> dict[str, Any]:
    """All that a step may depend on, beside weights and optimizer."""
    found: dict[str, Any] = {"step": running.global_step}
    for callback in running.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Sentinels):
            found |= {"fired": callback.fired}
            for task, window in callback._windows.items():
                found[task] = [tensor.sum().item() for pair in window for tensor in pair]
        if isinstance(callback, BadSamples | FiniteSteps):
            found[type(callback).__name__] = callback.state_dict()
    return found


@pytest.mark.slow
def test_bad_batches_of_one_rank_and_a_resumed_run(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Sentinels look at every step; two batches of one rank have no readable sample, and one explodes."""
    teacher, broken = tiny("epsilon"), {2, of_second_rank(0, 2), of_second_rank(5, 2)}  # before the checkpoint and after it
    exploding = of_second_rank(2, 2)

    def run(folder: Path, *parts: int) -> Callable[[int], Any]:
        def on_rank(rank: int) -> Any:
            resume = None
            for steps in parts:
                watch = Sentinels("warn", 1, 0, RANGES)
                images = Images(broken, exploding=exploding)
                running, module = train(teacher, folder, steps, images, watch, resume=resume)
                resume = folder / "ckpt" / "last.ckpt"
                torch.distributed.destroy_process_group()
            return state(running), {name: tensor.sum().item() for name, tensor in module.state_dict().items()}

        return on_rank

    whole, parts = two_ranks(run(tmp_path / "whole", STEPS)), two_ranks(run(tmp_path / "parts", 5, STEPS))
    assert whole == parts
    (first, weights), (second, weights_of_second) = whole
    assert first["step"] == second["step"] == STEPS
    assert weights == weights_of_second
    assert first["fired"].keys() == second["fired"].keys() == {"diversity"}
    for name in ("bad.txt", "skipped.txt"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    bad = (tmp_path / "whole" / "bad.txt").read_text().splitlines()
    assert sorted(bad) == sorted(f"{number}.png: broken" for number in broken)
    (line,) = (tmp_path / "whole" / "skipped.txt").read_text().splitlines()
    assert line == f"step 2: gradient not finite, skipped; images rank 1: {exploding}.png"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_both_at_its_step(
    tiny: Callable[[str], Path], tmp_path: Path, number: signal.Signals
) -> None:
    def run(rank: int) -> Any:
        stop = SaveOnSignal(tmp_path, StopRequest())
        train(tiny("epsilon"), tmp_path, STEPS, Images(), At(3, 1, lambda: os.kill(os.getpid(), number)), stop)

    assert two_ranks(run) == [f"SystemExit: {128 + number}"] * 2
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_failing_disk_and_too_many_bad_samples_end_both_ranks(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    number = of_second_rank(1)

    def failing(rank: int) -> Any:
        train(tiny("epsilon"), tmp_path / "failing", STEPS, Images(failing=number))

    first, second = two_ranks(failing)
    assert first == "UserError: data: another rank can no longer read it"
    assert second.startswith(f"UserError: data: sample {number}: cannot be read (Input/output error)")

    def broken(rank: int) -> Any:  # five on each rank, of 16
        train(tiny("epsilon"), tmp_path / "broken", STEPS, Images({4, 5, 6, 7, 8, 9, 10, 11, 12, 13}))

    first, second = two_ranks(broken)
    assert first == second
    assert "9 of 16 samples cannot be read" in first
