"""What happens around the training step: averaging, pictures, throughput, checkpoints that survive a kill."""

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.utils.data import default_collate

from dds_train.data.images import save_image, strip
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
    """Every `every` steps, and at the end, a picture of fixed inputs that are not trained on (above) and their edits (below).

    Args:
        every: steps between pictures.
        folder: receives step-0000500.png and so on.
    """

    def __init__(self, every: int, folder: Path) -> None:
        self.every, self.folder = every, folder
        self.z: Tensor | None = None  # [N,C,h,w], the inputs
        self.before: Tensor | None = None  # [N,3,H,W], what the codec makes of them

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch = {name: value.to(pl_module.device) for name, value in default_collate(data.pictures).items()}
        assert isinstance(pl_module, DistillationModule)
        assert pl_module.codec is not None
        self.z = pl_module.encode(batch)
        self.before = pl_module.codec.decode(self.z).cpu()

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
        assert module.codec is not None
        assert self.z is not None
        assert self.before is not None
        picture = strip([self.before, module.codec.decode(module.translate(self.z)).cpu()])
        save_image(picture, self.folder / f"step-{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [(picture + 1) / 2], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", (picture + 1) / 2, trainer.global_step)


class Throughput(Callback):
    """Logs images per second, over all ranks, every `every` batches; the first `warmup` are left out."""

    def __init__(self, every: int, warmup: int = 5) -> None:
        self.every, self.warmup = every, warmup
        self.images = self.since = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx < self.warmup or not self.since:
            self.images, self.since = 0.0, time.perf_counter()
            return
        self.images += len(next(iter(batch.values()))) * trainer.world_size
        if (batch_idx + 1) % self.every == 0:
            rate = self.images / (time.perf_counter() - self.since)
            pl_module.log("images/s", rate, prog_bar=True, rank_zero_only=True)
            self.images, self.since = 0.0, time.perf_counter()


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
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps and self._every_n_train_steps:
            self._every_n_train_steps = 1  # the last step counts, whatever it is a multiple of
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name, then renames: a killed process leaves the previous checkpoint whole.

    Lightning's own writer goes through TMPDIR, and moving between filesystems is not atomic.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, final)
