"""The tasks of a batch, and their prompts for teacher and translator."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dds_train.data.shards import ShardSource
from dds_train.data.source import Source
from dds_train.diffusion import DiffusionCheckpoint, PromptFile, PromptTable
from dds_train.distillation.guidance import Condition
from dds_train.distillation.prompt import Prompt
from dds_train.errors import UserError
from dds_train.runs.ranks import is_first_rank
from dds_train.translator import Task, all_prompts


def embed_tasks(
    tasks: Mapping[str, Task], source: Source, checkpoint: DiffusionCheckpoint, negative: str | None = None
) -> "TaskBank":
    """The tasks with their prompts, which are read from the file beside the shards, if that has all of them. Otherwise the text
    encoder is loaded, and freed; what it makes of captions stays on the disk, where the next run finds it."""
    captions = source.captions if any(task.needs_captions for task in tasks.values()) else ()
    check_captions(tasks, captions)
    prompts = ["", *all_prompts(tasks.values(), captions), *([negative] if negative else [])]
    shards = source.prompts if isinstance(source, ShardSource) else None
    if shards and not shards.missing(prompts):
        return TaskBank.embed(tasks, shards, captions, negative)
    embedded = checkpoint.embedded_in_cache if captions else checkpoint.embedded
    return TaskBank.embed(tasks, embedded(prompts), captions, negative)


def check_captions(tasks: Mapping[str, Task], captions: Sequence[str]) -> None:
    """Print how many captions make no edit: source and target prompt are the same, since they have no word to swap.

    Raises:
        UserError: if none makes one.
    """
    images = Counter(captions)
    for name, task in tasks.items():
        same = [text for text in images if task.needs_captions and len(set(task.filled(text))) == 1]
        if not same:
            continue
        count = sum(images[text] for text in same)
        lacks = f"{count} of {len(captions)} captions have no word of tasks.{name}.swap ({', '.join(task.swap)})"
        if len(same) == len(images):
            raise UserError(f"{lacks}, such as {same[0]!r}: give words that they have, such as tasks.{name}.swap.cat=lion")
        if is_first_rank():
            print(f"note: {lacks}, and their images teach it nothing; the first: {same[0]!r}", flush=True)


@dataclass(frozen=True)
class TaskBank:
    """K tasks with their prompts, which stay in the table, or on the disk: only those of a batch go to the device."""

    tasks: Mapping[str, Task]
    table: PromptTable | PromptFile  # all prompts of the tasks
    captions: Sequence[str]  # of all images, in order, if any task contains {caption}
    instruction: Prompt  # [K]
    null: Prompt  # [1]
    negative: Prompt | None  # [1]

    @classmethod
    def embed(
        cls,
        tasks: Mapping[str, Task],
        table: PromptTable | PromptFile,
        captions: Sequence[str] = (),
        negative: str | None = None,
    ) -> "TaskBank":
        """`table` holds all prompts of the tasks (`task.all_prompts`) and the negative one."""
        return cls(
            tasks=tasks,
            table=table,
            captions=captions,
            instruction=table.embed(task.instruction for task in tasks.values()),
            null=table.embed([""]),
            negative=None if negative is None else table.embed([negative]),
        )

    def to(self, device: torch.device) -> "TaskBank":
        negative = None if self.negative is None else self.negative.to(device)
        return replace(self, instruction=self.instruction.to(device), null=self.null.to(device), negative=negative)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tasks)

    @property
    def one_source(self) -> bool:
        """Whether all tasks have one source prompt, so that the edits of an image can share its source branch."""
        return len({task.source for task in self.tasks.values()}) == 1

    def pick(self, positions: Sequence[int], each: int) -> Tensor:
        """`each` different tasks for every one of B images, [B * each]: those of one image follow one another.

        In turns, by the image's position in the endless order: every task comes equally often, in every batch and on every
        rank.
        """
        return torch.tensor([(p * each + m) % len(self.tasks) for p in positions for m in range(each)])

    def conditions(self, task: Tensor, caption: Tensor | None) -> tuple[Condition, Condition]:
        """Source and target of tasks [B] for images with captions number `caption` [B]."""
        tasks = list(self.tasks.values())
        captions = [""] * len(task) if caption is None or not self.captions else [self.captions[i] for i in caption.tolist()]
        filled = [tasks[number].filled(text) for number, text in zip(task.tolist(), captions, strict=True)]
        sources, targets = zip(*filled, strict=True)
        return self._condition(sources), self._condition(targets)

    def _condition(self, texts: Sequence[str]) -> Condition:
        count, device = len(texts), self.null["text"].device
        negative = None if self.negative is None else self.negative.expand(count)
        return Condition(self.table.embed(texts).to(device), self.null.expand(count), negative)
