"""Checkpoints in one file, in their original layout, as ComfyUI, A1111 and Civitai have them."""

from collections.abc import Iterator
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, pipelines
from diffusers.loaders.single_file import load_single_file_sub_model
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    infer_diffusers_model_type,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
    load_single_file_checkpoint,
)
from torch import Tensor
from transformers import PreTrainedModel, T5EncoderModel

from dds_train.diffusion.location import SINGLE_FILES
from dds_train.errors import UserError, first_line

DENOISER = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
TOLD = ("v1", "xl_base", "sd3", "sd35_medium", "sd35_large", "flux-dev")  # diffusers' names of models
SCALED = ("scaled_fp8", ".scale_weight", ".weight_scale")  # of quantized weights, which these loaders take for plain ones


class SingleFile:
    """The weights of a denoiser, and often of a VAE and text encoders.

    Args:
        key: the configuration's, for messages.

    Raises:
        UserError: if it cannot be read, from whatever needs its weights.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        if path.suffix not in SINGLE_FILES:
            raise UserError(
                f"{key}={path}: a file of another kind; give {', '.join(SINGLE_FILES)}, or a folder in diffusers' layout"
            )

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By their original names; mapped into memory. Pickles are read as tensors alone."""
        try:
            weights: dict[str, Tensor] = load_single_file_checkpoint(str(self.path))
        except Exception as error:  # whatever the two readers raise
            remedy = "" if self.path.suffix == ".safetensors" else "; give it as .safetensors, which every model page has"
            reason = first_line(error)
            raise UserError(f"{self.key}={self.path}: cannot be read: {reason}{remedy}") from error
        if any(name.endswith(SCALED) for name in weights):
            raise UserError(f"{self.key}={self.path}: its weights are quantized (scaled fp8); give them in half precision")
        if "input_blocks.0.0.weight" in weights:  # a UNet alone
            weights = {DENOISER + name: tensor for name, tensor in weights.items()}
        return weights

    @property
    def predicts_v(self) -> bool:
        """Whether it has the mark that trainers of v-prediction put into such files."""
        return "v_pred" in self.weights

    def repository(self) -> str:
        """The hub's repository with the configurations of this kind of model.

        Raises:
            UserError: if the weights do not tell it: SD 2.x may predict noise or v, others are of a base model or its
                distillation.
        """
        kind = infer_diffusers_model_type(self.weights)
        if kind not in TOLD or (kind == "v1" and f"{DENOISER}input_blocks.0.0.weight" not in self.weights):
            raise UserError(
                f"{self.key}={self.path}: its weights do not tell which model it is; give teacher.config=, a folder or hub id "
                "in diffusers' layout of the same kind of model, for its configurations and tokenizers"
            )
        return str(DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])

    def has(self, part: str, of: Any) -> bool:
        """Whether a part of class `of` comes from here."""
        if issubclass(of, PreTrainedModel):
            is_t5 = issubclass(of, T5EncoderModel) and is_t5_in_single_file(self.weights)
            return bool(is_t5 or is_clip_model_in_single_file(of, self.weights))
        if part == "vae":
            return issubclass(of, AutoencoderKL) and any(name.startswith(VAES) for name in self.weights)
        return any(issubclass(of, getattr(diffusers, name)) for name in SINGLE_FILE_LOADABLE_CLASSES)

    def load(self, part: str, of: Any, folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, list[str]]]:
        """A part, and the names of what is missing, as `from_pretrained` with output_loading_info.

        Args:
            folder: in diffusers' layout, of the configurations.
        """
        try:
            network = load_single_file_sub_model(
                library_name=of.__module__.split(".")[0],
                class_name=of.__name__,
                name=part,
                checkpoint=dict(self.weights),
                pipelines=pipelines,
                is_pipeline_module=False,
                cached_model_config_path=str(folder.parent),
                local_files_only=True,
                torch_dtype=dtype,
            )
        except NotImplementedError:  # it casts weights that are missing
            return None, {"missing_keys": self._missing(of, folder), "mismatched_keys": [], "unexpected_keys": []}
        if isinstance(network, PreTrainedModel):
            network.tie_weights()
        missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
        return network, {"missing_keys": missing, "mismatched_keys": [], "unexpected_keys": []}

    def _missing(self, of: Any, folder: Path) -> list[str]:
        kind = next(name for name in SINGLE_FILE_LOADABLE_CLASSES if issubclass(of, getattr(diffusers, name)))
        config = of.load_config(folder)
        found = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"](config=config, checkpoint=dict(self.weights))
        with init_empty_weights():
            return sorted(of.from_config(config).state_dict().keys() - found.keys())

    def tensors(self, part: str, of: Any, folder: Path) -> Iterator[Tensor]:
        """The weights of a part in diffusers' layout, each once. Raises UserError if they do not fit."""
        try:
            network, info = self.load(part, of, folder, self.widest)
        except Exception as error:  # of diffusers' loaders
            reason = first_line(error)
            raise UserError(f"{self.key}={self.path}: {part} does not load: {reason}") from error
        if info["missing_keys"]:
            raise UserError(f"{self.key}={self.path}: {part} lacks weights, such as {info['missing_keys'][0]}")
        yield from {(one.data_ptr(), one.shape): one for one in network.state_dict().values()}.values()

    @property
    def widest(self) -> torch.dtype:
        """The narrowest precision that holds all weights exactly."""
        kinds = {tensor.dtype for tensor in self.weights.values() if tensor.is_floating_point()}
        return reduce(torch.promote_types, (torch.bfloat16 if kind.itemsize == 1 else kind for kind in kinds))
