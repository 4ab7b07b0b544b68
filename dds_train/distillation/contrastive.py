"""Contrastive Denoising Score: DDS with a patch-wise contrastive term that preserves structure."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dds_train.distillation.guidance import Condition
from dds_train.distillation.inject import Distilled, inject
from dds_train.distillation.linear import linear_loss, repeat_per_edit
from dds_train.distillation.noise import ScoreModel
from dds_train.distillation.prompt import Prompt


class FeatureModel(ScoreModel, Protocol):
    """A score model with access to its self-attention features."""

    def features(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> list[Tensor]:
        """Outputs of the decoder's self-attention layers, each [N,width,h',w'], float32; differentiable in z_t."""
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
        source_features = teacher.features(teacher.schedule.add_noise(z_source, eps, t), t, source.text)
    with torch.enable_grad():
        z = z_target.detach().requires_grad_()
        target_features = teacher.features(teacher.schedule.add_noise(z, edit_eps, edit_t), edit_t, target.text)
        nce = sum(
            patch_nce(pooled(repeat_per_edit(before, z), pool), pooled(after, pool), edit_eps, patches, temperature).sum()
            for before, after in zip(source_features, target_features, strict=True)
            for pool in pools
        )
    (gradient,) = torch.autograd.grad(nce, z)  # type: ignore[arg-type]
    height, width = z.shape[-2:]
    return inject(z_target, dds.grad + contrast * height * width / 2000 * gradient)


def patch_nce(before: Tensor, after: Tensor, eps: Tensor, patches: int, temperature: float) -> Tensor:
    """PatchNCE of CUT (arXiv 2007.15651, section 3), [B]: the cross-entropy of telling the places of `after` apart by their
    features `before`, compared by their cosine.

    Args:
        before, after: [B,width,h',w'].
        eps: [B,C,h,w], the noise, which also decides which places are compared.
        patches: number of places, or all if there are fewer.
    """
    before, after = (F.normalize(x, dim=1).flatten(2).transpose(1, 2) for x in (before, after))  # [B, h'w', width]
    places = shuffled(eps, after.shape[1])[:, :patches, None].expand(-1, -1, after.shape[2])
    logits = before.gather(1, places) @ after.gather(1, places).transpose(1, 2) / temperature  # [B, patches, patches]
    labels = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)


def shuffled(eps: Tensor, count: int) -> Tensor:
    """A permutation of 0 .. count - 1 for each image, [B,count]: random, yet a function of the arguments."""
    # Low digits: the high ones would pick places by how noisy they are.
    return ((eps.flatten(1) * 61) % 1)[:, :count].argsort(dim=1)


def pooled(features: Tensor, side: int) -> Tensor:
    """Averages over squares, [B,width,h'//side,w'//side]; features smaller than that stay as they are."""
    return features if side == 1 or min(features.shape[-2:]) < side else F.avg_pool2d(features, side)
