"""Baselines without score distillation: SDEdit, and inversion with a change of prompt."""

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dds_train.diffusion.sampling import denoise, set_steps
from dds_train.distillation.guidance import Condition
from dds_train.distillation.noise import ScoreModel


@torch.no_grad()
def sdedit_latent(
    teacher: ScoreModel,
    scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler,
    z_source: Tensor,
    target: Condition,
    eps: Tensor,
    *,
    strength: float = 0.6,
    steps: int = 50,
    guidance: float = 7.5,
) -> Tensor:
    """SDEdit, arXiv 2108.01073: noise the input partly, then denoise it with the target prompt. The timesteps are those of
    diffusers' StableDiffusionImg2ImgPipeline.

    Args:
        scheduler: made for noise prediction, or for a flow.
        z_source: [B,C,h,w]; eps: [B,C,h,w], the noise; target: B prompts, or one.
        strength: share of the noise schedule, 0 (no noise) to 1 (pure noise).
        steps: of the whole schedule, of which ``steps * strength`` are taken.

    Returns:
        scaled latents [B,C,h,w]
    """
    set_steps(scheduler, steps)
    timesteps = scheduler.timesteps[steps - min(int(steps * strength), steps) :]
    if not len(timesteps):
        return z_source
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        z = scheduler.scale_noise(z_source, timesteps[:1], eps)
    else:
        z = scheduler.add_noise(z_source, eps, timesteps[:1].to(z_source.device))
    return denoise(teacher, scheduler, z, timesteps, target, guidance)


@torch.no_grad()
def ddim_swap_latent(
    teacher: ScoreModel,
    inverse: DDIMInverseScheduler | FlowMatchEulerDiscreteScheduler,
    scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler,
    z_source: Tensor,
    source: Condition,
    target: Condition,
    *,
    steps: int = 50,
    guidance: float = 7.5,
) -> Tensor:
    """DDIM inversion (arXiv 2010.02502, section 4.3) with the source prompt and no guidance, then DDIM with the target prompt
    (of a flow, Euler's method both ways).

    Args:
        inverse, scheduler: made for noise prediction, or for a flow.
        z_source: [B,C,h,w]; source, target: B prompts each, or one.
        guidance: of the second pass.

    Returns:
        scaled latents [B,C,h,w]
    """
    set_steps(scheduler, steps)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # the same times, upwards; it takes them from 1
        inverse.set_timesteps(sigmas=(1 - scheduler.sigmas.flip(0)[:-1]).tolist())
    else:
        inverse.set_timesteps(steps)
    z = denoise(teacher, inverse, z_source, inverse.timesteps, source, guidance=1.0)
    return denoise(teacher, scheduler, z, scheduler.timesteps, target, guidance)
