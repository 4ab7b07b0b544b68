"""The device to work on."""

import torch

from dds_train.errors import UserError


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
