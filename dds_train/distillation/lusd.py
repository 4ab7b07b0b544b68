"""Localised and normalised score distillation: the direction of a difference of predictions, where there is one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dds_train.distillation.guidance import Condition
from dds_train.distillation.inject import Distilled, inject
from dds_train.distillation.linear import linear_loss, repeat_per_edit, timestep_weight
from dds_train.distillation.noise import ScoreModel
from dds_train.distillation.rng import Key, draw

REDRAWS = 10  # after so many the last draw is taken: equal prompts have no difference at any noise


def lusd_loss(
    teacher: ScoreModel,
    z_source: Tensor,
    z_target: Tensor,
    source: Condition,
    target: Condition,
    t: Tensor,
    eps: Tensor,
    guidance: float,
    weight: str = "one",
    identity: float = 0.02,
    redraw_below: float = 0.0,
    redraw_range: Sequence[int] = (50, 950),
) -> Distilled:
    """LUSD (ICCV 2025): ``G = w d / std(d)`` with `linear.lusd`'s d and the deviation within each image. The paper's mask is
    `optimize_latent`'s here.

    G has the same size whether the predictions under the two prompts differ much or hardly at all, and hardly differing ones
    are mostly noise. An image for which they do gets another t and eps: a function of the one that it had, so that results
    depend on nothing else in the batch.

    Args:
        guidance: w, the deviation of G.
        redraw_below: redraw while the deviation of ``e(z_t, y_target) - e(z_t, y_source)`` is below this for an edit of the
            image; 0 = never. A redraw evaluates the teacher once more.
        redraw_range: timesteps of redraws, first included, last excluded.

    Others as in `linear_loss`.
    """
    change = z_target.detach() - repeat_per_edit(z_source, z_target)

    def direction() -> Tensor:
        return linear_loss("lusd", teacher, z_source, z_target, source, target, t, eps, 1.0, identity=identity).grad

    d = direction()
    for _ in range(REDRAWS if redraw_below else 0):
        weak = deviation(d - identity * change) < (1 - identity) * redraw_below
        weak = weak.view(len(t), -1).any(1)  # the edits of an image share its noise
        if not weak.any():
            break
        t, eps = redrawn(t, eps, weak, (redraw_range[0], redraw_range[1]))
        d = direction()
    scale = deviation(d)
    # Without a direction (equal prompts, an edit that is its input) there is nothing to follow.
    grad = torch.where(scale == 0, torch.zeros_like(d), guidance * d / scale)
    return inject(z_target, timestep_weight(teacher.schedule, repeat_per_edit(t, z_target), weight) * grad)


def deviation(x: Tensor) -> Tensor:
    """The standard deviation within each image, [B,1,1,1]."""
    return x.std(dim=(1, 2, 3), keepdim=True)


def redrawn(t: Tensor, eps: Tensor, which: Tensor, t_range: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """t [N] and eps [N,C,h,w] with new ones where `which` [N]."""
    keys: list[Key] = [
        ("redraw", int(t[image]), str(eps[image].flatten()[:4].tolist())) for image in which.nonzero().flatten().tolist()
    ]
    new_t, new_eps = draw(eps.shape[1:], t_range, eps.device, keys)
    t, eps = t.clone(), eps.clone()
    t[which], eps[which] = new_t, new_eps.to(eps.dtype)
    return t, eps
