"""What a metric is: its name, direction and meaning, and how it is measured."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dds_train.evaluation.items import EvaluationItem, ItemImages

T = TypeVar("T")
HIGHER, LOWER, NEITHER = 1, -1, 0


class Network(Generic[T]):
    """A model that metrics need, loaded on first use.

    Args:
        name: as in results, where values by other weights are other values.
        weights: path or id of the weights.
        load: raises UserError if they are unavailable, saying how to get them.
    """

    def __init__(self, name: str, weights: str, load: Callable[[], T]) -> None:
        self.name, self.weights, self._load = name, weights, load

    @cached_property
    def model(self) -> T:
        return self._load()


class Sharing:
    """Intermediate results that several metrics share."""

    def __init__(self) -> None:
        self._shared: dict[Any, Any] = {}

    def shared(self, compute: Callable[[Any], T]) -> T:
        """`compute(self)`, computed once."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        result: T = self._shared[compute]
        return result


@dataclass
class Batch(Sharing):
    """Results of one method for items of one size."""

    items: Sequence[EvaluationItem]
    images: Sequence[ItemImages]
    outputs: Tensor  # [B,3,H,W] in [-1,1]
    seconds: float = float("nan")  # per image
    peak_mib: float = float("nan")  # of the batch

    def __post_init__(self) -> None:
        super().__init__()
        self.sources, self.targets = [item.source for item in self.items], [item.target for item in self.items]
        self.inputs = torch.cat([one.image for one in self.images])

    @property
    def truths(self) -> Tensor:
        """Ground truth [B,3,H,W], for items that have one."""
        return torch.cat([one.truth for one in self.images if one.truth is not None])

    @property
    def masks(self) -> Tensor:
        """[B,1,H,W], for items that have one."""
        return torch.cat([one.mask for one in self.images if one.mask is not None])

    def part(self, rows: Sequence[int]) -> "Batch":
        items, images = [self.items[row] for row in rows], [self.images[row] for row in rows]
        return Batch(items, images, self.outputs[list(rows)], self.seconds, self.peak_mib)


@dataclass
class ResultSet(Sharing):
    """All results of one method but those that diverged."""

    items: Sequence[EvaluationItem]
    outputs: Callable[[], Iterable[Tensor]]  # [3,H,W] in [-1,1], one for each item
    values: Mapping[str, Sequence[float]]  # per-image values by metric, one for each item; NaN where there is none

    def __post_init__(self) -> None:
        super().__init__()


def applies_to_all(item: EvaluationItem) -> bool:
    return True


def has_truth(item: EvaluationItem) -> bool:
    return item.has_truth


def has_mask(item: EvaluationItem) -> bool:
    return item.has_mask


@dataclass(frozen=True)
class Metric:
    """One metric, per image, per set of images, or both: then the value of the set stands in place of the mean."""

    name: str
    direction: int  # HIGHER or LOWER is better, or NEITHER
    meaning: str  # in a line
    unit: str = ""
    per_image: Callable[[Batch], Tensor] | None = None  # [B]
    per_set: Callable[[ResultSet], float] | None = None
    applies: Callable[[EvaluationItem], bool] = applies_to_all
    network: Network[Any] | None = None
    exact: bool = False  # by the exact ground truth of critters: where there is one, table.md has these metrics alone
    decimals: int = 2  # in table.md
    of_diverged: bool = False  # also of results that diverged (NaN or Inf), for which other metrics are NaN
