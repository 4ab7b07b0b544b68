"""The teacher: a frozen UNet that predicts the noise in a latent, told what the picture shows."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dds_train.diffusion.frozen import Frozen
from dds_train.distillation.noise import PREDICTION_TYPES, NoiseSchedule
from dds_train.errors import UserError


class Teacher(Frozen):
    """A diffusers UNet as a `ScoreModel`. Whatever it was trained to predict, it answers with noise, in float32.

    Raises:
        UserError: if the UNet needs inputs other than (latent, step, prompt), as SDXL does, or predicts something else
            than noise, v or the clean latent.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        schedule: NoiseSchedule,
        prediction_type: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if unet.config.addition_embed_type is not None:
            raise UserError(
                f"teacher: a UNet with added '{unet.config.addition_embed_type}' conditions (SDXL) is not supported; "
                "take a Stable Diffusion 1.x or 2.x checkpoint"
            )
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(f"teacher: prediction type '{prediction_type}' is not one of {', '.join(PREDICTION_TYPES)}")
        super().__init__(unet, device, dtype)
        self.schedule = schedule.to(device)
        self.prediction_type = prediction_type

    def to(self, device: torch.device | str) -> "Teacher":
        super().to(device)
        self.schedule = self.schedule.to(device)
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents that the UNet was trained on."""
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.network.config.in_channels, height, width

    @property
    def text_dim(self) -> int:
        """D of the prompt embeddings that it reads."""
        return self.network.config.cross_attention_dim

    def predict_eps(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """z_t [N,C,h,w], integer t [N], text [N,L,D] -> predicted noise [N,C,h,w], float32; differentiable in z_t."""
        with self.own_precision():
            prediction = self.network(z_t.to(self.dtype), t, encoder_hidden_states=text.to(self.dtype)).sample
        # In float32 from here on: guidance and differences amplify the rounding of half precision.
        return self.schedule.eps_from(prediction.float(), z_t.float(), t, self.prediction_type)

    def features(self, z_t: Tensor, t: Tensor, text: Tensor) -> list[Tensor]:
        """What the self-attention layers of the decoder put out for z_t [N,C,h,w], integer t [N], text [N,L,D]: each
        [N,width,h',w'], float32; differentiable in z_t."""
        seen: list[Tensor] = []
        handles = []

        def watch(transformer: Any) -> None:
            def note_size(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                size[:] = inputs[0].shape[-2:]

            def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                seen.append(output.transpose(1, 2).unflatten(2, size).float())  # [N, h'w', width] before

            size = [0, 0]
            handles.append(transformer.register_forward_pre_hook(note_size))
            handles.extend(block.attn1.register_forward_hook(note) for block in transformer.transformer_blocks)

        for block in self.network.up_blocks:
            for transformer in getattr(block, "attentions", None) or []:
                watch(transformer)
        try:
            self.predict_eps(z_t, t, text)
        finally:  # gone before backward, where checkpointing runs the layers again
            for handle in handles:
                handle.remove()
        return seen

    def enable_gradient_checkpointing(self) -> None:
        """For the losses that differentiate the teacher: less memory, more time."""
        if not self.network.is_gradient_checkpointing:  # a translator on this UNet has its own way of doing it
            self.network.enable_gradient_checkpointing()
