"""Steps that are not finite and samples that cannot be read: left out, and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from training_runs import build, fit, latents, trainer

from dds_train.data.source import Sample
from dds_train.distillation import LOSSES
from dds_train.distillation.inject import inject
from dds_train.errors import UserError
from dds_train.training.data import SourceData


def test_a_step_with_a_non_finite_gradient_changes_nothing(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights after steps 1, 2, 3 of which the second explodes, against the same without the second."""

    def spoilt(steps: set[int], missing: set[int]) -> Callable[..., Any]:
        done = iter(range(100))

        def loss(*arguments: Any) -> Any:
            step, distilled = next(done), LOSSES["dds"](*arguments)
            z_target = arguments[2]
            return inject(z_target, distilled.grad * (float("nan") if step in steps else 0.0 if step in missing else 1.0))

        return loss

    def train(folder: str, **faults: set[int]) -> dict[str, Tensor]:
        from dds_train.training.schedules import Ramp

        sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "identity": Ramp(0.0, 0.0)}
        module = build(tiny("epsilon"), loss=spoilt(faults["steps"], faults["missing"]), **sgd)
        return fit(module, trainer(tmp_path / folder, 3, limit_val_batches=0))

    with_nan = train("nan", steps={1}, missing=set())
    without = train("without", steps=set(), missing={1})
    for name, tensor in with_nan.items():
        torch.testing.assert_close(tensor, without[name])
    assert (tmp_path / "nan" / "skipped.txt").read_text().startswith("step 1: gradient not finite")
    assert not (tmp_path / "without" / "skipped.txt").exists()
    module = build(tiny("epsilon"), loss=spoilt(set(range(100)), set()))
    with pytest.raises(UserError, match="3 steps in a row"):
        fit(module, trainer(tmp_path / "all", 50, limit_val_batches=0))


class Pages(Dataset[Sample]):
    """Latents of which some are broken, with names."""

    def __init__(self, broken: set[int]) -> None:
        self.samples, self.broken = latents(), broken

    def __len__(self) -> int:
        return 20

    def name(self, index: int) -> str:
        return f"{index}.png"

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise UserError(f"{index}.png: broken")
        return self.samples[index]


def test_bad_samples_are_recorded_and_too_many_stop_the_run(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Of 20 images, 4 held out: one of those, and three others in batches of one that then have none."""
    data = SourceData(Pages({2, 7, 9, 15}), batch_size=1, held_out=4, workers=0, seed=0)
    trainer(tmp_path, 15, limit_val_batches=0).fit(build(tiny("epsilon")), datamodule=data)
    first, *others = (tmp_path / "bad.txt").read_text().splitlines()
    assert first == "2.png: broken"
    assert sorted(others) == ["15.png: broken", "7.png: broken", "9.png: broken"]
    strict = trainer(tmp_path / "strict", 15, limit_val_batches=0, max_bad_fraction=0.2)
    with pytest.raises(UserError, match=r"4 of 15 samples .* max_bad_fraction=0\.2"):
        strict.fit(build(tiny("epsilon")), datamodule=data)
