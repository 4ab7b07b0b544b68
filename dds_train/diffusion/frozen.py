"""Frozen networks."""

from typing import Any

import torch
from torch import nn
from typing_extensions import Self


class Frozen:
    """Holder of a network that is used and never trained.

    Deliberately not an `nn.Module`: as an attribute of one it stays out of checkpoints, of DDP's broadcasts and of
    optimisers, and no ``train()`` reaches it. Copies share it.

    Args:
        dtype: in which it computes. Its weights are in it, or quantized.
        offload: its blocks wait on the CPU, and are on the device while they run (diffusers' group offload).
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> None:
        self.network: Any = network.eval().requires_grad_(False)
        self.dtype, self.offload_to = dtype, torch.device(device) if offload else None
        if self.offload_to:  # without streams: these take the order of blocks from the first call, and calls differ
            self.network.enable_group_offload(self.offload_to, num_blocks_per_group=1)  # type: ignore[operator]
        else:
            self.network.to(device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        result: torch.device = self.offload_to or next(self.network.parameters()).device
        return result

    def to(self, device: torch.device | str) -> Self:
        if not self.offload_to:
            self.network.to(device)
        return self

    def own_precision(self) -> torch.autocast:
        """A context without the trainer's autocast, which would cast the frozen weights anew at every call."""
        return torch.autocast(self.device.type, enabled=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
