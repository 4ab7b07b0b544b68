"""A teacher with a closed-form score: for each prompt the data are N(mean, spread^2), elementwise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dds_train.distillation import Condition, NoiseSchedule, Prompt


def schedule() -> NoiseSchedule:
    """Stable Diffusion's."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return NoiseSchedule.from_alphas_cumprod((1 - betas).cumprod(0))


def as_flow(noise: NoiseSchedule) -> NoiseSchedule:
    """The same noise on the straight path ``z_t / (alpha + sigma)``."""
    total = noise.alpha + noise.sigma
    return NoiseSchedule(noise.alpha / total, noise.sigma / total)


def prompt(mean: float, spread: float, batch: int = 1) -> Prompt:
    """An "embedding" [B,1,2] of the Gaussian's parameters."""
    return Prompt({"text": torch.tensor([[mean, spread]], dtype=torch.float64).expand(batch, 1, 2)})


def condition(mean: float, batch: int = 1) -> Condition:
    """Guidance pushes away from a wider Gaussian around -0.7, negative prompts from one around 2.5."""
    return Condition(prompt(mean, SPREAD, batch), prompt(-0.7, NULL_SPREAD, batch), prompt(2.5, 0.9, batch))


SPREAD, NULL_SPREAD = 0.5, 1.3


@dataclass(frozen=True)
class GaussianTeacher:
    schedule: NoiseSchedule

    def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """z_t ~ N(alpha m, alpha^2 s^2 + sigma^2), and eps = -sigma * score."""
        alpha, sigma = self.schedule.at(t)
        mean, spread = (prompt["text"][:, 0, i].view(-1, 1, 1, 1) for i in (0, 1))
        return sigma * (z_t - alpha * mean) / (alpha**2 * spread**2 + sigma**2)
