"""The translator at birth, on disk, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

import dds_train
from dds_train.diffusion.families import find_family
from dds_train.distillation import Prompt
from dds_train.errors import UserError
from dds_train.translator import (
    Task,
    TranslatorConfig,
    UNetTranslator,
    export_translator,
    load_translator,
    make_translator,
    read_config,
    read_weights,
)
from dds_train.translator.files import FORMAT

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


def test_output_is_the_input_at_initialisation() -> None:
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
    config = json.loads((tmp_path / "other" / "config.json").read_text())
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


def test_a_cut_configuration_is_refused_in_one_line(tmp_path: Path) -> None:
    export_translator(tmp_path, trained(), card())
    text = (tmp_path / "config.json").read_text()
    plain = json.loads(text)
    task = next(iter(plain["tasks"].values()))
    cut = [text[: len(text) * part // 8] for part in range(8)]
    other = [{**plain, key: value} for key in ("tasks", "translator", "format") for value in (None, {}, [], 7, "x")]
    other += [{**plain, "tasks": {"a": {**task, key: None}}} for key in ("source", "target", "instruction")]
    for content in [*cut, *map(json.dumps, [*other, None, [], 7])]:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"ckpt=.*(corrupted|format)") as error:
            load_translator(tmp_path)
        assert "\n" not in str(error.value)


def test_newer_and_older_formats_are_reported_as_such(tmp_path: Path) -> None:
    export_translator(tmp_path / "newer", trained(), card())
    config = json.loads((tmp_path / "newer" / "config.json").read_text())
    # A newer configuration may look different in any way but for these two.
    (tmp_path / "newer" / "config.json").write_text(json.dumps({"format": FORMAT + 1, "version": "9.9.9"}))
    torch.save({"translator_config": {"format": FORMAT + 1, "version": "9.9.9"}, "state_dict": {}}, tmp_path / "newer.ckpt")
    for name in ("newer", "newer.ckpt"):
        with pytest.raises(UserError, match=rf"newer format {FORMAT + 1} by dds_train 9.9.9; .*upgrade dds_train") as error:
            read_config(tmp_path / name)
        assert "corrupted" not in str(error.value)
    (tmp_path / "newer" / "config.json").write_text(json.dumps({**config, "format": FORMAT - 1}))
    with pytest.raises(UserError, match=f"written in format {FORMAT - 1} by an older dds_train; .*train it again"):
        read_config(tmp_path / "newer")


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("heads", [-1, 0, "2", 2.0, None, True, 3]),
        ("depth", [0, 10**9, float("nan"), [1]]),
        ("channels", [[16, 2**14], [16, -32], [], 16, "ab", [16, float("inf")], [[16], [32]]]),
        ("attention", [[1, 0], "ab", [True], None]),
        ("groups", [5, 10**12]),
        ("latent_channels", [2**10, "4"]),
        ("kind", ["lora2", None, ["unet"], "teacher_init"]),
    ],
)
def test_a_hostile_configuration_takes_no_memory_and_one_line(tmp_path: Path, key: str, values: list[object]) -> None:
    export_translator(tmp_path, trained(), card())
    plain = json.loads((tmp_path / "config.json").read_text())
    for value in values:
        (tmp_path / "config.json").write_text(json.dumps({**plain, "translator": {**plain["translator"], key: value}}))
        with pytest.raises(UserError, match="corrupted, or not a translator") as error:
            load_translator(tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"translator\.rank=.*whole numbers"):
        make_translator({"kind": "lora", "rank": 10**9}, lambda: pytest.fail("loads the teacher"), find_family("FluxPipeline"))


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": 5},
        {"teacher_weights": ["vae"]},
        {"tasks": {"a": {"source": "a", "target": "b", "instruction": "c", "swap": "x"}}},
    ],
)
def test_other_types_are_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    export_translator(tmp_path, trained(), card())
    plain = json.loads((tmp_path / "config.json").read_text())
    for content in ({**plain, **change}, {key: value for key, value in plain.items() if key not in change}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="corrupted, or not a translator") as error:
            read_config(tmp_path)
        assert "\n" not in str(error.value)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    export_translator(tmp_path, trained(), card())
    path = tmp_path / "translator.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"translator\.safetensors is damaged"):
        load_translator(tmp_path)


def test_a_damaged_checkpoint_is_never_read(tmp_path: Path) -> None:
    """A block of zeros at each of 60 places: refused, or without effect on what is read."""
    state = {f"translator.{name}": tensor for name, tensor in trained().state_dict().items()}
    whole, path = tmp_path / "whole.ckpt", tmp_path / "damaged.ckpt"
    torch.save({"translator_config": card().to_dict(), "state_dict": state, "global_step": 3}, whole)
    content, refused = whole.read_bytes(), 0
    for number in range(60):
        start = number * len(content) // 60
        path.write_bytes(content[:start] + bytes(512) + content[start + 512 :])
        try:
            weights, config = read_weights(path), read_config(path)
        except UserError:
            refused += 1
            continue
        assert config == card()
        assert all(torch.equal(weights[name.removeprefix("translator.")], state[name]) for name in state)
    assert refused > 50


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path, value: float) -> None:
    translator = trained()
    translator.unet.conv_out.weight.data[0, 0, 0, 0] = value
    with pytest.raises(UserError, match="NaN or Inf"):
        export_translator(tmp_path / "translator", translator, card())
    assert not (tmp_path / "translator").exists()


def test_the_version_is_in_every_configuration(tmp_path: Path) -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{dds_train.__version__}"\n' in pyproject
    export_translator(tmp_path, trained(), card())
    assert json.loads((tmp_path / "config.json").read_text())["version"] == dds_train.__version__


def test_a_checkpoint_is_read_once_for_its_checksums_and_then_mapped(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    weights = {f"translator.{name}": tensor for name, tensor in trained().state_dict().items()}
    optimizer = {"exp_avg": torch.zeros(16 * 2**20)}  # 64 MiB
    torch.save({"translator_config": card().to_dict(), "state_dict": weights, "optimizer_states": [optimizer]}, path)
    before = bytes_read()
    assert read_config(path) == card()
    state = read_weights(path)
    assert bytes_read() - before < 1.1 * path.stat().st_size
    assert all(torch.equal(tensor, weights[f"translator.{name}"]) for name, tensor in state.items())


def bytes_read() -> int:
    """By this process so far; of files that are mapped into memory, nothing."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="groups"):
        UNetTranslator(**{**SHAPE, "groups": 7})
    with pytest.raises(ValueError, match="attention"):
        UNetTranslator(**{**SHAPE, "attention": [True]})
