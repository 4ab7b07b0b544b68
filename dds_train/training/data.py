"""A data source as Lightning wants it."""

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Subset

from dds_train.data.source import Sample, Source, StepBatches, hold_out, step_loader


class SourceData(pl.LightningDataModule):
    """Batches of a source, the first `held_out` images left out, in an order that depends on (seed, step) alone."""

    def __init__(self, source: Source, batch_size: int, held_out: int, workers: int, seed: int) -> None:
        super().__init__()
        self.source, self.batch_size, self.held_out = source, batch_size, held_out
        self.workers, self.seed = workers, seed
        self.pictures: list[Sample] = []
        self._training: Dataset[Sample] | None = None

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str) -> None:
        dataset = self.source.dataset()
        self.pictures, rest = hold_out(dataset, self.held_out)
        self._training = Subset(dataset, rest)

    def train_dataloader(self) -> DataLoader[Sample]:
        assert self._training is not None
        assert self.trainer is not None
        accumulate = self.trainer.accumulate_grad_batches
        batches = StepBatches(
            size=len(self._training),  # type: ignore[arg-type]
            batch=self.batch_size,
            first=self.trainer.global_step * accumulate,
            last=self.trainer.max_steps * accumulate,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return step_loader(self._training, batches, self.workers)
