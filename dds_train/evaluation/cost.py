"""What an edit costs: time and memory."""

import contextlib
import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def cost(work: Callable[[], T], device: str) -> tuple[T, float, float]:
    """What `work` returns, the seconds it took, and the memory in use at most meanwhile, in MiB: what torch has allocated on a
    CUDA device, elsewhere the resident memory of this process (NaN where the system does not tell)."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    else:
        reset_peak()
    began = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    return result, seconds, torch.cuda.max_memory_allocated(device) / 2**20 if cuda else peak()


def reset_peak() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed goes back to the system
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then `peak` is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return float("nan")
    return int(found[1]) / 1024 if found else float("nan")
