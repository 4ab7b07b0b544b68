"""Agreement among the ranks of a run: what is decided by these values is decided alike on all of them.

Every rank must make the same calls at the same training steps, whatever its own batch was like.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

T = TypeVar("T")


def summed(trainer: pl.Trainer, values: Sequence[float]) -> list[float]:
    """The sums over all ranks of each of a fixed number of values."""
    if trainer.world_size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(total)
    result: list[float] = total.tolist()
    return result


def gathered(trainer: pl.Trainer, value: T) -> list[T]:
    """The values of all ranks, plain data or tensors on the CPU, in the order of the ranks."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def step_ends(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a training step ends with this batch: not while gradients accumulate."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
