"""What a data source is, and batches whose order is a function of (seed, step) alone."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dds_train.distillation.rng import generator
from dds_train.errors import UserError

Sample = dict[str, Tensor]  # {"z": latents [C,h,w]} or {"image": pixels [3,S,S] in [-1,1]}


class Source(Protocol):
    """Where the images to translate come from."""

    def prepare(self) -> None:
        """Whatever takes long and is needed once (drawing, downloading); called on one process only."""
        ...

    def dataset(self) -> Dataset[Sample]:
        """Map-style and sized; after `prepare`, on every process."""
        ...


class StepBatches(Sampler[list[int]]):
    """Batches number `first` to `last` of an endless shuffle, the part of one rank.

    Every image comes once before any comes twice. A batch's content depends on (seed, its number, rank) and on nothing that
    happened before, so a resumed run sees what an uninterrupted one would have seen.
    """

    def __init__(self, size: int, batch: int, first: int, last: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch, self.first, self.last = size, batch, first, last
        self.seed, self.rank, self.world = seed, rank, world
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        # Not last - first: Lightning counts on from the batches that were done before a resume.
        return self.last

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.first, self.last):
            start = (number * self.world + self.rank) * self.batch
            yield [self._at(position) for position in range(start, start + self.batch)]

    def _at(self, position: int) -> int:
        epoch, index = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator(self.seed, "order", epoch))
        return int(self._order[index])


def hold_out(dataset: Dataset[Sample], count: int) -> tuple[list[Sample], list[int]]:
    """The first `count` samples, for pictures, and the indices of the others, for training.

    Raises:
        UserError: if nothing is left to train on.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if size <= count:
        raise UserError(f"data: {size} images are too few; more than {count} are needed, which are held out for pictures")
    return [dataset[i] for i in range(count)], list(range(count, size))


def step_loader(dataset: Dataset[Sample], batches: StepBatches, workers: int) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
