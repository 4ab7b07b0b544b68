"""Watching for runs that go wrong while their losses look fine."""

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


@dataclass(frozen=True)
class Sentinel:
    """A number that says how a translator's outputs relate to its inputs."""

    measure: Callable[[Tensor, Tensor], Tensor]  # z_source, z_target [B,C,h,w] each -> []
    meaning: str  # of leaving its range, and what to do


def change(z_source: Tensor, z_target: Tensor) -> Tensor:
    """rms of the change over that of the inputs' contrast."""
    return (z_target - z_source).square().mean().sqrt() / z_source.std()


def contrast(z_source: Tensor, z_target: Tensor) -> Tensor:
    """Contrast of the outputs (standard deviation within channels) over that of the inputs."""
    return _contrast(z_target) / _contrast(z_source)


def drift(z_source: Tensor, z_target: Tensor) -> Tensor:
    """How far the channels' means have moved, in standard deviations of the inputs: colour and brightness of all outputs."""
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


class Sentinels(Callback):
    """Measures the last steps' edits, separately for each task, every `every` steps once `after` of the training is done.

    Logs sentinel/NAME (the worst task's). Outside the range: a line that says what it means and, if told so, an end.

    Args:
        action: "warn" or "stop".
        every: steps between looks.
        after: share of the training; before it, outputs are still the inputs.
        ranges: name -> [low, high] in which it should stay; null switches it off.

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
        self.fired: dict[str, str] = {}  # name -> what was said
        # The last few batches, so that small ones say something about diversity.
        self.recent: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=16)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "z_target" not in outputs:
            return
        self.recent.append((outputs["z_source"], outputs["z_target"], outputs["task"]))
        due = trainer.global_step % self.every == 0 and not (batch_idx + 1) % trainer.accumulate_grad_batches
        if not due or trainer.global_step < self.after * trainer.max_steps:
            return
        worst = self.measure(list(pl_module.tasks.names))  # type: ignore[union-attr,arg-type]
        for name, (value, task) in worst.items():
            pl_module.log(f"sentinel/{name}", value, rank_zero_only=True)
            # A lone rank's opinion must not stop it alone: all take the mean.
            agreed = float(trainer.strategy.reduce(torch.tensor(value, device=pl_module.device), reduce_op="mean"))
            low, high = self.ranges[name]
            if not low <= agreed <= high:
                self._fire(trainer, name, task, agreed)

    def measure(self, names: list[str]) -> dict[str, tuple[float, str]]:
        """Sentinel -> (the value farthest out of its range among the tasks, that task)."""
        tasks = torch.cat([task for _, _, task in self.recent])
        targets = torch.cat([z for _, z, _ in self.recent])
        sources = torch.cat([z.repeat_interleave(len(y) // len(z), dim=0) for z, y, _ in self.recent])
        worst: dict[str, tuple[float, str]] = {}
        for name, (low, high) in self.ranges.items():
            found = []
            for index, task in enumerate(names):
                of_task = tasks == index
                if int(of_task.sum()) >= 4:
                    value = SENTINELS[name].measure(sources[of_task], targets[of_task]).item()
                    found.append((min(value - low, high - value), value, task))
            if found:
                _, value, task = min(found)
                worst[name] = (value, task)
        return worst

    def _fire(self, trainer: pl.Trainer, name: str, task: str, value: float) -> None:
        low, high = self.ranges[name]
        line = f"step {trainer.global_step}, task {task}: {name} is {value:.3g}, outside [{low:g}, {high:g}]: "
        line += SENTINELS[name].meaning
        first = name not in self.fired
        self.fired[name] = line
        if self.action == "stop":
            raise UserError(f"stopped by a sentinel: {line}")
        if first and trainer.is_global_zero:
            print(f"\nsentinel: {line}", flush=True)


class FiniteSteps(Callback):
    """A step whose gradient is not finite changes nothing; after `patience` of them in a row the run stops.

    Decided on the gradients that all ranks share, so that all decide alike. Counted, and written to `path` with the
    positions of the images.

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
            with self.path.open("a") as file:
                file.write(f"step {trainer.global_step}: gradient not finite, skipped; images at positions {self._positions}\n")
            if self.total == 1:
                print(f"\nsentinel: step {trainer.global_step}: gradient not finite, skipped; see {self.path}", flush=True)
        if self.in_a_row >= self.patience:
            raise UserError(
                f"{self.in_a_row} steps in a row had gradients that are not finite: lower lr or guidance.end, or take "
                "teacher.dtype=float32 and trainer.precision=32-true"
            )


class BadSamples(Callback):
    """Names every sample that could not be used in `path`; above `limit`, a share of the data set, the run stops.

    Raises:
        UserError: from training, if there are more.
    """

    def __init__(self, path: Path, limit: float = 0.1) -> None:
        self.path, self.limit = path, limit
        self.seen: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(trainer, trainer.datamodule.held_out["bad"])  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch["bad"]:
            self._note(trainer, batch["bad"])

    def _note(self, trainer: pl.Trainer, reasons: list[str]) -> None:
        new = [reason for reason in dict.fromkeys(reasons) if reason not in self.seen]
        self.seen.update(new)
        if new:
            path = self.path if trainer.is_global_zero else self.path.with_stem(f"{self.path.stem}-{trainer.global_rank}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.writelines(f"{reason}\n" for reason in new)
        size = trainer.datamodule.size  # type: ignore[attr-defined]
        if len(self.seen) > self.limit * size:
            raise UserError(
                f"data: {len(self.seen)} of {size} samples cannot be used, more than max_bad_fraction={self.limit:g} of them; "
                f"see {self.path} (the last: {reasons[-1]})"
            )
