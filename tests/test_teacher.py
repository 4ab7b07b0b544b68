"""The bundled teachers: complete, small, and they draw what they are told. (Their full figures: scripts/measure_teacher.py.)"""

import colorsys
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from dds_train.critters.dataset import CritterDataset
from dds_train.critters.render import BACKDROP_HSV
from dds_train.critters.world import BACKDROPS, SPECIES
from dds_train.diffusion import DiffusionCheckpoint, sample_latents
from dds_train.diffusion.checkpoint import BUNDLED
from dds_train.images.files import to_pil


@pytest.mark.parametrize(
    ("name", "pipeline", "denoiser"),
    [("bundled", "StableDiffusionPipeline", "unet"), ("bundled_flow", "StableDiffusion3Pipeline", "transformer")],
)
def test_folder_is_complete_small_and_half_precision(name: str, pipeline: str, denoiser: str) -> None:
    folder = BUNDLED[name]
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == pipeline
    for part in (denoiser, "vae", "text_encoder", "tokenizer", "scheduler"):
        assert (folder / part).is_dir()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 15e6
    for weights in folder.rglob("*.safetensors"):
        with safe_open(weights, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}, weights  # noqa: SIM118


def test_vae_round_trip_is_at_least_28_db() -> None:
    autoencoder = DiffusionCheckpoint("bundled").autoencoder()
    data = CritterDataset(32, first=50_000_000)
    images = torch.stack([data[i]["image"] for i in range(len(data))])
    error = ((autoencoder.decode(autoencoder.encode(images)) - images) / 2).square().flatten(1).mean(1)
    assert -10 * error.log10().mean() >= 28


def test_latents_have_unit_variance() -> None:
    autoencoder = DiffusionCheckpoint("bundled").autoencoder()
    data = CritterDataset(32, first=50_000_000)
    z = autoencoder.encode(torch.stack([data[i]["image"] for i in range(len(data))]))
    assert z.std() == pytest.approx(1, abs=0.1)


def backdrop_of(image: np.ndarray) -> str:
    """The backdrop whose colour is nearest to that of the lower corners, which no critter covers."""
    corners = image[-6:, [*range(5), *range(-5, 0)]].reshape(-1, 3).mean(0) / 255
    distance = {name: np.abs(np.array(colorsys.hsv_to_rgb(*hsv)) - corners).sum() for name, hsv in BACKDROP_HSV.items()}
    return min(distance, key=distance.__getitem__)


@pytest.mark.parametrize(
    ("name", "options"), [("bundled", {}), ("bundled_flow", {}), ("bundled_flow", {"max_sequence_length": 1})]
)
def test_diffusers_pipeline_follows_prompts(name: str, options: dict[str, int]) -> None:
    missing = {"text_encoder_3": None, "tokenizer_3": None} if name == "bundled_flow" else {}  # T5
    pipeline = DiffusionPipeline.from_pretrained(BUNDLED[name], **missing)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"a photo of a gray {s} on a {b} background" for s, b in zip(SPECIES, BACKDROPS, strict=True)]
    rng = torch.Generator().manual_seed(0)
    images = pipeline(prompts, guidance_scale=4.0, num_inference_steps=25, generator=rng, output_type="np", **options).images
    assert images.shape == (8, 64, 64, 3)
    read = [backdrop_of(image * 255) for image in images]
    assert sum(a == b for a, b in zip(read, BACKDROPS, strict=True)) >= 7, read


@pytest.mark.parametrize(("name", "max_tokens"), [("bundled", None), ("bundled_flow", 1)])
def test_own_sampler_follows_prompts_in_any_batch(name: str, max_tokens: int | None) -> None:
    checkpoint = DiffusionCheckpoint(name, max_tokens=max_tokens)
    teacher, autoencoder, text = checkpoint.teacher(), checkpoint.autoencoder(), checkpoint.text_encoder()
    condition = text.condition([f"a photo of a cat on a {b} background" for b in BACKDROPS])
    z = sample_latents(teacher, checkpoint.sampler(), condition, range(8))
    read = [backdrop_of(np.asarray(to_pil(image))) for image in autoencoder.decode(z)]
    assert sum(a == b for a, b in zip(read, BACKDROPS, strict=True)) >= 7, read
    alone = sample_latents(
        teacher, checkpoint.sampler(), text.condition(f"a photo of a cat on a {BACKDROPS[3]} background"), [3]
    )
    torch.testing.assert_close(alone[0], z[3], atol=1e-3, rtol=1e-3)
