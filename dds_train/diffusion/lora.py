"""LoRA of others, in all formats that diffusers reads and in peft's, fused into parts of a checkpoint when they are loaded."""

import json
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dds_train.errors import UserError, first_line

NAME = "file"  # of the adapters, while they are loaded
PEFT_PREFIX = "base_model.model."


def settings_file(path: Path) -> Path | None:
    """The file of settings beside weights in the layout of peft's save_pretrained, on which their meaning depends as well."""
    settings = path.with_name("adapter_config.json")
    return settings if path.stem == "adapter_model" and settings.is_file() else None


def lora_parts(pipeline: Any, path: Path) -> set[str]:
    """The names of the parts that a file has weights for.

    Args:
        pipeline: diffusers' class.

    Raises:
        UserError: if it has none.
    """
    try:
        state = pipeline.lora_state_dict(_readable(pipeline, path))
    except Exception as error:  # whatever diffusers raises for what it cannot read or convert
        raise _refusal(path, error) from error
    state = state[0] if isinstance(state, tuple) else state
    parts = {name.partition(".")[0] for name in state if "lora" in name} & set(pipeline._lora_loadable_modules)
    if not parts:
        raise UserError(f"teacher.lora={path}: no LoRA for {', '.join(pipeline._lora_loadable_modules)} in it")
    return parts


def fuse(pipeline: Any, parts: Collection[str], files: Sequence[tuple[Path, float]]) -> None:
    """Fuse LoRA, each times its weight, into `parts` of a pipeline, which may have no others but an empty denoiser.

    Raises:
        UserError: as `lora_parts`, or if one does not fit.
    """
    convert, parts = pipeline.lora_state_dict, [part for part in parts if part in pipeline._lora_loadable_modules]
    read: dict[str, Any] = {}

    def of_parts(*args: Any, **options: Any) -> Any:
        state, *rest = converted if isinstance(converted := convert(*args, **options), tuple) else (converted,)
        read.update({name: tensor for name, tensor in state.items() if name.partition(".")[0] in parts})
        return (dict(read), *rest) if rest else dict(read)

    pipeline.lora_state_dict = of_parts
    for path, weight in files:
        if not lora_parts(type(pipeline), path) & set(parts):
            continue
        read.clear()
        try:
            # Adapters are initialized before they are loaded. What peft warns of is counted below.
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pipeline.load_lora_weights(_readable(type(pipeline), path), adapter_name=NAME)
                loaded = sum(
                    NAME in name.split(".") for part in parts for name, _ in getattr(pipeline, part).named_parameters()
                )
                if not loaded:
                    raise ValueError("it has none of the layers that it was trained on")
                pipeline.set_adapters(NAME, weight)
                pipeline.fuse_lora(parts, adapter_names=[NAME])
                pipeline.unload_lora_weights()
        except Exception as error:  # whatever diffusers and peft raise for weights of another network
            raise _refusal(path, error) from error
        if loaded < len(read):
            warnings.warn(f"teacher.lora={path}: only {loaded} of {len(read)} weights fit the {', '.join(parts)}", stacklevel=2)


def _readable(pipeline: Any, path: Path) -> str | dict[str, torch.Tensor]:
    """What diffusers' loaders take: a file; of peft's layout, which they do not know, its weights by their names."""
    settings = settings_file(path)
    if settings is None:
        return str(path)
    config = json.loads(settings.read_text(encoding="utf-8"))
    other = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    if config["peft_type"] != "LORA":
        other.append(config["peft_type"])
    if other or path.suffix != ".safetensors":
        raise ValueError(f"of peft's adapters plain LoRA in .safetensors is taken, not {', '.join(other) or path.name}")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    weights = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in load_file(path).items()}
    of_text = all(name.startswith("text_model.") for name in weights)
    part = next(one for one in pipeline._lora_loadable_modules if one.startswith("text") == of_text)
    return {f"{part}.{name}": tensor * scale if ".lora_B." in name else tensor for name, tensor in weights.items()}


def _refusal(path: Path, error: Exception) -> UserError:
    reason = first_line(error)
    reason = reason if len(reason) < 200 else f"{reason[:200]}..."  # peft names all layers
    return UserError(f"teacher.lora={path}: does not fit this teacher: {reason}")
