"""The one place that draws randomness for a loss: a pure function of (seed, rank, counter).

Nothing has to be saved to resume exactly, ranks never share noise, and the order of other draws does not matter.
"""

import hashlib

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator determined by `key`, e.g. ``generator(seed, rank, counter)``."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw(
    shape: torch.Size | tuple[int, ...], t_range: tuple[int, int], device: torch.device | str, *key: int | str
) -> tuple[Tensor, Tensor]:
    """Steps t [B], uniform in ``[t_range[0], t_range[1])``, and standard normal noise eps of `shape` [B,C,h,w].

    Drawn on the CPU, so that every device sees the same numbers.
    """
    rng = generator(*key)
    t = torch.randint(*t_range, (shape[0],), generator=rng)
    eps = torch.randn(shape, generator=rng)
    return t.to(device), eps.to(device)
