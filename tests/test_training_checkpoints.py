"""Checkpoints: their content, their number, and resuming from them."""

from collections.abc import Callable
from pathlib import Path

import torch
from training_runs import build, fit, trainer

from dds_train.training.checkpoints import Checkpoints
from dds_train.translator import load_translator


def test_resumed_training_ends_at_the_same_weights(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    whole = fit(build(tiny("epsilon")), trainer(tmp_path / "whole", 8))
    # Stopped after 6 of 8 steps, as by a kill; 6 is a multiple of the checkpoint's interval and 8 is not.
    first = trainer(tmp_path / "parts", 8, limit_train_batches=6)
    fit(build(tiny("epsilon")), first)
    resumed = fit(build(tiny("epsilon")), trainer(tmp_path / "parts", 8), tmp_path / "parts" / "ckpt" / "last.ckpt")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_checkpoints_hold_the_translator_alone(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    module = build(tiny("epsilon"))
    fit(module, trainer(tmp_path, 5))
    path = tmp_path / "ckpt" / "last.ckpt"
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "step-0000005.ckpt"]
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 5
    assert all(name.startswith("translator.") for name in saved["state_dict"])
    # What predict reads is the average, which is also what training ends with.
    translator, card = load_translator(path)
    assert card == module.translator_config
    for name, tensor in translator.state_dict().items():
        assert torch.equal(tensor, module.translator.state_dict()[name])
        assert torch.equal(tensor, saved["state_dict"][f"translator.{name}"])
    raw = saved["current_model_state"]
    assert any(not torch.equal(raw[name], saved["state_dict"][name]) for name in raw)
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == ["step-0000004.png", "step-0000005.png"]


def test_a_prolonged_run_keeps_no_more_checkpoints_than_asked(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Also with another interval, which is no reason to forget the earlier ones, and fewer of them."""
    last = tmp_path / "ckpt" / "last.ckpt"

    def numbered() -> list[str]:
        return sorted(path.name for path in last.parent.glob("step-*"))

    fit(build(tiny("epsilon")), trainer(tmp_path, 7, checkpoints=Checkpoints(last.parent, every=2, keep=3)))
    assert numbered() == ["step-0000004.ckpt", "step-0000006.ckpt", "step-0000007.ckpt"]
    fit(build(tiny("epsilon")), trainer(tmp_path, 8, checkpoints=Checkpoints(last.parent, every=5, keep=2)), last)
    assert numbered() == ["step-0000007.ckpt", "step-0000008.ckpt"]
    assert torch.load(last, weights_only=True)["global_step"] == 8
