"""Sampling latents with the teacher and a diffusers scheduler."""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from dds_train.diffusion.teacher import Teacher
from dds_train.distillation.guidance import Condition, guided, guided_eps
from dds_train.distillation.noise import ScoreModel
from dds_train.distillation.rng import seeded_rng


@torch.no_grad()
def sample_latents(
    teacher: Teacher,
    scheduler: SchedulerMixin,
    condition: Condition,
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 4.0,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Sample one latent for each seed.

    The starting noise of an image depends on its seed alone, so the batch it is sampled in does not change it.

    Args:
        scheduler: a diffusers scheduler made for noise prediction.
        condition: prompts of the B images.
        seeds: B of them.
        size: (h, w) of the latents; the teacher's own by default.

    Returns:
        scaled latents [B,C,h,w]
    """
    channels, *own = teacher.latent_shape
    shape = (channels, *(size or own))
    z = torch.stack([torch.randn(shape, generator=seeded_rng("sample", seed)) for seed in seeds]).to(teacher.device)
    set_steps(scheduler, steps)
    if not teacher.is_flow:
        z = z * scheduler.init_noise_sigma
    return denoise(teacher, scheduler, z, scheduler.timesteps, condition, guidance)


def set_steps(scheduler: SchedulerMixin, steps: int) -> None:
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # evenly before the shift: by itself it would shift twice
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)


@torch.no_grad()
def denoise(
    teacher: ScoreModel, scheduler: SchedulerMixin, z: Tensor, timesteps: Tensor, condition: Condition, guidance: float
) -> Tensor:
    """Integrate z [B,C,h,w] over the scheduler's `timesteps`; `condition` has B prompts, or one."""
    condition = condition.expand(len(z))
    for t in timesteps:
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            time = (t / scheduler.config.num_train_timesteps).to(z.device).expand(len(z))
            # Not noise, of which the velocity cannot be told at sigma = 1.
            prediction = guided(teacher.predict, z, time, condition, guidance)  # type: ignore[attr-defined]
        else:
            z_t = scheduler.scale_model_input(z, t)
            prediction = guided_eps(teacher, z_t, t.to(z.device).long().expand(len(z)), condition, guidance)
        z = scheduler.step(prediction, t, z).prev_sample
    return z
