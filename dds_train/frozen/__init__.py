"""A Stable Diffusion checkpoint cut into parts, each loaded alone: UNet, codec (VAE), text encoder, sampler."""

from dds_train.frozen.base import Frozen
from dds_train.frozen.latents import Codec
from dds_train.frozen.pretrained import Pretrained
from dds_train.frozen.prompts import PromptTable
from dds_train.frozen.sampling import sample_latents
from dds_train.frozen.teacher import Teacher
from dds_train.frozen.text import TextEncoder

__all__ = ["Codec", "Frozen", "Pretrained", "PromptTable", "Teacher", "TextEncoder", "sample_latents"]
