"""Losses whose gradient is a linear combination of teacher predictions: nearly all of them.

A new one is a function that returns its coefficients, an entry in `LINEAR`, and a file in conf/loss. Predictions that a loss
does not use are not computed. No gradient flows through the teacher: the combination *is* the gradient G of the latent.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dds_train.distillation.cache import SourceCache
from dds_train.distillation.guidance import Condition
from dds_train.distillation.inject import Distilled, inject
from dds_train.distillation.noise import NoiseSchedule, ScoreModel
from dds_train.distillation.prompt import Prompt

WEIGHTS = ("one", "sigma2", "velocity")
PerImage = TypeVar("PerImage", Tensor, Prompt)


# ---------------------------------------------------------------- coefficients

# The terms of G. `z_t` is the noised edit, `zs_t` the noised input, e the teacher's prediction without guidance.
TERMS = {
    "edit_target": "e(z_t, y_target)",
    "edit_source": "e(z_t, y_source)",
    "edit_null": "e(z_t, null)",
    "edit_negative": "e(z_t, y_negative)",
    "input_source": "e(zs_t, y_source)",
    "input_null": "e(zs_t, null)",
    "eps": "the noise",
    "change": "z_target - z_source",
}
POINT = "point"  # no term: the edit's branch is evaluated at z_t + point sigma change
Coefficients = dict[str, Tensor | float]  # of terms: a number, or one for each edit, [B,1,1,1]


def sds(noise: NoiseSchedule, t: Tensor, guidance: float) -> Coefficients:
    """Score Distillation Sampling, DreamFusion (arXiv 2209.14988), equation 3: ``e_w(z_t, y_target) - eps``.

    The baseline that DDS corrects: it compares with the noise itself instead of with the input's branch, so the teacher's
    errors stay in and blur the image.
    """
    return {"edit_target": guidance, "edit_null": 1 - guidance, "eps": -1.0}


def dds(noise: NoiseSchedule, t: Tensor, guidance: float, source_guidance: float | None = None) -> Coefficients:
    """Delta Denoising Score, arXiv 2304.07090, equation 3: ``e_w(z_t, y_target) - e_w(zs_t, y_source)``.

    Source and target are noised with the *same* t and eps. The teacher's errors about an image are the same in both branches
    and cancel, so that the difference is the direction of the change of prompt alone; for a matched pair (equal latents, equal
    prompts) it is exactly zero.

    Args:
        source_guidance: w of the source branch; None = guidance.
    """
    own = guidance if source_guidance is None else source_guidance
    # In this order what is equal in both branches cancels to the last bit.
    return {"edit_target": guidance, "input_source": -own, "edit_null": 1 - guidance, "input_null": own - 1}


def pds(noise: NoiseSchedule, t: Tensor, guidance: float, stride: int = 2) -> Coefficients:
    """Posterior Distillation Sampling, arXiv 2311.13831, equation 14: the difference of the noises that would lead from z_t to
    z_s, s the timestep before t. In closed form ``A_t (z_target - z_source) + B_t DDS``: DDS and a pull towards the input that
    fades as t grows.

    As in the authors' code, beta_t is that of a single step although s lies `stride` steps back. With both over the same
    stride the pull would vanish, and PDS be DDS with another weight.

    Args:
        stride: t - s; the authors take 500 of 1000 timesteps. t must not be below it.

    Raises:
        ValueError: for a t below `stride`.
    """
    # In float64, which not every device has: differences of numbers near 1.
    alpha, t = noise.alpha.cpu().double(), t.cpu()
    if noise.is_flow:  # in the coordinates in which z_t has unit variance
        alpha = alpha / torch.hypot(alpha, noise.sigma.cpu().double())
    if (t < stride).any():
        raise ValueError(f"loss pds looks back stride={stride} timesteps, got t={int(t.min())}; t_range has to begin there")
    ab_t, ab_s, ab_before = (alpha[step].view(-1, 1, 1, 1) ** 2 for step in (t, t - stride, t - 1))
    a_t = ab_t / ab_before
    beta_t = 1 - a_t
    deviation = (beta_t * (1 - ab_s) / (1 - ab_t)).sqrt()
    c0, c1 = ab_s.sqrt() * beta_t / (1 - ab_t), a_t.sqrt() * (1 - ab_s) / (1 - ab_t)
    pull = (ab_s.sqrt() - c0 - c1 * ab_t.sqrt()) / deviation
    push = c0 * ((1 - ab_t) / ab_t).sqrt() / deviation
    terms = {"change": pull, **{term: push * value for term, value in dds(noise, t, guidance).items()}}
    return {term: value.to(noise.alpha) for term, value in terms.items()}


def nfsd(noise: NoiseSchedule, t: Tensor, guidance: float, clean_below: int = 200) -> Coefficients:
    """Noise-Free Score Distillation, arXiv 2310.17590, equation 7: ``w (e(z_t, y_target) - e(z_t, null)) + d``, with d the
    direction towards real images: ``e(z_t, null)`` at t < `clean_below`, ``e(z_t, null) - e(z_t, y_negative)`` above.

    Needs a negative prompt (`Condition.negative`) such as "unrealistic, blurry, low quality".
    """
    noisy = (t >= clean_below).to(noise.alpha.dtype).view(-1, 1, 1, 1)
    return {"edit_target": guidance, "edit_null": 1 - guidance, "edit_negative": -noisy}


def csd(noise: NoiseSchedule, t: Tensor, guidance: float, against: float = 0.0) -> Coefficients:
    """Classifier Score Distillation, arXiv 2310.19415, equations 6 and 12: the guidance direction alone,
    ``e(z_t, y_target) - e(z_t, null)``, less `against` times that of the source prompt. `guidance` is not used.
    """
    return {"edit_target": 1.0, "edit_source": -against, "edit_null": against - 1}


def bridge(noise: NoiseSchedule, t: Tensor, guidance: float) -> Coefficients:
    """The second stage of arXiv 2406.09417 (score distillation as a Schroedinger bridge), equation 11:
    ``w (e(z_t, y_target) - e(z_t, y_source))``. The source prompt describes the current images, flaws included
    (the target with "oversaturated, smooth, pixelated, ..." after it); meant to follow a stage of SDS.
    """
    return {"edit_target": guidance, "edit_source": -guidance}


def ssd(
    noise: NoiseSchedule, t: Tensor, guidance: float, keep: float = 2.0, push: float = 5.5, identity: float = 0.075
) -> Coefficients:
    """Stable Score Distillation (ICCV 2025): ``keep / 2 (e(z_t, y_source) - e(zs_t, null)) + w / 2 (e(z_t, y_target) -
    e(z_t, y_source)) + push (e(z_t, y_target) - e(z_t, null)) + identity exp(t / T) (z_t - zs_t)``.
    """
    alpha, _ = noise.at(t)
    return {
        "edit_source": (keep - guidance) / 2,
        "input_null": -keep / 2,
        "edit_target": guidance / 2 + push,
        "edit_null": -push,
        "change": identity * (t / len(noise)).exp().view(-1, 1, 1, 1) * alpha,  # z_t - zs_t is alpha times the change
    }


def lusd(noise: NoiseSchedule, t: Tensor, guidance: float, identity: float = 0.02) -> Coefficients:
    """Localised and normalised (LUSD, ICCV 2025): ``d = (1 - l) (e(z_t, y_target) - e(z_t, y_source)) + l (z_target -
    z_source)``, of which `lusd.lusd_loss` takes the direction alone.
    """
    return {"edit_target": 1 - identity, "edit_source": identity - 1, "change": identity}


# Methods for rectified flows, in noise instead of velocity. With x = z_t / (alpha + sigma), which lies on the straight path at
# tau = sigma / (alpha + sigma), any teacher is a flow. A difference of its velocities is that of the noise, less `point` times
# the change, times (alpha + sigma) / alpha, which is the weight "velocity". They are meant for timesteps in descending order.


def drfs(
    noise: NoiseSchedule, t: Tensor, guidance: float, source_guidance: float | None = None, shift: float = 1.0
) -> Coefficients:
    """Delta rectified flow sampling (DVRF, arXiv 2509.05342): ``v_w(p, y_target) - v_w(zs_t, y_source) + (1 - e) (z_target -
    z_source)`` at the point ``p = z_t + e sigma (z_target - z_source)``; e rises from 0 to `shift` as t falls.

    Args:
        source_guidance: w of the source branch; None = guidance.
    """
    share = shift * (1 - t / len(noise)).view(-1, 1, 1, 1)
    return {**dds(noise, t, guidance, source_guidance), "change": -share, POINT: share}


def flowedit(noise: NoiseSchedule, t: Tensor, guidance: float, source_guidance: float | None = None) -> Coefficients:
    """FlowEdit (ICCV 2025, arXiv 2412.08629): ``v_w(p, y_target) - v_w(zs_t, y_source)`` at ``p = z_target + zs_t - z_source``.

    Args:
        source_guidance: w of the source branch; None = guidance.
    """
    return {**dds(noise, t, guidance, source_guidance), "change": -1.0, POINT: 1.0}


def flowalign(noise: NoiseSchedule, t: Tensor, guidance: float, align: float = 0.33) -> Coefficients:
    """FlowAlign: with ``v_p = v(p, y_source) + w (v(p, y_target) - v(p, y_source))`` at FlowEdit's point,
    ``v_p - v(zs_t, y_source)`` and a pull of the edit's clean latent towards that of the source.

    Args:
        align: the pull's weight per unit of time: 0.01 a step, of which the authors take 33.
    """
    alpha, sigma = noise.at(t)
    tau = sigma / (alpha + sigma)
    push = 1 - align * tau
    terms = {"edit_target": push * guidance, "edit_source": push * (1 - guidance), "input_source": -push}
    return {**terms, "change": align * (1 - tau) - push, POINT: 1.0}


LINEAR: dict[str, Callable[..., Coefficients]] = {
    "sds": sds, "dds": dds, "pds": pds, "nfsd": nfsd, "csd": csd, "bridge": bridge, "ssd": ssd, "lusd": lusd,
    "drfs": drfs, "flowedit": flowedit, "flowalign": flowalign,
}  # fmt: skip
OF_VELOCITY = {"drfs", "flowedit", "flowalign"}  # weighted by "velocity" by default


# ---------------------------------------------------------------- the gradient


class Query(NamedTuple):
    """A question to the teacher: N noised latents, their timesteps, and a prompt for each."""

    z_t: Tensor  # [N,C,h,w]
    t: Tensor  # [N]
    prompt: Prompt  # [N]


def linear_loss(
    name: str,
    teacher: ScoreModel,
    z_source: Tensor,
    z_target: Tensor,
    source: Condition,
    target: Condition,
    t: Tensor,
    eps: Tensor,
    guidance: float,
    weight: str = "one",
    **options: float,
) -> Distilled:
    """G from the coefficients of `LINEAR[name]`, with one batched call of the teacher for all predictions in use.

    Several edits of one image share its source branch, which is exact and saves evaluations of the teacher: with N inputs and
    N * M outputs, the M edits of an input follow one another.

    Args:
        teacher: the frozen model; not differentiated.
        z_source: [N,C,h,w], latents of the inputs.
        z_target: [N*M,C,h,w], latents being optimised or produced; receive the gradient.
        source: describes the inputs ("a photo of a cat"), N of them.
        target: describes the edits ("a photo of a lion"), N * M of them.
        t: [N] integer timesteps.
        eps: [N,C,h,w] standard normal noise.
        guidance: classifier-free guidance scale, w in the formulas; 1 = none.
        weight: w_t that multiplies G: "one", "sigma2", or "velocity", which is (alpha + sigma) / alpha.
        options: of the loss itself.

    Raises:
        ValueError: for an unknown weight, or a loss that needs a negative prompt where there is none.
    """
    with torch.no_grad():
        edit_t, edit_eps = repeat_per_edit(t, z_target), repeat_per_edit(eps, z_target)
        coefficients = LINEAR[name](teacher.schedule, edit_t, guidance, **options)
        coefficients = {term: c for term, c in coefficients.items() if isinstance(c, Tensor) or c != 0}
        point = coefficients.pop(POINT, None)
        prompts = {
            "edit_target": target.text,
            "edit_source": repeat_per_edit(source.text, z_target),
            "edit_null": target.null,
            "input_source": source.text,
            "input_null": source.null,
        }
        if "edit_negative" in coefficients:
            if target.negative is None:
                raise ValueError(f"loss {name} needs a negative prompt")
            prompts["edit_negative"] = target.negative
        change = z_target - repeat_per_edit(z_source, z_target)
        z_t = teacher.schedule.add_noise(z_target, edit_eps, edit_t)
        if point is not None:
            z_t = z_t + point * teacher.schedule.at(edit_t)[1] * change
        zs_t = teacher.schedule.add_noise(z_source, eps, t)
        queries = {
            term: Query(z_t, edit_t, prompt) if term.startswith("edit") else Query(zs_t, t, prompt)
            for term, prompt in prompts.items()
            if term in coefficients
        }
        values = {"eps": eps, "change": change} | predict(teacher, queries)
        grad = sum(
            (c * repeat_per_edit(values[term], z_target) for term, c in coefficients.items()), torch.zeros_like(z_target)
        )
        grad = timestep_weight(teacher.schedule, edit_t, weight) * grad
    return inject(z_target, grad)


def predict(teacher: ScoreModel, queries: dict[str, Query]) -> dict[str, Tensor]:
    """The teacher's prediction for each term: from one batched call, or from two if it caches those for inputs."""
    if isinstance(teacher, SourceCache):
        inputs = {term: query for term, query in queries.items() if term.startswith("input")}
        edits = {term: query for term, query in queries.items() if term not in inputs}
        return batched_call(teacher.predict_input, inputs) | batched_call(teacher.predict_eps, edits)
    return batched_call(teacher.predict_eps, queries)


def batched_call(predict_eps: Callable[[Tensor, Tensor, Prompt], Tensor], queries: dict[str, Query]) -> dict[str, Tensor]:
    if not queries:
        return {}
    z_t, t, prompts = zip(*queries.values(), strict=True)
    predictions = predict_eps(torch.cat(z_t), torch.cat(t), Prompt.cat(prompts))
    return dict(zip(queries, predictions.split([len(rows) for rows in z_t]), strict=True))


def repeat_per_edit(x: PerImage, z_target: Tensor) -> PerImage:
    """What belongs to N inputs [N,...], once for each of their edits [N*M,...]; what belongs to the edits as it is."""
    edits = len(z_target) // len(x)
    return x if edits == 1 else x.repeat_interleave(edits, dim=0)


def timestep_weight(schedule: NoiseSchedule, t: Tensor, name: str) -> Tensor:
    """w_t as [B,1,1,1]."""
    alpha, sigma = schedule.at(t)
    if name == "one":
        return torch.ones_like(sigma)
    if name == "sigma2":
        return sigma**2
    if name == "velocity":
        return (alpha + sigma) / alpha.clamp(min=1e-3)  # of which a flow's last timestep has none
    raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {name!r}")
