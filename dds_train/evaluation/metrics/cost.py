"""Cost and failures: time, memory, diverged results."""

import contextlib
import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dds_train.evaluation.metrics.metric import LOWER, Batch, Metric

T = TypeVar("T")


def cost(work: Callable[[], T], device: str) -> tuple[T, float, float]:
    """The result of `work`, its seconds, and its peak memory in MiB: what torch allocates on a CUDA device, elsewhere the
    resident memory of this process (NaN where the system does not report it)."""
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
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier work has freed goes back to the system
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then `peak` is that of the process's whole life
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak() -> float:
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return float("nan")
    return int(found[1]) / 1024 if found else float("nan")


def diverged(batch: Batch) -> Tensor:
    """[B] in {0,1}, 1 for outputs with NaN or Inf."""
    return 1 - batch.outputs.isfinite().flatten(1).all(dim=1).double()


def repeated(batch: Batch, value: float) -> Tensor:
    return torch.full((len(batch.items),), value, dtype=torch.float64)


SECONDS = Metric(
    "s / image",
    LOWER,
    "seconds per image, without loading models",
    unit="s",
    per_image=lambda batch: repeated(batch, batch.seconds),
    exact=True,
    decimals=3,
    of_diverged=True,
)
PEAK_MIB = Metric(
    "peak MiB",
    LOWER,
    "peak memory while editing, loaded models included",
    unit="MiB",
    per_image=lambda batch: repeated(batch, batch.peak_mib),
    decimals=0,
    of_diverged=True,
)
DIVERGED = Metric(
    "diverged",
    LOWER,
    "share of results that diverged (NaN or Inf); other metrics are means over the rest",
    per_image=diverged,
    of_diverged=True,
)
