"""Losses that turn a frozen diffusion model's opinion of an image into a gradient for that image.

All share one signature. The teacher looks at a noised latent and predicts the noise in it, once knowing the prompt; where
its prediction departs from what is there, it says "the image should change like this". No gradient flows through
the teacher: its opinion *is* the gradient G, handed to the latent.

A new loss is a function below, an entry in `LOSSES`, and a file in conf/loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dds_train.distillation.guidance import Branch, Condition, guided_eps
from dds_train.distillation.noise import NoiseSchedule, ScoreModel

WEIGHTS = ("one", "sigma2")


@dataclass(frozen=True)
class Distilled:
    """A loss to call backward on, and the gradient it carries. The loss's value means nothing: log `grad_rms`."""

    loss: Tensor  # [], for backward only
    grad: Tensor  # [B,C,h,w], G: minus the change that the teacher asks for

    @property
    def grad_rms(self) -> Tensor:
        """Root mean square of G, []."""
        return self.grad.square().mean().sqrt()


def dds_loss(
    teacher: ScoreModel,
    z_source: Tensor,
    z_target: Tensor,
    source: Condition,
    target: Condition,
    t: Tensor,
    eps: Tensor,
    guidance: float,
    weight: str = "one",
) -> Distilled:
    """Delta Denoising Score, arXiv 2304.07090, equation 3: ``G = w_t (e_w(z_t, y_target) - e_w(zs_t, y_source))``.

    Source and target are noised with the *same* t and eps. What the teacher gets wrong about an image it gets wrong in
    both branches, so the difference keeps only what the change of prompt asks for; for a matched pair (equal latents, equal
    prompts) it is exactly zero.

    Several edits of one image share its source branch, which is exact and saves the teacher work: with N inputs and N * M
    outputs, the M edits of an input follow one another.

    Args:
        teacher: the frozen model; not differentiated.
        z_source: [N,C,h,w], latents of the inputs.
        z_target: [N*M,C,h,w], latents being optimised or produced; receive the gradient.
        source: describes the inputs ("a photo of a cat"), N of them.
        target: describes what is wanted ("a photo of a lion"), N * M of them.
        t: [N] integer steps.
        eps: [N,C,h,w] standard normal noise.
        guidance: classifier-free guidance scale of both branches, 1 = none.
        weight: w_t, "one" or "sigma2".
    """
    with torch.no_grad():
        target_t, target_eps = _for_edits(t, z_target), _for_edits(eps, z_target)
        z_t = teacher.schedule.add_noise(z_target, target_eps, target_t)
        zs_t = teacher.schedule.add_noise(z_source, eps, t)
        branches = [Branch(z_t, target_t, target), Branch(zs_t, t, source)]
        eps_target, eps_source = guided_eps(teacher, branches, guidance)
        grad = _weight(teacher.schedule, target_t, weight) * (eps_target - _for_edits(eps_source, z_target))
    return inject(z_target, grad)


def sds_loss(
    teacher: ScoreModel,
    z_source: Tensor,
    z_target: Tensor,
    source: Condition,
    target: Condition,
    t: Tensor,
    eps: Tensor,
    guidance: float,
    weight: str = "one",
) -> Distilled:
    """Score Distillation Sampling, DreamFusion (arXiv 2209.14988), equation 3: ``G = w_t (e_w(z_t, y_target) - eps)``.

    The baseline that DDS corrects: it compares with the noise itself instead of with the input's branch, so the teacher's
    errors stay in and blur the image. Arguments as in `dds_loss`; `z_source` and `source` are not used.
    """
    with torch.no_grad():
        t, eps = _for_edits(t, z_target), _for_edits(eps, z_target)
        z_t = teacher.schedule.add_noise(z_target, eps, t)
        (eps_target,) = guided_eps(teacher, [Branch(z_t, t, target)], guidance)
        grad = _weight(teacher.schedule, t, weight) * (eps_target - eps)
    return inject(z_target, grad)


def inject(z: Tensor, grad: Tensor) -> Distilled:
    """A loss whose gradient with respect to each image of z [B,C,h,w] is `grad` divided by B."""
    # Linear, not 0.5 mse(z, z - grad): no cancellation in half precision.
    loss = (z * grad.detach()).sum(dim=(1, 2, 3)).mean()
    return Distilled(loss=loss, grad=grad)


def _for_edits(x: Tensor, z_target: Tensor) -> Tensor:
    """What belongs to N inputs [N,...], once for each of their edits [N*M,...]."""
    edits = len(z_target) // len(x)
    return x if edits == 1 else x.repeat_interleave(edits, dim=0)


def _weight(schedule: NoiseSchedule, t: Tensor, name: str) -> Tensor:
    """w_t as [B,1,1,1]."""
    _, sigma = schedule.at(t)
    if name == "one":
        return torch.ones_like(sigma)
    if name == "sigma2":
        return sigma**2
    raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {name!r}")


Loss = Callable[..., Distilled]
LOSSES: dict[str, Loss] = {"dds": dds_loss, "sds": sds_loss}
