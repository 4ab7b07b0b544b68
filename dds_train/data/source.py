"""What a data source is."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError

# {"z": latents [C,h,w]} or {"image": pixels [3,S,S] in [-1,1]}; of a source with captions also {"caption": its number []}
Sample = dict[str, Tensor]


class Source(Protocol):
    """Where the images to translate come from."""

    @property
    def captions(self) -> Sequence[str]:
        """Of the images, after `prepare`; () if there are none. Read only for tasks that say {caption}."""
        ...

    def prepare(self) -> None:
        """Whatever takes long and is needed once (drawing, downloading). Every process calls it, one at a time."""
        ...

    def dataset(self) -> Dataset[Sample]:
        """Map-style and sized; after `prepare`. A sample that cannot be read raises an error that names it: it is left out,
        counted, and written down."""
        ...


def image_size(checkpoint: DiffusionCheckpoint, size: int | None) -> int:
    """The side in pixels of training images: as asked for, or the teacher's own. Loads no weights.

    Raises:
        UserError: if the codec cannot work at that size.
    """
    own, factor = checkpoint.image_size()
    if size is not None and (size < 1 or size % factor):
        raise UserError(f"data.size={size}: the codec needs a positive multiple of {factor}")
    return size or own
