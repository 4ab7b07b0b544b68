"""Checkpoints that survive a kill, a full disk, and impatience."""

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from dds_train.runs.files import atomic_write


class Checkpoints(ModelCheckpoint):
    """Every `every` steps and after the last one: last.ckpt, and the newest `keep` as step-0000500.ckpt."""

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="step-{step:07d}",
            auto_insert_metric_name=False,
            every_n_train_steps=every,
            save_last=True,
            save_top_k=keep,
            monitor="step",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,  # or the last one would wait for a validation that may not come
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps and self._every_n_train_steps:
            self._every_n_train_steps = 1  # the last step counts, whatever it is a multiple of
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class BestCheckpoint(ModelCheckpoint):
    """best.ckpt: the step at which `metric` was best; `mode` is "max" or "min"."""

    def __init__(self, folder: Path, metric: str, mode: str) -> None:
        super().__init__(dirpath=folder, filename="best", monitor=metric, mode=mode, enable_version_counter=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear complete or not at all: a killed process leaves the previous one whole.

    Lightning's own writer goes through TMPDIR, and moving between file systems is not atomic.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # To an open file: a path's own name would go into the archive.
        with atomic_write(path, durable=True) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class SaveOnSignal(Callback):
    """SIGINT (Ctrl-C) or SIGTERM to any rank: finish the step, save last.ckpt, exit with 130 or 143.

    Args:
        folder: receives last.ckpt.
        every: steps between the ranks' agreements, with several of them.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self.path, self.every = folder / "last.ckpt", every
        self.received = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here and not earlier: Lightning installs its own handlers when it starts.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        number = self.received
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1:
            if trainer.global_step % self.every:
                return
            number = int(trainer.strategy.reduce(torch.tensor(float(number), device=pl_module.device), reduce_op="max"))
        if number:
            trainer.save_checkpoint(self.path)
            if trainer.is_global_zero:
                print(f"\nstopped at step {trainer.global_step}; the same command goes on from {self.path}", flush=True)
            raise SystemExit(128 + number)
