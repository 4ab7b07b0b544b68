"""Editing by optimising a latent, arXiv 2304.07090, algorithm 1."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dds_train.distillation.guidance import Condition
from dds_train.distillation.losses import Loss, StatefulLoss, lowest_timestep, make_loss
from dds_train.distillation.noise import ScoreModel
from dds_train.distillation.rng import draw

Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
T_ORDERS = ("random", "descending")


@dataclass(frozen=True)
class Step:
    """One iteration of the optimisation."""

    index: int  # 1 .. steps
    z: Tensor  # [B,C,h,w] scaled latents after this step
    grad_rms: Tensor  # [] root mean square of this step's gradient
    steps: Tensor  # [B] number of steps of each edit: less than index once it has converged


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
    t_order: str = "random",
    seed: int | Sequence[int] = 0,
    mask: Tensor | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Scheduler | None = None,
    convergence: "ConvergenceDetector | None" = None,
) -> Iterator[Step]:
    """Optimise latents from the source on, along the loss's gradient; yields after each step, until all steps are done or all
    edits have converged.

    One step of the default optimiser, plain SGD, is ``z -= lr * G``: it depends neither on the size of the latent nor on the
    batch. (The authors' notebook takes 0.0488 G at 64 x 64 latents, guidance 7.5, 200 steps.)

    Args:
        z_source: [N,C,h,w] scaled latents of the inputs.
        source: the prompts of the inputs, N of them, or one for all.
        target: the prompts of the edits, N * M of them for M edits of each input, those of an input following one another
            (they share its source branch), or one for all.
        loss: a name for `make_loss`, or a loss.
        lr: the step size; not used if `optimizer` is given.
        t_range: timesteps, first included, last excluded.
        t_order: "random", sampled uniformly; or "descending", evenly from the last one to the first, as a sampler does.
        seed: determines every (t, eps). One for all images, which then get the same, or N of them; either way no image
            depends on its batch.
        mask: [N,1,h,w], [N*M,1,h,w] or [1,1,h,w], in [0,1]; multiplies the gradient, whatever the loss.
        optimizer: [latent] -> optimiser.
        scheduler: optimiser -> learning-rate scheduler.
        convergence: stops edits that have converged.

    Raises:
        ValueError: for an unknown loss or order of t, fewer than one step, a range of t outside the teacher's, or numbers of
            seeds, prompts or masks that do not fit the images.
    """
    loss_fn = make_loss(loss) if isinstance(loss, str) else loss
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if t_order not in T_ORDERS:
        raise ValueError(f"t_order must be one of {', '.join(T_ORDERS)}, got {t_order!r}")
    lowest = lowest_timestep(loss) if isinstance(loss, str) else 0  # a loss of one's own checks its timesteps itself
    if not lowest <= t_range[0] < t_range[1] <= len(teacher.schedule):
        raise ValueError(f"t_range must lie within [{lowest}, {len(teacher.schedule)}], got {list(t_range)}")
    images, seeds = len(z_source), [seed] if isinstance(seed, int) else list(seed)
    edits = max(1, len(target.text) // images)
    source, target = source.expand(images), target.expand(images * edits)
    if len(seeds) not in (1, images):
        raise ValueError(f"give one seed, or one for each of the {images} images, got {len(seeds)}")
    if mask is not None:
        if mask.shape[-2:] != z_source.shape[-2:] or len(mask) not in (1, images, images * edits):
            raise ValueError(f"a mask for latents {[*z_source.shape]} has shape [N,1,h,w], got {[*mask.shape]}")
        mask = mask if len(mask) == 1 else mask.repeat_interleave(images * edits // len(mask), dim=0)
    if isinstance(loss_fn, StatefulLoss):
        loss_fn.reset()

    def iterate() -> Iterator[Step]:
        # For one edit not a copy, whose memory layout would be another, and with it the last bits of all convolutions.
        start = z_source if edits == 1 else z_source.repeat_interleave(edits, dim=0)
        z = start.clone().requires_grad_()
        stopped = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        counts = torch.zeros(len(z), dtype=torch.long, device=z.device)
        optim = optimizer([z]) if optimizer else torch.optim.SGD([z], lr=lr)
        lr_scheduler = scheduler(optim) if scheduler else None
        for index in range(steps):
            t, eps = draw(z.shape[1:], t_range, z.device, [(one, "optimize", index) for one in seeds])
            if t_order == "descending":
                t = torch.full_like(t, t_range[1] - 1 - index * (t_range[1] - t_range[0]) // steps)
            t, eps = t.expand(images), eps.expand_as(z_source)
            before = z.detach().clone()
            distilled = loss_fn(teacher, z_source, before, source, target, t, eps, guidance)
            # G itself, per image: no mean over the batch.
            z.grad = distilled.grad if mask is None else mask * distilled.grad
            optim.step()
            if lr_scheduler:
                lr_scheduler.step()
            with torch.no_grad():
                z.copy_(torch.where(stopped.view(-1, 1, 1, 1), before, z))
            counts = counts + ~stopped
            if convergence:
                stopped = stopped | convergence.update(z.detach(), start)
            yield Step(index + 1, z.detach().clone(), distilled.grad_rms, counts)
            if convergence and convergence.ends_window(index) and stopped.all():
                return

    return iterate()  # a generator of its own, so that bad arguments raise here and not at the first step


class ConvergenceDetector:
    """Detects edits that have converged. Single steps are too noisy to tell: it compares the mean latent of one window of
    steps with that of the window before.

    Args:
        window: number of steps.
        tolerance: an edit has converged if it moved, from window to window, by at most this share of its distance from the
            input.
    """

    def __init__(self, window: int = 25, tolerance: float = 0.05) -> None:
        if window < 1 or tolerance < 0:
            raise ValueError(f"window must be at least 1 and tolerance at least 0, got {window} and {tolerance}")
        self.window, self.tolerance = window, tolerance
        self.seen = 0
        self.total: Tensor | None = None
        self.mean: Tensor | None = None

    def ends_window(self, index: int) -> bool:
        """Whether step `index` (0 ..) ends a window."""
        return (index + 1) % self.window == 0

    def update(self, z: Tensor, start: Tensor) -> Tensor:
        """Add the latents [B,C,h,w] after one more step; `start` is the input. Returns [B], True for edits that converged."""
        self.total = z if self.total is None else self.total + z
        self.seen += 1
        converged = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        if self.seen % self.window == 0:
            mean = self.total / self.window
            if self.mean is not None:
                converged = rms(mean - self.mean) <= self.tolerance * rms(mean - start)
            self.total, self.mean = None, mean
        return converged


def rms(x: Tensor) -> Tensor:
    """Root mean square of each of [B,C,h,w], [B]."""
    return x.square().mean(dim=(1, 2, 3)).sqrt()
