"""Data that can no longer be read."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.data import Dataset
from training_runs import build, latents, trainer

from dds_train.data.source import Sample
from dds_train.errors import UserError
from dds_train.training.data import SourceData


class Failing(Dataset[Sample]):
    """Latents of which `index` raises an OSError, from a disk that fails."""

    def __init__(self, index: int, code: int) -> None:
        self.samples, self.index, self.code = latents(), index, code

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Sample:
        if index == self.index:
            raise OSError(self.code, os.strerror(self.code))
        return self.samples[index]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_failing_disk_stops_training_and_a_missing_file_does_not(
    tiny: Callable[[str], Path], tmp_path: Path, workers: int, code: int
) -> None:
    data = SourceData(Failing(9, errno.ENOENT), batch_size=3, held_out=4, workers=workers, seed=0)
    trainer(tmp_path / "missing", 6, limit_val_batches=0).fit(build(tiny("epsilon")), datamodule=data)
    data = SourceData(Failing(9, code), batch_size=3, held_out=4, workers=workers, seed=0)
    with pytest.raises(UserError, match=rf"^data: sample 9: cannot be read \({os.strerror(code)}\); .* and run"):
        trainer(tmp_path / "failing", 6, limit_val_batches=0).fit(build(tiny("epsilon")), datamodule=data)
    with pytest.raises(UserError, match="data: sample 2: cannot be read"):
        SourceData(Failing(2, code), batch_size=3, held_out=4, workers=workers, seed=0)
