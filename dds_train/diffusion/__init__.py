"""Diffusion checkpoints and their parts, each loaded alone: denoiser, VAE, text encoder, sampler."""

from dds_train.diffusion.additions import Additions
from dds_train.diffusion.autoencoder import Autoencoder
from dds_train.diffusion.checkpoint import DiffusionCheckpoint
from dds_train.diffusion.frozen import Frozen
from dds_train.diffusion.prompt_file import PromptFile
from dds_train.diffusion.prompt_table import PromptTable
from dds_train.diffusion.sampling import sample_latents
from dds_train.diffusion.teacher import Teacher
from dds_train.diffusion.text_encoder import TextEncoder

__all__ = [
    "Additions",
    "Autoencoder",
    "DiffusionCheckpoint",
    "Frozen",
    "PromptFile",
    "PromptTable",
    "Teacher",
    "TextEncoder",
    "sample_latents",
]
