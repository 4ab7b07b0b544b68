"""Checkpoints: their content, their number, and resuming from them."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from training_runs import build, fit, trainer

from dds_train.errors import UserError
from dds_train.runs.signals import StopRequest
from dds_train.training.checkpoints import Checkpoints, SaveOnSignal, find_checkpoint
from dds_train.training.module import DistillationModule
from dds_train.translator import load_translator
from dds_train.translator.files import FORMAT, OtherFormat


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


def test_a_damaged_checkpoint_is_passed_over_and_one_of_a_newer_version_is_not(
    tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(build(tiny("epsilon")), trainer(tmp_path, 3))
    folder = tmp_path / "ckpt"
    last, content = folder / "last.ckpt", (folder / "last.ckpt").read_bytes()
    middle = len(content) // 2
    last.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])  # in the weights: torch reads it
    assert torch.load(last, weights_only=True)["global_step"] == 3
    found = find_checkpoint("auto", folder)
    assert found is not None
    assert found.path == folder / "step-0000003.ckpt"
    assert "last.ckpt is corrupted" in capsys.readouterr().out
    with pytest.raises(UserError, match="corrupted"):
        find_checkpoint(str(last), folder)
    saved = torch.load(folder / "step-0000003.ckpt", weights_only=True)
    torch.save({**saved, "translator_config": {**saved["translator_config"], "format": FORMAT + 1}}, last)
    with pytest.raises(OtherFormat, match=rf"last.ckpt: written in the newer format {FORMAT + 1}.* upgrade dds_train"):
        find_checkpoint("auto", folder)


def test_the_state_of_another_optimizer_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    fit(build(tiny("epsilon")), trainer(tmp_path, 3))
    sgd = build(tiny("epsilon"), optimizer=lambda p: torch.optim.SGD(p, lr=1e-3))
    with pytest.raises(UserError, match="optimizer: not the one"):
        fit(sgd, trainer(tmp_path / "sgd", 4), tmp_path / "ckpt" / "last.ckpt")


def test_weights_that_are_not_finite_replace_no_checkpoint(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: DistillationModule, *_: object) -> None:  # type: ignore[override]
            if trainer.global_step == 5:
                pl_module.translator.unet.conv_out.bias.data[0] = float("inf")

    with pytest.raises(UserError, match="training step 5: the weights are NaN or Inf, and not saved"):
        fit(build(tiny("epsilon")), trainer(tmp_path, 5, more=[Spoil()]))
    assert torch.load(tmp_path / "ckpt" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_validation_is_left_at_a_signal_and_nothing_is_lost(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The weights of the last step are saved, not the averaged ones that validation works with."""

    class Interrupt(Callback):
        def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    whole, parts = trainer(tmp_path / "whole", 7), tmp_path / "parts"
    expected = fit(build(tiny("epsilon")), whole)
    interrupted = build(tiny("epsilon"))
    distill, used = interrupted.distill, []
    interrupted.distill = lambda *given: used.append(given[-1]) or distill(*given)  # type: ignore[method-assign,func-returns-value,misc]
    with pytest.raises(SystemExit) as end:
        fit(interrupted, trainer(parts, 7, more=[Interrupt(), SaveOnSignal(parts / "ckpt", StopRequest())]))
    assert end.value.code == 143
    assert used.count("validation") == 2  # both tasks of the first validation
    assert torch.load(parts / "ckpt" / "last.ckpt", weights_only=True)["global_step"] == 4
    shutil.rmtree(parts / "previews")
    resumed = trainer(parts, 7)
    weights = fit(build(tiny("epsilon")), resumed, parts / "ckpt" / "last.ckpt")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert resumed.callback_metrics["val/grad_rms"] == whole.callback_metrics["val/grad_rms"]
