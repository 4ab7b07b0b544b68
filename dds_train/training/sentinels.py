"""Detectors of failing runs whose losses look fine, of gradients that are not finite, and of bad samples."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from dds_train.errors import UserError
from dds_train.evaluation.metrics.diversity import diversity
from dds_train.training.module import DistillationModule


@dataclass(frozen=True)
class Sentinel:
    """A statistic of a translator's inputs and outputs that leaves its range when training fails."""

    measure: Callable[[Tensor, Tensor], Tensor]  # z_source, z_target [B,C,h,w] each -> []
    meaning: str  # of a value outside the range, and the remedy


def change(z_source: Tensor, z_target: Tensor) -> Tensor:
    """RMS change of the latents over the standard deviation of the inputs."""
    return (z_target - z_source).square().mean().sqrt() / z_source.std()


def contrast(z_source: Tensor, z_target: Tensor) -> Tensor:
    """Contrast (standard deviation within channels) of the outputs over that of the inputs."""
    return _contrast(z_target) / _contrast(z_source)


def drift(z_source: Tensor, z_target: Tensor) -> Tensor:
    """RMS shift of the channel means, in standard deviations of the inputs: colour and brightness of all outputs."""
    return (z_target.mean((0, 2, 3)) - z_source.mean((0, 2, 3))).square().mean().sqrt() / z_source.std()


def _contrast(z: Tensor) -> Tensor:
    return (z - z.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()


SENTINELS: dict[str, Sentinel] = {
    "diversity": Sentinel(
        diversity, "outputs look alike whatever the input (collapse): lengthen guidance.fraction or lower guidance.end"
    ),
    "copy": Sentinel(change, "outputs equal their inputs: raise guidance.end, lower identity.end or raise lr"),
    "contrast": Sentinel(contrast, "outputs over-saturate or fade: lower guidance.end or lr, or raise identity.end"),
    "drift": Sentinel(drift, "all outputs shift in colour or brightness: lower guidance.end, or raise identity.end"),
}


WINDOW = 256  # edits over all tasks that statistics are taken of
LEAST = 4  # edits of a task


class Sentinels(Callback):
    """Statistics of the latest edits of each task, every `every` steps after the fraction `after` of training.

    Logs sentinel/NAME, the value of the worst task. If it is out of range, prints what that means, or stops the run.

    Args:
        action: "warn" or "stop".
        every: training steps between checks.
        after: fraction of training before the first check, in which outputs are still close to the inputs.
        ranges: name -> [low, high], or null to switch it off.

    Raises:
        UserError: from training, if a sentinel fires and `action` is "stop".
        ValueError: for an unknown action or sentinel.
    """

    def __init__(self, action: str, every: int, after: float, ranges: Mapping[str, Sequence[float] | None]) -> None:
        if action not in ("warn", "stop"):
            raise ValueError(f"sentinels.action={action}: take warn or stop")
        for name, range_ in ranges.items():
            if name not in SENTINELS:
                raise ValueError(f"sentinels.ranges: no sentinel '{name}'; there are {', '.join(SENTINELS)}")
            if range_ is not None and (len(range_) != 2 or range_[0] > range_[1]):
                raise ValueError(f"sentinels.ranges.{name}={range_}: give [LOW,HIGH], or null for none")
        self.action, self.every, self.after = action, every, after
        self.ranges = {name: (float(range_[0]), float(range_[1])) for name, range_ in ranges.items() if range_ is not None}
        self.fired: dict[str, str] = {}  # name -> its last message
        self._windows: dict[str, deque[tuple[Tensor, Tensor]]] = {}  # task -> (z_source, z_target) [C,h,w] of its latest edits

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        names = pl_module.tasks.names
        if "z_target" in outputs:
            tasks = pl_module.tasks.pick(batch["position"], pl_module.tasks_per_image)
            self.collect(names, tasks.tolist(), outputs["z_source"], outputs["z_target"])
        due = trainer.global_step % self.every == 0 and not (batch_idx + 1) % trainer.accumulate_grad_batches
        if not due or trainer.global_step < self.after * trainer.max_steps:
            return
        worst = self.measure()
        for name, (low, high) in self.ranges.items():
            # One rank must not stop alone: all take the mean over the ranks with enough edits.
            value, task = worst.get(name, (0.0, names[0]))
            local = torch.tensor([value, float(name in worst)], device=pl_module.device)
            total, count = trainer.strategy.reduce(local, reduce_op="sum").tolist()
            if not count:
                continue
            pl_module.log(f"sentinel/{name}", total / count, rank_zero_only=True)
            if not low <= total / count <= high:
                self._fire(trainer, name, task, total / count)

    def collect(self, names: Sequence[str], tasks: Sequence[int], z_source: Tensor, z_target: Tensor) -> None:
        """Add edits z_target [B*M,C,h,w] of z_source [B,C,h,w], of tasks [B*M], to the windows of their tasks."""
        edits = len(z_target) // len(z_source)
        for number, task in enumerate(tasks):
            window = self._windows.setdefault(names[task], deque(maxlen=max(2 * LEAST, WINDOW // len(names))))
            window.append((z_source[number // edits].clone(), z_target[number].clone()))

    def measure(self) -> dict[str, tuple[float, str]]:
        """Sentinel -> (the value farthest out of its range among the tasks with enough edits, that task)."""
        edits = {
            task: [torch.stack(latents) for latents in zip(*window, strict=True)]
            for task, window in self._windows.items()
            if len(window) >= LEAST
        }
        worst: dict[str, tuple[float, str]] = {}
        for name, (low, high) in self.ranges.items() if edits else ():
            values = {task: SENTINELS[name].measure(*latents).item() for task, latents in edits.items()}
            task = min(values, key=lambda task: min(values[task] - low, high - values[task]))
            worst[name] = values[task], task
        return worst

    def _fire(self, trainer: pl.Trainer, name: str, task: str, value: float) -> None:
        low, high = self.ranges[name]
        message = f"step {trainer.global_step}, task {task}: {name} is {value:.3g}, outside [{low:g}, {high:g}]: "
        message += SENTINELS[name].meaning
        first = name not in self.fired
        self.fired[name] = message
        if self.action == "stop":
            raise UserError(f"stopped by a sentinel: {message}")
        if first and trainer.is_global_zero:
            print(f"\nsentinel: {message}", flush=True)


class FiniteSteps(Callback):
    """Skips steps whose gradient is not finite, records them in `path`, and stops the run after `patience` of them in a row.

    All ranks decide alike, by the gradients that they share.

    Raises:
        UserError: from training, after `patience` such steps in a row.
    """

    def __init__(self, path: Path, patience: int = 10) -> None:
        self.path, self.patience = path, patience
        self.total = self.in_a_row = 0
        self._positions: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._positions = batch["position"]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        total = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros(())
        if torch.isfinite(total):
            self.in_a_row = 0
            return
        for parameter in pl_module.parameters():
            parameter.grad = None  # which optimisers skip altogether: no decay, no momentum
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"step {trainer.global_step}: gradient not finite, skipped; images at positions {self._positions}\n")
            if self.total == 1:
                print(f"\nsentinel: step {trainer.global_step}: gradient not finite, skipped; see {self.path}", flush=True)
        if self.in_a_row >= self.patience:
            raise UserError(
                f"{self.in_a_row} steps in a row had gradients that are not finite: lower lr or guidance.end, or take "
                "teacher.dtype=float32 and trainer.precision=32-true"
            )


class BadSamples(Callback):
    """Records every bad sample in `path`, and stops the run if they are more than a fraction `limit` of the data set.

    Raises:
        UserError: from training, if there are more.
    """

    def __init__(self, path: Path, limit: float = 0.1) -> None:
        self.path, self.limit = path, limit
        self.seen: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record(trainer, trainer.datamodule.held_out["bad"])  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch["bad"]:
            self._record(trainer, batch["bad"])

    def _record(self, trainer: pl.Trainer, reasons: list[str]) -> None:
        new = [reason for reason in dict.fromkeys(reasons) if reason not in self.seen]
        self.seen.update(new)
        if new:
            path = self.path if trainer.is_global_zero else self.path.with_stem(f"{self.path.stem}-{trainer.global_rank}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{reason}\n" for reason in new)
        size = trainer.datamodule.size  # type: ignore[attr-defined]
        if len(self.seen) > self.limit * size:
            raise UserError(
                f"data: {len(self.seen)} of {size} samples cannot be read, more than max_bad_fraction={self.limit:g}; "
                f"see {self.path} (the last: {reasons[-1]})"
            )
