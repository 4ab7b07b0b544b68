"""Whole command lines, as a user types them, on Stable-Diffusion-shaped teachers with random weights."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dds_train.critters.render import render
from dds_train.critters.world import critter
from dds_train.translator import load_translator

pytestmark = pytest.mark.slow
PROMPTS = ("source=a photo of a cat", "target=a photo of a lion")


def run(*argv: object, cwd: Path, code: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DDS_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("DDS_RUN_STAMP", None)
    command = [sys.executable, "-m", "dds_train", *map(str, argv)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture
def odd_pictures(tmp_path: Path) -> Path:
    """What people really have."""
    folder = tmp_path / "my pictures"
    (folder / "sub").mkdir(parents=True)
    cat = Image.fromarray(render(critter(5, species="cat"), 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    cat.resize((60, 40)).save(folder / "rotated (1).jpg", exif=exif)
    cat.convert("CMYK").save(folder / "cmyk.jpg")
    cat.convert("P").save(folder / "sub" / "palette.png", transparency=0)
    Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen=16.png")
    cat.resize((511, 37)).save(folder / "wide.png")
    return folder


def fit(teacher: Path, cwd: Path, *more: object) -> str:
    small = ("held_out=4", "batch_size=2", *(() if "data=folder" in more else ("data.count=12", "data.steps=2")))
    narrow = ("translator.channels=[16,32]", "translator.groups=8")
    often = ("every.log=1", "every.picture=2", "every.checkpoint=2", "trainer.max_steps=4", "trainer.accelerator=cpu")
    return run("fit", *PROMPTS, f"teacher.path={teacher}", "output_dir=run", *small, *narrow, *often, *more, cwd=cwd)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_optimize_fit_predict(tiny: Callable[[str], Path], tmp_path: Path, odd_pictures: Path, kind: str) -> None:
    teacher = tiny(kind)
    run("optimize", *PROMPTS, f"teacher.path={teacher}", f"image={odd_pictures}", "steps=3", "output_dir=edited", cwd=tmp_path)
    sizes = {"rotated (1)": (40, 60), "cmyk": (64, 64), "palette": (64, 64), "sixteen=16": (64, 64), "wide": (511, 37)}
    for name, size in sizes.items():
        for suffix in ("", "_before_after", "_steps"):
            assert (tmp_path / "edited" / f"{name}{suffix}.png").exists()
        assert Image.open(tmp_path / "edited" / f"{name}.png").size == size

    fit(teacher, tmp_path)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    assert sorted(p.name for p in (tmp_path / "run" / "pictures").iterdir()) == ["step-0000002.png", "step-0000004.png"]
    assert (tmp_path / "run" / "config.yaml").exists()

    # predict must not need the UNet: it is gone.
    (teacher / "unet").rename(teacher / "gone")
    try:
        for ckpt in ("run/translator", "run/checkpoints/last.ckpt"):
            run("predict", f"ckpt={ckpt}", f"image={odd_pictures}", f"output_dir=by {Path(ckpt).name}", cwd=tmp_path)
    finally:
        (teacher / "gone").rename(teacher / "unet")
    for name, size in sizes.items():
        first, second = (Image.open(tmp_path / f"by {by}" / f"{name}.png") for by in ("translator", "last.ckpt"))
        assert first.size == second.size == size
        assert np.array_equal(np.asarray(first), np.asarray(second))


def test_training_goes_on_where_it_stopped(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = tiny("epsilon")
    fit(teacher, tmp_path, "trainer.max_steps=2")
    printed = fit(teacher, tmp_path, "trainer.max_steps=4")
    assert "going on from run/checkpoints/last.ckpt" in printed
    logged = [list(csv.DictReader((tmp_path / "run" / name).open())) for name in ("metrics-1.csv", "metrics.csv")]
    assert [int(row["step"]) for part in logged for row in part] == [0, 1, 2, 3]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    weights = (tmp_path / "run" / "translator" / "translator.safetensors").read_bytes()
    fit(teacher, tmp_path, "trainer.max_steps=4")  # nothing left to do, and nothing spoilt
    assert (tmp_path / "run" / "translator" / "translator.safetensors").read_bytes() == weights
    printed = run(
        "fit", "source=a dog", "target=a pig", f"teacher.path={teacher}", "output_dir=run", "translator.channels=[16,32]",
        "translator.groups=8", "trainer.accelerator=cpu", cwd=tmp_path, code=2,
    )  # fmt: skip
    assert "was trained with source='a photo of a cat'" in printed


def test_two_processes_train_one_translator(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Lightning's launcher, gloo: one run directory, one set of results. (Noise and order by rank: test_training.py.)"""
    printed = fit(tiny("epsilon"), tmp_path, "trainer.devices=2", "trainer.strategy=ddp")
    assert printed.count("done in") == 1
    assert not (tmp_path / "outputs").exists()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["last.ckpt", "step-0000004.ckpt"]
    translator, _ = load_translator(tmp_path / "run" / "translator")
    assert translator.unet.conv_out.weight.abs().max() > 0


def test_loggers(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for logger in ("tensorboard", "wandb"):
        fit(tiny("epsilon"), tmp_path, f"logger={logger}", "resume=never", "trainer.max_steps=2")
        assert (tmp_path / "run" / "metrics.csv").exists()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run*"))


def test_the_users_own_pictures(tiny: Callable[[str], Path], tmp_path: Path, odd_pictures: Path) -> None:
    fit(tiny("epsilon"), tmp_path, "data=folder", f"data.path={odd_pictures}", "held_out=1")
    assert (tmp_path / "run" / "translator" / "config.json").exists()


def test_errors_behind_the_first_checks(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html></html>")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for argv, says in (
        (("optimize", *PROMPTS, "image=page.jpg"), "page.jpg: not a picture"),
        (("optimize", *PROMPTS, "image=a.png", "teacher=sd15"), "teacher.path=DIR"),
        (("optimize", *PROMPTS, "image=a.png", "teacher.path=nowhere"), "teacher.path=nowhere: no such folder"),
        (("optimize", *PROMPTS, "image=a.png", "t_range=[0,2000]", f"teacher.path={tiny('epsilon')}"), "within [0,1000]"),
        (("predict", "ckpt=page.jpg", "image=a.png"), "page.jpg: not a checkpoint"),
    ):
        printed = run(*argv, "output_dir=never", cwd=tmp_path, code=2)
        assert says in printed
        assert "Traceback" not in printed
        assert printed.strip().count("\n") == 0
    assert not (tmp_path / "never").exists()


def test_cat2lion_in_small(tmp_path: Path) -> None:
    """The README's commands on the bundled teacher, with fewer images and steps."""
    few = ("data.count=24", "data.steps=4", "trainer.max_steps=10", "batch_size=4", "output_dir=run")
    run("fit", "+experiment=cat2lion", *few, cwd=tmp_path)
    cats = Path(__file__).parents[1] / "data" / "examples"
    run("predict", "ckpt=run/translator", f"image={cats}", "output_dir=lions", cwd=tmp_path)
    run("optimize", *PROMPTS, f"image={cats / 'cat1.png'}", "steps=4", "output_dir=edited", cwd=tmp_path)
    for cat in cats.iterdir():
        assert Image.open(tmp_path / "lions" / cat.name).size == Image.open(cat).size
    assert (tmp_path / "lions" / "before_after.png").exists()
    assert (tmp_path / "edited" / "cat1_steps.png").exists()
