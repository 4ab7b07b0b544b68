"""A small UNet of its own as a translator."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dds_train.distillation.prompt import Prompt


class UNetTranslator(nn.Module):
    """A text-conditioned UNet that predicts the change of the latent.

    Its last layer starts at zero, so that before training the output *is* the input. `strength` scales the change: 0 gives
    exactly the input, 1 the full edit. Of a prompt it reads ``text`` alone, so that it works with any family of teachers.

    Args:
        latent_channels: C of the VAE.
        text_dim: D of the prompt embeddings.
        channels: width of each resolution, from fine to coarse; latents of any size are accepted.
        depth: residual blocks at each resolution.
        attention: for each resolution, whether it attends to the text.
        heads: attention heads.
        groups: of the group normalisation.

    Raises:
        ValueError: if `channels` and `attention` differ in length, or `heads` or `groups` does not divide every width.
    """

    def __init__(
        self,
        latent_channels: int,
        text_dim: int,
        channels: Sequence[int] = (64, 128),
        depth: int = 1,
        attention: Sequence[bool] = (True, False),
        heads: int = 4,
        groups: int = 16,
    ) -> None:
        super().__init__()
        if not 1 <= len(channels) == len(attention) <= 16 or not all(isinstance(one, bool) for one in attention):
            raise ValueError(f"translator: {len(channels)} widths need as many attention flags, got {attention!r}")
        if any(width % groups or width % heads for width in channels):
            raise ValueError(f"translator: groups={groups} and heads={heads} must divide each of the widths {list(channels)}")
        self.latent_channels, self.text_dim, self.stride = latent_channels, text_dim, 2 ** (len(channels) - 1)
        self.config: dict[str, Any] = {
            "kind": "unet",
            "latent_channels": latent_channels,
            "text_dim": text_dim,
            "channels": list(channels),
            "depth": depth,
            "attention": list(attention),
            "heads": heads,
            "groups": groups,
        }
        self.unet: Any = UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=tuple(channels),
            layers_per_block=depth,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            cross_attention_dim=text_dim,
            attention_head_dim=heads,  # diffusers' name for the number of heads
            norm_num_groups=groups,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, z: Tensor, prompt: Prompt, strength: Tensor) -> Tensor:
        """z [B,C,h,w] scaled latents, B prompts, strength [B] -> [B,C,h,w]."""
        t = torch.zeros(len(z), dtype=torch.long, device=z.device)
        change = self.unet(z, t, encoder_hidden_states=prompt["text"]).sample
        output: Tensor = z + strength.view(-1, 1, 1, 1) * change.to(z.dtype)
        return output

    def plain_unet(self) -> UNet2DConditionModel:
        """The change at full strength is ``unet(z, 0, text)``."""
        return self.unet

    def enable_gradient_checkpointing(self) -> None:
        self.unet.enable_gradient_checkpointing()
