"""Schedules over training."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """A half cosine from `start` to `end` over the first `fraction` of training, then constant.

    Raises:
        ValueError: if `fraction` is outside [0, 1].
    """

    start: float
    end: float
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"a ramp's fraction must be in [0, 1], got {self.fraction}")

    def __call__(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        if progress >= self.fraction:
            return self.end
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress / self.fraction))
