"""Translators on disk: an exported folder (config.json, translator.safetensors, README.md) or a training checkpoint."""

import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import init_empty_weights
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from dds_train import __version__
from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.diffusion.families import Family
from dds_train.errors import UserError, first_line
from dds_train.runs.digest import file_digest
from dds_train.runs.files import atomic_write
from dds_train.translator.kinds import make_translator
from dds_train.translator.location import CONFIG, WEIGHTS, find_additions, find_teacher, find_translator
from dds_train.translator.task import Task

FORMAT = 4
CHECKSUM = "sha256"  # of the weights, in config.json
CONFIG_KEY = "translator_config"  # of a training checkpoint
PREFIX = "translator."  # of the translator's weights in a training checkpoint


class OtherFormat(UserError):
    """Not damaged, but written by another version of dds_train in a format that this one cannot read."""


@dataclass(frozen=True)
class TranslatorConfig:
    """Tasks, teacher and architecture of a translator. Plain data: it is written to config.json and into checkpoints."""

    tasks: dict[str, Task]  # by name
    teacher: str  # absolute path or hub id of the checkpoint whose VAE and text encoder it works with
    translator: dict[str, Any]  # its `config`
    teacher_weights: dict[str, str] = field(default_factory=dict)  # part -> digest up to half precision; see `location`
    max_tokens: int | None = None  # of the text encoder's prompts; None is the pipeline's default
    teacher_additions: dict[str, Any] = field(default_factory=dict)  # what was loaded with it (`diffusion.Additions`)
    format: int = FORMAT
    version: str = __version__  # of dds_train, which wrote it

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "TranslatorConfig":
        """Raises OtherFormat, or TypeError, ValueError or KeyError if it is no such configuration."""
        written = plain["format"]
        if written != FORMAT:
            newer = isinstance(written, int) and written > FORMAT
            by = f"in the newer format {written} by dds_train {plain.get('version')}"
            by = by if newer else f"in format {written} by an older dds_train"
            remedy = "upgrade dds_train" if newer else "train it again, into another output_dir"
            raise OtherFormat(f"written {by}; this is dds_train {__version__}, which reads format {FORMAT}: {remedy}")
        for one in fields(cls):
            if one.name not in plain:
                raise ValueError(f"has no {one.name}")
        try:
            config = TypeAdapter(cls).validate_python(plain)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if not config.tasks:
            raise ValueError("tasks: there are none")
        return config

    def find_teacher(
        self, ckpt: Path, path: str | None = None, additions: Mapping[str, Any] = MappingProxyType({})
    ) -> DiffusionCheckpoint:
        """The teacher, where it is now; `ckpt` is this translator's own path.

        Args:
            path: of a teacher to take for it, whatever its weights.
            additions: values of `diffusion.Additions` to take instead of those that it was trained with.

        Raises:
            UserError: if it is not found, or its weights have changed.
        """
        if path is None:
            parts = ("vae", "text", *(["denoiser"] if self.translator.get("kind") == "lora" else []))
            weights = {part: self.teacher_weights[part] for part in parts if part in self.teacher_weights}
            found = find_teacher(self.teacher, weights, ckpt, self.max_tokens, self.teacher_additions)
        else:
            known = {key: value for key, value in self.teacher_additions.items() if key not in additions}
            kept, missing = find_additions(known, ckpt)
            if missing:
                raise UserError(
                    f"ckpt={ckpt}: trained with {', '.join(missing)}, which is not there; give it as teacher.lora=, "
                    "teacher.embeddings=, teacher.vae= or teacher.config="
                )
            found = DiffusionCheckpoint(path, max_tokens=self.max_tokens, additions=kept)
        return replace(found, additions=Additions.of({**found.additions.to_dict(), **additions}))

    def choose(self, task: str | None) -> Task:
        """The task of that name; None means the only one there is.

        Raises:
            UserError: if there is no such task, or several to choose from.
        """
        known = ", ".join(self.tasks)
        if task is None and len(self.tasks) > 1:
            raise UserError(f"this translator has several tasks ({known}): choose one with task=NAME, or give a prompt=")
        if task is not None and task not in self.tasks:
            raise UserError(f"task={task}: the tasks of this translator are {known}")
        return self.tasks[task] if task is not None else next(iter(self.tasks.values()))


def export_translator(folder: Path, translator: nn.Module, config: TranslatorConfig, notes: str = "") -> None:
    """Write a folder that `load_translator` reads. `notes` (Markdown) go into the model card.

    Raises:
        UserError: if the weights are not finite.
    """
    if not all_finite(translator.state_dict().values()):
        raise UserError("the translator's weights are NaN or Inf, and not exported; train again with a lower lr")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in translator.state_dict().items()}
    with atomic_write(folder / WEIGHTS, durable=True) as partial:
        save_file(weights, partial)
    with atomic_write(folder / CONFIG) as partial:
        plain = {**config.to_dict(), CHECKSUM: file_digest(folder / WEIGHTS)}
        partial.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(translator, config, notes), encoding="utf-8")


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def load_translator(path: Path, checkpoint: DiffusionCheckpoint | None = None) -> tuple[Any, TranslatorConfig]:
    """Load an exported folder or a training checkpoint (its averaged weights), in eval mode.

    Args:
        checkpoint: the teacher's, for translators that work on its denoiser (kind "lora"), which then stay on its device. By
            default the one that the configuration names, on the CPU.

    Raises:
        UserError: if there is no such file, it is not a translator of dds_train, or its weights are not finite.
    """
    config, weights = read_config(path), read_weights(path)
    if not all_finite(weights.values()):
        raise UserError(f"ckpt={path}: its weights are NaN or Inf; give a checkpoint from before they were")
    teacher = checkpoint or config.find_teacher(path)
    try:
        if config.translator.get("kind") != "lora":
            _check_size(config.translator, weights, teacher.family)
        # A denoiser of its own: adapters must not reach one that others use.
        translator = make_translator(config.translator, teacher.load_denoiser, teacher.family)
        translator.load_state_dict(weights)
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, RuntimeError, ArithmeticError) as error:
        raise _corrupted(path, error) from error
    return translator.eval(), config


def _check_size(config: dict[str, Any], weights: dict[str, torch.Tensor], family: Family) -> None:
    """Raises ValueError, before any memory is taken, if the weights are not those of the network that `config` describes."""

    def no_denoiser() -> Any:
        raise ValueError("the network's options are not in its configuration")

    try:
        for name, value in config.get("denoiser", {}).items():
            if "layers" in name and any(int(number) > len(weights) for number in re.findall(r"\d+", str(value))):
                raise ValueError(f"translator.denoiser.{name}={value}, and {len(weights)} weights")
        with init_empty_weights():
            planned = make_translator(config, no_denoiser, family).state_dict()
    except Exception as error:  # whatever diffusers raises for a configuration that makes no network
        raise ValueError(str(error) or type(error).__name__) from error
    if {name: tensor.shape for name, tensor in planned.items()} != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError("the weights are not those of the network in the configuration")


def read_config(path: Path) -> TranslatorConfig:
    """The configuration of an exported folder or a training checkpoint, without its weights.

    Raises:
        UserError: as `load_translator`.
    """
    path = find_translator(path)
    plain = _read_json(path) if path.is_dir() else _read_checkpoint(path)[CONFIG_KEY]
    try:
        return TranslatorConfig.from_dict(plain)
    except OtherFormat as error:
        raise OtherFormat(f"ckpt={path}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _corrupted(path, error) from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a training checkpoint, or those of an exported folder; mapped into memory.

    Raises:
        UserError: as `load_translator`.
    """
    path = find_translator(path)
    if not path.is_dir():
        state = _read_checkpoint(path)["state_dict"]
        return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    try:
        result: dict[str, torch.Tensor] = load_file(path / WEIGHTS)
    except Exception as error:  # the reader has no public error type
        reason = first_line(error)
        raise UserError(f"ckpt={path}: {WEIGHTS} cannot be read: {reason}") from error
    if file_digest(path / WEIGHTS) != _read_json(path).get(CHECKSUM):
        raise UserError(
            f"ckpt={path}: {WEIGHTS} is damaged, or not the one that {CONFIG} belongs to; copy or export both again"
        )
    return result


def read_step(path: Path) -> int:
    """The training steps of a training checkpoint.

    Raises:
        UserError: as `load_translator`.
    """
    return int(_read_checkpoint(find_translator(path)).get("global_step", 0))


def weights_digest(path: Path) -> str:
    """The identity of the weights of an exported folder or a training checkpoint."""
    path = find_translator(path)
    return file_digest(path / WEIGHTS if path.is_dir() else path)


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError("it has no keys")
    except FileNotFoundError as error:
        raise UserError(f"ckpt={folder}: not a translator folder, which has {CONFIG} and {WEIGHTS}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"ckpt={folder}: {CONFIG} is corrupted: {error}") from error
    return plain


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"ckpt={path}: no such file or folder; give a .ckpt of fit, or the folder of a run or a translator")
    try:
        stat = path.stat()
        if not _is_whole(path, stat.st_size, stat.st_mtime_ns):
            raise ValueError("torch reads damaged files too")
        # Mapped: of weights and optimiser state nothing is read until it is used.
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"ckpt={path}: not a checkpoint, or corrupted; give one that fit wrote") from error
    if not isinstance(saved, dict) or CONFIG_KEY not in saved or "state_dict" not in saved:
        raise UserError(f"ckpt={path}: a checkpoint, but not one of dds_train; give one that fit wrote")
    return saved


@lru_cache(64)
def _is_whole(path: Path, size: int, mtime_ns: int) -> bool:
    """Whether all parts of a checkpoint have their checksums. Remembered: its configuration, step and weights are read in turn,
    and it may have gigabytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError):
        return False


def _corrupted(path: Path, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"ckpt={path}: corrupted, or not a translator of dds_train: {reason}")


def _model_card(translator: nn.Module, config: TranslatorConfig, notes: str) -> str:
    millions = sum(p.numel() for p in translator.parameters()) / 1e6
    tasks = "\n".join(f"| {name} | {t.source} | {t.target} | {t.instruction} |" for name, t in config.tasks.items())
    choice = "" if len(config.tasks) == 1 else " task=NAME"
    return f"""# Image translator: {", ".join(config.tasks)}

Works on the latents of `{config.teacher}` (kind {config.translator.get("kind")}, {millions:.1f} M trained parameters). Trained
by dds_train {config.version} with score distillation (Delta Denoising Score, arXiv 2304.07090): without target images and
without pairs.

    python -m dds_train predict ckpt=THIS_FOLDER image=IMAGE{choice}

| task | source prompt | target prompt | instruction |
| --- | --- | --- | --- |
{tasks}

{notes}"""
