"""VSD between its two ends: a student that knows nothing yet, and one that knows the edit perfectly."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from gaussian import GaussianTeacher, condition, schedule
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation import LOSSES, Condition, NoiseSchedule, Prompt, make_loss
from dds_train.distillation.variational import VariationalLoss
from dds_train.methods.optimize import optimize_latent
from dds_train.methods.student import LoRAStudent

T, W = torch.tensor([300, 700]), 4.0


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Z, EPS = randn(0, 2, 4, 8, 8), randn(1, 2, 4, 8, 8)


def conditions() -> tuple[Condition, Condition]:
    source, target, null = (Prompt({"text": text}) for text in randn(2, 3, 2, 5, 32))
    return Condition(source, null), Condition(target, null)


class PointStudent:
    """Believes in one image for each index, which it learns."""

    def __init__(self, noise: NoiseSchedule) -> None:
        self.schedule, self.point = noise, torch.zeros(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)

    def parameters(self) -> Iterator[Tensor]:
        yield self.point

    def reset(self) -> None:
        self.point.data.zero_()

    def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        alpha, sigma = self.schedule.at(t)
        return (z_t - alpha * self.point) / sigma


def test_vsd_with_a_perfect_student_is_sds() -> None:
    teacher = GaussianTeacher(schedule())
    student = PointStudent(teacher.schedule)
    loss = VariationalLoss(student, lr=0.05)
    z, eps = Z.double(), EPS.double()
    args = teacher, z, z, condition(0.2, 2), condition(1.5, 2), T
    sds = LOSSES["sds"](*args, eps, W).grad
    before = (loss(*args, eps, W).grad - sds).abs().max()
    for number in range(300):
        last = loss(*args, randn(10 + number, 2, 4, 8, 8).double(), W)
    torch.testing.assert_close(loss(*args, eps, W).grad, sds, atol=0.1, rtol=0)
    assert before > 1
    torch.testing.assert_close(student.point.detach(), z, atol=0.1, rtol=0)
    assert not last.grad.requires_grad
    loss.reset()
    assert (student.point == 0).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_vsd_with_a_new_student_is_guidance_alone(tiny: Callable[[str], Path], kind: str) -> None:
    parts = DiffusionCheckpoint(str(tiny(kind)))
    teacher, (source, target) = parts.teacher(), conditions()
    z_t = teacher.schedule.add_noise(Z, EPS, T)
    text, null = (teacher.predict_eps(z_t, T, prompts) for prompts in (target.text, target.null))
    loss = VariationalLoss(LoRAStudent(parts))
    got = loss(teacher, Z, Z, source, target, T, EPS, W).grad
    torch.testing.assert_close(got, (W - 1) * (text - null), rtol=1e-4, atol=1e-5)
    # It has learned something since, and the teacher has not.
    assert not torch.allclose(loss(teacher, Z, Z, source, target, T, EPS, W).grad, got, rtol=1e-3, atol=1e-6)
    assert torch.equal(teacher.predict_eps(z_t, T, target.text), text)


def test_each_run_starts_anew(tiny: Callable[[str], Path]) -> None:
    parts = DiffusionCheckpoint(str(tiny("epsilon")))
    source, target = (condition[:1] for condition in conditions())
    loss = make_loss("vsd", student=partial(LoRAStudent, parts))
    runs = []
    for _ in range(2):
        *_, last = optimize_latent(parts.teacher(), Z, source, target, loss=loss, steps=3)
        runs.append(last.z)
    assert torch.equal(*runs)
    assert not torch.allclose(runs[0], Z)
