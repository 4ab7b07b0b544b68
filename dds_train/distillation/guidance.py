"""Text conditions, and classifier-free guidance (arXiv 2207.12598)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dds_train.distillation.noise import ScoreModel
from dds_train.distillation.prompt import Prompt

Predict = Callable[[Tensor, Tensor, Prompt], Tensor]  # (z_t [N,C,h,w], time [N], N prompts) -> [N,C,h,w]


@dataclass(frozen=True)
class Condition:
    """The prompts of B images, each beside the empty prompt that guidance pushes away from."""

    text: Prompt  # [B]
    null: Prompt  # [B]
    negative: Prompt | None = None  # [B], what images should not look like, for the losses that use it

    def __post_init__(self) -> None:
        if len(self.text) != len(self.null):
            raise ValueError(f"text and null must be as many prompts, got {len(self.text)} and {len(self.null)}")

    def expand(self, batch: int) -> "Condition":
        """One prompt for `batch` images, without a copy."""
        return self._each(lambda prompt: prompt.expand(batch))

    def __getitem__(self, rows: Tensor | slice) -> "Condition":
        return self._each(lambda prompt: prompt[rows])

    def to(self, device: torch.device | str) -> "Condition":
        return self._each(lambda prompt: prompt.to(device))

    def _each(self, change: Callable[[Prompt], Prompt]) -> "Condition":
        negative = None if self.negative is None else change(self.negative)
        return Condition(change(self.text), change(self.null), negative)


def guided_eps(teacher: ScoreModel, z_t: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
    """``e_w(z_t, y) = e(z_t, null) + w (e(z_t, y) - e(z_t, null))``, [B,C,h,w], from one batched evaluation.

    `guidance` is w; at 1 the empty prompt cancels and is not evaluated.
    """
    return guided(teacher.predict_eps, z_t, t, condition, guidance)


def guided(predict: Predict, z_t: Tensor, t: Tensor, condition: Condition, guidance: float) -> Tensor:
    """`guided_eps` for any prediction of a network: guidance is linear."""
    if guidance == 1:
        return predict(z_t, t, condition.text)
    both = Prompt.cat([condition.text, condition.null])
    text, null = predict(torch.cat([z_t, z_t]), torch.cat([t, t]), both).chunk(2)
    return null + guidance * (text - null)
