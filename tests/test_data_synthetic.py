"""Source images sampled on first use."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dds_train.data.synthetic import SyntheticSource
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError


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


def test_a_cache_that_cannot_be_written(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def source(cache: str | None) -> SyntheticSource:
        return SyntheticSource(DiffusionCheckpoint(str(tiny("epsilon"))), ["a cat"], {}, 2, 2.0, 1, 2, 0, cache)

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.cache=.*file/cache: cannot be written \(Not a directory\); .*DDS_CACHE"):
        source(str(tmp_path / "file" / "cache")).prepare()
    monkeypatch.delenv("DDS_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UserError, match="set the environment variable DDS_CACHE"):
        source(None)
    complete = source(str(tmp_path))
    complete.prepare()
    monkeypatch.setattr("dds_train.data.synthetic.FileLock", None)  # such as one on a disk that is read-only
    source(str(tmp_path)).prepare()
    assert len(complete.captions) == 2
