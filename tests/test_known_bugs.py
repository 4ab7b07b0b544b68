"""Bugs that public implementations of these losses have had, and what keeps them out here.

A test of its own, elsewhere:
- a mask that SDS heeds and DDS ignores: test_optimize.py, test_masks_work_with_every_loss
- a contrastive term that looks at the first image alone: test_contrastive.py, test_gradient_is_that_of_a_slow_implementation...
- the same noise on every rank: test_tasks.py and test_data_batches.py, ranks against one process
- a v-prediction model taken for one that predicts noise: test_teacher.py
- a non-finite gradient papered over by nan_to_num: test_training_sentinels.py, steps are skipped and named

Here: options that are read and never passed on, branches that nobody ever ran, guidance that is off by one, and an image
decoded at every step for nothing.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from configuration import configure
from gaussian import GaussianTeacher, condition, schedule
from torch import Tensor

from dds_train.cli.conf import CONF
from dds_train.commands import optimize
from dds_train.diffusion import Autoencoder, DiffusionCheckpoint
from dds_train.distillation import Condition, Prompt
from dds_train.distillation.guidance import guided_eps
from dds_train.distillation.losses import loss_options, make_loss
from dds_train.methods.student import LoRAStudent

OTHER = {
    "source_guidance": 2.0,
    "weight": "sigma2",
    "pools": [2],
    "patches": 8,
    "clean_below": 950,
    "stride": 5,
    "iterations": 1,
    "redraw_range": [600, 610],
}
ONLY_WITH = {"redraw_range": {"redraw_below": 1.0}}
OPTIONS = [
    (path.stem, option)
    for path in sorted((CONF / "loss").glob("*.yaml"))
    for option in yaml.safe_load(path.read_text())
    if option not in ("name", "negative")
]


@pytest.mark.parametrize(("loss", "option"), OPTIONS)
def test_every_option_of_every_loss_arrives(tiny: Callable[[str], Path], loss: str, option: str) -> None:
    parts = DiffusionCheckpoint(str(tiny("epsilon")))
    teacher = parts.teacher()
    draws = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(3, 2, 5, 32, generator=torch.Generator().manual_seed(1))
    first, second, null, negative = (Prompt({"text": one}) for one in (text[0], text[1] + text[2], text[1], text[2]))
    source, target = Condition(first, null, negative), Condition(second, null, negative)

    def gradient(**changed: Any) -> Tensor:
        made = make_loss(loss, student=partial(LoRAStudent, parts), **changed)
        made(teacher, draws[1], draws[0], source, target, torch.tensor([300, 900]), draws[2], 3.0)  # for vsd, which learns
        return made(teacher, draws[0], draws[1], source, target, torch.tensor([300, 900]), draws[2], 3.0).grad

    usual = loss_options(loss)[option]
    base = ONLY_WITH.get(option, {})
    changed = {option: OTHER[option] if option in OTHER else usual * 2 + 1}
    assert not torch.equal(gradient(**base), gradient(**base, **changed))


def test_a_negative_prompt_arrives(tiny: Callable[[str], Path]) -> None:
    text = DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder()
    one, other = (text.condition("a lion", negative).negative for negative in ("blurry", "ugly"))
    assert one is not None
    assert other is not None
    assert not torch.equal(one["text"], other["text"])


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_guidance_of_one_is_none(guidance: float) -> None:
    """Others write ``text + s (text - null)``, which is this at s = guidance - 1."""
    teacher, cond = GaussianTeacher(schedule()), condition(0.5)
    z_t, t = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.tensor([500])
    text, null = (teacher.predict_eps(z_t, t, prompt) for prompt in (cond.text, cond.null))
    torch.testing.assert_close(guided_eps(teacher, z_t, t, cond, guidance), text + (guidance - 1) * (text - null))


@pytest.mark.parametrize(("snapshots", "decodings"), [(0, 1), (4, 4)])
def test_nothing_is_decoded_that_nobody_sees(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshots: int, decodings: int
) -> None:
    decoded: list[int] = []
    decode = Autoencoder.decode

    def counting(self: Autoencoder, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        decoded.append(len(z))
        return decode(self, z, size)

    monkeypatch.setattr(Autoencoder, "decode", counting)
    example = Path(__file__).parents[1] / "data" / "examples" / "cat1.png"
    given = [f"image={example}", "source=cat", "target=lion", "steps=8", f"snapshots={snapshots}"]
    optimize.run(configure("optimize", *given, f"teacher.path={tiny('epsilon')}", f"output_dir={tmp_path}"))
    assert sum(decoded) == decodings
