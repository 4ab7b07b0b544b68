"""Prompts as diffusion models read them: named tensors, batch first."""

from collections.abc import Callable, ItemsView, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Prompt:
    """N encoded prompts. Each family of teachers has tensors of its own besides ``text``, such as ``pooled`` or ``mask``.

    ``prompt["text"]`` is a tensor, ``prompt[rows]`` are some of the prompts.
    """

    tensors: dict[str, Tensor]  # text [N,L,D], perhaps mask [N,L], pooled [N,D'], guidance [N]

    def __len__(self) -> int:
        return len(self.tensors["text"])

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: Tensor | slice) -> "Prompt": ...
    def __getitem__(self, key: str | Tensor | slice) -> "Tensor | Prompt":
        return self.tensors[key] if isinstance(key, str) else self._each(lambda tensor: tensor[key])

    def items(self) -> ItemsView[str, Tensor]:
        return self.tensors.items()

    def expand(self, count: int) -> "Prompt":
        """One prompt `count` times, without a copy."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def repeat_interleave(self, repeats: int, dim: int = 0) -> "Prompt":
        """Each prompt `repeats` times in a row."""
        return self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=dim))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Prompt":
        """`dtype` is that of floating-point tensors; masks keep their own."""
        return self._each(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Prompt":
        return Prompt({name: change(tensor) for name, tensor in self.items()})

    @staticmethod
    def cat(prompts: Sequence["Prompt"]) -> "Prompt":
        """All prompts in one batch, padded to the longest text.

        Raises:
            ValueError: for texts of different lengths without a mask that would leave the padding out.
        """
        lengths = {prompt["text"].shape[1] for prompt in prompts}
        if len(lengths) > 1:
            if any("mask" not in prompt.tensors for prompt in prompts):
                raise ValueError(f"prompts of different lengths ({sorted(lengths)}) need a mask to share a batch")
            prompts = [prompt._padded(max(lengths)) for prompt in prompts]
        return Prompt({name: torch.cat([prompt[name] for prompt in prompts]) for name in prompts[0].tensors})

    def _padded(self, length: int) -> "Prompt":
        missing = length - self["text"].shape[1]
        padded = {"text": F.pad(self["text"], (0, 0, 0, missing)), "mask": F.pad(self["mask"], (0, missing))}
        return Prompt({**self.tensors, **padded})
