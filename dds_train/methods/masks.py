"""Edit masks: from files or from the teacher, on latents and on pixels."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from dds_train.distillation.guidance import Condition
from dds_train.distillation.noise import ScoreModel
from dds_train.distillation.prompt import Prompt
from dds_train.distillation.rng import draw


@torch.no_grad()
def automatic_mask(
    teacher: ScoreModel,
    z_source: Tensor,
    source: Condition,
    target: Condition,
    *,
    timestep: int = 500,
    maps: int = 10,
    threshold: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """DiffEdit's mask (arXiv 2210.11427, section 3.2, step 1), [B,1,h,w]: 1 where the teacher's predictions under the two
    prompts differ.

    Args:
        z_source: [B,C,h,w] latents of the inputs.
        source, target: B prompts each, or one for all.
        timestep: t at which the input is noised; the authors take half of the schedule.
        maps: number of differences averaged, each at a noise of its own; the authors take 10.
        threshold: of the averaged difference, scaled to [0, 1] after clipping at three times its mean; the authors take 0.5.
        seed: of the noise, which is the same for all images.
    """
    source, target = source.expand(len(z_source)), target.expand(len(z_source))
    t = torch.full((len(z_source),), timestep, device=z_source.device)
    differences = []
    for number in range(maps):
        _, eps = draw(z_source.shape[1:], (timestep, timestep + 1), z_source.device, [(seed, "mask", number)])
        z_t = teacher.schedule.add_noise(z_source, eps.expand_as(z_source), t)
        prompts = Prompt.cat([source.text, target.text])
        eps_source, eps_target = teacher.predict_eps(torch.cat([z_t, z_t]), torch.cat([t, t]), prompts).chunk(2)
        differences.append((eps_target - eps_source).abs().mean(dim=1, keepdim=True))
    difference = torch.stack(differences).mean(dim=0)
    limit = 3 * difference.mean(dim=(2, 3), keepdim=True)
    return (difference > threshold * limit).to(z_source.dtype)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """Pixels [B,1,H,W] to latents [B,1,ceil(H/f),ceil(W/f)]: the maximum over the pixels of each latent."""
    height, width = mask.shape[-2:]
    return F.max_pool2d(F.pad(mask, (0, -width % factor, 0, -height % factor)), factor)


def pixel_mask(mask: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Latents [B,1,h,w] to pixels [B,1,H,W]: each pixel as its latent; `size` is (H, W)."""
    return mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3)[..., : size[0], : size[1]]


def feathered(mask: Tensor, radius: float) -> Tensor:
    """[B,1,H,W] with a soft edge about `radius` pixels wide that lies *within* the mask: what is 0 stays exactly 0."""
    if radius <= 0:
        return mask
    # Blurred, a straight edge is 1/2 where it was: from there on inwards it rises to 1.
    reach, (height, width) = math.ceil(2 * radius), mask.shape[-2:]
    padded = F.pad(mask, (reach,) * 4, mode="replicate")
    soft = gaussian_blur(padded, [2 * reach + 1] * 2, [radius / 2] * 2)[..., reach : reach + height, reach : reach + width]
    output: Tensor = mask * (2 * soft - 1).clamp(0, 1)
    return output


def on_background(image: Tensor, mask: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """``image + mask * (after - before)``, [B,3,H,W]: the VAE's own errors cancel, and pixels where the mask is 0 keep their
    bits, at the image's own resolution.

    Args:
        image: [B,3,H,W] in [-1,1], the input.
        mask: [B,1,H,W] in [0,1].
        before, after: [B,3,H',W'], input and edit as decoded by the VAE; scaled to the size of `image`.
    """
    change = after - before
    if change.shape[-2:] != image.shape[-2:]:
        change = F.interpolate(change, image.shape[-2:], mode="bicubic", antialias=True)
    return (image + mask * change).clamp(-1, 1)
