"""Prompts to embeddings."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dds_train.diffusion.frozen import Frozen
from dds_train.distillation.guidance import Condition


class TextEncoder(Frozen):
    """CLIP's tokenizer and text model, as Stable Diffusion uses them: the last hidden state of the padded prompt."""

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        model: CLIPTextModel,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(model, device, dtype)
        self.tokenizer = tokenizer

    # no_grad, not inference_mode: embeddings made under the latter break a later backward pass through the translator.
    @torch.no_grad()
    def embed(self, prompts: str | Sequence[str]) -> Tensor:
        """N prompts to [N,L,D], float32. Too long a prompt is cut, with a warning."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        length = self.tokenizer.model_max_length
        for prompt in prompts:
            words = len(self.tokenizer(prompt).input_ids)
            if words > length:
                warnings.warn(f"prompt cut to {length} of its {words} tokens: {prompt!r}", stacklevel=2)
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(self.device) if getattr(self.network.config, "use_attention_mask", False) else None
        return self.network(tokens.input_ids.to(self.device), attention_mask=mask).last_hidden_state.float()

    def condition(self, prompts: str | Sequence[str], negative: str | None = None) -> Condition:
        """N prompts as a `Condition`, each beside the empty prompt and, if given, the negative one."""
        text = self.embed(prompts)
        unwanted = None if negative is None else self.embed(negative).expand_as(text)
        return Condition(text=text, null=self.embed("").expand_as(text), negative=unwanted)
