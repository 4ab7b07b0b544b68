"""Checkpoints that survive a kill, a full disk, and impatience."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint

from dds_train.errors import UserError
from dds_train.runs.files import atomic_write
from dds_train.runs.signals import NUMBERS, STOP, StopRequest
from dds_train.training.agreement import step_ends, summed
from dds_train.training.module import DistillationModule
from dds_train.translator import TranslatorConfig, read_config, read_step
from dds_train.translator.files import OtherFormat


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to resume from."""

    path: Path
    step: int  # training steps that it has
    config: TranslatorConfig


def find_checkpoint(resume: str, folder: Path) -> ResumePoint | None:
    """The checkpoint that training resumes from.

    Args:
        resume: auto (last.ckpt in `folder`, or the newest step-*.ckpt that can be read), never, or a path.

    Raises:
        UserError: if there are checkpoints, and none of them can be read; OtherFormat if one is of another format.
    """
    if resume == "never":
        return None
    own = [path for path in (folder / "last.ckpt", *sorted(folder.glob("step-*.ckpt"), reverse=True)) if path.exists()]
    for path in own if resume == "auto" else [Path(resume)]:
        try:
            return ResumePoint(path, read_step(path), read_config(path))
        except OtherFormat:  # nothing of another version is passed over, or replaced
            raise
        except UserError:
            if resume != "auto":
                raise
            print(f"note: {path} is corrupted", flush=True)
    if own:
        raise UserError(f"{folder}: no checkpoint there can be read; resume=never starts over")
    return None


class Checkpoints(Checkpoint):
    """last.ckpt and step-0000500.ckpt, every `every` training steps and after the last one.

    Args:
        keep: number of step-*.ckpt on disk, at least 1, the newest ones; those of earlier runs in `folder` count.
    """

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self._saved = 0  # at this step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._saved or (step % self.every and step < trainer.max_steps):
            return
        self._saved = step
        trainer.save_checkpoint(self.folder / f"step-{step:07d}.ckpt")
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if trainer.is_global_zero:
            oldest_first = sorted(self.folder.glob("step-*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path))
            for path in oldest_first[: -self.keep]:
                path.unlink()


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt, the step with the best value of `metric`; `mode` is "max" or "min"."""

    def __init__(self, folder: Path, metric: str, mode: str) -> None:
        super().__init__(dirpath=folder, filename="best", monitor=metric, mode=mode, enable_version_counter=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear complete or not at all: a killed process leaves the previous one intact.

    Lightning's own writer goes through TMPDIR, and moving between file systems is not atomic.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # To an open file: a path's own name would go into the archive.
        with atomic_write(path, durable=True) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class SaveOnSignal(Callback):
    """After a signal to any rank (see `StopRequest`): finish the step, save last.ckpt, exit with 128 + its number.

    All ranks agree at the end of each step, and within a validation, which then remains incomplete.

    Args:
        folder: of last.ckpt.
        stop: that of the process; installed for the training if it is not.
    """

    def __init__(self, folder: Path, stop: StopRequest = STOP) -> None:
        self.path, self.stop, self._installs = folder / "last.ckpt", stop, False
        self.agreed = 0  # a signal that a rank has received

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        pl_module.should_stop = partial(self._agree, trainer)
        self._installs = self.stop.install()
        notice = "stopping after this step; a second signal ends at once, without a checkpoint"
        self.stop.defer(notice if trainer.is_global_zero else None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()
        if self.stop.received:  # since the last step
            raise SystemExit(128 + self.stop.received)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if step_ends(trainer, batch_idx) and self._agree(trainer):
            self._save_and_exit(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._agree(trainer):
            self._save_and_exit(trainer)

    def _end(self) -> None:
        self.stop.end_deferring()
        if self._installs:
            self.stop.uninstall()

    def _agree(self, trainer: pl.Trainer) -> bool:
        if not self.agreed:
            counts = summed(trainer, [number == self.stop.received for number in NUMBERS])
            self.agreed = next((number for number, count in zip(NUMBERS, counts, strict=True) if count), 0)
        return bool(self.agreed)

    def _save_and_exit(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            print(f"\nstopped at step {trainer.global_step}; the same command resumes from {self.path}", flush=True)
        raise SystemExit(128 + self.agreed)
