"""The VAE: pixels to scaled latents and back, for images of any size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dds_train.diffusion.families import Family
from dds_train.diffusion.frozen import Frozen


class Autoencoder(Frozen):
    """A diffusers VAE. Latents are scaled to about unit variance, as the teacher expects them."""

    def __init__(
        self, vae: nn.Module, family: Family, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(vae, device, dtype)
        self.family = family
        self.factor = family.vae_factor(self.network.config)  # pixels per latent
        self.channels = family.vae_channels(self.network.config)

    @torch.no_grad()
    def encode(self, image: Tensor, multiple: int | None = None) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] to scaled latents [B,C,ceil(H/f),ceil(W/f)], float32; the posterior's mode.

        Sides that are no multiple of the VAE's factor f (or of `multiple`) are padded by repeating the last row or column.
        """
        (height, width), multiple = image.shape[-2:], multiple or self.factor
        padded = F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        with self.own_precision():
            return self.family.encode(self.network, padded.to(self.device, self.dtype)).float()

    @torch.no_grad()
    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Scaled latents [B,C,h,w] to pixels [B,3,H,W] in [-1,1], float32, cropped to `size` = (H, W)."""
        with self.own_precision():
            image = self.family.decode(self.network, z.to(self.device, self.dtype)).float().clamp(-1, 1)
        return image if size is None else image[..., : size[0], : size[1]]
