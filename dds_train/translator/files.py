"""Translators on disk: an exported folder (config.json, translator.safetensors, README.md) or a training checkpoint."""

import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.runs.digest import file_digest
from dds_train.runs.files import atomic_write
from dds_train.translator.kinds import make_translator
from dds_train.translator.task import Task, tasks_from

FORMAT = 2  # 1 had one task, and no kinds of translators
WEIGHTS = "translator.safetensors"
PREFIX = "translator."  # of the translator's weights in a training checkpoint


@dataclass(frozen=True)
class TranslatorConfig:
    """What has to be known to use a translator. Plain data: it is written to config.json and into checkpoints."""

    tasks: dict[str, Task]  # what it was trained to do, by name
    teacher: str  # path or hub id of the checkpoint whose codec and text encoder it works with
    translator: dict[str, Any]  # its `config`
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "TranslatorConfig":
        """Raises ValueError if it is of a later format, TypeError or KeyError if it is no card."""
        plain = dict(plain)
        written = plain.get("format")
        if written == 1:
            task = Task(*(plain.pop(field) for field in ("source", "target", "instruction")))
            plain |= {
                "tasks": {"edit": task.to_dict()},
                "translator": {"kind": "unet", **plain["translator"]},
                "format": FORMAT,
            }
        elif written != FORMAT:
            raise ValueError(f"written in format {written}; this version reads formats 1 to {FORMAT}")
        return cls(**{**plain, "tasks": tasks_from(plain["tasks"])})

    def choose(self, task: str | None) -> Task:
        """The task of that name; None means the only one there is.

        Raises:
            UserError: if there is no such task, or several to choose from.
        """
        known = ", ".join(self.tasks)
        if task is None and len(self.tasks) > 1:
            raise UserError(f"this translator knows several tasks ({known}): say which, task=NAME, or give a prompt=")
        if task is not None and task not in self.tasks:
            raise UserError(f"task={task}: this translator knows {known}")
        return self.tasks[task] if task is not None else next(iter(self.tasks.values()))


def export_translator(folder: Path, translator: nn.Module, card: TranslatorConfig, notes: str = "") -> None:
    """Write a folder that `load_translator` reads. `notes` (Markdown) go into the model card."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in translator.state_dict().items()}
    with atomic_write(folder / WEIGHTS, durable=True) as partial:
        save_file(weights, partial)
    (folder / "config.json").write_text(json.dumps(card.to_dict(), indent=2) + "\n")
    (folder / "README.md").write_text(_model_card(translator, card, notes))


def load_translator(path: Path, checkpoint: DiffusionCheckpoint | None = None) -> tuple[Any, TranslatorConfig]:
    """Read an exported folder or a training checkpoint (its averaged weights), in eval mode.

    Args:
        pretrained: the teacher, for translators that work on its UNet (kind "lora"), which then stays where that is. By
            default the one that the card names, on the CPU.

    Raises:
        UserError: if there is no such file, or it is not a translator of ours.
    """
    config, weights = _read(path)
    card = _card(path, config)
    teacher = checkpoint or DiffusionCheckpoint(card.teacher)
    try:
        # A UNet of its own: adapters must not reach one that others use.
        translator = make_translator(card.translator, teacher.load_unet)
        translator.load_state_dict(weights)
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"ckpt={path}: damaged or not ours: {str(error).splitlines()[0]}") from error
    return translator.eval(), card


def read_config(path: Path) -> TranslatorConfig:
    """Of an exported folder or a training checkpoint. Raises UserError as `load_translator` does."""
    if (path / "config.json").is_file():  # no need for the weights
        try:
            return _card(path, json.loads((path / "config.json").read_text()))
        except ValueError as error:
            raise UserError(f"ckpt={path}: config.json is damaged: {error}") from error
    return _card(path, _read(path)[0])


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a training checkpoint, or those of an exported folder."""
    return _read(path)[1]


def weights_digest(path: Path) -> str:
    """The identity of the weights of an exported folder or a training checkpoint."""
    return file_digest(path / WEIGHTS if path.is_dir() else path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not path.exists():
        raise UserError(f"ckpt={path}: no such file or folder; give a .ckpt of fit or its translator/ folder")
    return _read_folder(path) if path.is_dir() else _read_checkpoint(path)


def _card(path: Path, config: dict[str, Any]) -> TranslatorConfig:
    try:
        return TranslatorConfig.from_dict(config)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"ckpt={path}: damaged or not ours: {str(error).splitlines()[0]}") from error


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


def _model_card(translator: nn.Module, card: TranslatorConfig, notes: str) -> str:
    millions = sum(p.numel() for p in translator.parameters()) / 1e6
    tasks = "\n".join(f"| {name} | {t.source} | {t.target} | {t.instruction} |" for name, t in card.tasks.items())
    choice = "" if len(card.tasks) == 1 else " task=NAME"
    return f"""# Image translator: {", ".join(card.tasks)}

Works on the latents of `{card.teacher}` (kind {card.translator.get("kind")}, {millions:.1f} M trained parameters). Trained by
dds_train with score distillation (Delta Denoising Score, arXiv 2304.07090): without pictures of the target and without pairs.

    python -m dds_train predict ckpt=THIS_FOLDER image=PICTURE{choice}

| task | inputs show | it makes of them | instruction |
| --- | --- | --- | --- |
{tasks}

{notes}"""
