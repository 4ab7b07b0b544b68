"""Source images sampled on first use."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from dds_train.data.synthetic import SyntheticSource
from dds_train.diffusion import DiffusionCheckpoint


def test_samples_do_not_depend_on_batch_size_and_are_cached(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def source(batch: int, cache: str, seed: int = 0) -> SyntheticSource:
        checkpoint = DiffusionCheckpoint(str(tiny("v_prediction")))
        return SyntheticSource(checkpoint, ["a cat"], {}, 6, 2.0, 3, batch, seed, str(tmp_path / cache))

    a, b = source(6, "a"), source(4, "b")
    a.prepare()
    b.prepare()
    assert a.folder.name == b.folder.name
    for one, other in zip(a.dataset(), b.dataset(), strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(one["z"], other["z"], atol=1e-2, rtol=1e-2)  # up to rounding errors
    assert all(math.isfinite(value) for value in a.dataset()[0]["z"].flatten().tolist())
    written = (a.folder / "shard-00000.tar").stat().st_mtime_ns
    source(6, "a").prepare()
    assert (a.folder / "shard-00000.tar").stat().st_mtime_ns == written
    assert source(6, "a", seed=1).folder != a.folder
