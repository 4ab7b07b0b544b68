"""A LoRA translator as plain LoRA files, for diffusers and for ComfyUI."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, LoraBaseMixin
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

from dds_train.diffusion.families import Family
from dds_train.translator import LoRATranslator

COMFYUI = "comfyui.safetensors"
Weights = Mapping[str, Tensor]  # of adapters, by PEFT's names


def export_lora(folder: Path, network: LoRATranslator, family: Family) -> None:
    """pytorch_lora_weights.safetensors, which diffusers' ``pipeline.load_lora_weights(folder)`` loads, and `COMFYUI`.

    With them the teacher's denoiser predicts, at timestep 0, the translator's change at full strength.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.plain_lora().items()}
    LoraBaseMixin.write_lora_layers(
        state_dict={f"{family.denoiser}.{name}": tensor for name, tensor in weights.items()},
        save_directory=str(folder),
        is_main_process=True,
        weight_name=LORA_WEIGHT_NAME_SAFE,
        save_function=None,
        safe_serialization=True,
        lora_adapter_metadata={f"{family.denoiser}.{key}": value for key, value in lora_config(weights).items()},
    )
    save_file(for_comfyui(weights, family), folder / COMFYUI)


def lora_config(weights: Weights) -> dict[str, Any]:
    """Options of PEFT's LoraConfig that load `weights` as they are, each with a scale of 1 whatever its rank."""
    ranks = {name.removesuffix(".lora_A.weight"): len(weight) for name, weight in weights.items() if ".lora_A." in name}
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items()}
    return {
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": "|".join(map(re.escape, ranks)),  # names in full: others may end like them
        "lora_bias": any(name.endswith(".bias") for name in weights),
    }


def for_comfyui(weights: Weights, family: Family) -> dict[str, Tensor]:
    """By the names of ComfyUI: kohya's for a UNet, diffusers' for a transformer; the change of a bias is "diff_b"."""
    matrices = {f"{family.denoiser}.{name}": weight for name, weight in weights.items() if not name.endswith(".bias")}
    is_unet, bias = family.denoiser == "unet", weights.get(f"{family.last_layer}.lora_B.bias")
    named: dict[str, Tensor] = convert_state_dict_to_kohya(matrices) if is_unet else matrices
    last = f"lora_unet_{family.last_layer}" if is_unet else f"{family.denoiser}.{family.last_layer}"
    return named if bias is None else {**named, f"{last}.diff_b": bias}
