"""A copy of the teacher that learns, by adapters on its attention."""

from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation.noise import NoiseSchedule
from dds_train.translator.lora import ATTENTION


class LoRAStudent:
    """A `TrainableScore` on a UNet of its own, at first the teacher's: adapters (arXiv 2106.09685) are all that is fitted.

    Args:
        rank: of the adapters.
        seed: of their start.
    """

    def __init__(self, parts: DiffusionCheckpoint, rank: int = 4, seed: int = 0) -> None:
        teacher = parts.teacher()
        self.schedule: NoiseSchedule = teacher.schedule
        self.prediction_type, self.dtype = teacher.prediction_type, teacher.dtype
        self.unet: Any = parts.load_unet()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ATTENTION)), self.unet)
        self.adapters = [p for name, p in self.unet.named_parameters() if ".lora_" in name]
        for parameter in self.adapters:
            parameter.data = parameter.data.float()
            parameter.requires_grad_()
        self.start = [p.detach().clone() for p in self.adapters]

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.adapters)

    @torch.no_grad()
    def reset(self) -> None:
        for parameter, start in zip(self.adapters, self.start, strict=True):
            parameter.copy_(start)

    def predict_eps(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """z_t [N,C,h,w], integer t [N], text [N,L,D] -> predicted noise [N,C,h,w], float32."""
        with torch.autocast(z_t.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            prediction = self.unet(z_t.to(self.dtype), t, encoder_hidden_states=text.to(self.dtype)).sample
        return self.schedule.eps_from(prediction.float(), z_t.float(), t, self.prediction_type)
