"""Which edits a batch asks for, and what teacher and translator are told about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dds_train.diffusion import PromptTable
from dds_train.distillation.guidance import Condition
from dds_train.translator import Task


@dataclass(frozen=True)
class TaskBank:
    """K tasks, embedded. What is said of an image depends on its caption (N of them) if a task says {caption}; else N is 1."""

    names: tuple[str, ...]
    prompts: Condition  # [P,L,D] each: all that is said, each prompt once
    source: Tensor  # [K,N] rows of `prompts`
    target: Tensor  # [K,N]
    instruction: Tensor  # [K,L,D]
    one_source: bool  # whether all tasks describe an image alike

    @classmethod
    def embed(
        cls, tasks: Mapping[str, Task], table: PromptTable, captions: Sequence[str] = (), negative: str | None = None
    ) -> "TaskBank":
        """`captions` of all images, in order, if any task says {caption}; `table` holds all prompts (`task.all_prompts`)."""
        filled = [[task.filled(caption) for caption in (captions or [""])] for task in tasks.values()]
        prompts = list(dict.fromkeys(prompt for task in filled for pair in task for prompt in pair))
        row = {prompt: number for number, prompt in enumerate(prompts)}
        source, target = (torch.tensor([[row[pair[side]] for pair in task] for task in filled]) for side in (0, 1))
        return cls(
            names=tuple(tasks),
            prompts=table.condition(prompts, negative),
            source=source,
            target=target,
            instruction=table.embed(task.instruction for task in tasks.values()),
            one_source=bool((source == source[:1]).all()),
        )

    def to(self, device: torch.device) -> "TaskBank":
        parts = {name: getattr(self, name).to(device) for name in ("prompts", "source", "target", "instruction")}
        return replace(self, **parts)

    def pick(self, positions: Sequence[int], each: int) -> Tensor:
        """`each` different tasks for every one of B images, [B * each]: those of one image follow one another.

        In turns, by the image's position in the endless order: every task comes equally often, in every batch and on every
        rank.
        """
        return torch.tensor([(p * each + m) % len(self.names) for p in positions for m in range(each)])

    def conditions(self, task: Tensor, caption: Tensor | None) -> tuple[Condition, Condition]:
        """Source and target of tasks [B] for images with captions number `caption` [B]."""
        caption = caption if caption is not None and self.source.shape[1] > 1 else torch.zeros_like(task)
        return self.prompts.at(self.source[task, caption]), self.prompts.at(self.target[task, caption])
