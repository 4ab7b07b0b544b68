"""The order of samples in shards that do not fit the cache."""

from pathlib import Path

import pytest
import torch

from dds_train.data.batches import StatelessBatchSampler
from dds_train.data.order import ShardOrder
from dds_train.data.remote_files import FileCache, RemoteShard
from dds_train.distillation.rng import seeded_rng

ENDS = [5, 9, 9, 16, 20, 26, 30]  # the third is empty
SHARD = 100  # bytes of each


def new_order(limit: int) -> ShardOrder:
    cache = FileCache(Path("unused"), limit)
    return ShardOrder(ENDS, [RemoteShard(f"s3://b/{n}.tar", SHARD, "", cache) for n in range(len(ENDS))], limit)


def shard_of(index: int) -> int:
    return int(torch.searchsorted(torch.tensor(ENDS), index, right=True))


def test_what_fits_is_shuffled_as_a_whole() -> None:
    (group,) = new_order(7 * SHARD).groups(2, 28, seeded_rng(0))
    assert torch.equal(group, torch.randperm(28, generator=seeded_rng(0)))


@pytest.mark.parametrize("held_out", [0, 2, 7])
def test_groups_take_a_third_of_the_cache(held_out: int) -> None:
    order, size = new_order(6 * SHARD), 32 - held_out  # two lost samples after the last shard
    groups = order.groups(held_out, size, seeded_rng(1))
    assert sorted(torch.cat(groups).tolist()) == list(range(size))
    shards = [{shard_of(index + held_out) for index in group.tolist()} for group in groups]
    assert all(len(some - {len(ENDS)}) <= 2 for some in shards)
    assert 3 <= len(groups) <= 4
    assert sum(map(len, shards)) == len(set().union(*shards))  # each in one group
    assert any(group.tolist() != sorted(group.tolist()) for group in groups)
    again, other = order.groups(held_out, size, seeded_rng(1)), order.groups(held_out, size, seeded_rng(2))
    assert torch.equal(torch.cat(again), torch.cat(groups))
    assert not torch.equal(torch.cat(other), torch.cat(groups))


def test_shards_are_needed_in_the_order_of_their_samples() -> None:
    assert [one.name for one in new_order(1).shards_of(torch.tensor([29, 8, 31, 0, 7, 9]))] == [
        "6.tar",
        "1.tar",
        "0.tar",
        "3.tar",
    ]


def test_batches_announce_their_group_and_the_next() -> None:
    order, announced = new_order(6 * SHARD), []

    def batches(first: int, last: int, rank: int = 0) -> list[list[tuple[int, int]]]:
        def groups(rng: torch.Generator) -> list[torch.Tensor]:
            return order.groups(0, 30, rng)

        return list(StatelessBatchSampler(30, 2, first, last, 0, rank, 2, groups, lambda some: announced.append(some.tolist())))

    whole = batches(0, 15)  # two epochs, since there are two ranks
    indices = [batch for pair in zip(whole, batches(0, 15, rank=1), strict=True) for place in pair for _, batch in place]
    assert sorted(indices[:30]) == sorted(indices[30:]) == list(range(30))
    groups = [order.groups(0, 30, seeded_rng(0, "order", epoch)) for epoch in range(3)]
    assert indices == torch.cat([*groups[0], *groups[1]]).tolist()
    assert announced[0] == torch.cat(groups[0][:2]).tolist()
    assert announced[-1][-len(groups[2][0]) :] == groups[2][0].tolist()
    assert batches(4, 9) == whole[4:9]
