"""What people did before score distillation, on the same teacher: SDEdit, and DDIM inversion with another prompt."""

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from dds_train.diffusion.sampling import denoise
from dds_train.distillation.guidance import Condition
from dds_train.distillation.noise import ScoreModel


@torch.no_grad()
def sdedit_latent(
    teacher: ScoreModel,
    scheduler: DDIMScheduler,
    z_source: Tensor,
    target: Condition,
    eps: Tensor,
    *,
    strength: float = 0.6,
    steps: int = 50,
    guidance: float = 7.5,
) -> Tensor:
    """SDEdit, arXiv 2108.01073: noise the input up to a point, then denoise it under the target prompt. The steps are those of
    diffusers' StableDiffusionImg2ImgPipeline.

    Args:
        scheduler: made for noise prediction.
        z_source: [B,C,h,w]; eps: [B,C,h,w], the noise; target: B prompts, or one.
        strength: how much of the way is noise, 0 (none) to 1 (all).
        steps: of the whole way, of which ``steps * strength`` are taken.

    Returns:
        scaled latents [B,C,h,w]
    """
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[steps - min(int(steps * strength), steps) :]
    if not len(timesteps):
        return z_source
    z = scheduler.add_noise(z_source, eps, timesteps[:1].to(z_source.device))
    return denoise(teacher, scheduler, z, timesteps, target, guidance)


@torch.no_grad()
def ddim_swap_latent(
    teacher: ScoreModel,
    inverse: DDIMInverseScheduler,
    scheduler: DDIMScheduler,
    z_source: Tensor,
    source: Condition,
    target: Condition,
    *,
    steps: int = 50,
    guidance: float = 7.5,
) -> Tensor:
    """DDIM inversion (arXiv 2010.02502, section 4.3) under the source prompt without guidance, then DDIM under the target one.

    Args:
        inverse, scheduler: made for noise prediction.
        z_source: [B,C,h,w]; source, target: B prompts each, or one.
        guidance: of the way back.

    Returns:
        scaled latents [B,C,h,w]
    """
    inverse.set_timesteps(steps)
    scheduler.set_timesteps(steps)
    z = denoise(teacher, inverse, z_source, inverse.timesteps, source, guidance=1.0)
    return denoise(teacher, scheduler, z, scheduler.timesteps, target, guidance)
