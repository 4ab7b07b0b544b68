"""Random orders of samples in remote shards, which need few shards at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dds_train.data.remote_files import RemoteShard

GROUPS_IN_CACHE = 3  # the last one, which other workers may still read, this one and the next


class ShardOrder:
    """Orders of samples of which each shard has consecutive ones.

    If all shards fit the cache together, an order is a shuffle of all samples, as it is for shards on this disk. If not, shards
    are shuffled, and samples are shuffled within groups of as many consecutive shards as take a third of the cache.

    Args:
        ends: of each shard, the number of samples up to its end.
        shards: None for those on this disk.
        limit: bytes of the cache.
    """

    def __init__(self, ends: Sequence[int], shards: Sequence[RemoteShard | None], limit: int) -> None:
        self.ends, self.shards, self.limit = ends, shards, limit
        self._sizes = [shard.size if shard else 0 for shard in shards]
        self.fits = sum(self._sizes) <= limit

    def groups(self, first: int, size: int, rng: torch.Generator) -> list[Tensor]:
        """The samples `first` to `first + size` in an order drawn from `rng`, as indices from 0, in the groups that it has."""
        if self.fits:
            return [torch.randperm(size, generator=rng)]
        ends = [*self.ends, first + size]  # samples after those of the last shard are in none any more
        ranges = [range(max(start, first), end) for start, end in zip([0, *ends], ends, strict=False)]
        groups: list[list[int]] = [[]]
        filled = 0
        for shard in torch.randperm(len(ranges), generator=rng).tolist():
            filled += (added := [*self._sizes, 0][shard])
            if filled > self.limit // GROUPS_IN_CACHE and groups[-1]:
                groups.append([])
                filled = added
            groups[-1].append(shard)
        samples = [torch.tensor([index - first for n in group for index in ranges[n]], dtype=torch.long) for group in groups]
        return [some[torch.randperm(len(some), generator=rng)] for some in samples if len(some)]

    def shards_of(self, samples: Tensor) -> list[RemoteShard]:
        """The remote shards of these samples, in the order in which they are first needed."""
        numbers, positions = np.unique(np.searchsorted(self.ends, samples.numpy(), side="right"), return_index=True)
        found = (self.shards[n] for n in numbers[np.argsort(positions)] if n < len(self.shards))
        return [shard for shard in found if shard]
