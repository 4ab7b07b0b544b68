"""Previews and validation of a training run: the callbacks that need a VAE, or do without."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from dds_train.data.shards import ShardSource
from dds_train.data.source import Source
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.training.callbacks import SampleGrid
from dds_train.training.data import SourceData
from dds_train.training.validation import CritterValidation
from dds_train.translator import Task


def make_previews(
    folder: Path,
    source: Source,
    data: SourceData,
    checkpoint: DiffusionCheckpoint,
    tasks: Mapping[str, Task],
    preview: str,
    every: int,
    critters: int,
    attributes: Mapping[str, Any],
) -> list[pl.Callback]:
    """The callbacks of previews and of validation on critters; the VAE is released if none needs it.

    Args:
        preview: "vae", "linear" (approximately, from the latents of `synthesize`), or "auto": linear where the VAE is not
            needed otherwise.
        every: training steps between previews.
        critters: number of them in the validation, 0 for none.
        attributes: that all of them have in common.
    """
    linear = source.preview if isinstance(source, ShardSource) else None
    if preview == "linear" and linear is None:
        raise UserError("preview=linear: needs shards with latents that synthesize made; take preview=vae")
    approximate = linear is not None and (preview == "linear" or (preview == "auto" and not critters))
    if approximate and not critters and "image" not in data.held_out:
        checkpoint.release("autoencoder")
    decode: Callable[[Tensor], Tensor] = linear if linear and approximate else checkpoint.autoencoder().decode
    callbacks: list[pl.Callback] = [SampleGrid(every, folder, decode)]
    if critters:
        callbacks.append(CritterValidation(tasks, checkpoint.autoencoder(), critters, attributes))
    return callbacks
