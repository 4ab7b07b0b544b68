"""Validation on critters."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from torch import Tensor
from training_runs import TASKS, build

from dds_train.critters.dataset import to_tensor
from dds_train.critters.scores import score_edit
from dds_train.training import validation
from dds_train.training.validation import CritterValidation


def test_critters_in_parts_score_as_all_together_and_can_be_left(tiny: Callable[[str], Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(validation, "CHUNK", 2)
    module = build(tiny("epsilon"), {"lion": replace(TASKS["lion"], truth={"species": "lion"})})
    autoencoder, decoded = Mock(), list[Tensor]()
    scored = CritterValidation(module.tasks.tasks, autoencoder, 5, {"species": "cat"})
    autoencoder.encode = lambda images: torch.zeros(len(images), 4, 8, 8)
    truths = torch.stack([to_tensor(one.replaced(species="lion") if n < 3 else one) for n, one in enumerate(scored.critters)])

    def decode(z: Tensor) -> Tensor:
        decoded.append(truths[2 * len(decoded) :][: len(z)])
        return decoded[-1]

    autoencoder.decode = decode
    logged: dict[str, float] = {}
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign,assignment]
    scored.on_validation_epoch_end(Mock(), module)
    whole = score_edit(truths, scored.critters, {"species": "lion"})
    assert [len(images) for images in decoded] == [2, 2, 1]
    assert abs(logged["val/gap_closed"] - whole.gap_closed) < 1e-12
    assert abs(logged["val/edit_accuracy"] - whole.edit_accuracy) < 1e-12

    decoded.clear(), logged.clear()
    module.should_stop = lambda: len(decoded) == 1
    scored.on_validation_epoch_end(Mock(), module)
    assert len(decoded) == 1
    assert not logged
