"""Variational Score Distillation: a learned score of the current edits takes the place of the noise."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from dds_train.distillation.guidance import Condition, guided_eps
from dds_train.distillation.inject import Distilled, inject
from dds_train.distillation.linear import repeat_per_edit, timestep_weight
from dds_train.distillation.noise import ScoreModel


class TrainableScore(ScoreModel, Protocol):
    """A trainable copy of the teacher."""

    def parameters(self) -> Iterable[Tensor]: ...

    def reset(self) -> None:
        """Restore the initial parameters, with which it predicts as the teacher."""
        ...


StudentFactory = Callable[[int], TrainableScore]  # rank of the adapters that are trained -> a copy of the teacher


class VariationalLoss:
    """VSD, arXiv 2305.16213 (ProlificDreamer), equation 9: ``w (e_w(z_t, y_target) - e_student(z_t, y_target))``, the student
    fitted to the current edits by one denoising step at each call.

    A student that fits the edits perfectly predicts the noise itself, and then this is SDS; one that has learned nothing
    predicts as the teacher.

    Args:
        student: see `TrainableScore`.
        lr: of its optimiser, AdamW; public implementations take 1e-4 to 3e-4 for adapters.
        weight: w_t, "one" or "sigma2".
    """

    def __init__(self, student: TrainableScore, lr: float = 3e-4, weight: str = "one") -> None:
        self.student, self.lr, self.weight = student, lr, weight
        self.reset()

    def reset(self) -> None:
        self.student.reset()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=self.lr)

    def __call__(
        self,
        teacher: ScoreModel,
        z_source: Tensor,
        z_target: Tensor,
        source: Condition,
        target: Condition,
        t: Tensor,
        eps: Tensor,
        guidance: float,
    ) -> Distilled:
        """As `linear_loss`; the inputs and their prompts are not used."""
        t, eps = repeat_per_edit(t, z_target), repeat_per_edit(eps, z_target)
        z_t = teacher.schedule.add_noise(z_target.detach(), eps, t)
        with torch.no_grad():
            teacher_eps = guided_eps(teacher, z_t, t, target, guidance)
        with torch.enable_grad():
            student_eps = self.student.predict_eps(z_t, t, target.text)
            self.optimizer.zero_grad()
            (student_eps - eps).square().mean().backward()
        self.optimizer.step()
        return inject(z_target, timestep_weight(teacher.schedule, t, self.weight) * (teacher_eps - student_eps.detach()))


def vsd_loss(student: StudentFactory, rank: int = 4, lr: float = 3e-4, weight: str = "one") -> VariationalLoss:
    """`VariationalLoss` with a new student."""
    return VariationalLoss(student(rank), lr, weight)
