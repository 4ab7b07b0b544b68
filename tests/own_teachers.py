"""Teachers with what people load with them: diffusers' own pipelines, LoRA files, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from dds_train.errors import UserError


def reference(folder: Path) -> Any:
    """Diffusers' own pipeline."""
    options = {"safety_checker": None} if "StableDiffusionPipeline" in (folder / "model_index.json").read_text() else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, **options)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline


def adapters(network: Any, targets: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ones, as diffusers' training scripts take them from a network."""
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights="gaussian"))
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(network).items()}


def save_lora(folder: Path, path: Path, seed: int = 0, text: bool = True) -> Path:
    """A LoRA for denoiser and CLIP text encoders, written by diffusers."""
    pipeline, layers = reference(folder), {}
    modules = pipeline._lora_loadable_modules
    for name in modules:
        network = getattr(pipeline, name, None)
        if name in ("unet", "transformer"):
            targets = ["to_q", "to_v"] if name == "unet" or hasattr(network, "transformer_blocks") else ["to_q"]
            layers[f"{name}_lora_layers"] = adapters(network, targets, seed)
        elif network is not None and text:
            layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(adapters(network, ["q_proj", "out_proj"], seed))
    pipeline.save_lora_weights(path, **layers)
    return path


def refusal(load: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)
