"""Callbacks around the training step: weight averaging, previews, throughput."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from dds_train.images.files import save_image
from dds_train.images.grids import image_grid
from dds_train.training.module import DistillationModule


def warmed_ema(decay: float) -> Any:
    """The averaging function of an EMA with warm-up, for torch's `AveragedModel`: short runs forget their start too."""

    def average(averaged: Any, current: Any, count: int | Tensor) -> None:
        warmed = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - warmed)

    return average


class EMA(WeightAveraging):
    """Exponential moving average of the weights: the ``state_dict`` of checkpoints, and the weights that are exported."""

    def __init__(self, decay: float = 0.999) -> None:
        # One fused call for all tensors; the library's EMAWeightAveraging makes thousands of small ones.
        super().__init__(multi_avg_fn=warmed_ema(decay))

    @contextlib.contextmanager
    def averaged(self, module: pl.LightningModule) -> Iterator[None]:
        """The averaged weights in `module`, for the block."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)


class SampleGrid(Callback):
    """A preview every `every` training steps and after the last one: held-out images above a row of edits for each task.

    The edits are those of the averaged weights, if there is an `EMA`. Training is not affected: weights and random state are
    the same afterwards.

    Args:
        every: training steps between previews.
        folder: of step-0000500.png and so on.
        decode: latents [B,C,h,w] -> images [B,3,H,W] in [-1,1].
        count: number of images, at most.
    """

    def __init__(self, every: int, folder: Path, decode: Callable[[Tensor], Tensor], count: int = 8) -> None:
        self.every, self.folder, self.decode, self.count = every, folder, decode, count

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches
        if not trainer.is_global_zero or accumulating or (step % self.every and step != trainer.max_steps):
            return
        assert isinstance(pl_module, DistillationModule)
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with contextlib.ExitStack() as stack:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, EMA):
                    callback.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)  # once a step, whoever is first
                    stack.enter_context(callback.averaged(pl_module))
            grid = self.preview(pl_module, trainer.datamodule.held_out)  # type: ignore[attr-defined]
        for module, mode in modes.items():
            module.training = mode
        save_image(grid, self.folder / f"step-{step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [(grid + 1) / 2], step=step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", (grid + 1) / 2, step)

    @torch.no_grad()
    def preview(self, module: DistillationModule, held_out: dict[str, Any]) -> Tensor:
        """The grid [3,H,W] in [-1,1]."""
        z = module.encode({name: value[: self.count] for name, value in held_out.items()})
        rows = [z, *(module.translate(z, module.repeat_task(task, len(z))) for task in range(len(module.tasks.names)))]
        return image_grid([self.decode(row).cpu() for row in rows])


class Throughput(Callback):
    """Images per second over all ranks, logged every `every` batches after `warmup`; printed once with the time left."""

    def __init__(self, every: int, warmup: int = 5) -> None:
        self.every, self.warmup = every, warmup
        self.images = self.since = 0.0
        self.printed = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx < self.warmup or not self.since:
            self.images, self.since = 0.0, time.perf_counter()
            return
        self.images += len(batch["position"]) * trainer.world_size
        if (batch_idx + 1) % self.every == 0:
            rate = self.images / (time.perf_counter() - self.since)
            pl_module.log("images/s", rate, prog_bar=True, rank_zero_only=True)
            if not self.printed and trainer.is_global_zero and rate:
                per_step = len(batch["position"]) * trainer.world_size * trainer.accumulate_grad_batches
                seconds = (trainer.max_steps - trainer.global_step) * per_step / rate
                print(f"{rate:.0f} images/s, about {duration(seconds)} left", flush=True)
                self.printed = True
            self.images, self.since = 0.0, time.perf_counter()


def duration(seconds: float) -> str:
    """ "40 s", "7 min", "3.2 h" """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
