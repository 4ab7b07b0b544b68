"""Batches whose content is a function of (seed, step) alone: not of workers, ranks, or what happened before."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dds_train.data.source import Sample
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError

Place = tuple[int, int]  # (position in the endless order, index in the data set)
Augment = Callable[[Tensor, torch.Generator], Tensor]  # of pixels [3,S,S]


class StatelessBatchSampler(Sampler[list[Place]]):
    """Batches number `first` to `last` of an endless shuffle, the part of one rank.

    Every image comes once before any comes twice. A batch's content depends on (seed, its number, rank) and on nothing that
    happened before, so a resumed run sees what an uninterrupted one would have seen. Positions count the images of all ranks
    together: noise and tasks follow from them, so that two ranks see together what one with twice the batch sees alone.
    """

    def __init__(self, size: int, batch: int, first: int, last: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch, self.first, self.last = size, batch, first, last
        self.seed, self.rank, self.world = seed, rank, world
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        # Not last - first: Lightning counts on from the batches that were done before a resume.
        return self.last

    def __iter__(self) -> Iterator[list[Place]]:
        for number in range(self.first, self.last):
            start = (number * self.world + self.rank) * self.batch
            yield [(position, self._at(position)) for position in range(start, start + self.batch)]

    def _at(self, position: int) -> int:
        epoch, index = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self.size, generator=seeded_rng(self.seed, "order", epoch))
        return int(self._order[index])


class PositionedDataset(Dataset[dict[str, Any]]):
    """A data set whose samples know their position; what cannot be used is said instead of raised.

    Returns {"position": int} with the sample's tensors, or with {"bad": reason}.
    """

    def __init__(self, dataset: Dataset[Sample], indices: Sequence[int], seed: int, augment: Augment | None = None) -> None:
        self.dataset, self.indices, self.seed, self.augment = dataset, indices, seed, augment

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        position, index = place
        read = read_sample(self.dataset, self.indices[index])
        if isinstance(read, str):
            return {"position": position, "bad": read}
        if self.augment and "image" in read:
            read = {**read, "image": self.augment(read["image"], seeded_rng(self.seed, "augment", position))}
        return {"position": position, **read}


def read_sample(dataset: Dataset[Sample], index: int) -> Sample | str:
    """The sample, or why it cannot be used."""
    try:
        sample = dataset[index]
    except Exception as error:  # whatever a source's own reader raises: it is named, counted, and stops the run if frequent
        first_line = (str(error).splitlines() or [""])[0]
        return first_line if isinstance(error, UserError) else f"sample {index}: {type(error).__name__}: {first_line}"
    broken = [name for name, value in sample.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    return f"sample {index}: {broken[0]} is not finite" if broken else sample


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"position": [ints of the good ones], "bad": [reasons], and the tensors of the good ones, stacked}."""
    good = [sample for sample in samples if "bad" not in sample]
    tensors = [{name: value for name, value in sample.items() if name != "position"} for sample in good]
    return {
        "position": [sample["position"] for sample in good],
        "bad": [sample["bad"] for sample in samples if "bad" in sample],
        **(default_collate(tensors) if tensors else {}),
    }


def hold_out(dataset: Dataset[Sample], count: int) -> tuple[dict[str, Any], list[int]]:
    """The first `count` samples that can be read, as a batch with positions from 0, and the indices of all behind them.

    Raises:
        UserError: if nothing is left to train on.
    """
    size = len(dataset)  # type: ignore[arg-type]
    samples: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for index in range(size):
        if len(samples) == count:
            return collate(samples + bad), list(range(index, size))
        read = read_sample(dataset, index)
        if isinstance(read, str):
            bad.append({"bad": read})
        else:
            samples.append({"position": len(samples), **read})
    why = f" ({len(bad)} cannot be read: {bad[0]['bad']})" if bad else ""
    raise UserError(f"data: {size} images are too few{why}; more than held_out={count} are needed")


def step_loader(dataset: PositionedDataset, batches: StatelessBatchSampler, workers: int) -> DataLoader[dict[str, Any]]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
