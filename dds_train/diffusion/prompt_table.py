"""A table of encoded prompts in memory: each is encoded once."""

from collections.abc import Callable, Iterable

import torch

from dds_train.diffusion.text_encoder import TextEncoder
from dds_train.distillation.guidance import Condition
from dds_train.distillation.prompt import Prompt


class PromptTable:
    """Encoded prompts by their text. The empty prompt, which guidance pushes away from, is always among them.

    Args:
        rows: text -> one prompt, on the CPU, however many there are.
        device: of the prompts that `embed` and `condition` return.
    """

    def __init__(self, rows: dict[str, Prompt], device: torch.device | str = "cpu") -> None:
        self.rows, self.device = rows, device

    @classmethod
    def of(cls, encoder: TextEncoder, texts: Iterable[str]) -> "PromptTable":
        # One at a time: a prompt's embedding does not depend on its batch, to the last bit.
        return cls({text: encoder.embed(text).to("cpu") for text in dict.fromkeys(["", *texts])}, encoder.device)

    def completed(self, texts: Iterable[str], embedded: Callable[[list[str]], "PromptTable"]) -> "PromptTable":
        """The table with all of `texts` in it; `embedded` makes one of those that are missing, if there are any."""
        missing = [text for text in dict.fromkeys(["", *texts]) if text not in self.rows]
        rows = embedded(missing).rows if missing else {}
        return PromptTable({**self.rows, **{text: rows[text] for text in missing}}, self.device) if missing else self

    def embed(self, texts: Iterable[str]) -> Prompt:
        """N texts of the table as N prompts."""
        return Prompt.cat([self.rows[text] for text in texts]).to(self.device)

    def condition(self, texts: Iterable[str], negative: str | None = None) -> Condition:
        """N texts of the table as a `Condition`, each beside the empty prompt and, if there is one, the negative prompt."""
        prompts = self.embed(texts)
        unlike = None if negative is None else self.embed([negative]).expand(len(prompts))
        return Condition(text=prompts, null=self.embed([""]).expand(len(prompts)), negative=unlike)
