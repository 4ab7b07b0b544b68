"""The VAE: padding and scaling."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dds_train.diffusion import DiffusionCheckpoint


@pytest.mark.parametrize("size", [(37, 511), (1, 1), (32, 32), (33, 31)])
def test_vae_pads_and_crops_back(tiny: Callable[[str], Path], size: tuple[int, int]) -> None:
    autoencoder = DiffusionCheckpoint(str(tiny("epsilon"))).autoencoder()
    image = torch.rand(2, 3, *size) * 2 - 1
    z = autoencoder.encode(image)
    assert z.shape == (2, 4, -(-size[0] // 4), -(-size[1] // 4))
    assert autoencoder.decode(z, size).shape == image.shape


def test_vae_scales_as_diffusers_does(tiny: Callable[[str], Path]) -> None:
    autoencoder = DiffusionCheckpoint(str(tiny("epsilon"))).autoencoder()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    vae = autoencoder.network
    with torch.no_grad():
        want = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
        torch.testing.assert_close(autoencoder.encode(image), want)
        back = vae.decode(want / vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(autoencoder.decode(want), back)
