"""Identity-preserving Distillation Sampling: DDS at a corrected noise."""

import torch
from torch import Tensor

from dds_train.distillation.guidance import Condition, guided_eps
from dds_train.distillation.inject import Distilled
from dds_train.distillation.linear import linear_loss
from dds_train.distillation.noise import ScoreModel


def ids_loss(
    teacher: ScoreModel,
    z_source: Tensor,
    z_target: Tensor,
    source: Condition,
    target: Condition,
    t: Tensor,
    eps: Tensor,
    guidance: float,
    weight: str = "one",
    iterations: int = 3,
    rate: float = 1.0,
) -> Distilled:
    """IDS (CVPR 2025): `dds_loss` with, instead of a random eps, one for which the teacher's estimate of the clean input is
    closer to the input itself, so that less of its error is left to move what should stay.

    The noised input zs_t follows, for a few iterations, the gradient of the distance between the input and the teacher's
    estimate ``(zs_t - sigma e_w(zs_t, y_source)) / alpha``; then ``eps* = (zs_t - alpha z_source) / sigma``. Gradients go
    through the teacher here, in the input's branch alone.

    Args:
        iterations: 2 more evaluations of the teacher each, with their gradients; the authors take 3.
        rate: step size along the gradient of the Euclidean distance, in the coordinates in which zs_t has unit variance; the
            authors take 1.

    Others as in `linear_loss`.
    """
    alpha, sigma = teacher.schedule.at(t)
    step: Tensor | float = rate * (alpha**2 + sigma**2) if teacher.schedule.is_flow else rate
    zs_t = teacher.schedule.add_noise(z_source.detach(), eps, t)
    for _ in range(iterations):
        with torch.enable_grad():
            zs_t = zs_t.detach().requires_grad_()
            estimate = (zs_t - sigma * guided_eps(teacher, zs_t, t, source, guidance)) / alpha
            distance = (z_source.detach() - estimate).flatten(1).norm(dim=1).sum()
        (gradient,) = torch.autograd.grad(distance, zs_t)
        zs_t = zs_t.detach() - step * gradient
    corrected = (zs_t - alpha * z_source.detach()) / sigma
    return linear_loss("dds", teacher, z_source, z_target, source, target, t, corrected, guidance, weight)
