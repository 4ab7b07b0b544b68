"""A translator initialised from the teacher's weights."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dds_train.diffusion.families import Family
from dds_train.distillation.prompt import Prompt

# Of a saved network's configuration: its provenance, which changes nothing about it.
PROVENANCE = ("_name_or_path", "_diffusers_version", "_use_default_values", "_class_name", "decay", "inv_gamma", "min_decay")


class TeacherInitTranslator(nn.Module):
    """A copy of the teacher's denoiser, all of it trained, with a last layer that starts at zero.

    The image enters as a latent without noise, at timestep 0. As large as the teacher, in full precision: for a large GPU.

    Args:
        denoiser: its configuration.
    """

    def __init__(self, denoiser: dict[str, Any], family: Family) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"kind": "teacher_init", "denoiser": denoiser}
        self.family = family
        self.denoiser: Any = family.network.from_config(denoiser)
        shape = family.shape(self.denoiser.config)
        self.latent_channels, self.text_dim, self.stride = shape.channels, shape.text_dim, shape.stride
        for parameter in self.denoiser.get_submodule(family.last_layer).parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def copy_of(cls, denoiser: Any, family: Family) -> Self:
        """Before training the output is the input, whatever the teacher predicts."""
        translator = cls({k: v for k, v in denoiser.config.items() if k not in PROVENANCE}, family)
        kept = {name: tensor for name, tensor in denoiser.state_dict().items() if not name.startswith(f"{family.last_layer}.")}
        translator.denoiser.load_state_dict(kept, strict=False)
        return translator

    def forward(self, z: Tensor, prompt: Prompt, strength: Tensor) -> Tensor:
        """z [B,C,h,w] scaled latents, B prompts, strength [B] -> [B,C,h,w]."""
        t = torch.zeros(len(z), dtype=torch.long, device=z.device)
        change = self.family.denoise(self.denoiser, z, t, prompt)
        return z + strength.view(-1, 1, 1, 1) * change.to(z.dtype)

    def plain_unet(self) -> Any:
        """The change at full strength is ``unet(z, 0, text)``."""
        return self.denoiser

    def enable_gradient_checkpointing(self) -> None:
        self.denoiser.enable_gradient_checkpointing()
