"""Score distillation against closed forms: for Gaussian data the exact score is known, so every gradient is too."""

import pytest
import torch
from gaussian import NULL_SPREAD, SPREAD, GaussianTeacher, condition, schedule
from torch import Tensor

from dds_train.distillation import LOSSES, Condition, NoiseSchedule, Prompt, dds_loss, sds_loss
from dds_train.distillation.guidance import guided_eps
from dds_train.distillation.inject import inject
from dds_train.methods.optimize import optimize_latent

BATCH = 3
T = torch.tensor([60, 500, 930])  # distinct: a wrong order in a batched call shows


@pytest.fixture
def teacher() -> GaussianTeacher:
    return GaussianTeacher(schedule())


def latents(seed: int) -> Tensor:
    return torch.randn(BATCH, 4, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gain(noise: NoiseSchedule, spread: float) -> Tensor:
    """d eps / d z of the Gaussian teacher, [B,1,1,1]."""
    alpha, sigma = noise.at(T)
    return alpha * sigma / (alpha**2 * spread**2 + sigma**2)


@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_dds_gradient_is_the_closed_form(teacher: GaussianTeacher, guidance: float) -> None:
    z_source, z_target, eps = latents(0), latents(1), latents(2)
    source, target = condition(0.2, BATCH), condition(1.5, BATCH)
    got = dds_loss(teacher, z_source, z_target, source, target, T, eps, guidance)
    moved = z_target - z_source
    text, null = gain(teacher.schedule, SPREAD), gain(teacher.schedule, NULL_SPREAD)
    want = guidance * text * (moved - (1.5 - 0.2)) + (1 - guidance) * null * moved
    torch.testing.assert_close(got.grad, want)


def test_dds_does_not_depend_on_the_noise(teacher: GaussianTeacher) -> None:
    arguments = (teacher, latents(0), latents(1), condition(0.2, BATCH), condition(1.5, BATCH), T)
    first, second = (dds_loss(*arguments, latents(seed), 1.0).grad for seed in (2, 3))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_matched_pair_has_no_gradient(teacher: GaussianTeacher, guidance: float) -> None:
    z, same = latents(0), condition(0.2, BATCH)
    assert dds_loss(teacher, z, z, same, same, T, latents(2), guidance).grad.abs().max() == 0


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("loss", ["dds", "sds"])
def test_edits_of_one_image_share_its_source_branch(teacher: GaussianTeacher, loss: str, guidance: float) -> None:
    """Two edits of each image in one call, against each alone; and the source is evaluated once for both."""
    rows = []

    class Counting(GaussianTeacher):
        def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
            rows.append(len(z_t))
            return super().predict_eps(z_t, t, prompt)

    z_source, z_target, eps = latents(0), torch.cat([latents(1), latents(3)]), latents(2)
    source, targets = condition(0.2, BATCH), [condition(1.5, BATCH), condition(-2.0, BATCH)]
    order = [0, 3, 1, 4, 2, 5]  # the edits of one image follow one another
    both = Condition(
        *(Prompt.cat(prompts)[torch.tensor(order)] for prompts in zip(*((c.text, c.null) for c in targets), strict=True))
    )
    counting = Counting(teacher.schedule)
    shared = LOSSES[loss](counting, z_source, z_target[order], source, both, T, eps, guidance).grad
    for number, target in enumerate(targets):
        alone = LOSSES[loss](teacher, z_source, latents((1, 3)[number]), source, target, T, eps, guidance).grad
        torch.testing.assert_close(shared[number::2], alone)
    branches = 2 if guidance != 1 else 1
    assert rows == [branches * (2 * BATCH + (BATCH if loss == "dds" else 0))]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sds_gradient_is_the_closed_form(teacher: GaussianTeacher, guidance: float) -> None:
    z, eps = latents(1), latents(2)
    got = sds_loss(teacher, latents(0), z, condition(0.2, BATCH), condition(1.5, BATCH), T, eps, guidance)
    alpha, sigma = teacher.schedule.at(T)
    z_t = alpha * z + sigma * eps
    text = sigma * (z_t - alpha * 1.5) / (alpha**2 * SPREAD**2 + sigma**2)
    null = sigma * (z_t + alpha * 0.7) / (alpha**2 * NULL_SPREAD**2 + sigma**2)
    torch.testing.assert_close(got.grad, (1 - guidance) * null + guidance * text - eps)


def test_weight_sigma2(teacher: GaussianTeacher) -> None:
    arguments = (teacher, latents(0), latents(1), condition(0.2, BATCH), condition(1.5, BATCH), T, latents(2), 2.0)
    for loss in (dds_loss, sds_loss):
        plain, weighted = loss(*arguments), loss(*arguments, weight="sigma2")
        torch.testing.assert_close(weighted.grad, plain.grad * teacher.schedule.sigma[T].view(-1, 1, 1, 1) ** 2)
    with pytest.raises(ValueError, match="sigma2"):
        dds_loss(*arguments, weight="sigma3")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guidance_is_the_formula(teacher: GaussianTeacher, guidance: float) -> None:
    z, cond = latents(0), condition(0.2, BATCH)
    text, null = (teacher.predict_eps(z, T, prompts) for prompts in (cond.text, cond.null))
    torch.testing.assert_close(guided_eps(teacher, z, T, cond, guidance), null + guidance * (text - null))


def test_injected_gradient_is_g_over_the_batch() -> None:
    z, grad = latents(0).requires_grad_(), latents(1)
    inject(z, grad).loss.backward()
    torch.testing.assert_close(z.grad, grad / BATCH)


def test_injection_survives_half_precision() -> None:
    """With |z| about 10 and |G| about 1e-3, z - G is z in float16: the mean-squared-error form loses the gradient."""
    z = (10 * latents(0)).half().requires_grad_()
    grad = (1e-3 * latents(1)).half()
    inject(z, grad).loss.backward()
    assert z.grad is not None
    error = (z.grad.double() * BATCH - grad.double()).norm() / grad.double().norm()
    assert error < 1e-3


def test_no_gradient_reaches_the_source_or_the_prompts(teacher: GaussianTeacher) -> None:
    z_source, z_target = latents(0).requires_grad_(), latents(1).requires_grad_()
    text = condition(0.2, BATCH).text["text"].clone().requires_grad_()
    source = Condition(text=Prompt({"text": text}), null=condition(0, BATCH).null)
    dds_loss(teacher, z_source, z_target, source, condition(1.5, BATCH), T, latents(2), 2.0).loss.backward()
    assert z_target.grad is not None
    assert z_source.grad is None
    assert text.grad is None


def test_nulls_are_evaluated_only_with_guidance(teacher: GaussianTeacher) -> None:
    sizes = []

    class Counting(GaussianTeacher):
        def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
            sizes.append(len(z_t))
            return super().predict_eps(z_t, t, prompt)

    arguments = (latents(0), latents(1), condition(0.2, BATCH), condition(1.5, BATCH), T, latents(2))
    for loss in (dds_loss, sds_loss):
        for guidance in (1.0, 2.0):
            loss(Counting(teacher.schedule), *arguments, guidance)
    assert sizes == [2 * BATCH, 4 * BATCH, BATCH, 2 * BATCH]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_optimisation_shifts_the_image_by_the_difference_of_means(teacher: GaussianTeacher, guidance: float) -> None:
    z_source = latents(0)
    trajectory = optimize_latent(
        teacher, z_source, condition(0.2), condition(1.5), loss="dds", steps=400, lr=0.3, guidance=guidance, t_range=(400, 401)
    )
    *_, last = trajectory
    # Where the closed form vanishes; at guidance 1 that is exactly the difference of the means.
    t = torch.tensor([400])
    alpha, sigma = teacher.schedule.at(t)
    text, null = (alpha * sigma / (alpha**2 * s**2 + sigma**2) for s in (SPREAD, NULL_SPREAD))
    want = guidance * text * 1.3 / (guidance * text + (1 - guidance) * null)
    torch.testing.assert_close(last.z - z_source, want.expand_as(z_source), atol=1e-6, rtol=0)


def test_step_size_depends_on_neither_size_nor_batch(teacher: GaussianTeacher) -> None:
    """Constant latents: every element must move alike, however many there are."""
    moves = []
    for shape in ((1, 4, 2, 2), (1, 4, 16, 16), (5, 4, 8, 8)):
        z = torch.zeros(shape, dtype=torch.float64)
        *_, last = optimize_latent(
            teacher, z, condition(0.0), condition(1.0), steps=3, lr=0.1, guidance=1.0, t_range=(500, 501)
        )
        moves.append((last.z - z).flatten())
    reference = moves[0][0]
    assert reference > 0
    for move in moves:
        torch.testing.assert_close(move, reference.expand_as(move))


def test_the_same_seed_gives_the_same_edit(teacher: GaussianTeacher) -> None:
    def edit(seed: int) -> Tensor:
        *_, last = optimize_latent(teacher, latents(0), condition(0.2), condition(1.5), loss="sds", steps=3, seed=seed)
        return last.z

    assert torch.equal(edit(1), edit(1))
    assert not torch.equal(edit(1), edit(2))


def test_invalid_arguments_are_refused(teacher: GaussianTeacher) -> None:
    for wrong in ({"loss": "ddss"}, {"steps": 0}, {"t_range": (50, 5000)}, {"t_range": (50, 50)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            optimize_latent(teacher, latents(0), condition(0.2), condition(1.5), **wrong)
