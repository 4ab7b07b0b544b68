"""The codec: pixels to scaled latents and back, for images of any size."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from dds_train.diffusion.frozen import Frozen


class Autoencoder(Frozen):
    """A diffusers AutoencoderKL. Latents are scaled to about unit variance, as the teacher expects them."""

    def __init__(self, vae: AutoencoderKL, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(vae, device, dtype)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels per latent
        self.channels: int = vae.config.latent_channels
        self.scale: float = vae.config.scaling_factor
        self.shift: float = vae.config.shift_factor or 0.0

    @torch.no_grad()
    def encode(self, image: Tensor, multiple: int | None = None) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] to scaled latents [B,C,ceil(H/f),ceil(W/f)], float32; the posterior's mode.

        Sides that are no multiple of the codec's factor f (or of `multiple`, if given) are padded by repeating the last row or
        column.
        """
        (height, width), multiple = image.shape[-2:], multiple or self.factor
        padded = F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        with self.own_precision():
            z = self.network.encode(padded.to(self.device, self.dtype)).latent_dist.mode()
        return (z.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Scaled latents [B,C,h,w] to pixels [B,3,H,W] in [-1,1], float32, cropped to `size` = (H, W) if given."""
        z = z.float() / self.scale + self.shift
        with self.own_precision():
            image = self.network.decode(z.to(self.device, self.dtype)).sample.float().clamp(-1, 1)
        return image if size is None else image[..., : size[0], : size[1]]
