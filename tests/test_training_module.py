"""The training step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from training_runs import TASKS, build, fit, trainer

from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.distillation import LOSSES
from dds_train.training.schedules import Ramp
from dds_train.training.tasks import TaskBank
from dds_train.translator import all_prompts


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_trains(tiny: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    prompts = PromptTable.of(DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder(), [*all_prompts(TASKS.values()), "blurry"])
    module = build(tiny("epsilon"), loss=LOSSES[name], tasks_per_image=2, identity=Ramp(0.0, 0.0, 1.0))
    module.tasks = TaskBank.embed(TASKS, prompts, (), "blurry")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    after = fit(module, trainer(tmp_path, 3))
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[key], before[key]) for key in after)
    assert all(p.grad is None for p in module.teacher.network.parameters())


def test_the_teacher_is_untouched_and_the_translator_learns(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    module = build(tiny("v_prediction"))
    before = {name: tensor.clone() for name, tensor in module.teacher.network.state_dict().items()}
    start = module.translator.unet.conv_out.weight.clone()
    fit(module, trainer(tmp_path, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.teacher.network.state_dict().items())
    assert not torch.equal(start, module.translator.unet.conv_out.weight)


def test_accumulated_batches_have_noise_of_their_own(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    seen = []

    def spy(
        teacher: Any, z_source: Tensor, z_target: Tensor, source: Any, target: Any, t: Tensor, eps: Tensor, guidance: float
    ) -> Any:
        seen.append(eps.sum().item())
        return LOSSES["dds"](teacher, z_source, z_target, source, target, t, eps, guidance)

    fit(build(tiny("epsilon"), loss=spy), trainer(tmp_path, 2, accumulate_grad_batches=3, limit_val_batches=0))
    assert len(seen) == len(set(seen)) == 6


def test_the_gradient_is_that_of_dds_and_identity(tiny: Callable[[str], Path]) -> None:
    """One training step's gradient on the output, against the formula, with the teacher called by hand."""
    module = build(tiny("epsilon"), identity=Ramp(0.5, 0.5), guidance=Ramp(2.0, 2.0))
    shift = torch.randn(3, 4, 8, 8)
    output: list[Tensor] = []

    class Shifted(torch.nn.Module):
        def forward(self, z: Tensor, text: Tensor, strength: Tensor) -> Tensor:
            output.append((z + shift).requires_grad_())
            return output[0]

    module.translator = Shifted()
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    module._trainer = pl.Trainer(max_steps=10, logger=False, accelerator="cpu", enable_progress_bar=False)
    z = torch.randn(3, 4, 8, 8)
    module.training_step({"z": z, "position": [7, 8, 9]}, 0)["loss"].backward()  # type: ignore[index]
    from dds_train.distillation.rng import draw

    t, eps = draw(z.shape[1:], (50, 950), "cpu", [(0, "training", position) for position in (7, 8, 9)])
    text = DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder()
    source, target = text.condition(["a cat"] * 3), text.condition(["a dog", "a lion", "a dog"])
    grad = LOSSES["dds"](module.teacher, z, z + shift, source, target, t, eps, 2.0).grad
    assert output[0].grad is not None
    torch.testing.assert_close(output[0].grad, (grad + 0.5 * shift) / 3 / z[0].numel())
