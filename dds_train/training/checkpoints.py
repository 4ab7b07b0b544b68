"""Checkpoints that survive a kill, a full disk, and impatience."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint

from dds_train.errors import UserError
from dds_train.runs.files import atomic_write
from dds_train.training.signals import StopRequest
from dds_train.translator import TranslatorConfig, read_config, read_step


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
        UserError: if there are checkpoints, and none of them can be read.
    """
    if resume == "never":
        return None
    own = [path for path in (folder / "last.ckpt", *sorted(folder.glob("step-*.ckpt"), reverse=True)) if path.exists()]
    for path in own if resume == "auto" else [Path(resume)]:
        try:
            return ResumePoint(path, read_step(path), read_config(path))
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
    """After SIGINT (Ctrl-C) or SIGTERM to any rank: finish the step, save last.ckpt, exit with 130 or 143.

    A second signal ends the process at once.

    Args:
        folder: of last.ckpt.
        every: training steps between the points at which several ranks agree to stop.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self.path, self.every = folder / "last.ckpt", every
        self._stop = StopRequest()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here and not earlier: Lightning installs its own handlers when it starts.
        notice = "stopping after this step; a second signal ends at once, without a checkpoint"
        self._stop.install(notice if trainer.is_global_zero else None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop.uninstall()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop.uninstall()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        number = self._stop.received
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1:
            if trainer.global_step % self.every:
                return
            number = int(trainer.strategy.reduce(torch.tensor(float(number), device=pl_module.device), reduce_op="max"))
        if number:
            trainer.save_checkpoint(self.path)
            if trainer.is_global_zero:
                print(f"\nstopped at step {trainer.global_step}; the same command resumes from {self.path}", flush=True)
            raise SystemExit(128 + number)
