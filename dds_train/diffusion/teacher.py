"""The teacher: a frozen denoising network as a score model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dds_train.diffusion.families import DenoiserShape, Family
from dds_train.diffusion.frozen import Frozen
from dds_train.distillation.noise import PREDICTION_TYPES, NoiseSchedule
from dds_train.distillation.prompt import Prompt
from dds_train.errors import UserError


class Teacher(Frozen):
    """A denoising network as a `ScoreModel`: whatever its prediction type, it returns noise, in float32.

    Raises:
        UserError: if it predicts something else than noise, v or the clean latent.
    """

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        schedule: NoiseSchedule,
        prediction_type: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(f"teacher: prediction type '{prediction_type}' is not one of {', '.join(PREDICTION_TYPES)}")
        super().__init__(network, device, dtype, offload)
        self.family, self.prediction_type = family, prediction_type
        self.schedule = schedule.to(device)

    def to(self, device: torch.device | str) -> "Teacher":
        super().to(device)
        self.schedule = self.schedule.to(device)
        return self

    @property
    def shape(self) -> DenoiserShape:
        return self.family.shape(self.network.config)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents that it was trained on."""
        return self.shape.channels, *self.shape.size

    def timestep_range(self, bounds: Sequence[int], key: str = "t_range") -> tuple[int, int]:
        """(first, last excluded). Raises UserError, naming the configuration's `key`, if it is not within the schedule."""
        first, last = bounds
        if not 0 <= first < last <= len(self.schedule):
            raise UserError(f"{key}={list(bounds)}: give [FIRST,LAST] within [0,{len(self.schedule)}], the teacher's timesteps")
        return first, last

    def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """z_t [N,C,h,w], integer t [N], N prompts -> predicted noise [N,C,h,w], float32; differentiable in z_t."""
        return self.schedule.eps_from(self.predict(z_t, self.time(t), prompt), z_t.float(), t, self.prediction_type)

    def predict(self, z_t: Tensor, time: Tensor, prompt: Prompt) -> Tensor:
        """The network's own prediction [N,C,h,w]: z_t [N,C,h,w], time [N] (integer timesteps; sigma for a flow), N prompts.

        In float32: guidance and differences amplify the rounding of half precision.
        """
        with self.own_precision():
            return self.family.denoise(self.network, z_t.to(self.dtype), time, prompt.to(dtype=self.dtype)).float()

    def time(self, t: Tensor) -> Tensor:
        """Integer timesteps [N] as its network counts them, [N]."""
        return self.schedule.sigma[t] if self.is_flow else t

    @property
    def is_flow(self) -> bool:
        return self.prediction_type == "flow"

    def features(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> list[Tensor]:
        """Outputs of the family's self-attention layers for z_t [N,C,h,w], integer t [N], N prompts: each
        [N,width,h',w'], float32; differentiable in z_t.

        Raises:
            UserError: if the family does not say which layers these are.
        """
        if self.family.self_attention is None:
            raise UserError(f"loss cds: self-attention features of {self.family.name} are not available; take loss=dds")
        features: list[Tensor] = []
        handles = []

        def watch(group: nn.Module | None, layers: Any) -> None:
            def note_size(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                size[:] = inputs[0].shape[-2:]

            def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
                tokens = output[0] if isinstance(output, tuple) else output  # [N, h'w', width]
                features.append(tokens.transpose(1, 2).unflatten(2, size).float())

            size = [side // self.shape.stride for side in z_t.shape[-2:]]
            if group is not None:
                handles.append(group.register_forward_pre_hook(note_size))
            handles.extend(layer.register_forward_hook(note) for layer in layers)

        for group, layers in self.family.self_attention(self.network):
            watch(group, layers)
        try:
            self.predict_eps(z_t, t, prompt)
        finally:  # gone before backward, where checkpointing runs the layers again
            for handle in handles:
                handle.remove()
        return features

    def enable_gradient_checkpointing(self) -> None:
        """For the losses that differentiate the teacher: less memory, more time."""
        if not self.network.is_gradient_checkpointing:  # a LoRA translator on this network has checkpointing of its own
            self.network.enable_gradient_checkpointing()
