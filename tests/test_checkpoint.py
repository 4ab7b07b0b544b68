"""Diffusion checkpoints: their identity, and what is refused before anything is sampled."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from dds_train import hub
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(tiny("epsilon"), tmp_path / "teacher")


def weights_of(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def refusal(load: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- identity


def test_files_that_are_not_loaded_do_not_change_the_identity(folder: Path) -> None:
    before = DiffusionCheckpoint(str(folder)).digest()
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part / ".DS_Store").write_bytes(b"finder")
        (folder / part / "README.md").write_text("notes")
    for part in ("unet", "vae", "text_encoder"):
        path = weights_of(folder, part)
        shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
        path.with_suffix(".bin").write_bytes(b"an older format beside it")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_diffusers_version": "9.9"}, indent=7))
    assert DiffusionCheckpoint(str(folder)).digest() == before


@pytest.mark.parametrize(("part", "role"), [("unet", "denoiser"), ("vae", "vae"), ("text_encoder", "text")])
def test_a_change_anywhere_in_the_weights_changes_the_identity(folder: Path, part: str, role: str) -> None:
    path = weights_of(folder, part)
    # As large as the weights of a real model, for which the start of the file once stood: the last byte counts.
    rewrite(path, lambda tensors: tensors.update(zzz_padding=torch.zeros(5 * 2**20)))
    before = {name: DiffusionCheckpoint(str(folder)).digest(name) for name in ("denoiser", "vae", "text", "scheduler")}
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert path.stat().st_size == stat.st_size
    after = {name: DiffusionCheckpoint(str(folder)).digest(name) for name in before}
    assert [name for name in before if before[name] != after[name]] == [role]


@pytest.mark.parametrize(
    ("file", "role"), [("scheduler/scheduler_config.json", "scheduler"), ("tokenizer/tokenizer.json", "text")]
)
def test_configurations_and_tokenizers_are_part_of_the_identity(folder: Path, file: str, role: str) -> None:
    before = DiffusionCheckpoint(str(folder)).digest(role)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, "another": 1}))
    assert DiffusionCheckpoint(str(folder)).digest(role) != before


def test_shards_are_part_of_the_identity(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    before = DiffusionCheckpoint(str(folder)).digest("denoiser")
    rewrite(sorted((folder / "unet").glob("*.safetensors"))[-1], lambda tensors: next(iter(tensors.values())).add_(1))
    assert DiffusionCheckpoint(str(folder)).digest("denoiser") != before


def test_parts_that_are_not_there_are_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    checkpoint = DiffusionCheckpoint(str(folder))
    assert checkpoint.digest("denoiser")
    for load in (checkpoint.digest, checkpoint.autoencoder):
        assert "vae" in refusal(load)


# ---------------------------------------------------------------- refusals


def test_an_unknown_family_is_refused_with_those_supported(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    checkpoint = DiffusionCheckpoint(str(folder))
    for load in (checkpoint.teacher, checkpoint.autoencoder, checkpoint.text_encoder, checkpoint.image_size, checkpoint.digest):
        message = refusal(load)
        assert "FluxPipeline" in message
        assert "Stable Diffusion 1.x and 2.x (StableDiffusionPipeline)" in message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"in_channels": 9}, "9 channels to 4, the VAE's latents have 4: inpainting"),
        ({"in_channels": 8}, "8 channels to 4"),
        ({"out_channels": 8}, "4 channels to 8"),
        ({"class_embed_type": "timestep"}, "class_embed_type=timestep"),
        ({"num_class_embeds": 10}, "num_class_embeds=10"),
        ({"cross_attention_dim": 48}, "prompts of width 48, its text encoder writes width 32"),
        (
            {"addition_embed_type": "text", "encoder_hid_dim": 32, "addition_embed_type_num_heads": 4},
            "addition_embed_type=text",
        ),
    ],
)
def test_an_unet_with_other_inputs_is_refused_before_its_weights_are_read(
    folder: Path, options: dict[str, Any], reason: str
) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, **options}).save_pretrained(folder / "unet")
    weights_of(folder, "unet").write_bytes(b"")
    checkpoint = DiffusionCheckpoint(str(folder))
    for load in (checkpoint.teacher, checkpoint.load_denoiser):
        message = refusal(load)
        assert reason in message
        assert str(folder) in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["missing", "shape", "cut"])
def test_weights_that_do_not_fit_are_an_error(folder: Path, part: str, damage: str) -> None:
    path = weights_of(folder, part)
    name = min(name for name in load_file(path) if name.endswith("weight"))
    if damage == "missing":
        rewrite(path, lambda tensors: tensors.pop(name))
    elif damage == "shape":
        rewrite(path, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    else:
        path.write_bytes(path.read_bytes()[:-1000])
    checkpoint = DiffusionCheckpoint(str(folder))
    load = {"unet": checkpoint.teacher, "vae": checkpoint.autoencoder, "text_encoder": checkpoint.text_encoder}[part]
    message = refusal(load)
    assert part in message
    assert damage == "cut" or name.removeprefix("text_model.") in message


def test_files_that_are_no_json_are_refused(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")
    assert "model_index.json" in refusal(DiffusionCheckpoint(str(folder)).teacher)


def test_a_hub_that_cannot_be_reached_is_refused_with_the_command_that_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.reachable.cache_clear()
    message = refusal(DiffusionCheckpoint("nobody/no-such-model").teacher)
    assert "hf download nobody/no-such-model --local-dir DIR" in message
    assert "huggingface-cli" not in message
    hub.reachable.cache_clear()


# ---------------------------------------------------------------- parts


def test_the_text_encoder_is_that_of_diffusers(tiny: Callable[[str], Path]) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny("epsilon"), safety_checker=None)
    prompts = ["a photo of a cat", "", "x" * 200]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    with pytest.warns(UserWarning, match="prompt of 202 tokens, of which the last 125 are cut: 'xxx"):
        got = DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder().embed(prompts)
    assert torch.equal(got["text"], expected)


def test_parts_are_loaded_once_and_forgotten_on_release(folder: Path) -> None:
    checkpoint = DiffusionCheckpoint(str(folder))
    assert checkpoint.teacher() is checkpoint.teacher()
    assert checkpoint.load_denoiser() is not checkpoint.teacher().network
    first = checkpoint.text_encoder()
    checkpoint.release("text_encoder")
    assert checkpoint.text_encoder() is not first


def test_a_denoiser_needs_neither_vae_nor_text_encoder(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """As training on latents and embedded prompts does; what the UNet alone shows is still checked."""
    for part in ("scheduler", "model_index.json"):
        (tmp_path / part).symlink_to(tiny("epsilon") / part)
    shutil.copytree(tiny("epsilon") / "unet", tmp_path / "unet")
    assert DiffusionCheckpoint(str(tmp_path)).teacher().latent_shape[0] == 4
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    with pytest.raises(UserError, match="maps 9 channels to 4"):
        DiffusionCheckpoint(str(tmp_path)).teacher()
