"""IDS: the noise that leads from the input back to itself."""

import pytest
import torch
from gaussian import GaussianTeacher, as_flow, condition, schedule
from torch import Tensor

from dds_train.distillation import LOSSES

B, W = 3, 4.0
T = torch.tensor([60, 500, 930])
TEACHER = GaussianTeacher(schedule())
SOURCE, TARGET = condition(0.2, B), condition(1.5, B)
ZS, Z, EPS = torch.randn(3, B, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(iterations: int) -> Tensor:
    """IDS for the Gaussian teacher, whose guess of the clean input is linear in zs_t, so that its gradient is a number."""
    alpha, sigma = TEACHER.schedule.at(T)

    def guess(zs_t: Tensor) -> Tensor:
        text, null = (TEACHER.predict_eps(zs_t, T, prompts) for prompts in (SOURCE.text, SOURCE.null))
        return (zs_t - sigma * (null + W * (text - null))) / alpha

    slope = guess(torch.ones_like(ZS)) - guess(torch.zeros_like(ZS))
    zs_t = alpha * ZS + sigma * EPS
    for _ in range(iterations):
        off = guess(zs_t) - ZS
        zs_t = zs_t - slope * off / off.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (zs_t - alpha * ZS) / sigma


@pytest.mark.parametrize("iterations", [0, 3])
def test_ids_is_dds_at_the_corrected_noise(iterations: int) -> None:
    got = LOSSES["ids"](TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W, iterations=iterations)
    # DDS of a Gaussian teacher does not depend on the noise; SDS does, so the noise shows there.
    torch.testing.assert_close(got.grad, LOSSES["dds"](TEACHER, ZS, Z, SOURCE, TARGET, T, by_hand(iterations), W).grad)


def test_corrected_noise_on_a_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the same teacher with unit variance, where `rate` is the authors'."""
    found: list[Tensor] = []
    monkeypatch.setattr("dds_train.distillation.fixed_point.linear_loss", lambda name, *arguments: found.append(arguments[6]))
    LOSSES["ids"](GaussianTeacher(as_flow(TEACHER.schedule)), ZS, Z, SOURCE, TARGET, T, EPS, W, iterations=3)
    torch.testing.assert_close(found[0], by_hand(3))


def test_corrected_noise_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []

    def spy(name: str, *arguments: object) -> None:
        found.append(arguments[6])  # type: ignore[arg-type]

    monkeypatch.setattr("dds_train.distillation.fixed_point.linear_loss", spy)
    for iterations in (0, 1, 3):
        LOSSES["ids"](TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W, iterations=iterations)
        torch.testing.assert_close(found[-1], by_hand(iterations))
    torch.testing.assert_close(found[0], EPS)
    assert not torch.allclose(found[2], EPS)


def test_ids_leaves_no_gradient_behind() -> None:
    z_source, z_target = ZS.clone().requires_grad_(), Z.clone().requires_grad_()
    LOSSES["ids"](TEACHER, z_source, z_target, SOURCE, TARGET, T, EPS, W).loss.backward()
    assert z_source.grad is None
    assert z_target.grad is not None
