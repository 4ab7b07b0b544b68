"""Trained translators for use outside of dds_train: folders in several formats, each with a model card."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from dds_train.diffusion.families import Family
from dds_train.errors import UserError
from dds_train.translator import export_translator
from dds_train.translator.pipeline import Translator


def _safetensors(folder: Path, translator: Translator) -> str:
    export_translator(folder, translator.network, translator.config)
    return ""


def _diffusers(folder: Path, translator: Translator) -> str:
    from dds_train.export.diffusers_folder import export_diffusers

    export_diffusers(folder, translator.network, translator.config, translator.checkpoint)
    return ""


def _onnx(folder: Path, translator: Translator) -> str:
    from dds_train.export.onnx_folder import export_onnx

    check = export_onnx(folder, translator.network, translator.config, translator.checkpoint)
    shapes = " and ".join("x".join(map(str, shape)) for shape in check.shapes)
    return f"onnxruntime differs from PyTorch by at most {check.difference:.5f} of 255 levels, on images of {shapes}"


def _lora(folder: Path, translator: Translator) -> str:
    from dds_train.export.lora_files import export_lora

    export_lora(folder, translator.network, translator.checkpoint.family)
    return ""


FORMATS: dict[str, Callable[[Path, Translator], str]] = {
    "safetensors": _safetensors,
    "diffusers": _diffusers,
    "onnx": _onnx,
    "lora": _lora,
}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}

__all__ = ["FORMATS", "check_family", "check_packages", "export_folder"]


def check_family(format: str, family: Family, max_tokens: int | None = None, kind: str = "lora") -> None:
    """Raises UserError if translators of a kind on a family of teachers, and for prompts of `max_tokens`, cannot have this
    format."""
    if format == "diffusers" and max_tokens is not None:
        raise UserError(
            f"format=diffusers: its prompts have no teacher.max_tokens={max_tokens}; take format=safetensors or onnx"
        )
    if format == "lora" and kind != "lora":
        raise UserError(f"format=lora: a translator of kind {kind} has no adapters; train one with translator=lora")
    available = hasattr(family.network, "load_lora_adapter") if format == "lora" else family.standalone
    if format != "safetensors" and not available:
        raise UserError(f"format={format}: not available for translators on {family.name}; take format=safetensors")


def check_packages(format: str) -> None:
    """Raises UserError, with the command that installs them, if a format's packages are missing."""
    missing = [name for name in PACKAGES.get(format, ()) if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"format={format} needs {', '.join(missing)}: pip install {' '.join(missing)}")


def export_folder(format: str, folder: Path, translator: Translator) -> str:
    """Write a folder in one of `FORMATS`.

    Returns:
        the result of its verification, as a sentence; empty if it needs none.
    """
    return FORMATS[format](folder, translator)
