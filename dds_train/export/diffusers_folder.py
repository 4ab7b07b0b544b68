"""A folder that plain diffusers loads."""

import shutil
from pathlib import Path

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.export import standalone_diffusers
from dds_train.export.standalone_diffusers import TranslatorPipeline
from dds_train.translator import TranslatorConfig, TranslatorNetwork


def export_diffusers(folder: Path, network: TranslatorNetwork, card: TranslatorConfig, parts: DiffusionCheckpoint) -> None:
    """unet/, vae/, text_encoder/, tokenizer/ and model_index.json as diffusers writes them, and pipeline.py, which puts them
    together. Adapters are merged into the weights, so that the UNet is a plain one."""
    text = parts.text_encoder()
    pipeline = TranslatorPipeline(
        vae=parts.autoencoder().network,
        text_encoder=text.pipeline.text_encoder,
        tokenizer=text.pipeline.tokenizer,
        unet=network.plain_unet(),
        tasks={name: task.instruction for name, task in card.tasks.items()},
    )
    pipeline.save_pretrained(folder)
    shutil.copyfile(str(standalone_diffusers.__file__), folder / "pipeline.py")
