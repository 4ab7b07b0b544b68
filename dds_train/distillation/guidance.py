"""What a teacher is told, and classifier-free guidance (arXiv 2207.12598)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dds_train.distillation.noise import ScoreModel


@dataclass(frozen=True)
class Condition:
    """What a branch is told: its prompt, and the empty prompt that guidance pushes away from."""

    text: Tensor  # [B,L,D]
    null: Tensor  # [B,L,D]
    negative: Tensor | None = None  # [B,L,D], what images should not be like, for the losses that ask for it

    def __post_init__(self) -> None:
        if self.text.shape != self.null.shape:
            raise ValueError(f"text and null must have one shape, got {[*self.text.shape]} and {[*self.null.shape]}")

    def expand(self, batch: int) -> "Condition":
        """One prompt [1,L,D] for `batch` images, without a copy."""
        return self._each(lambda prompts: prompts.expand(batch, -1, -1))

    def at(self, rows: Tensor) -> "Condition":
        """The prompts number `rows` [N], which may come more than once."""
        return self._each(lambda prompts: prompts[rows])

    def to(self, device: torch.device | str) -> "Condition":
        return self._each(lambda prompts: prompts.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        negative = None if self.negative is None else change(self.negative)
        return Condition(change(self.text), change(self.null), negative)


def guided_eps(teacher: ScoreModel, z_t: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
    """``e_w(z_t, y) = e(z_t, null) + w (e(z_t, y) - e(z_t, null))``, [B,C,h,w], from one batched evaluation.

    `guidance` is w; at 1 the empty prompt cancels and is not evaluated.
    """
    if guidance == 1:
        return teacher.predict_eps(z_t, t, condition.text)
    both = teacher.predict_eps(torch.cat([z_t, z_t]), torch.cat([t, t]), torch.cat([condition.text, condition.null]))
    text, null = both.chunk(2)
    return null + guidance * (text - null)
