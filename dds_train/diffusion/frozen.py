"""Frozen networks."""

from typing import Any

import torch
from torch import nn
from typing_extensions import Self


class Frozen:
    """Holder of a network that is used and never trained.

    Deliberately not an `nn.Module`: as an attribute of one it stays out of checkpoints, of DDP's broadcasts and of
    optimisers, and no ``train()`` reaches it. Copies share it.
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        # nn.Module's own `to`: diffusers' override warns about layers it would keep in float32, of which these have none.
        self.network: Any = nn.Module.to(network.eval().requires_grad_(False), device=device, dtype=dtype)
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        result: torch.device = next(self.network.parameters()).device
        return result

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    def own_precision(self) -> torch.autocast:
        """A context without the trainer's autocast, which would cast the frozen weights anew at every call."""
        return torch.autocast(self.device.type, enabled=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
