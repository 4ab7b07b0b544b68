"""Detectors of failing runs whose losses look fine."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchvision.transforms.functional import center_crop

from dds_train.errors import UserError
from dds_train.evaluation.metrics.diversity import diversity
from dds_train.training.agreement import gathered, step_ends, summed
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
SENTINELS_KEY = "sentinels"  # of a training checkpoint


class Sentinels(Callback):
    """Statistics of the latest edits of each task, every `every` steps after the fraction `after` of training.

    Logs sentinel/NAME, the value of the worst task, the mean over the ranks. If it is out of range, prints what that means, or
    stops the run. What every rank has seen is in the checkpoint.

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
        due = trainer.global_step % self.every == 0 and step_ends(trainer, batch_idx)
        if not due or trainer.global_step < self.after * trainer.max_steps or not self.ranges:
            return
        # One rank must not stop alone: all take the mean over the ranks with enough edits. A rank without any adds zeros.
        worst = self.measure()
        values = [[worst[name][0], 1.0] if name in worst else [0.0, 0.0] for name in self.ranges]
        sums = summed(trainer, [value for pair in values for value in pair])
        for (name, (low, high)), total, count in zip(self.ranges.items(), sums[::2], sums[1::2], strict=True):
            if not count:
                continue
            pl_module.log(f"sentinel/{name}", total / count, rank_zero_only=True)
            if not low <= total / count <= high:
                self._fire(trainer, name, worst.get(name, (0.0, names[0]))[1], total / count)

    def collect(self, names: Sequence[str], tasks: Sequence[int], z_source: Tensor, z_target: Tensor) -> None:
        """Add edits z_target [B*M,C,h,w] of z_source [B,C,h,w], of tasks [B*M], to the windows of their tasks."""
        edits = len(z_target) // len(z_source)
        for number, task in enumerate(tasks):
            window = self._windows.setdefault(names[task], self._window(len(names)))
            window.append((z_source[number // edits].clone(), z_target[number].clone()))

    def measure(self) -> dict[str, tuple[float, str]]:
        """Sentinel -> (the value farthest out of its range among the tasks with enough edits, that task)."""
        edits = {task: stacked for task, stacked in self._stacked().items() if len(stacked[0]) >= LEAST}
        worst: dict[str, tuple[float, str]] = {}
        for name, (low, high) in self.ranges.items() if edits else ():
            values = {task: SENTINELS[name].measure(*latents).item() for task, latents in edits.items()}
            task = min(values, key=lambda task: min(values[task] - low, high - values[task]))
            worst[name] = values[task], task
        return worst

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        pairs = {task: list(zip(*window, strict=True)) for task, window in self._windows.items()}
        windows = {task: [[z.cpu() for z in one] for one in pair] for task, pair in pairs.items()}
        checkpoint[SENTINELS_KEY] = {"fired": self.fired, "windows": gathered(trainer, windows)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, DistillationModule)
        state, names = checkpoint[SENTINELS_KEY], pl_module.tasks.names
        self.fired, known = dict(state["fired"]), state["windows"]
        for task, latents in known[trainer.global_rank % len(known)].items():  # another number of ranks starts from some
            on_device = ([z.to(pl_module.device).clone() for z in one] for one in latents)
            self._windows[task] = self._window(len(names), zip(*on_device, strict=True))

    def _window(self, tasks: int, edits: Iterable[tuple[Tensor, ...]] = ()) -> deque[Any]:
        return deque(edits, maxlen=max(2 * LEAST, WINDOW // tasks))

    def _stacked(self) -> dict[str, list[Tensor]]:
        """Task -> z_source and z_target of its window, [N,C,h,w] each; of several shapes what all have of the middle."""

        def stacked(latents: Sequence[Tensor]) -> Tensor:
            size = [min(z.shape[side] for z in latents) for side in (-2, -1)]
            return torch.stack([center_crop(z, size) for z in latents])

        return {task: [stacked(one) for one in zip(*window, strict=True)] for task, window in self._windows.items()}

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
