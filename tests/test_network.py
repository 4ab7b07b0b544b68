"""With the real weights, from a hub. Run with: pytest -m network (downloads several GB)"""

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dds_train import hub
from dds_train.cli.conf import CONF
from dds_train.critters.render import render
from dds_train.critters.world import critter
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.evaluation.metrics.clip import Clip
from dds_train.evaluation.metrics.lpips import Lpips
from dds_train.evaluation.metrics.structure import Structure
from dds_train.images.files import from_pil
from dds_train.methods.optimize import optimize_latent

pytestmark = [pytest.mark.network, pytest.mark.skipif(not hub.reachable(), reason="needs a model hub")]


@pytest.fixture
def cat() -> torch.Tensor:
    return from_pil(Image.fromarray(render(critter(5, species="cat"), 256)))[None]


@pytest.mark.parametrize("teacher", ["sd15", "sd21_base", "sd21"])
def test_stable_diffusion_edits(teacher: str, cat: torch.Tensor) -> None:
    path = OmegaConf.load(CONF / "teacher" / f"{teacher}.yaml").path
    parts = DiffusionCheckpoint(path)
    z = parts.autoencoder().encode(cat)
    assert (parts.autoencoder().decode(z, (256, 256)) - cat).abs().mean() < 0.1
    source, target = (parts.text_encoder().condition(f"a photo of a {one}") for one in ("cat", "dog"))
    *_, last = optimize_latent(parts.teacher(), z, source, target, steps=3)
    assert torch.isfinite(last.z).all()
    assert 0 < (last.z - z).abs().mean() < 1
    *_, rest = optimize_latent(parts.teacher(), z, source, source, steps=3)
    torch.testing.assert_close(rest.z, z, rtol=0, atol=1e-4)  # a matched pair has no gradient


def test_the_networks_of_the_scores(cat: torch.Tensor) -> None:
    noise = torch.rand(cat.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for distance in (Lpips("squeeze"), Lpips("alex"), Structure()):
        assert distance(cat, cat).item() == pytest.approx(0, abs=1e-6)
        assert distance(cat, noise).item() > distance(cat, (cat + 0.05 * noise).clamp(-1, 1)).item() > 0
    clip = Clip("openai/clip-vit-large-patch14")
    fits, fits_not = clip.similarity(cat.expand(2, -1, -1, -1), ["a drawing of a cat", "a photo of a car"])
    assert fits > fits_not
