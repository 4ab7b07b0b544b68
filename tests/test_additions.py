"""What people load with a teacher: found, refused, remembered by translators; other VAEs."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from configuration import configure
from diffusers import AutoencoderKL, AutoencoderTiny
from own_teachers import refusal, save_lora
from random_translator import export_random
from safetensors.torch import save_file
from shell import fit, run
from tiny_families import TINY

from dds_train import hub
from dds_train.commands import optimize
from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.translator import Task, read_config, remembered
from dds_train.translator.pipeline import Translator

CAT = Path(__file__).parents[1] / "data" / "examples" / "cat1.png"
PARTS = ("denoiser", "vae", "text", "scheduler")
TASKS = {"lion": Task("a cat", "a lion", "a lion")}


def test_a_family_without_lora_or_embeddings_says_so(tmp_path: Path) -> None:
    TINY["pixart_sigma"]().save_pretrained(tmp_path / "t")
    (tmp_path / "x.safetensors").touch()
    x = str(tmp_path / "x.safetensors")
    for key, options in (("lora", {"lora": ((x, 1.0),)}), ("embeddings", {"embeddings": ((None, x),)})):
        checkpoint = DiffusionCheckpoint(str(tmp_path / "t"), additions=Additions(**options))  # type: ignore[arg-type]
        for load in (checkpoint.teacher, checkpoint.text_encoder, checkpoint.digest):
            assert refusal(load) == f"teacher.{key}: diffusers' PixArtSigmaPipeline takes none"


def test_files_are_found_before_any_weights_are_read(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "cached_snapshot", lambda repository: tmp_path / "snap" if repository == "o/cached" else None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "snap").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / "snap" / name).write_bytes(b"x")
    for place, reason in (
        (tmp_path / "nope.safetensors", "no such file or folder"),
        (tmp_path / "empty", "no file of weights there"),
        (tmp_path / "snap", "2 files of weights there (a.safetensors, b.safetensors); give the file"),
        ("o/cached", "2 files of weights there"),
        ("o/name", "is not on this disk and the hub did not deliver it"),
        ("o/cached/c.safetensors", "is not on this disk and the hub did not deliver it"),
    ):
        for key, options in (("lora", {"lora": ((str(place), 1.0),)}), ("embeddings", {"embeddings": ((None, str(place)),)})):
            checkpoint = DiffusionCheckpoint(str(model_dir), additions=Additions(**options))  # type: ignore[arg-type]
            for load in (partial(checkpoint.check_guidance, "sds", 1.0), checkpoint.image_size):
                message = refusal(load)
                assert message.startswith(f"teacher.{key}=o/" if str(place).startswith("o/") else f"teacher.{key}={place}: ")
                assert reason in message
    assert Additions(lora=(("o/cached/b.safetensors", 2.0),)).lora_files() == [(tmp_path / "snap" / "b.safetensors", 2.0)]


# ---------------------------------------------------------------- VAE


def another_vae(model_dir: Path, **options: Any) -> Path:
    torch.manual_seed(9)
    config = {**AutoencoderKL.load_config(model_dir / "vae"), **options}
    AutoencoderKL.from_config(config).save_pretrained(model_dir.parent / "vae")
    return model_dir.parent / "vae"


def test_another_vae_takes_the_place_of_the_own(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its folder, a checkpoint's, or a hub's cache."""
    vae, plain = another_vae(model_dir, scaling_factor=0.5), DiffusionCheckpoint(str(model_dir))
    monkeypatch.setattr(hub, "cached_snapshot", lambda repository: vae if repository == "owner/vae" else None)
    shutil.copytree(vae, model_dir.parent / "whole" / "vae")
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    network = AutoencoderKL.from_pretrained(vae).eval()
    with torch.no_grad():
        z = network.encode(image).latent_dist.mode() * 0.5
    for place in (str(vae), str(model_dir.parent / "whole"), "owner/vae"):
        checkpoint = DiffusionCheckpoint(str(model_dir), additions=Additions(vae=place))
        assert torch.equal(checkpoint.autoencoder().encode(image), z)
        assert [part for part in PARTS if checkpoint.digest(part) != plain.digest(part)] == ["vae"]
        checkpoint.teacher()
    shutil.rmtree(model_dir / "vae")
    assert torch.equal(DiffusionCheckpoint(str(model_dir), additions=Additions(vae=str(vae))).autoencoder().encode(image), z)


def test_a_tiny_autoencoder_in_place_of_the_vae(model_dir: Path) -> None:
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    AutoencoderTiny(**widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).save_pretrained(
        model_dir.parent / "taesd"
    )
    checkpoint = DiffusionCheckpoint(str(model_dir), additions=Additions(vae=str(model_dir.parent / "taesd")))
    assert checkpoint.autoencoder().encode(torch.rand(1, 3, 32, 32)).shape == (1, 4, 8, 8)
    assert checkpoint.digest("vae")


def test_a_vae_of_other_latents_is_refused(model_dir: Path) -> None:
    def load(vae: object) -> list[str]:
        checkpoint = DiffusionCheckpoint(str(model_dir), additions=Additions(vae=str(vae)))
        return [refusal(one) for one in (checkpoint.teacher, checkpoint.autoencoder)]

    for options, reason in (
        ({"latent_channels": 16}, "has 16 channels, the teacher's own VAE 4"),
        (
            {
                "block_out_channels": (8, 16),
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
            },
            "has 2 pixels per latent, the teacher's own VAE 4",
        ),
    ):
        assert load(another_vae(model_dir, **options)) == [f"teacher.vae={model_dir.parent / 'vae'}: {reason}"] * 2
    tiny_families.sana().vae.save_pretrained(model_dir.parent / "dc")
    assert "a AutoencoderDC, where the teacher's own is a AutoencoderKL" in load(model_dir.parent / "dc")[0]
    assert "no such file or folder" in load(model_dir.parent / "nope")[0]
    (model_dir.parent / "empty").mkdir()
    assert "no config.json there" in load(model_dir.parent / "empty")[0]


# ---------------------------------------------------------------- translators find it again


@pytest.fixture
def trained(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A translator trained in tmp_path with a LoRA, a token and another VAE, by relative paths."""
    monkeypatch.chdir(tmp_path)
    save_lora(model_dir, tmp_path / "lora")
    save_file({"<sks>": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}, "sks.safetensors")
    another_vae(model_dir, scaling_factor=0.5)
    additions = Additions(lora=(("lora", 0.7),), embeddings=(("<x>", "sks.safetensors"),), vae="vae")
    translator = export_random(tmp_path / "runs" / "translator", Path("teacher"), TASKS, 0.02)
    path = translator / "config.json"
    known = remembered(DiffusionCheckpoint("teacher", additions=additions))
    path.write_text(json.dumps({**json.loads(path.read_text()), **known}))
    return translator


def test_a_translator_finds_what_its_teacher_had(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = Translator.from_pretrained(trained)
    known = before.checkpoint.additions
    paths = [path for path, _ in known.lora] + [path for _, path in known.embeddings] + [known.vae]
    assert paths == [str(tmp_path / name) for name in ("lora", "sks.safetensors", "vae")]
    expected = before(image, "a <x> lion")
    moved = tmp_path / "moved"
    for name in ("teacher", "lora", "sks.safetensors", "vae", "runs"):
        shutil.move(tmp_path / name, moved / name)
    trained = moved / "runs" / "translator"
    after = Translator.from_pretrained(trained)
    assert torch.equal(after(image, "a <x> lion"), expected)  # type: ignore[arg-type]
    other = Translator.from_pretrained(trained, additions={"vae": None, "lora": []})
    assert not torch.equal(other(image, "a <x> lion"), expected)  # type: ignore[arg-type]
    assert torch.equal(Translator.from_pretrained(trained, teacher=str(moved / "teacher"))(image, "a <x> lion"), expected)  # type: ignore[arg-type]


def test_what_is_nowhere_is_named_where_it_is_needed(trained: Path, tmp_path: Path) -> None:
    save_lora(tmp_path / "teacher", tmp_path / "lora", text=False)  # of the denoiser alone
    path = trained / "config.json"
    config = read_config(trained)
    additions = Additions.of(config.teacher_additions)
    known = remembered(DiffusionCheckpoint("teacher", additions=additions))
    path.write_text(json.dumps({**json.loads(path.read_text()), **known}))
    shutil.rmtree(tmp_path / "lora")
    found = read_config(trained).find_teacher(trained)  # a translator of its own weights needs no denoiser
    assert found.additions.lora == ()
    Path("sks.safetensors").unlink()
    message = refusal(lambda: read_config(trained).find_teacher(trained))
    assert f"(has other weights, without {tmp_path / 'lora'} and {tmp_path / 'sks.safetensors'}: text)" in message
    message = refusal(lambda: read_config(trained).find_teacher(trained, str(tmp_path / "teacher")))
    assert "sks.safetensors, which is not there; give it as teacher.lora=" in message


# ---------------------------------------------------------------- commands


def test_optimize_with_them_is_another_run(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = save_lora(model_dir, tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    save_file({"<sks>": torch.randn(1, 32)}, "sks.safetensors")
    another_vae(model_dir)
    (tmp_path / "C:").mkdir()
    shutil.copy(lora, tmp_path / "C:" / "0.5")

    def edit(*more: str) -> str:
        given = ["source=a cat", "target=a <sks> cat", "steps=1", "snapshots=0", "teacher.path=teacher", "output_dir=out"]
        optimize.run(configure("optimize", f"image={CAT}", *given, *more))
        return capsys.readouterr().out

    own = ["teacher.lora=[lora:0.5,C:/0.5:2]", "teacher.embeddings=[sks.safetensors]", "teacher.vae=vae"]
    edit(*own)
    assert "are in" in edit(*own)
    for number, other in ((0, "teacher.lora=[lora:0.5,C:/0.5:3]"), (1, "teacher.embeddings=[]"), (2, "teacher.vae=null")):
        with pytest.raises(UserError, match="teacher"):
            edit(*own[:number], other, *own[number + 1 :])
    assert f"- {lora.parent}:0.5" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.slow
def test_a_translator_of_ones_own_teacher(model_dir: Path, tmp_path: Path) -> None:
    """fit on a single file with a LoRA, a token and another VAE; predict knows them, and takes another VAE if told."""
    from diffusers import StableDiffusionPipeline
    from original_layout import stable_diffusion

    weights = stable_diffusion(StableDiffusionPipeline.from_pretrained(model_dir, safety_checker=None))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "sd.safetensors")
    save_lora(model_dir, tmp_path / "lora")
    save_file({"<sks>": torch.randn(2, 32)}, tmp_path / "sks.safetensors")
    another_vae(model_dir, scaling_factor=0.5)
    for path in model_dir.rglob("*.safetensors"):  # configurations alone
        path.unlink()
    own = ("teacher.lora=[lora:0.5]", "teacher.embeddings=[<x>=sks.safetensors]", "teacher.vae=vae", "teacher.config=teacher")
    fit(Path("sd.safetensors"), tmp_path, *own, "target=a <x> cat", "translator=lora")
    assert "finished already" in fit(Path("sd.safetensors"), tmp_path, *own, "target=a <x> cat", "translator=lora")
    assert "teacher.denoiser=" in fit(
        Path("sd.safetensors"), tmp_path, "teacher.lora=[lora]", *own[1:], "target=a <x> cat", "translator=lora", code=2
    )
    run("predict", "ckpt=run/translator", f"image={CAT}", "output_dir=edited", cwd=tmp_path)
    run("predict", "ckpt=run/translator", f"image={CAT}", "output_dir=other", "teacher.vae=vae", cwd=tmp_path)
    assert (tmp_path / "edited" / "cat1.png").read_bytes() == (tmp_path / "other" / "cat1.png").read_bytes()
