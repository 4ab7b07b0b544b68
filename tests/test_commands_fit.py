"""Whole command lines, as a user types them, on Stable-Diffusion-shaped teachers with random weights."""

import csv
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import PROMPTS, environment, fit, fit_arguments, run

from dds_train.critters.render import render
from dds_train.critters.world import critter

pytestmark = pytest.mark.slow


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def odd_images(tmp_path: Path) -> Path:
    """What people really have."""
    folder = tmp_path / "my photos"
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


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_optimize_fit_predict(tiny: Callable[[str], Path], tmp_path: Path, odd_images: Path, kind: str) -> None:
    teacher = tiny(kind)
    run("optimize", *PROMPTS, f"teacher.path={teacher}", f"image={odd_images}", "steps=3", "output_dir=edited", cwd=tmp_path)
    sizes = {"rotated (1)": (40, 60), "cmyk": (64, 64), "sub/palette": (64, 64), "sixteen=16": (64, 64), "wide": (511, 37)}
    for name, size in sizes.items():
        for suffix in ("", "_before_after", "_steps"):
            assert (tmp_path / "edited" / f"{name}{suffix}.png").exists()
        assert pixels(tmp_path / "edited" / f"{name}.png").shape[1::-1] == size

    fit(teacher, tmp_path)
    rows = table(tmp_path / "run" / "metrics.csv")
    assert sorted({int(row["step"]) for row in rows}) == [0, 1, 2, 3]
    assert sorted(p.name for p in (tmp_path / "run" / "previews").iterdir()) == ["step-0000002.png", "step-0000004.png"]
    assert (tmp_path / "run" / "config.yaml").exists()

    # predict must not need the UNet: it is gone.
    (teacher / "unet").rename(teacher / "gone")
    try:
        for ckpt in ("run/translator", "run/checkpoints/last.ckpt"):
            run("predict", f"ckpt={ckpt}", f"image={odd_images}", f"output_dir=by {Path(ckpt).name}", cwd=tmp_path)
    finally:
        (teacher / "gone").rename(teacher / "unet")
    for name, size in sizes.items():
        first, second = (pixels(tmp_path / f"by {by}" / f"{name}.png") for by in ("translator", "last.ckpt"))
        assert first.shape[1::-1] == size
        assert np.array_equal(first, second)


def test_training_goes_on_where_it_stopped(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = tiny("epsilon")
    fit(teacher, tmp_path, "trainer.max_steps=2")
    printed = fit(teacher, tmp_path, "trainer.max_steps=4")
    assert f"resuming from {tmp_path}/run/checkpoints/last.ckpt, at training step 2" in printed
    logged = [table(tmp_path / "run" / name) for name in ("metrics-1.csv", "metrics.csv")]
    assert [int(row["step"]) for part in logged for row in part if row["loss/grad_rms"]] == [0, 1, 2, 3]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    weights = (tmp_path / "run" / "translator" / "translator.safetensors").read_bytes()
    fit(teacher, tmp_path, "trainer.max_steps=4")  # nothing left to do, and nothing spoilt
    assert (tmp_path / "run" / "translator" / "translator.safetensors").read_bytes() == weights
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])  # a disk that was full
    printed = fit(teacher, tmp_path, "trainer.max_steps=6")
    assert "last.ckpt is corrupted" in printed
    assert f"resuming from {tmp_path}/run/checkpoints/step-0000004.ckpt" in printed


EQUAL_WEIGHTS = """
import sys, torch
import dds_train.training.callbacks as c
def end(self, trainer, module):
    torch.save(module.translator.state_dict(), f"rank{trainer.global_rank}.pt")
c.EMA.on_train_end = end  # the raw weights, before they are replaced by their average
from dds_train.cli.main import main
main()
"""


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_train_one_translator(tiny: Callable[[str], Path], tmp_path: Path, launcher: str) -> None:
    """gloo: one run directory, one set of results, equal weights on both ranks, those of one process with twice the batch."""
    program = tmp_path / "program.py"
    program.write_text(EQUAL_WEIGHTS)
    start = (program,) if launcher == "lightning" else ("-m", "torch.distributed.run", "--nproc_per_node=2", program)
    two = ("trainer.devices=2", "trainer.strategy=ddp", "batch_size=1")
    (tmp_path / "two").mkdir()
    printed = fit(tiny("epsilon"), tmp_path / "two", *two, start=start)
    assert printed.count("done in") == 1
    assert not (tmp_path / "two" / "outputs").exists()
    names = sorted(p.name for p in (tmp_path / "two" / "run" / "checkpoints").iterdir())
    assert names == ["last.ckpt", "step-0000004.ckpt"]
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    (tmp_path / "one").mkdir()
    fit(tiny("epsilon"), tmp_path / "one", "batch_size=2")
    one, both = last_weights(tmp_path / "one"), last_weights(tmp_path / "two")
    assert one["translator.unet.conv_out.weight"].abs().max() > 0
    for name in one:
        torch.testing.assert_close(both[name], one[name], atol=2e-4, rtol=1e-3)


def test_a_sweep_trains_every_job_on_all_devices(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = ("-m", "loss=dds,sds", "trainer.devices=2", "trainer.strategy=ddp", "batch_size=1")
    printed = fit(tiny("epsilon"), tmp_path, *sweep, "trainer.max_steps=2")
    assert printed.count("done in") == 2
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["0", "1"]
    weights = [tmp_path / "run" / job / "translator" / "translator.safetensors" for job in ("0", "1")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_ctrl_c_and_kill_save_and_say_so(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = tiny("epsilon")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        long = ("trainer.max_steps=100000", "checkpoint_every=100000", f"output_dir={number.name}")
        argv = [sys.executable, "-m", "dds_train", *map(str, fit_arguments(teacher, *long))]
        process = subprocess.Popen(argv, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if "images/s" in line:
                break
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == code, printed
        last = tmp_path / number.name / "checkpoints" / "last.ckpt"
        assert f"resumes from {tmp_path}/{number.name}/checkpoints/last.ckpt" in printed
        assert torch.load(last, weights_only=True)["global_step"] > 0
        assert not (tmp_path / number.name / "translator").exists()


def test_shards_train_without_vae_and_text_encoder(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """synthesize, then fit with a teacher of which only UNet and scheduler are left."""
    teacher, tasks = tiny("epsilon"), ("tasks.lion.target=a lion", "tasks.dog.target=a dog, sitting")
    words = (
        "prompts=a {fur} cat",
        "words.fur=[gray,black]",
        "count=12",
        "per_shard=5",
        "steps=2",
        "batch_size=4",
        "output_dir=cats",
    )
    printed = run("synthesize", *words, "source=a cat", *tasks, f"teacher.path={teacher}", cwd=tmp_path)
    assert "3 shards, verified" in printed
    bare = tmp_path / "bare"
    for part in ("unet", "scheduler", "model_index.json"):
        bare.mkdir(exist_ok=True)
        (bare / part).symlink_to(teacher / part)
    fit(bare, tmp_path, "data=shards", "data.path=cats", "source=a cat", "target=null", *tasks, "tasks_per_image=2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare", "cats", "run"]
    assert (tmp_path / "run" / "previews" / "step-0000004.png").exists()
    run("predict", "ckpt=run/translator", "image=cats/preview.png", f"teacher.path={teacher}", cwd=tmp_path, code=2)
    run("predict", "ckpt=run/translator", "image=cats/preview.png", "task=dog", f"teacher.path={teacher}", cwd=tmp_path)
    printed = fit(bare, tmp_path, "data=shards", "data.path=cats", "source=a new one", "output_dir=new", code=2)
    assert "no folder text_encoder there" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("kind", ["lora", "teacher_init"])
def test_translators_made_of_the_teacher(tiny: Callable[[str], Path], tmp_path: Path, odd_images: Path, kind: str) -> None:
    teacher = tiny("epsilon")
    more = (f"translator={kind}", "gradient_checkpointing=true", "trainer.accumulate_grad_batches=2")
    fit(teacher, tmp_path, *more, "trainer.max_steps=2")
    assert "resuming from" in fit(teacher, tmp_path, *more)
    run("predict", "ckpt=run/translator", f"image={odd_images}", "output_dir=edited", cwd=tmp_path)
    held = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(("adapters" in name) or ("head" in name) for name in held) == (kind == "lora")


def test_a_data_source_of_ones_own(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The example of CONTRIBUTING.md, as it stands there."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    blocks = dict(re.findall(r"```(python|yaml)\n(.*?)```", text, re.DOTALL))
    (tmp_path / "stripes.py").write_text(blocks["python"])
    (tmp_path / "my_conf" / "data").mkdir(parents=True)
    (tmp_path / "my_conf" / "data" / "stripes.yaml").write_text(blocks["yaml"])
    assert len((blocks["python"] + blocks["yaml"]).splitlines()) < 40
    fit(tiny("epsilon"), tmp_path, "--config-dir", "my_conf", "data=stripes", "data.size=32")
    assert (tmp_path / "run" / "translator" / "config.json").exists()


def test_loggers(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for logger in ("tensorboard", "wandb"):
        fit(tiny("epsilon"), tmp_path, f"logger={logger}", "trainer.max_steps=2", f"output_dir={logger}")
        assert (tmp_path / logger / "metrics.csv").exists()
    assert list((tmp_path / "tensorboard" / "tensorboard").glob("events*"))
    assert list((tmp_path / "wandb" / "wandb").glob("offline-run*"))


def test_the_users_own_images(tiny: Callable[[str], Path], tmp_path: Path, odd_images: Path) -> None:
    fit(tiny("epsilon"), tmp_path, "data=folder", f"data.path={odd_images}", "held_out=1")
    assert (tmp_path / "run" / "translator" / "config.json").exists()


def test_the_collapse_is_noticed(tmp_path: Path) -> None:
    """Without a warm-up, at a high guidance scale, the translator makes one lion of all cats, as the paper's authors report:
    diversity falls from the first step on, below 0.8 after about 250."""
    no_warm_up = ("guidance.fraction=0", "guidance.end=7.5", "trainer.max_steps=2000", "data.count=128", "data.steps=8")
    watch = ("sentinels.action=stop", "sentinels.after=0.05", "sentinels.ranges.diversity=[0.8,10]")
    printed = run("fit", "+experiment=cat2lion", *PROMPTS, *no_warm_up, *watch, "output_dir=run", cwd=tmp_path, code=2)
    assert "stopped by a sentinel" in printed
    assert "diversity is 0.7" in printed
    assert "collapse" in printed
    assert "Traceback" not in printed


def test_errors_behind_the_first_checks(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html></html>")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for argv, says in (
        (("optimize", *PROMPTS, "image=page.jpg"), "page.jpg: not a readable image"),
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
        assert pixels(tmp_path / "lions" / cat.name).shape == pixels(cat).shape
    assert (tmp_path / "lions" / "before_after.png").exists()
    assert (tmp_path / "edited" / "cat1_steps.png").exists()
