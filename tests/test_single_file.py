"""Checkpoints in a single file: the same model as in diffusers' folder, bit for bit."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_layout
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from tiny_families import TINY, clip_config
from transformers import CLIPTextModelWithProjection

from dds_train import hub
from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.translator import remembered

PARTS = ("denoiser", "vae", "text", "scheduler")


def save(pipeline: Any, folder: Path) -> Path:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    return folder


def configurations(folder: Path) -> str:
    """A copy of a checkpoint's folder without its weights."""
    return str(shutil.copytree(folder, folder.with_name("configs"), ignore=shutil.ignore_patterns("*.safetensors")))


def write(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, {"format": "pt"})
    return path


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny("epsilon"), tmp_path / "folder")


@pytest.fixture
def weights(folder: Path) -> dict[str, torch.Tensor]:
    return original_layout.stable_diffusion(DiffusionPipeline.from_pretrained(folder, safety_checker=None))


def single(path: Path, config: str | None) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(str(path), additions=Additions(config=config))


def refusal(load: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_same(one: DiffusionCheckpoint, other: DiffusionCheckpoint) -> None:
    for part in PARTS:
        assert one.digest(part) == other.digest(part), part
    prompts, image = ["a cat", "", "a photo of a lion"], torch.rand(1, 3, 32, 32) * 2 - 1
    known = other.text_encoder().embed(prompts)
    for key, expected in known.items():
        assert torch.equal(one.text_encoder().embed(prompts)[key], expected)
    z, latents = other.autoencoder().encode(image), torch.randn(3, other.autoencoder().channels, 8, 8)
    assert torch.equal(one.autoencoder().encode(image), z)
    assert torch.equal(one.autoencoder().decode(z), other.autoencoder().decode(z))
    t = torch.tensor([10, 500, 900])
    with torch.no_grad():
        assert torch.equal(one.teacher().predict_eps(latents, t, known), other.teacher().predict_eps(latents, t, known))


def test_stable_diffusion(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "sd.safetensors", {**weights, "model_ema.decay": torch.ones(1)})
    assert_same(single(path, configurations(folder)), DiffusionCheckpoint(str(folder)))
    assert single(path, str(folder)).origin == str(path)


def test_sdxl(tmp_path: Path) -> None:
    """Its second text encoder is told from the first by its width."""
    torch.manual_seed(0)
    pipeline = TINY["sdxl"]()
    pipeline.register_modules(text_encoder_2=CLIPTextModelWithProjection(clip_config(hidden_size=48)))
    folder = save(pipeline, tmp_path / "folder")
    path = write(tmp_path / "xl.safetensors", original_layout.sdxl(pipeline))
    one, other = single(path, configurations(folder)), DiffusionCheckpoint(str(folder))
    for part in PARTS:
        assert one.digest(part) == other.digest(part), part
    known = other.text_encoder().embed(["a cat", ""])
    for key, expected in known.items():
        assert torch.equal(one.text_encoder().embed(["a cat", ""])[key], expected)


def test_stable_diffusion_3(tmp_path: Path) -> None:
    """Transformer and VAE, as the files without text encoders have them."""
    torch.manual_seed(0)
    pipeline = TINY["sd3"]()
    folder = save(pipeline, tmp_path / "folder")
    path = write(tmp_path / "sd3.safetensors", original_layout.mmdit(pipeline.transformer) | original_layout.vae(pipeline.vae))
    assert_same(single(path, str(folder)), DiffusionCheckpoint(str(folder)))
    alone = single(path, configurations(folder))
    assert alone.digest("denoiser", "vae") == DiffusionCheckpoint(str(folder)).digest("denoiser", "vae")


@pytest.mark.parametrize("name", ["sd3", "flux", "flux2_klein", "sana", "z_image", "qwen_image"])
def test_a_transformer_alone(name: str, tmp_path: Path) -> None:
    """With diffusers' names; the other parts come from the folder of configurations."""
    torch.manual_seed(0)
    folder = save(TINY[name](), tmp_path / "folder")
    path = Path(shutil.move(next((folder / "transformer").glob("*.safetensors")), tmp_path / "t.safetensors"))
    expected = tmp_path / "expected"
    shutil.copytree(folder, expected)
    shutil.copy(path, expected / "transformer" / "diffusion_pytorch_model.safetensors")
    assert_same(single(path, str(folder)), DiffusionCheckpoint(str(expected)))


def test_a_family_without_single_files_is_refused(tmp_path: Path) -> None:
    folder = save(TINY["pixart_sigma"](), tmp_path / "folder")
    path = next((folder / "transformer").glob("*.safetensors"))
    assert "diffusers reads no PixArt-Sigma from single files" in refusal(single(path, str(folder)).teacher)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_parts_that_are_not_in_the_file_come_from_the_folder(
    folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path, prefix: str
) -> None:
    key = "model.diffusion_model."
    unet = {prefix + name.removeprefix(key): tensor for name, tensor in weights.items() if name.startswith(key)}
    path = write(tmp_path / "unet.safetensors", unet)
    assert_same(single(path, str(folder)), DiffusionCheckpoint(str(folder)))
    alone = single(path, configurations(folder))
    alone.teacher()
    for part, load in (("vae", alone.autoencoder), ("text_encoder", alone.text_encoder)):
        assert f"{part} does not load: no weights there" in refusal(load)


def test_another_vae_in_a_single_file(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """With its prefix and without."""
    key = "first_stage_model."
    vae = {name: 2 * tensor for name, tensor in weights.items() if name.startswith(key)}
    paths = write(tmp_path / "a.safetensors", vae), tmp_path / "b.safetensors"
    write(paths[1], {name.removeprefix(key): tensor for name, tensor in vae.items()})
    own = DiffusionCheckpoint(str(folder))
    one, other = (DiffusionCheckpoint(str(folder), additions=Additions(vae=str(path))) for path in paths)
    assert one.digest("vae") == other.digest("vae") != own.digest("vae")
    assert one.digest("denoiser", "text") == own.digest("denoiser", "text")
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(one.autoencoder().encode(image), other.autoencoder().encode(image))
    assert not torch.equal(one.autoencoder().encode(image), own.autoencoder().encode(image))
    write(paths[0], {f"{key}x": torch.zeros(1)})
    again = DiffusionCheckpoint(str(folder), additions=Additions(vae=str(paths[0])))
    assert f"teacher.vae={paths[0]}: vae " in refusal(again.autoencoder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype) -> None:
    path = write(tmp_path / "sd.safetensors", {name: tensor.to(dtype) for name, tensor in weights.items()})
    checkpoint = DiffusionCheckpoint(str(path), dtype=dtype, additions=Additions(config=str(folder)))
    assert checkpoint.load_denoiser().dtype == dtype
    assert checkpoint.autoencoder().network.dtype == torch.float32
    own = DiffusionCheckpoint(str(folder))
    assert (checkpoint.digest(up_to_half=True) == own.digest(up_to_half=True)) == (dtype == torch.float16)
    assert checkpoint.digest() != own.digest()


def test_a_ckpt_is_read_as_tensors_alone(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "global_step": 3}, tmp_path / "sd.ckpt")
    checkpoint = single(tmp_path / "sd.ckpt", configurations(folder))
    assert checkpoint.digest() == DiffusionCheckpoint(str(folder)).digest()
    checkpoint.teacher()

    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    for path, content in (("a.ckpt", pickle.dumps(Harm())), ("b.safetensors", b"x"), ("c.ckpt", b"")):
        (tmp_path / path).write_bytes(content)
        message = refusal(single(tmp_path / path, str(folder)).teacher)
        assert f"teacher.path={tmp_path / path}: cannot be read" in message
        assert ("give it as .safetensors" in message) == path.endswith("ckpt")
    assert not (tmp_path / "harm").exists()


def test_what_does_not_fit_is_refused(folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    config, path = str(folder), tmp_path / "x.safetensors"
    missing = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    for change, reason in (
        ({missing: None}, "it lacks 1 weights, such as mid_block.resnets.0.conv1.weight"),
        ({missing: torch.zeros(3, 5)}, "unet does not load: Cannot load"),
        ({name: None for name in weights if name.startswith("model.")}, "unet does not load"),
        ({"v_pred": torch.zeros(0)}, "its weights predict v, and the scheduler of teacher.config="),
        ({"scaled_fp8": torch.zeros(2)}, "quantized (scaled fp8)"),
        ({"model.diffusion_model.out.2.scale_weight": torch.zeros(1)}, "quantized (scaled fp8)"),
    ):
        write(path, {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None})
        assert reason in refusal(single(path, config).teacher), change
    write(path, {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)})
    assert "unet does not load" in refusal(single(path, config).teacher)
    assert "unet does not load" in refusal(single(path, config).digest)
    path.with_suffix(".gguf").write_bytes(b"GGUF")
    assert "a file of another kind; give .safetensors" in refusal(single(path.with_suffix(".gguf"), config).teacher)
    assert "no such file" in refusal(single(tmp_path / "nope.safetensors", config).teacher)
    assert "is for teacher.path=FILE" in refusal(single(folder, config).teacher)
    write(path, weights)
    for other, reason in ((tmp_path, "no model_index.json there"), (tmp_path / "nope", "no such folder")):
        assert f"teacher.config={other}: {reason}" in refusal(single(path, str(other)).teacher)
    other = save(TINY["sdxl"](), tmp_path / "sdxl")
    refusal(single(path, str(other)).teacher)


def test_without_configurations_the_cache_is_asked(
    folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked: dict[str, Path | None] = {}
    monkeypatch.setattr(hub, "cached_snapshot", lambda repository: asked.setdefault(repository, None))
    path = write(tmp_path / "sd.safetensors", weights)
    message = refusal(single(path, None).teacher)
    (repository,) = asked
    assert repository.endswith("/stable-diffusion-v1-5")
    assert f"teacher.config={repository} is not on this disk" in message
    assert message.endswith("give teacher.config=DIR")
    asked[repository] = Path(configurations(folder))
    assert single(path, None).digest() == DiffusionCheckpoint(str(folder)).digest()
    write(path, {"layers.0.adaLN_modulation.0.weight": torch.zeros(1)})  # Z-Image, or its Turbo
    assert "its weights do not tell which model it is; give teacher.config=" in refusal(single(path, None).teacher)


def test_a_single_file_is_remembered_with_its_configurations(
    folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("sd.safetensors"), weights)
    known = remembered(single(Path("sd.safetensors"), "folder"))
    assert known["teacher"] == str(tmp_path / "sd.safetensors")
    assert known["teacher_additions"]["config"] == str(folder)
    assert known["teacher_weights"] == remembered(DiffusionCheckpoint(str(folder)))["teacher_weights"]
