"""Device and precision."""

import torch

from dds_train.errors import UserError
from dds_train.runs.ranks import local_rank

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def find_device(name: str = "auto") -> str:
    """The device of that name; auto takes a GPU if there is one.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here; take device=auto or device=cpu") from error
    return name


def find_rank_device(name: str = "auto") -> str:
    """`find_device` for one of several processes: each rank has a GPU of its own, also where it sees no other."""
    device = find_device(name)
    return f"cuda:{local_rank() % torch.cuda.device_count()}" if device == "cuda" else device


def find_dtype(name: str, device: str) -> torch.dtype:
    """The precision of that name; auto takes float16 on a GPU and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    return DTYPES[name]
