"""The supported model families, by the pipeline class that a checkpoint's model_index.json names.

A new family is a file here, its line in `FAMILIES`, and a YAML in conf/teacher.
"""

from importlib import import_module

from dds_train.diffusion.families.base import DenoiserShape, Family

# Modules of this package; imported on use, since diffusers takes a second for some of their pipelines.
FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "Flux2KleinPipeline": "flux2_klein",
    "SanaPipeline": "sana",
    "PixArtSigmaPipeline": "pixart_sigma",
    "ZImagePipeline": "z_image",
    "QwenImagePipeline": "qwen_image",
}

__all__ = ["FAMILIES", "DenoiserShape", "Family", "find_family"]


def find_family(pipeline: str) -> Family:
    """The family of a pipeline class.

    Raises:
        ValueError: if it is not supported.
    """
    if pipeline not in FAMILIES:
        raise ValueError(f"checkpoints of {pipeline} are not supported; supported: {', '.join(FAMILIES)}")
    try:
        family: Family = import_module(f"{__name__}.{FAMILIES[pipeline]}").FAMILY
    except ImportError as error:
        raise ValueError(f"{pipeline} needs a newer diffusers: pip install --upgrade diffusers ({error})") from error
    return family
