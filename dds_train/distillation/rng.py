"""Random timesteps and noise as a pure function of a key, such as (seed, position of the sample).

No random state has to be saved to resume exactly, ranks never share noise, and the order of other draws does not matter.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Key = tuple[int | str, ...]


def seeded_rng(*key: int | str) -> torch.Generator:
    """A CPU generator determined by `key`, e.g. ``seeded_rng(seed, "order", epoch)``."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw(
    shape: torch.Size | tuple[int, ...], t_range: tuple[int, int], device: torch.device | str, keys: Sequence[Key]
) -> tuple[Tensor, Tensor]:
    """For each of B keys a timestep t, uniform in ``[t_range[0], t_range[1])``, and standard normal noise of `shape` (C, h, w).

    An image's noise depends on its own key and on nothing else in the batch. Drawn on the CPU, so that every device sees
    the same numbers.

    Returns:
        t [B], eps [B,C,h,w]
    """
    pairs = []
    for key in keys:
        rng = seeded_rng(*key)
        pairs.append((torch.randint(*t_range, (), generator=rng), torch.randn(tuple(shape), generator=rng)))
    t, eps = (torch.stack(column) for column in zip(*pairs, strict=True))
    return t.to(device), eps.to(device)
