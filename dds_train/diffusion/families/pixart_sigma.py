"""PixArt-Sigma (arXiv 2403.04692): a transformer that reads T5's masked prompts and predicts noise and its variance."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from diffusers import PixArtTransformer2DModel
from torch import Tensor

from dds_train.diffusion.families.base import Family, check_transformer, image_attention, transformer_shape
from dds_train.diffusion.families.stable_diffusion import ATTENTION
from dds_train.distillation.prompt import Prompt


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    text, mask, _, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    length = int(mask.sum(dim=1).max())  # the rest is padding
    return Prompt({"text": text[:, :length], "mask": mask[:, :length]})


def denoise(transformer: Any, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
    sizes = {"resolution": None, "aspect_ratio": None}
    output: Tensor = transformer(z_t, prompt["text"], t, sizes, encoder_attention_mask=prompt["mask"]).sample
    return output[:, : z_t.shape[1]]


FAMILY = Family(
    name="PixArt-Sigma",
    denoiser="transformer",
    network=PixArtTransformer2DModel,
    last_layer="proj_out",
    lora_targets=ATTENTION,
    shape=partial(transformer_shape, text="caption_channels"),
    check=check_transformer,
    embed=embed,
    denoise=denoise,
    self_attention=partial(image_attention, name="attn1"),
)
