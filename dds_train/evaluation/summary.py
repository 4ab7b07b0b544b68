"""Values of metrics over all items, for each method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistic:
    """NaN values are left out of the mean and counted; infinite ones stay in, and leave no standard error."""

    mean: float  # or the value of the whole set, for metrics of sets
    error: float  # standard error of the mean; NaN for metrics of sets and for fewer than two values
    count: int  # values that are numbers
    nan: int


Summary = Mapping[str, Mapping[str, Statistic]]  # by method and metric


def statistic(values: Sequence[float]) -> Statistic:
    good = [value for value in values if not math.isnan(value)]
    finite = bool(good) and not any(map(math.isinf, good))
    mean = math.fsum(good) / len(good) if finite else sum(good) if good else math.nan
    error = math.nan
    if finite and len(good) > 1:
        error = math.sqrt(math.fsum((value - mean) ** 2 for value in good) / (len(good) - 1) / len(good))
    return Statistic(mean, error, len(good), len(values) - len(good))
