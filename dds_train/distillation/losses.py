"""Score-distillation losses, by name.

All share one signature (`linear.linear_loss`). A new linear loss is an entry in `linear.LINEAR`; one of another kind is a file
of its own and an entry in `OTHERS`, or in `STATEFUL` if it learns while it is used.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dds_train.distillation.contrastive import cds_loss
from dds_train.distillation.fixed_point import ids_loss
from dds_train.distillation.inject import Distilled
from dds_train.distillation.linear import LINEAR, OF_VELOCITY, WEIGHTS, linear_loss
from dds_train.distillation.lusd import lusd_loss
from dds_train.distillation.noise import NoiseSchedule
from dds_train.distillation.variational import StudentFactory, vsd_loss

Loss = Callable[..., Distilled]


@runtime_checkable
class StatefulLoss(Protocol):
    """A loss with a second model that is fitted to the edits as they are made: state that is in no checkpoint, and on no other
    rank."""

    def __call__(self, *args: Any, **kwargs: Any) -> Distilled: ...

    def reset(self) -> None:
        """Forget all edits seen so far."""
        ...


def default_weight(name: str) -> str:
    return "velocity" if name in OF_VELOCITY else WEIGHTS[0]


OTHERS: dict[str, Loss] = {"cds": cds_loss, "ids": ids_loss, "lusd": lusd_loss}
LOSSES: dict[str, Loss] = {
    **{name: partial(linear_loss, name, weight=default_weight(name)) for name in LINEAR},
    **OTHERS,
}
STATEFUL: dict[str, Callable[..., StatefulLoss]] = {"vsd": vsd_loss}  # made from a `StudentFactory`
NULL_TERMS = ("edit_null", "input_null")
dds_loss, sds_loss = LOSSES["dds"], LOSSES["sds"]


def make_loss(name: str, student: StudentFactory | None = None, **options: Any) -> Loss:
    """The loss `name` with its own options bound.

    Args:
        student: makes a trainable copy of the teacher, for the losses that are `STATEFUL`.
        options: see `loss_options`.

    Raises:
        ValueError: for an unknown loss, option or weight, or a stateful loss without `student`.
    """
    unknown = set(options) - set(loss_options(name))
    if unknown:
        raise ValueError(f"loss {name} has no option {min(unknown)}; it takes {', '.join(loss_options(name))}")
    if options.get("weight", WEIGHTS[0]) not in WEIGHTS:
        raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {options['weight']!r}")
    if name in LOSSES:
        return partial(LOSSES[name], **options)
    if student is None:
        raise ValueError(f"loss {name} fits a second model to the edits: give `student`")
    return STATEFUL[name](student, **options)


def lowest_timestep(name: str, **options: Any) -> int:
    """The smallest t that the loss can be evaluated at: one with a `stride` looks back that many timesteps."""
    number: int = {**loss_options(name), **options}.get("stride", 0)
    return number


def needs_null(name: str, guidance: float) -> bool:
    """Whether a loss evaluates the empty prompt, which teachers with distilled guidance were not trained on."""
    if name not in LINEAR:
        return guidance != 1
    coefficients = LINEAR[name](NoiseSchedule.flow(), torch.tensor([500]), guidance)
    return any(isinstance(coefficients.get(term, 0), Tensor) or coefficients.get(term, 0) != 0 for term in NULL_TERMS)


def loss_options(name: str) -> dict[str, Any]:
    """The options of a loss and their defaults.

    Raises:
        ValueError: for an unknown loss.
    """
    functions = {**LINEAR, **OTHERS, **STATEFUL}
    if name not in functions:
        raise ValueError(f"loss must be one of {', '.join([*LOSSES, *STATEFUL])}, got {name!r}")
    parameters = inspect.signature(functions[name]).parameters.values()
    own = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {"weight": default_weight(name), **own}
