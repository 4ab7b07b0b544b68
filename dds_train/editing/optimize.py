"""Edit by descent on a latent, arXiv 2304.07090, algorithm 1."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dds_train.distillation.guidance import Condition
from dds_train.distillation.losses import LOSSES, Loss
from dds_train.distillation.noise import ScoreModel
from dds_train.distillation.rng import draw

Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@dataclass(frozen=True)
class Step:
    index: int  # 1 .. steps
    z: Tensor  # [B,C,h,w] scaled latents after this step
    grad_rms: float  # of the gradient that led here


def optimize_latent(
    teacher: ScoreModel,
    z_source: Tensor,
    source: Condition,
    target: Condition,
    *,
    loss: str | Loss = "dds",
    steps: int = 200,
    lr: float = 0.05,
    guidance: float = 7.5,
    t_range: tuple[int, int] = (50, 950),
    seed: int = 0,
    optimizer: Optimizer | None = None,
    scheduler: Scheduler | None = None,
) -> Iterator[Step]:
    """Start at the source latent and follow the loss's gradient; yields after each step.

    One step of the default optimiser, plain SGD, is ``z -= lr * G``: it depends neither on the size of the latent nor on how
    many images are edited together. (The authors' notebook takes 0.0488 G at 64 x 64 latents, guidance 7.5, 200 steps.)

    Args:
        z_source: [B,C,h,w] scaled latents of the inputs.
        source: their prompts; [1,L,D] serves all.
        target: the prompts wanted; [1,L,D] serves all.
        loss: a name in `LOSSES`, or such a function.
        lr: the step size; not used if `optimizer` is given.
        t_range: steps drawn uniformly, first included, last excluded.
        seed: determines every (t, eps); all images get the same, so that none depends on its company.
        optimizer: [latent] -> optimiser.
        scheduler: optimiser -> learning-rate scheduler.

    Raises:
        ValueError: for an unknown loss, fewer than one step, or a range of t outside the teacher's.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= t_range[0] < t_range[1] <= len(teacher.schedule):
        raise ValueError(f"t_range must lie within [0, {len(teacher.schedule)}], got {list(t_range)}")
    distill = LOSSES[loss] if isinstance(loss, str) else loss
    source, target = source.expand(len(z_source)), target.expand(len(z_source))

    def descend() -> Iterator[Step]:
        z = z_source.clone().requires_grad_()
        descent = optimizer([z]) if optimizer else torch.optim.SGD([z], lr=lr)
        decay = scheduler(descent) if scheduler else None
        for index in range(steps):
            t, eps = draw(z.shape[1:], t_range, z.device, [(seed, "optimize", index)])
            t, eps = t.expand(len(z)), eps.expand_as(z)
            distilled = distill(teacher, z_source, z.detach(), source, target, t, eps, guidance)
            z.grad = distilled.grad  # G itself, per image: no mean over the batch
            descent.step()
            if decay:
                decay.step()
            yield Step(index + 1, z.detach().clone(), distilled.grad_rms.item())

    return descend()  # a generator of its own, so that bad arguments raise here and not at the first step
