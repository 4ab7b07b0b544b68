"""Translators on disk: an exported folder (config.json, translator.safetensors, README.md) or a training checkpoint."""

import json
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dds_train.errors import UserError
from dds_train.translator.unet import UNetTranslator

FORMAT = 1
WEIGHTS = "translator.safetensors"
PREFIX = "translator."  # of the translator's weights in a training checkpoint


@dataclass(frozen=True)
class TranslatorCard:
    """What has to be known to use a translator. Plain data: it is written to config.json and into checkpoints."""

    source: str  # caption of the inputs it was trained for
    target: str  # caption of what it makes of them
    instruction: str  # what the translator itself is told
    teacher: str  # path or hub id of the checkpoint whose codec and text encoder it works with
    translator: dict[str, Any]  # arguments of UNetTranslator
    format: int = FORMAT


def export_translator(folder: Path, translator: UNetTranslator, card: TranslatorCard, notes: str = "") -> None:
    """Write a folder that `load_translator` reads. `notes` (Markdown) go into the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in translator.state_dict().items()}
    # Beside its final name and moved there when complete: a killed process leaves no half-written weights.
    save_file(weights, folder / f"{WEIGHTS}.tmp")
    os.replace(folder / f"{WEIGHTS}.tmp", folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(asdict(card), indent=2) + "\n")
    (folder / "README.md").write_text(_model_card(translator, card, notes))


def load_translator(path: Path) -> tuple[UNetTranslator, TranslatorCard]:
    """Read an exported folder or a training checkpoint (its averaged weights), in eval mode on the CPU.

    Raises:
        UserError: if there is no such file, or it is not a translator of ours.
    """
    if not path.exists():
        raise UserError(f"ckpt={path}: no such file or folder; give a .ckpt of fit or its translator/ folder")
    config, weights = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    if config.get("format") != FORMAT:
        raise UserError(f"ckpt={path}: written in format {config.get('format')}; this version reads format {FORMAT}")
    try:
        card = TranslatorCard(**config)
        translator = UNetTranslator(**card.translator)
        translator.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"ckpt={path}: damaged or not ours: {str(error).splitlines()[0]}") from error
    return translator.eval(), card


def _read_folder(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        return json.loads((path / "config.json").read_text()), load_file(path / WEIGHTS)
    except Exception as error:  # the weights' reader has no public error type
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(f"ckpt={path}: not a translator folder (config.json, {WEIGHTS}): {reason}") from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"ckpt={path}: not a checkpoint that can be read; give one that fit wrote") from error
    if not isinstance(saved, dict) or "card" not in saved or "state_dict" not in saved:
        raise UserError(f"ckpt={path}: a checkpoint, but not one of dds_train; give one that fit wrote")
    state = saved["state_dict"]
    return saved["card"], {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}


def _model_card(translator: UNetTranslator, card: TranslatorCard, notes: str) -> str:
    millions = sum(p.numel() for p in translator.parameters()) / 1e6
    return f"""# Image translator: "{card.source}" -> "{card.target}"

A feed-forward UNet ({millions:.1f} M parameters) on the latents of `{card.teacher}`, trained by dds_train with the
Delta Denoising Score (arXiv 2304.07090): without pictures of the target and without pairs.

    python -m dds_train predict ckpt=THIS_FOLDER image=PICTURE

Instruction it was trained with, and which `predict` uses unless told otherwise: "{card.instruction}".

{notes}"""
