"""The noise schedule, and the interface of a score model."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dds_train.distillation.prompt import Prompt

VP_PREDICTIONS = ("epsilon", "v_prediction", "sample")
PREDICTION_TYPES = (*VP_PREDICTIONS, "flow")
# Of alphas_cumprod, as in diffusers' samplers: at zero terminal SNR a prediction of noise would say nothing of the image.
LEAST_SIGNAL = 2.0**-24


@dataclass(frozen=True)
class NoiseSchedule:
    """``z_t = alpha_t z + sigma_t eps`` at integer timesteps t.

    Variance-preserving noise has ``alpha_t**2 + sigma_t**2 = 1``, a rectified flow (arXiv 2209.03003)
    ``alpha_t + sigma_t = 1``.
    """

    alpha: Tensor  # [T], falling
    sigma: Tensor  # [T], rising

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> "NoiseSchedule":
        """From a diffusers scheduler's ``alphas_cumprod`` [T], the squares of alpha, of which none is taken as zero."""
        alphas_cumprod = alphas_cumprod.clamp(min=LEAST_SIGNAL)
        return cls(alpha=alphas_cumprod.sqrt(), sigma=(1 - alphas_cumprod).sqrt())

    @classmethod
    def flow(cls, steps: int = 1000, shift: float = 1.0) -> "NoiseSchedule":
        """A rectified flow whose timesteps are shifted towards noise (arXiv 2403.03206, equation 23)."""
        share = torch.arange(1, steps + 1, dtype=torch.float32) / steps
        sigma = shift * share / (1 + (shift - 1) * share)
        return cls(alpha=1 - sigma, sigma=sigma)

    @cached_property
    def is_flow(self) -> bool:
        """Whether z_t is of another variance than z, if that is 1."""
        return not torch.allclose(self.alpha**2 + self.sigma**2, torch.ones_like(self.alpha), atol=1e-3)

    def __len__(self) -> int:
        return len(self.alpha)

    def to(self, device: object) -> "NoiseSchedule":
        return NoiseSchedule(self.alpha.to(device), self.sigma.to(device))  # type: ignore[call-overload]

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t as [B,1,1,1], for integer timesteps t [B]."""
        shape = (-1, 1, 1, 1)
        return self.alpha[t].view(shape), self.sigma[t].view(shape)

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z [B,C,h,w], eps [B,C,h,w], integer t [B] -> z_t [B,C,h,w]."""
        alpha, sigma = self.at(t)
        return alpha * z + sigma * eps

    def eps_from(self, prediction: Tensor, z_t: Tensor, t: Tensor, prediction_type: str) -> Tensor:
        """The noise that a network's prediction implies.

        Args:
            prediction: [B,C,h,w], the network's output for `z_t`.
            prediction_type: "epsilon"; "v_prediction", v = alpha eps - sigma z (arXiv 2202.00512, appendix D);
                "sample", the clean latent; or "flow", v = eps - z of a rectified flow.

        Raises:
            ValueError: for any other prediction type.
        """
        alpha, sigma = self.at(t)
        if prediction_type == "epsilon":
            return prediction
        if prediction_type == "v_prediction":
            return alpha * prediction + sigma * z_t
        if prediction_type == "sample":
            return (z_t - alpha * prediction) / sigma
        if prediction_type == "flow":
            return z_t + alpha * prediction
        raise ValueError(f"prediction type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


class ScoreModel(Protocol):
    """The interface of a frozen text-to-image diffusion model to the losses."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """z_t [N,C,h,w], integer timesteps t [N], N prompts -> predicted noise [N,C,h,w], float32."""
        ...
