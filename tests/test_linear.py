"""The family of linear losses, each against its formula as the paper writes it, prediction by prediction."""

from collections.abc import Callable

import pytest
import torch
from gaussian import GaussianTeacher, as_flow, condition, prompt, schedule
from torch import Tensor

from dds_train.distillation import LOSSES, Condition, NoiseSchedule, Prompt, make_loss
from dds_train.distillation.linear import LINEAR, TERMS, Coefficients, linear_loss, pds
from dds_train.distillation.losses import lowest_timestep
from dds_train.methods.optimize import optimize_latent

B, W = 3, 4.0
T = torch.tensor([60, 500, 930])
TEACHER = GaussianTeacher(schedule())
SOURCE, TARGET = condition(0.2, B), condition(1.5, B)


def latents(seed: int) -> Tensor:
    return torch.randn(B, 4, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ZS, Z, EPS = latents(0), latents(1), latents(2)


def e(z: Tensor, prompt: Prompt | None) -> Tensor:
    assert prompt is not None
    return TEACHER.predict_eps(TEACHER.schedule.add_noise(z, EPS, T), T, prompt)


def posterior_noise(z: Tensor, w: float, cond: Condition) -> Tensor:
    """PDS by the book: the noise that takes the posterior's mean to the noised latent of the step before."""
    ab = TEACHER.schedule.alpha**2
    ab_t, ab_s = (ab[step].view(-1, 1, 1, 1) for step in (T, T - 2))
    alpha_t = (ab[T] / ab[T - 1]).view(-1, 1, 1, 1)  # of one step, as in the authors' code
    beta = 1 - alpha_t
    z_t, z_s = ab_t.sqrt() * z + (1 - ab_t).sqrt() * EPS, ab_s.sqrt() * z + (1 - ab_s).sqrt() * latents(3)
    guided = e(z, cond.null) + w * (e(z, cond.text) - e(z, cond.null))
    clean = (z_t - (1 - ab_t).sqrt() * guided) / ab_t.sqrt()
    mean = ab_s.sqrt() * beta / (1 - ab_t) * clean + alpha_t.sqrt() * (1 - ab_s) / (1 - ab_t) * z_t
    return (z_s - mean) / (beta * (1 - ab_s) / (1 - ab_t)).sqrt()


def written_out(name: str) -> Tensor:
    target, source, null = e(Z, TARGET.text), e(Z, SOURCE.text), e(Z, TARGET.null)
    late = (T >= 200).view(-1, 1, 1, 1)
    alpha, sigma = TEACHER.schedule.at(T)
    shift = (alpha * Z + sigma * EPS) - (alpha * ZS + sigma * EPS)
    tau = sigma / (alpha + sigma)
    moving = (1 - T / 1000).view(-1, 1, 1, 1)

    def v(z: Tensor, prompt: Prompt | None, point: Tensor | float = 0.0) -> Tensor:
        """The velocity of the teacher seen as a flow, eps minus the clean latent, at z_t + point sigma change."""
        assert prompt is not None
        z_t = alpha * z + sigma * EPS + point * sigma * (Z - ZS)
        x = z_t / (alpha + sigma)
        return (TEACHER.predict_eps(z_t, T, prompt) - x) / (1 - tau)

    def v_w(z: Tensor, w: float, cond: Condition, point: Tensor | float = 0.0) -> Tensor:
        return v(z, cond.null, point) + w * (v(z, cond.text, point) - v(z, cond.null, point))

    v_p = v(Z, SOURCE.text, 1.0) + W * (v(Z, TARGET.text, 1.0) - v(Z, SOURCE.text, 1.0))
    v_s = v(ZS, SOURCE.text)
    x_p, x_s = ((alpha * one + sigma * EPS) / (alpha + sigma) for one in (Z, ZS))
    clean_p, clean_s = x_p + tau * (Z - ZS) - tau * v_p, x_s - tau * v_s
    lusd = 0.98 * (target - source) + 0.02 * (Z - ZS)
    return {
        "sds": null + W * (target - null) - EPS,
        "dds": null + W * (target - null) - e(ZS, SOURCE.null) - W * (e(ZS, SOURCE.text) - e(ZS, SOURCE.null)),
        "pds": posterior_noise(Z, W, TARGET) - posterior_noise(ZS, W, SOURCE),
        "nfsd": W * (target - null) + torch.where(late, null - e(Z, TARGET.negative), null),
        "csd": target - null,
        "bridge": W * (target - source),
        "ssd": 0.5 * 2 * (source - e(ZS, SOURCE.null)) + 0.5 * W * (target - source) + 5.5 * (target - null)
        + 0.075 * torch.exp(T / 1000).view(-1, 1, 1, 1) * shift,
        "drfs": v_w(Z, W, TARGET, moving) - v_w(ZS, W, SOURCE) + (1 - moving) * (Z - ZS),
        "flowedit": v_w(Z, W, TARGET, 1.0) - v_w(ZS, W, SOURCE),
        "flowalign": v_p - v_s - 0.33 * (clean_s - clean_p),
        "lusd": W * lusd / lusd.flatten(1).std(1).view(-1, 1, 1, 1),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", list(LINEAR))
def test_gradient_is_the_papers_formula(name: str) -> None:
    got = LOSSES[name](TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W)
    torch.testing.assert_close(got.grad, written_out(name), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", list(LINEAR))
def test_unused_predictions_are_not_computed(name: str) -> None:
    rows = []

    class Counting(GaussianTeacher):
        def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
            rows.append(len(z_t))
            return super().predict_eps(z_t, t, prompt)

    LOSSES[name](Counting(TEACHER.schedule), ZS, Z, SOURCE, TARGET, T, EPS, W)
    forwards = {
        "sds": 2,
        "dds": 4,
        "pds": 4,
        "nfsd": 3,
        "csd": 2,
        "bridge": 2,
        "ssd": 4,
        "lusd": 2,
        "drfs": 4,
        "flowedit": 4,
        "flowalign": 3,
    }
    assert rows == [forwards[name] * B]


@pytest.mark.parametrize("name", list(LINEAR))
def test_batched_edits_equal_single_edits(name: str) -> None:
    order = [0, 3, 1, 4, 2, 5]
    other = condition(-2.0, B)
    pairs = (TARGET.text, other.text), (TARGET.null, other.null), (TARGET.negative, other.negative)
    targets = Condition(*(Prompt.cat(pair)[torch.tensor(order)] for pair in pairs))  # type: ignore[arg-type]
    both = LOSSES[name](TEACHER, ZS, torch.cat([Z, latents(4)])[order], SOURCE, targets, T, EPS, W).grad
    for number, (z, target) in enumerate(((Z, TARGET), (latents(4), other))):
        alone = LOSSES[name](TEACHER, ZS, z, SOURCE, target, T, EPS, W).grad
        torch.testing.assert_close(both[number::2], alone)


@pytest.mark.parametrize("name", ["dds", "drfs", "flowedit"])
def test_the_source_branch_has_a_guidance_of_its_own(name: str) -> None:
    loss = LOSSES[name]
    same, other = (loss(TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W, source_guidance=w).grad for w in (W, 1.5))
    torch.testing.assert_close(same, loss(TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W).grad, rtol=0, atol=0)
    direction = e(ZS, SOURCE.text) - e(ZS, SOURCE.null)
    alpha, sigma = TEACHER.schedule.at(T)
    expected = (W - 1.5) * direction * (1.0 if name == "dds" else (alpha + sigma) / alpha)
    torch.testing.assert_close(other - same, expected)


def test_velocity_weight_makes_dds_that_of_velocities() -> None:
    """In a flow, and in a variance-preserving teacher seen as one."""
    alpha, sigma = TEACHER.schedule.at(T)
    got = make_loss("dds", weight="velocity")(TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, 1.0).grad

    def v(z: Tensor, prompt: Prompt) -> Tensor:
        return (e(z, prompt) - (alpha * z + sigma * EPS) / (alpha + sigma)) * (alpha + sigma) / alpha

    torch.testing.assert_close(got, v(Z, TARGET.text) - v(ZS, SOURCE.text) + (Z - ZS))


def test_identity_term_of_pds_decreases_with_t() -> None:
    """A / B at steps 21, 501 and 901 of Stable Diffusion's schedule."""
    t = torch.tensor([21, 501, 901])
    sums = pds(TEACHER.schedule, t, 1.0)
    ratio = (sums["change"] / sums["edit_target"]).flatten()  # type: ignore[operator,union-attr]
    torch.testing.assert_close(ratio, torch.tensor([6.96, 0.39, 0.06], dtype=ratio.dtype), atol=6e-3, rtol=2e-3)


def test_coefficients_of_pds_keep_their_digits_at_small_timesteps() -> None:
    """Of a schedule in float32."""
    noise = NoiseSchedule(TEACHER.schedule.alpha.float(), TEACHER.schedule.sigma.float())
    t, alpha = torch.tensor([2, 3, 50]), noise.alpha.double()
    change = pds(noise, t, 1.0)["change"]
    now, two_back, one_back = (alpha[t - back] ** 2 for back in (0, 2, 1))
    a = now / one_back
    deviation = ((1 - a) * (1 - two_back) / (1 - now)).sqrt()
    c0, c1 = two_back.sqrt() * (1 - a) / (1 - now), a.sqrt() * (1 - two_back) / (1 - now)
    pull = (two_back.sqrt() - c0 - c1 * now.sqrt()) / deviation
    torch.testing.assert_close(change.flatten(), pull.float(), rtol=1e-6, atol=0)  # type: ignore[union-attr]


def test_pds_looks_back_no_further_than_the_schedule() -> None:
    z, prompts = torch.zeros(1, 4, 8, 8), (SOURCE[:1], TARGET[:1])
    with pytest.raises(ValueError, match=r"loss pds looks back stride=5 timesteps, got t=2"):
        pds(TEACHER.schedule, torch.tensor([9, 2]), 1.0, stride=5)
    with pytest.raises(ValueError, match=r"t_range must lie within \[2, 1000\], got \[0, 900\]"):
        optimize_latent(TEACHER, z, *prompts, loss="pds", t_range=(0, 900))
    with pytest.raises(ValueError, match="loss pds looks back"):
        next(optimize_latent(TEACHER, z, *prompts, loss=make_loss("pds", stride=500), t_range=(1, 2)))


def test_missing_negative_prompt_is_refused() -> None:
    plain = Condition(TARGET.text, TARGET.null)
    with pytest.raises(ValueError, match="nfsd needs a negative prompt"):
        LOSSES["nfsd"](TEACHER, ZS, Z, SOURCE, plain, T, EPS, W)


def test_lusd_without_a_direction_is_zero() -> None:
    """Where source and target prompt are equal and the edit is its input; the other images of the batch keep their bits."""
    z = torch.cat([ZS[:1], Z[1:]])
    target = Condition(*(Prompt.cat([a[:1], b[1:]]) for a, b in ((SOURCE.text, TARGET.text), (SOURCE.null, TARGET.null))))
    got = LOSSES["lusd"](TEACHER, ZS, z, SOURCE, target, T, EPS, W)
    assert (got.grad[0] == 0).all()
    assert torch.isfinite(got.loss)
    assert LOSSES["lusd"](TEACHER, ZS, z * torch.nan, SOURCE, target, T, EPS, W).grad.isnan().all()  # which is not hidden
    assert torch.equal(got.grad[1:], LOSSES["lusd"](TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W).grad[1:])


def test_lusd_redraws_where_predictions_hardly_differ() -> None:
    """Images below the threshold get another (t, eps), alone as in a batch; the others keep theirs, to the last bit."""
    narrow = Condition(prompt(1.5, 0.1, B), TARGET.null)
    arguments = ZS, Z, SOURCE, narrow
    difference = LOSSES["bridge"](TEACHER, *arguments, T, EPS, 1.0).grad.flatten(1).std(1)
    threshold, other = float(difference.sort().values[:2].mean()), int(T[difference.argmax()])
    weak = difference < threshold
    assert weak.sum() == 1
    seen: list[Tensor] = []

    class Watching(GaussianTeacher):
        def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
            seen.append(t[:B])
            return super().predict_eps(z_t, t, prompt)

    lusd = make_loss("lusd", redraw_below=threshold, redraw_range=(other, other + 1))
    got = lusd(Watching(TEACHER.schedule), *arguments, T, EPS, W).grad
    plain = LOSSES["lusd"](TEACHER, *arguments, T, EPS, W).grad
    assert torch.equal(torch.stack(seen), torch.stack([T, torch.where(weak, other, T)]))
    assert torch.equal(got[~weak], plain[~weak])
    assert (got[weak] - plain[weak]).abs().max() > 0.1
    torch.testing.assert_close(got.flatten(1).std(1), torch.full((B,), W, dtype=got.dtype))

    one = [int(weak.nonzero())]
    conditions = [Condition(cond.text[one], cond.null[one]) for cond in (SOURCE, narrow)]
    alone = lusd(TEACHER, ZS[one], Z[one], *conditions, T[one], EPS[one], W).grad
    torch.testing.assert_close(alone, got[one])
    # No noise helps where the prompts are equal: it ends, at zero.
    assert (lusd(TEACHER, ZS, ZS, SOURCE, SOURCE, T, EPS, W).grad == 0).all()


def test_losses_are_made_by_name_with_their_options_checked() -> None:
    arguments = TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W
    for name in LOSSES:
        if name != "cds":  # needs features
            assert torch.equal(make_loss(name)(*arguments).grad, LOSSES[name](*arguments).grad)
    assert torch.equal(make_loss("pds", stride=5)(*arguments).grad, LOSSES["pds"](*arguments, stride=5).grad)
    assert (lowest_timestep("dds"), lowest_timestep("pds"), lowest_timestep("pds", stride=5)) == (0, 2, 5)
    for name, options, reason in (
        ("ddss", {}, "loss must be one of sds, dds, .*vsd, got 'ddss'"),
        ("pds", {"strid": 5}, "loss pds has no option strid; it takes weight, stride"),
        ("dds", {"weight": "sigma3"}, "weight must be one of one, sigma2, velocity, got 'sigma3'"),
        ("vsd", {}, "loss vsd fits a second model to the edits: give `student`"),
    ):
        with pytest.raises(ValueError, match=reason):
            make_loss(name, **options)  # type: ignore[arg-type]


def test_a_new_loss_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(noise: object, t: Tensor, guidance: float, pull: float = 0.5) -> Coefficients:
        return {"edit_target": guidance, "eps": -1.0, "change": pull}

    monkeypatch.setitem(LINEAR, "made_up", made_up)
    got = linear_loss("made_up", TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W, pull=0.25)
    torch.testing.assert_close(got.grad, W * e(Z, TARGET.text) - EPS + 0.25 * (Z - ZS))


def test_each_term_is_the_right_prediction() -> None:
    """Each term alone, from a teacher that answers differently to each."""
    values: dict[str, Callable[[], Tensor]] = {
        "edit_target": lambda: e(Z, TARGET.text),
        "edit_source": lambda: e(Z, SOURCE.text),
        "edit_null": lambda: e(Z, TARGET.null),
        "edit_negative": lambda: e(Z, TARGET.negative),
        "input_source": lambda: e(ZS, SOURCE.text),
        "input_null": lambda: e(ZS, SOURCE.null),
        "eps": lambda: EPS,
        "change": lambda: Z - ZS,
    }
    assert set(values) == set(TERMS)
    for term, value in values.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(LINEAR, "one", lambda noise, t, guidance, term=term: {term: 1.0})
            torch.testing.assert_close(linear_loss("one", TEACHER, ZS, Z, SOURCE, TARGET, T, EPS, W).grad, value())


# ---------------------------------------------------------------- seen as a flow

FLOW = GaussianTeacher(as_flow(TEACHER.schedule))  # the same data, so the same teacher in other coordinates


@pytest.mark.parametrize("name", LINEAR)
def test_losses_of_a_flow_are_those_of_the_same_teacher(name: str) -> None:
    """All but ssd, whose identity term is of z_t: it has the scale of the path."""
    got, expected = (LOSSES[name](one, ZS, Z, SOURCE, TARGET, T, EPS, W).grad for one in (FLOW, TEACHER))
    if name == "ssd":
        change = 0.075 * torch.exp(T / 1000).view(-1, 1, 1, 1) * (Z - ZS)
        expected = expected + (FLOW.schedule.at(T)[0] - TEACHER.schedule.at(T)[0]) * change
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
