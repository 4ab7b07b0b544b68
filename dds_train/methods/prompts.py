"""The prompts of an image, with its caption filled in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dds_train.errors import UserError
from dds_train.translator import Task


@dataclass(frozen=True)
class CaptionedPrompts:
    """Source and target prompt of an image, of templates that may contain {caption} (see `Task`).

    Attributes:
        caption_of: the caption of an image file that comes without one; called only for templates with {caption}.
        swap: words of captions, and what stands for them in the target.

    Raises:
        UserError: naming the image, if a caption makes no edit: source and target prompt are the same.
    """

    caption_of: Callable[[Path], str]
    swap: Mapping[str, str] | None

    def __call__(self, image: Path, source: str, target: str, caption: str | None = None) -> tuple[str, str]:
        task = Task(source, target, "", dict(self.swap or {}))
        if not task.needs_captions:
            return source, target
        text = caption or self.caption_of(image)
        before, after = task.filled(text)
        if before == after:
            lacks = "needs words to swap for others, such as swap.cat=lion"
            if self.swap:
                lacks = f"has none of the words of swap ({', '.join(self.swap)})"
            raise UserError(f"{image}: its caption {text!r} {lacks}: the target prompt would be the source prompt")
        return before, after
