"""What a translator is asked to do, in words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CAPTION = "{caption}"


@dataclass(frozen=True)
class Task:
    """One edit: two captions for the teacher, one instruction for the translator.

    `source` and `target` may say {caption}, which stands for each image's own caption; in the target with the words of `swap`
    exchanged: source "{caption}", target "{caption}", swap {"cat": "lion"}.
    """

    source: str  # what the inputs show
    target: str  # what is wanted
    instruction: str  # what the translator is told
    swap: dict[str, str] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)  # of critters: the parameters that the exact edit changes

    def __post_init__(self) -> None:
        if CAPTION in self.instruction:
            raise ValueError(f"instruction={self.instruction!r}: is one for all images, so it cannot say {CAPTION}")

    @property
    def needs_captions(self) -> bool:
        return CAPTION in self.source + self.target

    def filled(self, caption: str) -> tuple[str, str]:
        """Source and target for an image with this caption."""
        swapped = caption
        for old, new in self.swap.items():
            swapped = re.sub(rf"\b{re.escape(old)}\b", new, swapped)
        return self.source.replace(CAPTION, caption), self.target.replace(CAPTION, swapped)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tasks_from(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    return {name: Task(**fields) for name, fields in plain.items()}


def all_prompts(tasks: Iterable[Task], captions: Sequence[str] = ()) -> list[str]:
    """Every prompt that these tasks say of images with these captions, each once."""
    said: dict[str, None] = {}
    for task in tasks:
        said[task.instruction] = None
        for caption in dict.fromkeys(captions) if task.needs_captions else [""]:
            said.update(dict.fromkeys(task.filled(caption)))
    return list(said)
