"""The student of Variational Score Distillation: a copy of the teacher with trainable adapters."""

from collections.abc import Iterator

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation.noise import NoiseSchedule
from dds_train.distillation.prompt import Prompt


class LoRAStudent:
    """A `TrainableScore` on a denoiser of its own, at first the teacher's: adapters (arXiv 2106.09685) are all that is fitted.

    Args:
        rank: of the adapters.
        seed: of their initial values.
    """

    def __init__(self, checkpoint: DiffusionCheckpoint, rank: int = 4, seed: int = 0) -> None:
        self.teacher, self.network = checkpoint.teacher(), checkpoint.load_denoiser()
        targets = list(checkpoint.family.lora_targets)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), self.network)
        self.adapters = [p for name, p in self.network.named_parameters() if ".lora_" in name]
        for parameter in self.adapters:
            parameter.data = parameter.data.float()
            parameter.requires_grad_()
        self.start = [p.detach().clone() for p in self.adapters]

    @property
    def schedule(self) -> NoiseSchedule:
        return self.teacher.schedule

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.adapters)

    @torch.no_grad()
    def reset(self) -> None:
        for parameter, start in zip(self.adapters, self.start, strict=True):
            parameter.copy_(start)

    def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """z_t [N,C,h,w], integer t [N], N prompts -> predicted noise [N,C,h,w], float32."""
        family, dtype = self.teacher.family, self.teacher.dtype
        # In mixed precision: adapters are float32 on weights of the teacher's type.
        with torch.autocast(z_t.device.type, dtype=dtype, enabled=dtype != torch.float32):
            prediction = family.denoise(self.network, z_t.to(dtype), self.teacher.time(t), prompt.to(dtype=dtype))
        return self.schedule.eps_from(prediction.float(), z_t.float(), t, self.teacher.prediction_type)
