"""A translator that starts as a copy of the teacher's UNet."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import Self

# Of a saved UNet's configuration: where it came from, which changes nothing about it.
PROVENANCE = ("_name_or_path", "_diffusers_version", "_use_default_values", "_class_name", "decay", "inv_gamma", "min_decay")


class TeacherInitTranslator(nn.Module):
    """All the teacher's weights to begin with, all trained, but for a last layer that starts at zero.

    The image enters as a latent without noise, at step 0. As large as the teacher, in full precision: for a large GPU.

    Args:
        unet: configuration of a diffusers UNet2DConditionModel.
    """

    def __init__(self, unet: dict[str, Any]) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"kind": "teacher_init", "unet": unet}
        self.unet: Any = UNet2DConditionModel.from_config(unet)
        self.latent_channels, self.text_dim = self.unet.config.in_channels, self.unet.config.cross_attention_dim
        self.stride = 2 ** (len(self.unet.config.block_out_channels) - 1)
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    @classmethod
    def copy_of(cls, unet: UNet2DConditionModel) -> Self:
        """Before training the output is the input, whatever the teacher says."""
        config = {k: v for k, v in unet.config.items() if k not in PROVENANCE}
        translator = cls(config)
        kept = {name: tensor for name, tensor in unet.state_dict().items() if not name.startswith("conv_out.")}
        translator.unet.load_state_dict(kept, strict=False)
        return translator

    def forward(self, z: Tensor, text: Tensor, strength: Tensor) -> Tensor:
        """z [B,C,h,w] scaled latents, text [B,L,D], strength [B] -> [B,C,h,w]."""
        step = torch.zeros(len(z), dtype=torch.long, device=z.device)
        change = self.unet(z, step, encoder_hidden_states=text).sample
        return z + strength.view(-1, 1, 1, 1) * change.to(z.dtype)

    def plain_unet(self) -> UNet2DConditionModel:
        """The change at full strength is ``unet(z, 0, text)``."""
        return self.unet

    def enable_gradient_checkpointing(self) -> None:
        self.unet.enable_gradient_checkpointing()
