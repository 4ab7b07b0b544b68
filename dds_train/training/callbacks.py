"""What happens around the training step: averaging, pictures, throughput."""

import time
from collections.abc import Callable
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
    """For torch's `AveragedModel`: an EMA whose decay is reached gradually, so that short runs forget their start too."""

    def average(averaged: Any, current: Any, count: int | Tensor) -> None:
        warmed = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - warmed)

    return average


class EMA(WeightAveraging):
    """Exponential moving average of the weights: what checkpoints hold as ``state_dict`` and what is exported."""

    def __init__(self, decay: float = 0.999) -> None:
        # One fused call for all tensors; the library's EMAWeightAveraging makes thousands of small ones.
        super().__init__(multi_avg_fn=warmed_ema(decay))


class SampleGrid(Callback):
    """Every `every` steps, and at the end, a picture of fixed inputs that are not trained on and, below them, a row of edits
    for each task.

    Args:
        every: steps between pictures.
        folder: receives step-0000500.png and so on.
        decode: latents [B,C,h,w] -> pixels [B,3,H,W] in [-1,1].
        count: inputs at most.
    """

    def __init__(self, every: int, folder: Path, decode: Callable[[Tensor], Tensor], count: int = 8) -> None:
        self.every, self.folder, self.decode, self.count = every, folder, decode, count

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches
        if trainer.is_global_zero and not accumulating and (step % self.every == 0 or step == trainer.max_steps):
            assert isinstance(pl_module, DistillationModule)
            self.draw(trainer, pl_module)

    @torch.no_grad()
    def draw(self, trainer: pl.Trainer, module: DistillationModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        inputs = {name: value[: self.count] for name, value in data.held_out.items()}
        z = module.encode(inputs)
        latents = [z, *(module.translate(z, module.every_time(task, z)) for task in range(len(module.tasks.names)))]
        picture = image_grid([self.decode(row).cpu() for row in latents])
        save_image(picture, self.folder / f"step-{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [(picture + 1) / 2], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", (picture + 1) / 2, trainer.global_step)


class Throughput(Callback):
    """Logs images per second, over all ranks, every `every` batches; the first `warmup` are left out. Once it is known, prints
    it with the time that is left."""

    def __init__(self, every: int, warmup: int = 5) -> None:
        self.every, self.warmup = every, warmup
        self.images = self.since = 0.0
        self.said = False

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
            if not self.said and trainer.is_global_zero and rate:
                per_step = len(batch["position"]) * trainer.world_size * trainer.accumulate_grad_batches
                left = (trainer.max_steps - trainer.global_step) * per_step / rate
                print(f"{rate:.0f} images/s, about {duration(left)} left", flush=True)
                self.said = True
            self.images, self.since = 0.0, time.perf_counter()


def duration(seconds: float) -> str:
    """ "40 s", "7 min", "3.2 h" """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
