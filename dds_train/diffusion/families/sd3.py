"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a rectified flow, a transformer that reads two CLIP models, T5 and both pooled
outputs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from diffusers import SD3Transformer2DModel
from torch import Tensor

from dds_train.diffusion.families.base import Family, check_transformer, image_attention, transformer_shape
from dds_train.diffusion.families.stable_diffusion import ATTENTION
from dds_train.distillation.prompt import Prompt


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    text, _, pooled, _ = pipeline.encode_prompt(list(prompts), None, None, do_classifier_free_guidance=False)
    return Prompt({"text": text, "pooled": pooled})


def denoise(transformer: Any, z_t: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
    output: Tensor = transformer(
        z_t, encoder_hidden_states=prompt["text"], pooled_projections=prompt["pooled"], timestep=1000 * sigma
    ).sample
    return output


FAMILY = Family(
    name="Stable Diffusion 3 and 3.5",
    denoiser="transformer",
    network=SD3Transformer2DModel,
    last_layer="proj_out",
    lora_targets=(*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    shape=partial(transformer_shape, text="joint_attention_dim"),
    check=check_transformer,
    embed=embed,
    denoise=denoise,
    self_attention=image_attention,
    is_flow=True,
)
