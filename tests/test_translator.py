"""The translator at birth, on disk, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from dds_train.distillation import Prompt
from dds_train.errors import UserError
from dds_train.translator import Task, TranslatorConfig, UNetTranslator, export_translator, load_translator

SHAPE = {"latent_channels": 4, "text_dim": 32, "channels": [16, 32], "attention": [True, False], "heads": 2, "groups": 8}


def card() -> TranslatorConfig:
    tasks = {"edit": Task("a cat", "a lion", "make it a lion")}
    return TranslatorConfig(tasks, "bundled", {"kind": "unet", **SHAPE, "depth": 1})


def trained() -> UNetTranslator:
    translator = UNetTranslator(**SHAPE)
    torch.nn.init.normal_(translator.unet.conv_out.weight)
    return translator.eval()


def inputs() -> tuple[torch.Tensor, Prompt]:
    return torch.randn(3, 4, 9, 6), Prompt({"text": torch.randn(3, 7, 32)})


def test_at_birth_the_output_is_the_input() -> None:
    z, text = inputs()
    assert torch.equal(UNetTranslator(**SHAPE)(z, text, torch.ones(3)), z)


def test_strength_scales_the_change() -> None:
    translator, (z, text) = trained(), inputs()
    with torch.no_grad():
        full, half, none = (translator(z, text, torch.full((3,), s)) for s in (1.0, 0.5, 0.0))
    assert torch.equal(none, z)
    assert not torch.allclose(full, z)
    torch.testing.assert_close(half - z, (full - z) / 2)


def test_the_instruction_matters() -> None:
    translator, (z, text) = trained(), inputs()
    with torch.no_grad():
        assert not torch.allclose(
            translator(z, text, torch.ones(3)), translator(z, text[torch.tensor([2, 1, 0])], torch.ones(3))
        )


def test_export_round_trip(tmp_path: Path) -> None:
    translator, (z, text) = trained(), inputs()
    export_translator(tmp_path / "t", translator, card(), "Notes.")
    again, read = load_translator(tmp_path / "t")
    assert read == card()
    with torch.no_grad():
        assert torch.equal(again(z, text, torch.ones(3)), translator(z, text, torch.ones(3)))
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["README.md", "config.json", "translator.safetensors"]
    assert "make it a lion" in (tmp_path / "t" / "README.md").read_text()


def test_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    export_translator(tmp_path / "later", trained(), card())
    config = json.loads((tmp_path / "later" / "config.json").read_text())
    (tmp_path / "later" / "config.json").write_text(json.dumps({**config, "format": 99}))
    export_translator(tmp_path / "other", trained(), card())
    wrong = {**config, "translator": {**config["translator"], "channels": [8, 16]}}
    (tmp_path / "other" / "config.json").write_text(json.dumps(wrong))
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"translator_config": print}, tmp_path / "code.ckpt")
    (tmp_path / "empty").mkdir()
    for name, reason in {
        "identity": "no such file",
        "later": "newer format 99",
        "other": "corrupted, or not a translator",
        "text.ckpt": "not a checkpoint",
        "foreign.ckpt": "not one of dds_train",
        "code.ckpt": "not a checkpoint",
        "empty": "not a translator folder",
    }.items():
        with pytest.raises(UserError, match=reason) as error:
            load_translator(tmp_path / name)
        assert "\n" not in str(error.value)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="groups"):
        UNetTranslator(**{**SHAPE, "groups": 7})
    with pytest.raises(ValueError, match="attention"):
        UNetTranslator(**{**SHAPE, "attention": [True]})
