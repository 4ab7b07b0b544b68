"""SDEdit against diffusers' own pipeline; DDIM inversion against the closed form of a Gaussian world."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from gaussian import SPREAD, GaussianTeacher, condition, schedule

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.methods.baselines import ddim_swap_latent, sdedit_latent


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_sdedit_is_what_diffusers_does(tiny: Callable[[str], Path], kind: str, strength: float) -> None:
    parts = DiffusionCheckpoint(str(tiny(kind)))
    plain = StableDiffusionPipeline.from_pretrained(tiny(kind), safety_checker=None, feature_extractor=None)
    pipeline = StableDiffusionImg2ImgPipeline(**plain.components)
    pipeline.scheduler = DDIMScheduler.from_config(plain.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = {"strength": strength, "num_inference_steps": 10, "guidance_scale": 3.0}
    # Four channels: the pipeline takes them for latents.
    expected = pipeline("a dog", image=z, generator=torch.Generator().manual_seed(1), output_type="latent", **settings).images
    eps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    target = parts.text_encoder().condition("a dog")
    got = sdedit_latent(parts.teacher(), parts.ddim(), z, target, eps, strength=strength, steps=10, guidance=3.0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def zero_snr(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A v-prediction teacher whose last timestep is pure noise (arXiv 2305.08891)."""
    folder = tmp_path / "zero_snr"
    shutil.copytree(tiny("v_prediction"), folder)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def test_sampling_from_pure_noise_is_what_diffusers_does(zero_snr: Path) -> None:
    parts = DiffusionCheckpoint(str(zero_snr))
    oracle = DDIMScheduler.from_pretrained(zero_snr / "scheduler", clip_sample=False)
    assert oracle.alphas_cumprod[-1] == 0
    teacher, z = parts.teacher(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompt = parts.text_encoder().condition("a dog").expand(2)
    got = sdedit_latent(teacher, parts.ddim(), z, prompt, z, strength=1.0, steps=10, guidance=1.0)
    expected = z
    oracle.set_timesteps(10)
    for t in oracle.timesteps:
        with torch.no_grad():
            velocity = teacher.network(expected, t, encoder_hidden_states=prompt.text["text"]).sample
        expected = oracle.step(velocity, t, expected).prev_sample
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01)
    edited = ddim_swap_latent(teacher, parts.ddim_inverse(), parts.ddim(), z, prompt, prompt, steps=200, guidance=1.0)
    torch.testing.assert_close(edited, z, rtol=0, atol=0.2)  # the same prompt leads back


def test_sdedit_without_strength_changes_nothing(tiny: Callable[[str], Path]) -> None:
    parts = DiffusionCheckpoint(str(tiny("epsilon")))
    z = torch.randn(2, 4, 8, 8)
    assert torch.equal(sdedit_latent(parts.teacher(), parts.ddim(), z, parts.text_encoder().condition("a"), z, strength=0.0), z)


def test_ddim_inversion_and_target_prompt_shift_a_gaussian() -> None:
    """Along the flow from N(m, s^2) to noise, (z_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) stays as it is."""
    noise = schedule()
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler, inverse = (
        DDIMScheduler(**settings, set_alpha_to_one=False),
        DDIMInverseScheduler(**settings, set_alpha_to_one=False),
    )
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = ddim_swap_latent(
        GaussianTeacher(noise), inverse, scheduler, z, condition(0.2), condition(1.5), steps=500, guidance=1.0
    )
    alpha, sigma = noise.alpha[-1], noise.sigma[-1]
    spread = (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    expected = 1.5 + SPREAD * ((z - 0.2) / SPREAD + alpha * (0.2 - 1.5) / spread)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02)
