"""Contrastive Denoising Score: DDS, and a pull that keeps each place of the picture what it was like."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dds_train.distillation.guidance import Condition
from dds_train.distillation.inject import Distilled, inject
from dds_train.distillation.linear import linear_loss, repeat_per_edit
from dds_train.distillation.noise import ScoreModel


class FeatureModel(ScoreModel, Protocol):
    """A score model that can be looked into."""

    def features(self, z_t: Tensor, t: Tensor, text: Tensor) -> list[Tensor]:
        """What the decoder's self-attention layers put out, each [N,width,h',w'], float32; differentiable in z_t."""
        ...


def cds_loss(
    teacher: FeatureModel,
    z_source: Tensor,
    z_target: Tensor,
    source: Condition,
    target: Condition,
    t: Tensor,
    eps: Tensor,
    guidance: float,
    weight: str = "one",
    contrast: float = 3.0,
    temperature: float = 0.07,
    patches: int = 256,
    pools: Sequence[int] = (1, 2),
) -> Distilled:
    """CDS, arXiv 2311.18608 (CVPR 2024), in the numbers of the authors' code: ``DDS + contrast * PatchNCE`` between the
    self-attention features of the noised input (fixed) and of the noised edit. Gradients go through the teacher here, in the
    edit's branch.

    The authors add 3 PatchNCE to ``2000 sum(z_target G) / (h w)``, so in units of G its gradient is multiplied by h w / 2000;
    that also makes the balance of the two independent of the latent's size. Every image of a batch counts, each with
    negatives from itself alone.

    Args:
        contrast: lambda; the authors take 3.
        temperature: of the softmax over places; the authors take 0.07.
        patches: places compared in each layer, drawn anew for each eps; the authors take 256.
        pools: the features are compared as they are (1) and averaged over squares of that side (2).

    Others as in `linear_loss`; `weight` is that of the DDS part.
    """
    dds = linear_loss("dds", teacher, z_source, z_target, source, target, t, eps, guidance, weight)
    edit_t, edit_eps = repeat_per_edit(t, z_target), repeat_per_edit(eps, z_target)
    with torch.no_grad():
        fixed = teacher.features(teacher.schedule.add_noise(z_source, eps, t), t, source.text)
    with torch.enable_grad():
        z = z_target.detach().requires_grad_()
        moving = teacher.features(teacher.schedule.add_noise(z, edit_eps, edit_t), edit_t, target.text)
        unlike = sum(
            patch_nce(pooled(repeat_per_edit(was, z), pool), pooled(now, pool), edit_eps, patches, temperature).sum()
            for was, now in zip(fixed, moving, strict=True)
            for pool in pools
        )
    (pull,) = torch.autograd.grad(unlike, z)  # type: ignore[arg-type]
    height, width = z.shape[-2:]
    return inject(z_target, dds.grad + contrast * height * width / 2000 * pull)


def patch_nce(was: Tensor, now: Tensor, eps: Tensor, patches: int, temperature: float) -> Tensor:
    """How badly the places of `now` are told apart by what they were, [B]: PatchNCE of CUT (arXiv 2007.15651, section 3), with
    the features themselves compared by their cosine.

    Args:
        was, now: [B,width,h',w'].
        eps: [B,C,h,w], the noise, which also decides which places are compared.
        patches: so many, or all if there are fewer.
    """
    was, now = (F.normalize(x, dim=1).flatten(2).transpose(1, 2) for x in (was, now))  # [B, h'w', width]
    places = shuffled(eps, now.shape[1])[:, :patches, None].expand(-1, -1, now.shape[2])
    alike = was.gather(1, places) @ now.gather(1, places).transpose(1, 2) / temperature  # [B, patches, patches]
    itself = torch.arange(alike.shape[1], device=alike.device).expand(len(alike), -1)
    return F.cross_entropy(alike.transpose(1, 2), itself, reduction="none").mean(dim=1)


def shuffled(eps: Tensor, count: int) -> Tensor:
    """The numbers 0 .. count - 1 in an order of its own for each image, [B,count]: random, yet a function of the arguments."""
    # Low digits: the high ones would pick places by how noisy they are.
    return ((eps.flatten(1) * 61) % 1)[:, :count].argsort(dim=1)


def pooled(features: Tensor, side: int) -> Tensor:
    """Averages over squares, [B,width,h'//side,w'//side]; features smaller than that stay as they are."""
    return features if side == 1 or min(features.shape[-2:]) < side else F.avg_pool2d(features, side)
