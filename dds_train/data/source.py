"""The interface of data sources, and which errors are a sample's own."""

import errno
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from dds_train.data.prompts import as_templates
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError

# {"z": latents [C,h,w]} or {"image": pixels [3,H,W] in [-1,1]}; of a source with captions also {"caption": its index []}
Sample = dict[str, Tensor]

# What the operating system says of one file: missing, not allowed, not a file. All other failures (too many open files, a
# broken disk, a lost connection, no memory) would hit any other sample as well.
ERRORS_OF_ONE_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


# Options by which an experiment samples its images: meaningless for a source of other images.
SAMPLING = {"prompts", "words", "count", "guidance", "steps", "batch_size", "seed", "cache"}


class Source(Protocol):
    """A source of training images. Its constructor gets the teacher's checkpoint if it has a parameter `checkpoint`."""

    @property
    def captions(self) -> Sequence[str]:
        """Captions of the images, after `prepare`; () if there are none. Read only for tasks with {caption} in a prompt."""
        ...

    def prepare(self) -> None:
        """Slow work that is needed once (sampling, downloading). Every process calls it, one at a time."""
        ...

    def dataset(self) -> Dataset[Sample]:
        """Map-style and sized; after `prepare`. A sample that raises an error is left out, counted and recorded by the error's
        message; a `StorageError`, or an OSError that is not about one file, stops the run. With a method ``name(index)``,
        reports name samples by more than their number; with an ``order`` (`data.order`), samples come in it; with a
        ``fingerprint``, a run stops whose ranks have others."""
        ...


class StorageError(UserError):
    """A failure to read data for which no single sample is responsible: the run stops, nothing is left out."""


def storage_error(error: BaseException, what: str) -> StorageError | None:
    """The StorageError for a failed read of `what`, or None if the sample itself is damaged, missing or not readable."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno not in {None, *ERRORS_OF_ONE_FILE}):
            return unreadable(cause, what)
        cause = cause.__cause__
    return None


def unreadable(error: OSError | MemoryError, what: str) -> StorageError:
    """The StorageError with the reason of `error` and its remedy."""
    code = error.errno if isinstance(error, OSError) else errno.ENOMEM
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "out of memory"
    remedy = {errno.EMFILE: "raise the limit (ulimit -n)", errno.ENOMEM: "lower workers or batch_size"}.get(
        code or 0, "check the disk and the path"
    )
    return StorageError(f"{what}: cannot be read ({reason}); {remedy} and run the same command again, which resumes")


def make_source(
    make: Callable[..., Source], options: Mapping[str, Any], checkpoint: DiffusionCheckpoint, prompts: Sequence[str]
) -> Source:
    """A data source of any class.

    Args:
        make: its constructor.
        options: arguments of the constructor; those of `SAMPLING` may be too many.
        checkpoint: the teacher's, for a parameter of that name.
        prompts: for a parameter of that name whose option is not set.

    Raises:
        UserError: for options that the constructor does not take.
    """
    parameters = inspect.signature(make).parameters
    arguments = {name: value for name, value in options.items() if name in parameters or name not in SAMPLING}
    if "checkpoint" in parameters:
        arguments["checkpoint"] = checkpoint
    if "prompts" in parameters and not arguments.get("prompts"):
        arguments["prompts"] = as_templates(prompts)
    try:
        return make(**arguments)
    except TypeError as error:
        raise UserError(f"data: {error}") from error


def image_size(checkpoint: DiffusionCheckpoint, size: int | None) -> int:
    """The side of training images in pixels: `size`, or that of the teacher. Loads no weights.

    Raises:
        UserError: if the VAE does not support it.
    """
    default, factor = checkpoint.image_size()
    if size is not None and (size < 1 or size % factor):
        raise UserError(f"data.size={size}: must be a positive multiple of {factor}, the VAE's downsampling factor")
    return size or default
