"""Tasks: the edits that a translator learns, as text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CAPTION = "{caption}"


@dataclass(frozen=True)
class Task:
    """One edit: a source and a target prompt for the teacher, an instruction for the translator.

    `source` and `target` may contain {caption}, which stands for each image's own caption; in the target with the words of
    `swap` exchanged, all at once and longer ones first: source "{caption}", target "{caption}", swap {"cat": "lion"}.
    """

    source: str  # prompt that describes the inputs
    target: str  # prompt that describes the outputs
    instruction: str  # prompt of the translator
    swap: dict[str, str] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)  # of critters: the parameters that the exact edit changes

    def __post_init__(self) -> None:
        if CAPTION in self.instruction:
            raise ValueError(f"instruction={self.instruction!r}: is one for all images, so it cannot contain {CAPTION}")

    @property
    def needs_captions(self) -> bool:
        return CAPTION in self.source + self.target

    def filled(self, caption: str) -> tuple[str, str]:
        """Source and target prompt of an image with this caption."""
        swapped = caption
        if self.swap:
            words = "|".join(map(re.escape, sorted(self.swap, key=len, reverse=True)))
            swapped = re.sub(rf"\b(?:{words})\b", lambda found: self.swap[found[0]], caption)
        return self.source.replace(CAPTION, caption), self.target.replace(CAPTION, swapped)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_tasks(
    tasks: Mapping[str, Mapping[str, Any]], source: str | None, target: str | None, instruction: str | None
) -> dict[str, Task]:
    """Tasks from partial ones, which take what they lack from `source`, `target` and, if there is one, `instruction`.

    The default instruction is the target prompt; the task's name, if the target contains {caption}. Without tasks it is one,
    called "edit".

    Raises:
        ValueError: for an instruction that contains {caption}.
    """
    made = {}
    for name, given in (tasks or {"edit": {}}).items():
        fields: dict[str, Any] = {"source": source, "target": target, **{key: one for key, one in given.items() if one}}
        default = name if CAPTION in fields["target"] else fields["target"]
        fields.setdefault("instruction", (instruction if len(tasks) <= 1 else None) or default)
        made[name] = Task(**fields)
    return made


def all_prompts(tasks: Iterable[Task], captions: Sequence[str] = ()) -> list[str]:
    """Every prompt of these tasks for images with these captions, each once."""
    prompts: dict[str, None] = {}
    for task in tasks:
        prompts[task.instruction] = None
        for caption in dict.fromkeys(captions) if task.needs_captions else [""]:
            prompts.update(dict.fromkeys(task.filled(caption)))
    return list(prompts)
