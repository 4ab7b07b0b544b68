"""Batches as a function of (seed, step), and samples that cannot be read."""

import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tar_files import add, npy, png

from dds_train.data.batches import PositionedDataset, StatelessBatchSampler, hold_out, step_loader
from dds_train.data.shards import ShardSource
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError


def test_batches_are_a_function_of_seed_and_step() -> None:
    def batches(**changes: int) -> list[list[tuple[int, int]]]:
        return list(StatelessBatchSampler(**{"size": 10, "batch_size": 2, "first": 0, "last": 15, "seed": 1, **changes}))

    def indices(some: list[list[tuple[int, int]]]) -> list[int]:
        return [index for _, index in chain(*some)]

    whole = batches()
    assert batches(first=7) == whole[7:]
    assert [position for position, _ in chain(*whole)] == list(range(30))
    assert sorted(indices(whole[:5])) == sorted(indices(whole[5:10])) == list(range(10))
    assert indices(whole[:5]) != indices(whole[5:10])
    assert batches(seed=2) != whole
    # Two ranks with half the batch see together what one sees alone.
    ranks = [batches(batch_size=1, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole


def test_too_few_images_for_a_hold_out_are_refused() -> None:
    with pytest.raises(UserError, match="3 images are too few"):
        hold_out([{}] * 3, 8)  # type: ignore[arg-type]


def test_bad_samples_are_named_and_good_ones_come_once(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    good = {"png": png(9)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, data in enumerate(
            [good["png"], b"<html></html>", good["png"], good["png"][:40], good["png"], good["png"], b"", good["png"]]
        ):
            add(tar, f"{i}.png", data)
    dataset = ShardSource(str(tmp_path), checkpoint).dataset()
    held_out, rest = hold_out(dataset, 2)
    assert held_out["position"] == [0, 1]
    assert rest == [3, 4, 5, 6, 7]
    assert len(held_out["bad"]) == 1
    assert "a.tar/1" in held_out["bad"][0]
    placed = PositionedDataset(dataset, rest, seed=0)
    batches = list(step_loader(placed, StatelessBatchSampler(5, 1, 0, 5, seed=0), workers=0))
    assert sum(len(batch["position"]) for batch in batches) == 3
    assert sorted(reason.split(":")[0] for batch in batches for reason in batch["bad"]) == ["a.tar/3", "a.tar/6"]
    with pytest.raises(UserError, match=r"too few \(3 cannot be read: a.tar/1"):
        hold_out(dataset, 6)


def test_batches_do_not_depend_on_workers(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(9):
            add(tar, f"{i}.z.npy", npy(np.full((4, 8, 8), i, np.float32)))
    from dds_train.data.augment import FlipAndZoom

    placed = PositionedDataset(ShardSource(str(tmp_path), checkpoint).dataset(), range(9), 0, FlipAndZoom(flip=True))

    def all_of(workers: int) -> list[Any]:
        return [(b["position"], b["z"]) for b in step_loader(placed, StatelessBatchSampler(9, 2, 3, 8, seed=0), workers)]

    for (p, a), (q, b) in zip(all_of(0), all_of(2), strict=True):
        assert p == q
        assert torch.equal(a, b)
