"""The supported model families, by the pipeline class that a checkpoint's model_index.json names.

A new family is a file here, its line in `FAMILIES`, and a YAML in conf/teacher.
"""

from dds_train.diffusion.families.base import DenoiserShape, Family
from dds_train.diffusion.families.stable_diffusion import STABLE_DIFFUSION

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
}

__all__ = ["FAMILIES", "DenoiserShape", "Family"]
