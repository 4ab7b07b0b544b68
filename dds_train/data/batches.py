"""Batches as a function of (seed, step) alone, whatever the workers, ranks and earlier steps."""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dds_train.data.source import Sample, StorageError, storage_error
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError
from dds_train.runs.signals import ignore_signals

Place = tuple[int, int]  # (position in the endless order, index into the dataset)
Groups = Callable[[torch.Generator], list[Tensor]]  # a random order of all indices, in groups that are read one after another
Augment = Callable[[Tensor, torch.Generator], Tensor]  # of pixels [3,H,W]


class StatelessBatchSampler(Sampler[list[Place]]):
    """Batches `first` to `last` of an endless shuffle, for one rank.

    Every image comes once before any comes twice. A batch depends on (seed, its index, rank) alone, so a resumed run gets the
    batches of an uninterrupted one. Positions count the images of all ranks; noise and tasks are functions of them, so data
    parallelism is exact: N ranks of batch size B see the samples and the noise of one rank of batch size N B.

    Args:
        groups: the order of an epoch; default: a shuffle.
        ahead: is called with the indices of the group that a batch enters, from there on, and those of the next group.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        first: int,
        last: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Groups | None = None,
        ahead: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.size, self.batch_size, self.first, self.last = size, batch_size, first, last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.groups = groups or (lambda rng: [torch.randperm(size, generator=rng)])
        self.ahead = ahead
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)
        self._ends: list[int] = []  # of the groups of this epoch

    def __len__(self) -> int:
        # Not last - first: after a resume, Lightning goes on counting from the batches before it.
        return self.last

    def __iter__(self) -> Iterator[list[Place]]:
        entered = None
        for number in range(self.first, self.last):
            start = (number * self.world_size + self.rank) * self.batch_size
            if self.ahead:
                entered = self._look_ahead(start, entered)
            yield [(position, self.index_at(position)) for position in range(start, start + self.batch_size)]

    def index_at(self, position: int) -> int:
        """The index into the dataset of an image, by its position in the endless order."""
        epoch, index = divmod(position, self.size)
        if epoch != self._epoch:
            groups = self._groups_of(epoch)
            self._epoch, self._order, self._ends = epoch, torch.cat(groups), list(accumulate(map(len, groups)))
        return int(self._order[index])

    def _groups_of(self, epoch: int) -> list[Tensor]:
        return self.groups(seeded_rng(self.seed, "order", epoch))

    def _look_ahead(self, position: int, entered: tuple[int, int] | None) -> tuple[int, int]:
        """The epoch and group of a position, announced if it is not the one `entered` last."""
        assert self.ahead is not None
        self.index_at(position)
        group = bisect(self._ends, position % self.size)
        if (self._epoch, group) != entered:
            is_last = group + 1 == len(self._ends)
            coming = self._groups_of(self._epoch + 1)[:1] if is_last else []
            until = self._ends[min(group + 1, len(self._ends) - 1)]
            self.ahead(torch.cat([self._order[position % self.size : until], *coming]))
        return self._epoch, group


class PositionedDataset(Dataset[dict[str, Any]]):
    """Samples with their positions and, in place of exceptions, the reasons why they are missing.

    Returns {"position": int} and the sample's tensors; for a bad sample {"position": int, "bad": reason}; and after a failure
    that is not the sample's {"position": int, "failed": reason}.
    """

    def __init__(self, dataset: Dataset[Sample], indices: Sequence[int], seed: int, augment: Augment | None = None) -> None:
        self.dataset, self.indices, self.seed, self.augment = dataset, indices, seed, augment

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        position, index = place
        try:
            sample = read_sample(self.dataset, self.indices[index])
        except StorageError as error:  # as data: an exception would lose its message on the way out of a worker process
            return {"position": position, "failed": str(error)}
        if isinstance(sample, str):
            return {"position": position, "bad": sample}
        if self.augment and "image" in sample:
            sample = {**sample, "image": self.augment(sample["image"], seeded_rng(self.seed, "augment", position))}
        return {"position": position, **sample}


def read_sample(dataset: Dataset[Sample], index: int) -> Sample | str:
    """The sample, or why it cannot be used.

    Raises:
        StorageError: if that is not the sample's fault.
    """
    try:
        sample = dataset[index]
    except StorageError:
        raise
    except Exception as error:  # whatever a user's source raises: it is recorded, and stops the run if frequent
        message = (str(error).splitlines() or [""])[0]
        if failure := storage_error(error, f"data: sample {index}"):
            raise failure from error
        return message if isinstance(error, UserError) else f"sample {index}: {type(error).__name__}: {message}"
    # A finite sum has finite terms, and is soon made.
    sums = {name: value.sum() for name, value in sample.items() if value.is_floating_point()}
    broken = [name for name, total in sums.items() if not (total.isfinite() or sample[name].isfinite().all())]
    return f"{sample_name(dataset, index)}: {broken[0]} is not finite" if broken else sample


def sample_name(dataset: Dataset[Sample], index: int) -> str:
    """The file or the shard's key of a sample, if its dataset has a method `name`; otherwise its number."""
    return str(dataset.name(index)) if hasattr(dataset, "name") else f"sample {index}"


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"position": [of the good samples], "bad": [reasons], and the tensors of the good samples, stacked}, and "failed": a
    reason, if there is one."""
    good = [sample for sample in samples if not {"bad", "failed"} & sample.keys()]
    tensors = [{name: value for name, value in sample.items() if name != "position"} for sample in good]
    failed = [sample["failed"] for sample in samples if "failed" in sample]
    return {
        "position": [sample["position"] for sample in good],
        "bad": [sample["bad"] for sample in samples if "bad" in sample],
        **({"failed": failed[0]} if failed else {}),
        **(default_collate(tensors) if tensors else {}),
    }


def hold_out(dataset: Dataset[Sample], count: int) -> tuple[dict[str, Any], list[int]]:
    """The first `count` readable samples as a batch with positions from 0, and the indices of all samples after them.

    Raises:
        UserError: if no sample is left for training.
    """
    size = len(dataset)  # type: ignore[arg-type]
    samples: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for index in range(size):
        if len(samples) == count:
            return collate(samples + bad), list(range(index, size))
        sample = read_sample(dataset, index)
        if isinstance(sample, str):
            bad.append({"bad": sample})
        else:
            samples.append({"position": len(samples), **sample})
    reason = f" ({len(bad)} cannot be read: {bad[0]['bad']})" if bad else ""
    raise UserError(f"data: {size} images are too few{reason}; more than held_out={count} are required")


def step_loader(dataset: PositionedDataset, batches: Sampler[list[Place]], workers: int) -> DataLoader[dict[str, Any]]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
