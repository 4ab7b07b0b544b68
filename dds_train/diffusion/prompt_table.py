"""A table of prompt embeddings: each prompt is embedded once, and on disk it stands in for the text encoder."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dds_train.diffusion.text_encoder import TextEncoder
from dds_train.distillation.guidance import Condition


class PromptTable:
    """Embeddings by prompt. The empty prompt, which guidance pushes away from, is always among them.

    Args:
        rows: prompt -> [1,L,D].
    """

    def __init__(self, rows: dict[str, Tensor]) -> None:
        self.rows = rows

    @classmethod
    def of(cls, encoder: TextEncoder, prompts: Iterable[str]) -> "PromptTable":
        wanted = list(dict.fromkeys(["", *prompts]))
        # One at a time: a prompt's embedding does not depend on its company, to the last bit.
        return cls({prompt: encoder.embed(prompt) for prompt in wanted})

    def completed(self, prompts: Iterable[str], encoder: Callable[[], TextEncoder]) -> "PromptTable":
        """With all of `prompts` in it; the encoder is asked for only if some are not there yet."""
        missing = self.missing(prompts)
        return PromptTable({**self.rows, **PromptTable.of(encoder(), missing).rows}) if missing else self

    def missing(self, prompts: Iterable[str]) -> list[str]:
        return [prompt for prompt in dict.fromkeys(["", *prompts]) if prompt not in self.rows]

    def embed(self, prompts: Iterable[str]) -> Tensor:
        """N prompts of the table, to [N,L,D]."""
        return torch.cat([self.rows[prompt] for prompt in prompts])

    def condition(self, prompts: Iterable[str], negative: str | None = None) -> Condition:
        """N prompts of the table as a `Condition`, each beside the empty prompt and, if given, the negative one."""
        text = self.embed(prompts)
        unwanted = None if negative is None else self.rows[negative].expand_as(text)
        return Condition(text=text, null=self.rows[""].expand_as(text), negative=unwanted)

    def save(self, path: Path) -> None:
        # The order of the prompts is the order of the rows; the prompts themselves go into the file's metadata.
        metadata = {f"{i:08d}": prompt for i, prompt in enumerate(self.rows)}
        save_file({"embeddings": torch.cat([row.cpu() for row in self.rows.values()])}, path, metadata)

    @classmethod
    def load(cls, path: Path) -> "PromptTable":
        with safe_open(path, framework="pt") as file:
            prompts = [prompt for _, prompt in sorted(file.metadata().items())]
            return cls(dict(zip(prompts, file.get_tensor("embeddings").split(1), strict=True)))
