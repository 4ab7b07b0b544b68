"""Step-distilled models are known by their names and samplers."""

import pytest

from dds_train.diffusion.families import FAMILIES
from dds_train.diffusion.step_distilled import BASE, check_steps

EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
SDXL = "StableDiffusionXLPipeline"


@pytest.mark.parametrize(
    ("pipeline", "name", "base"),
    [
        (SDXL, "sdxl-turbo", "stabilityai/stable-diffusion-xl-base-1.0"),
        (SDXL, "Juggernaut_XL_Lightning", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("StableDiffusion3Pipeline", "stable-diffusion-3.5-large-turbo", "stabilityai/stable-diffusion-3.5-large"),
        ("ZImagePipeline", "models--Tongyi-MAI--Z-Image-Turbo", "Tongyi-MAI/Z-Image"),
        ("StableDiffusionPipeline", "LCM_Dreamshaper_v7", "stable-diffusion-v1-5"),
        ("PixArtSigmaPipeline", "PixArt-Sigma-DMD2", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
    ],
)
def test_by_name(pipeline: str, name: str, base: str) -> None:
    with pytest.raises(ValueError, match=f"it is step-distilled .*; take {base}"):
        check_steps(pipeline, EULER, [name])


def test_by_sampler() -> None:
    for scheduler in (
        {"_class_name": "LCMScheduler"},
        {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", "prediction_type": "epsilon"},
    ):
        with pytest.raises(ValueError, match="it is step-distilled"):
            check_steps(SDXL, scheduler, ["a copy"])


def test_others_are_taken() -> None:
    for name in ("stable-diffusion-xl-base-1.0", "hyperrealism-xl", "turbocharged", "lightnings", "schnellzug", "teacher"):
        check_steps(SDXL, EULER, [name])
    check_steps(SDXL, {**EULER, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, ["a copy"])
    check_steps(SDXL, {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing"}, ["a copy"])


def test_every_family_has_a_base_model() -> None:
    assert set(BASE) == set(FAMILIES)
