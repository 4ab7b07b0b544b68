"""Classifier-free guidance (arXiv 2207.12598), several branches in one call of the teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dds_train.distillation.noise import ScoreModel


@dataclass(frozen=True)
class Condition:
    """What a branch is told: its prompt, and the empty prompt that guidance pushes away from."""

    text: Tensor  # [B,L,D]
    null: Tensor  # [B,L,D]

    def __post_init__(self) -> None:
        if self.text.shape != self.null.shape:
            raise ValueError(f"text and null must have one shape, got {[*self.text.shape]} and {[*self.null.shape]}")

    def expand(self, batch: int) -> "Condition":
        """One prompt [1,L,D] for `batch` images, without a copy."""
        return Condition(self.text.expand(batch, -1, -1), self.null.expand(batch, -1, -1))

    def at(self, rows: Tensor) -> "Condition":
        """The prompts number `rows` [N], which may come more than once."""
        return Condition(self.text[rows], self.null[rows])

    def to(self, device: torch.device | str) -> "Condition":
        return Condition(self.text.to(device), self.null.to(device))


@dataclass(frozen=True)
class Branch:
    z_t: Tensor  # [B,C,h,w] noised latents
    t: Tensor  # [B] their steps
    condition: Condition


def guided_eps(teacher: ScoreModel, branches: list[Branch], guidance: float) -> list[Tensor]:
    """``e_w(z_t, y) = e(z_t, null) + w (e(z_t, y) - e(z_t, null))`` of each branch, from one batched evaluation.

    `guidance` is w; at 1 the empty prompt cancels and is not evaluated. Branches may differ in their number of images.

    Returns:
        One [B,C,h,w] for each branch.
    """
    parts = [(b.z_t, b.t, b.condition.text) for b in branches]
    if guidance != 1:
        parts += [(b.z_t, b.t, b.condition.null) for b in branches]
    z_t, t, prompts = (torch.cat(column) for column in zip(*parts, strict=True))
    predicted = teacher.predict_eps(z_t, t, prompts).split([len(part[0]) for part in parts])
    texts, nulls = predicted[: len(branches)], predicted[len(branches) :]
    if guidance == 1:
        return list(texts)
    return [null + guidance * (text - null) for text, null in zip(texts, nulls, strict=True)]
