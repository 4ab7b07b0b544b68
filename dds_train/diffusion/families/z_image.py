"""Z-Image, base: a rectified flow whose transformer reads Qwen3 without padding, counts time from noise to image, and predicts
the velocity towards the image."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dds_train.diffusion.families.base import Config, DenoiserShape, Family, check_transformer
from dds_train.diffusion.families.stable_diffusion import ATTENTION
from dds_train.distillation.prompt import Prompt


def shape(transformer: Config) -> DenoiserShape:
    return DenoiserShape(transformer["in_channels"], transformer["cap_feat_dim"], (128, 128), 2)


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    texts = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]  # a copy: the pipeline changes its list
    masks = [torch.ones(len(text), device=text.device) for text in texts]
    return Prompt({"text": pad_sequence(texts, batch_first=True), "mask": pad_sequence(masks, batch_first=True)})


def denoise(transformer: Any, z_t: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
    rows = list(prompt["text"])
    if not z_t.is_meta:  # whose masks have no values
        rows = [row[mask.bool()] for row, mask in zip(rows, prompt["mask"], strict=True)]
    towards_image = transformer(list(z_t.unsqueeze(2)), 1.0 - sigma, rows).sample
    return -torch.stack(list(towards_image)).squeeze(2)


FAMILY = Family(
    name="Z-Image base",
    denoiser="transformer",
    network=ZImageTransformer2DModel,
    last_layer="all_final_layer.2-1.linear",
    lora_targets=ATTENTION,
    shape=shape,
    check=check_transformer,
    embed=embed,
    denoise=denoise,
    is_flow=True,
)
