"""Data sources as a Lightning data module."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dds_train.data.batches import Augment, PositionedDataset, StatelessBatchSampler, hold_out, sample_name, step_loader
from dds_train.data.buckets import BucketBatchSampler, BucketedDataset
from dds_train.data.order import ShardOrder
from dds_train.data.remote_files import FetchAhead
from dds_train.data.source import Sample
from dds_train.errors import UserError


class SourceData(pl.LightningDataModule):
    """Batches of a dataset in an order that depends on (seed, step) alone; the first `held_out` images are for validation.

    Args:
        dataset: that of a prepared source.
        batch_size: images per step and rank.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        batch_size: int,
        held_out: int,
        workers: int,
        seed: int,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        squares: Any = dataset.squares if isinstance(dataset, BucketedDataset) else dataset
        self.held_out, training = hold_out(squares, held_out)  # one batch, so of one shape
        self._shapes = [dataset.shapes[index] for index in training] if isinstance(dataset, BucketedDataset) else None
        self.size, self.augments = len(training), augment is not None
        self._training = PositionedDataset(dataset, training, seed, augment)
        order: ShardOrder | None = getattr(dataset, "order", None)
        self._order, self._first = order, len(dataset) - self.size  # type: ignore[arg-type]
        self._groups = partial(order.groups, self._first, self.size) if order else None
        self._fetch_ahead = FetchAhead()
        self.fingerprint = f"{self.size} {getattr(squares, 'fingerprint', '')}"  # the same on all ranks

    def check_latents(self, shape: tuple[int, ...]) -> None:
        """Refuse latents that a teacher of this shape [C,h,w] cannot take, or that would have to be augmented."""
        z = self.held_out.get("z")
        if z is not None and z.shape[1] != shape[0]:
            raise UserError(f"data: latents of {z.shape[1]} channels, the teacher's have {shape[0]}; take their own teacher")
        if z is not None and self.augments:
            raise UserError("augment: needs images, and this data set has latents; take data.latents=false, or leave it out")

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        assert self.trainer is not None
        accumulate = self.trainer.accumulate_grad_batches
        first, last = self.trainer.global_step * accumulate, self.trainer.max_steps * accumulate
        return self.loader(first, last, self.trainer.global_rank, self.trainer.world_size)

    def loader(self, first: int, last: int, rank: int = 0, world_size: int = 1) -> DataLoader[dict[str, Any]]:
        """Batches `first` to `last` of one rank."""
        batches = self._batches(first, last, rank, world_size, self._ahead if self._order else None)
        return step_loader(self._training, batches, self.workers)

    def _ahead(self, indices: Tensor) -> None:
        assert self._order is not None
        self._fetch_ahead(self._order.shards_of(indices + self._first))

    def names(self, positions: Sequence[int]) -> list[str]:
        """The files or shard keys of training images, by their positions in the endless order of all ranks."""
        order = self._batches(world_size=self.trainer.world_size if self.trainer else 1)
        indices = [self._training.indices[order.index_at(position)] for position in positions]
        return [sample_name(self._training.dataset, index) for index in indices]

    def _batches(
        self, first: int = 0, last: int = 0, rank: int = 0, world_size: int = 1, ahead: Callable[[Tensor], None] | None = None
    ) -> StatelessBatchSampler | BucketBatchSampler:
        if self._shapes:
            return BucketBatchSampler(self._shapes, self.batch_size, first, last, self.seed, rank, world_size)
        return StatelessBatchSampler(self.size, self.batch_size, first, last, self.seed, rank, world_size, self._groups, ahead)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """All held-out images as one batch, the same on every rank."""
        return DataLoader([self.held_out], batch_size=None)  # type: ignore[arg-type]
