"""Frozen weights in eight or four bits. Activations stay in the precision of the checkpoint."""

import math
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
import transformers
from diffusers.hooks import apply_layerwise_casting
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from torch import nn

from dds_train.errors import UserError

LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
# Bytes of a weight; nf4's with the scales of its blocks of 64, quantized once more.
BYTES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / 64 / 256}
# Backward reads their weights once more, when these are in float8 again; backward through a linear layer keeps a copy.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def check_quantization(kind: str, device: str) -> None:
    """Raises UserError if weights cannot be quantized so here."""
    library = LIBRARIES.get(kind)
    if library and find_spec(library) is None:
        raise UserError(f"teacher.quantization={kind}: needs {library}; pip install {library}, or take fp8")
    if kind == "nf4" and not device.startswith("cuda"):
        raise UserError(f"teacher.quantization=nf4: needs a GPU, got device={device}; take teacher.quantization=int8 or fp8")


def loading_options(
    kind: str | None, of: type[nn.Module], device: str, dtype: torch.dtype, kept: Sequence[str]
) -> dict[str, Any]:
    """Arguments of ``of.from_pretrained`` that quantize linear layers, but those `kept`, while they are loaded; {} for
    "fp8"."""
    library: Any = transformers if issubclass(of, transformers.PreTrainedModel) else diffusers
    if kind == "nf4":
        options = {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_use_double_quant": True,
            "llm_int8_skip_modules": list(kept) or None,
        }
        return {"quantization_config": library.BitsAndBytesConfig(load_in_4bit=True, **options), "device_map": {"": device}}
    if kind == "int8":
        weights = import_module("torchao.quantization").Int8WeightOnlyConfig()
        return {"quantization_config": library.TorchAoConfig(weights, modules_to_not_convert=list(kept) or None)}
    return {}


def weight_bytes(
    network: nn.Module, dtype: torch.dtype, kind: str | None = None, kept: Sequence[str] = (), offload: bool = False
) -> int:
    """Bytes of a network's weights on the device, by arithmetic: of a network on the meta device too.

    Args:
        offload: all but the largest block of its lists of blocks wait elsewhere.
    """
    sizes = {id(weight): weight.numel() * dtype.itemsize for weight in network.parameters()}
    unquantized = _unquantized(network, kept) if kind == "fp8" else re.compile("|".join(f"^{re.escape(one)}$" for one in kept))
    for name, module in network.named_modules():
        if kind and isinstance(module, nn.Linear) and not (unquantized.pattern and unquantized.search(name)):
            for weight in (module.weight, *([module.bias] if kind == "fp8" and module.bias is not None else [])):
                sizes[id(weight)] = math.ceil(weight.numel() * BYTES[kind])

    def size(part: nn.Module) -> int:
        return sum(sizes[id(weight)] for weight in part.parameters())

    blocks = [size(one) for part in network.children() if isinstance(part, nn.ModuleList) for one in part] if offload else []
    return size(network) - sum(blocks) + max(blocks, default=0)


def store_as_float8(network: nn.Module, dtype: torch.dtype, kept: Sequence[str]) -> None:
    """Keep the weights of linear layers, but those `kept`, in float8 (e4m3), each cast to `dtype` while it runs; in place."""
    skipped = _unquantized(network, kept).pattern
    apply_layerwise_casting(network, torch.float8_e4m3fn, dtype, (skipped,), (*CONVOLUTIONS, nn.Embedding))


def _unquantized(network: nn.Module, kept: Sequence[str]) -> re.Pattern[str]:
    """Names of the linear layers that stay out of float8."""
    patterns = {*DEFAULT_SKIP_MODULES_PATTERN, *(getattr(network, "_skip_layerwise_casting_patterns", None) or ())}
    # T5's last linear layers look at the type of their weights, and cast their inputs to it.
    return re.compile("|".join([*sorted(patterns), r"\.wo$", *(f"^{re.escape(name)}$" for name in kept)]))
