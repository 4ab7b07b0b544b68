"""Exported translators run without this package and give the same image."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import TOKEN, fake_hub
from PIL import Image
from safetensors.torch import save_file
from shell import environment

from dds_train import Translator
from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.distillation import Prompt
from dds_train.errors import UserError
from dds_train.export import standalone_diffusers, standalone_onnx
from dds_train.export.diffusers_folder import export_diffusers
from dds_train.export.model_card import training_notes
from dds_train.export.onnx_folder import export_onnx
from dds_train.images.files import from_pil, to_pil
from dds_train.translator import Task, TranslatorConfig, export_translator, make_translator

KINDS: dict[str, dict[str, Any]] = {
    "unet": {"channels": [16, 32], "attention": [True, False], "depth": 1, "heads": 2, "groups": 8},
    "lora": {"rank": 4},
    "teacher_init": {},
}
# An import of ours is an error here: what is exported has to do without it.
ALONE = "import sys; sys.modules['dds_train'] = None; "


@pytest.fixture(params=KINDS)
def translator(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Translator:
    parts = DiffusionCheckpoint(str(tiny("epsilon")))
    torch.manual_seed(0)
    network = make_translator({"kind": request.param, **KINDS[request.param]}, parts.load_denoiser, parts.family)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    tasks = {"lion": Task("a cat", "a lion", "a lion"), "dog": Task("a cat", "a dog", "make it a dog")}
    return Translator(network, TranslatorConfig(tasks, parts.path, network.config), parts)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.mark.parametrize("read_rgb", [standalone_diffusers.read_rgb, standalone_onnx.read_rgb])
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_all_kinds_are_read_as_here(read_rgb: Callable[[Image.Image], np.ndarray], mode: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    photo = Image.fromarray(levels).convert(mode) if mode != "I;16" else Image.fromarray(levels[..., 0].astype(np.uint16) * 250)
    if mode == "P":
        photo.info["transparency"] = 3
    assert np.array_equal(read_rgb(photo), np.asarray(to_pil(from_pil(photo))))


def difference(one: Path, other: Image.Image) -> int:
    return int(np.abs(np.asarray(Image.open(one)).astype(int) - np.asarray(other).astype(int)).max())


def test_adapters_merge_into_a_plain_unet(translator: Translator) -> None:
    z, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    unet: Any = translator.network.plain_unet()
    assert not any("lora" in name for name in unet.state_dict())
    with torch.no_grad():
        expected = translator.network(z, Prompt({"text": text}), torch.ones(2)) - z
        torch.testing.assert_close(unet(z, 0, encoder_hidden_states=text).sample, expected, rtol=1e-4, atol=1e-5)
        # What shares weights with the teacher still does, and is as it was.
        torch.testing.assert_close(translator.network(z, Prompt({"text": text}), torch.ones(2)) - z, expected)


@pytest.mark.parametrize("translator", ["unet"], indirect=True)
def test_textual_inversions_travel(translator: Translator, photo: Path, tmp_path: Path) -> None:
    """A token of several vectors in an instruction, in diffusers' format."""
    for name, parameter in translator.network.named_parameters():
        if "attn2" in name:  # random ones hardly notice the text
            torch.nn.init.normal_(parameter)
    save_file({"<sks>": torch.randn(3, 32)}, path := tmp_path / "sks.safetensors")
    additions = Additions(embeddings=((None, str(path)),))
    translator.checkpoint = DiffusionCheckpoint(translator.checkpoint.path, additions=additions)
    config = replace(translator.config, tasks={"sks": Task("a cat", "a <sks> cat", "a <sks> cat")})
    export_diffusers(tmp_path / "folder", translator.network, config, translator.checkpoint)
    pipeline = standalone_diffusers.TranslatorPipeline.from_pretrained(tmp_path / "folder")
    own = Translator(translator.network, config, translator.checkpoint)
    pipeline(Image.open(photo), strength=10.0).save(tmp_path / "sks.png")
    expected, other = own(photo, strength=10.0), own(photo, strength=10.0, prompt="a cat")
    assert isinstance(expected, Image.Image)
    assert isinstance(other, Image.Image)
    assert difference(tmp_path / "sks.png", expected) <= 1
    assert difference(tmp_path / "sks.png", other) > 10


@pytest.mark.slow
def test_a_diffusers_folder_runs_alone(translator: Translator, photo: Path, tmp_path: Path) -> None:
    export_diffusers(tmp_path / "folder", translator.network, translator.config, translator.checkpoint)
    code = f"""{ALONE}
from diffusers import DiffusionPipeline
from PIL import Image
folder = {str(tmp_path / "folder")!r}
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder + "/pipeline.py", trust_remote_code=True)
pipe(Image.open({str(photo)!r}), task="dog", strength=0.7).save({str(tmp_path / "dog.png")!r})
pipe(Image.open({str(photo)!r}), task="lion").save({str(tmp_path / "lion.png")!r})
try:
    pipe(Image.open({str(photo)!r}))
    raise SystemExit("several tasks, and none was asked for")
except ValueError:
    pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    for name, strength in (("dog", 0.7), ("lion", 1.0)):
        expected = translator(photo, task=name, strength=strength)
        assert isinstance(expected, Image.Image)
        assert difference(tmp_path / f"{name}.png", expected) <= 1
    assert difference(tmp_path / "dog.png", Image.open(tmp_path / "lion.png")) > 1


@pytest.mark.slow
@pytest.mark.parametrize("translator", ["lora"], indirect=True)  # the others are plain UNets from the start
def test_an_onnx_folder_runs_alone(translator: Translator, photo: Path, tmp_path: Path) -> None:
    checked = export_onnx(tmp_path / "folder", translator.network, translator.config, translator.checkpoint)
    assert checked.difference < 0.1
    assert len({shape[0] for shape in checked.shapes}) > 1
    command = [
        sys.executable,
        "-c",
        f"{ALONE}sys.modules['torch'] = None; import runpy; runpy.run_path('folder/run.py', run_name='__main__')",
    ]
    for name, strength in (("dog", 0.7), ("lion", 1.0)):
        options = ["cat.png", f"{name}.png", "--task", name, "--strength", str(strength)]
        subprocess.run([*command, *options], check=True, cwd=tmp_path, capture_output=True)
        expected = translator(photo, task=name, strength=strength)
        assert isinstance(expected, Image.Image)
        assert difference(tmp_path / f"{name}.png", expected) <= 1
    assert json.loads((tmp_path / "folder" / "settings.json").read_text())["tasks"] == ["lion", "dog"]


@pytest.mark.slow
@pytest.mark.parametrize("translator", ["unet"], indirect=True)
def test_a_translator_goes_to_the_hub_with_its_card(translator: Translator, photo: Path, tmp_path: Path) -> None:
    export_translator(tmp_path / "translator", translator.network, translator.config)
    scores = {"PSNR": {"mean": "inf", "count": 3}, "gap closed": {"mean": 0.5, "count": 3}}
    methods = {"identity": scores, "dds": scores, "translator a": {"gap closed": {"mean": 0.71234}}}
    metrics = {"methods": methods, "metrics": {"gap closed": {}, "PSNR": {}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    command = [sys.executable, "-m", "dds_train", "export", "ckpt=translator", "push=me/lions", "output_dir=out"]
    command += ["examples=cat.png", "metrics=metrics.json"]

    def push(url: str, token: str) -> subprocess.CompletedProcess[str]:
        env = {**environment(tmp_path), "HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    with fake_hub() as hub:
        refused = push(hub.url, "hf_wrong")
        done = push(hub.url, TOKEN)
    assert refused.returncode == 2
    assert f"push=me/lions: the hub did not take {tmp_path / 'out'}" in refused.stderr
    assert "log in" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/me/lions" in done.stdout
    uploaded = hub.repos["me/lions"]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in uploaded} == uploaded
    assert set(uploaded) == {"README.md", "config.json", "translator.safetensors", "examples.png"}
    card = uploaded["README.md"].decode()
    assert "| identity | 0.500 | ∞ |" in card
    assert "| translator a | 0.712 |  |" in card
    assert "| dds |" not in card
    assert card.startswith("---\nlibrary_name: dds_train")


def test_damaged_notes_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "translator").mkdir()
    (tmp_path / "config.yaml").write_text("data: {count: 3}\ntrainer: {max_steps: 2}\nbatch_size: 4\n")
    (tmp_path / "metrics.csv").write_text("step,val/a\n1,0.5\n")
    assert len(training_notes(tmp_path / "translator")) == 2
    for name, text in (
        ("config.yaml", "data:\ntrainer:\nbatch_size"),
        ("config.yaml", "[cut"),
        ("config.yaml", ""),
        ("metrics.csv", "val/a\n0.x"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}: damaged; delete it"):
            training_notes(tmp_path / "translator")
        (tmp_path / name).unlink()
