"""Prompts to embeddings."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dds_train.diffusion.families import Family
from dds_train.diffusion.frozen import Frozen
from dds_train.distillation.guidance import Condition
from dds_train.distillation.prompt import Prompt


class TextEncoder(Frozen):
    """The text parts of a diffusers pipeline.

    Args:
        pipeline: holds tokenizers and text encoders, and no other networks.
        max_tokens: of a prompt; None is the pipeline's default.
    """

    def __init__(
        self,
        pipeline: Any,
        family: Family,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tokens: int | None = None,
    ) -> None:
        models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        super().__init__(nn.ModuleDict(models), device, dtype)
        self.pipeline, self._embed = pipeline, family.embed
        if max_tokens is not None and (chunked := family.embed_chunks):
            self._embed = lambda pipeline, prompts: chunked(pipeline, prompts, max_tokens)
        elif max_tokens is not None:
            pipeline.encode_prompt = partial(pipeline.encode_prompt, max_sequence_length=max_tokens)

    # no_grad, not inference_mode: embeddings made under the latter break a later backward pass through the translator.
    @torch.no_grad()
    def embed(self, prompts: str | Sequence[str]) -> Prompt:
        """N prompts encoded, in float32. The empty one is what guidance pushes away from."""
        return self._embed(self.pipeline, [prompts] if isinstance(prompts, str) else prompts).to(dtype=torch.float32)

    def condition(self, prompts: str | Sequence[str], negative: str | None = None) -> Condition:
        """N prompts as a `Condition`, each beside the empty prompt and, if there is one, the negative prompt."""
        text = self.embed(prompts)
        unlike = None if negative is None else self.embed(negative).expand(len(text))
        return Condition(text=text, null=self.embed("").expand(len(text)), negative=unlike)
