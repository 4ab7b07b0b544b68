"""Runs into one folder: the same again, with other settings, killed half-way, and several at once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from random_translator import export_random
from safetensors.torch import load_file, save_file
from shell import environment, fit, fit_arguments, run

from dds_train.critters.render import render
from dds_train.critters.world import critter
from dds_train.runs.digest import file_digest
from dds_train.runs.files import is_alive
from dds_train.translator import Task
from dds_train.translator.files import CHECKSUM

pytestmark = pytest.mark.slow

# The command line, killed when the third image takes its name: before that, or after.
KILLED = """
import os
replace, images = os.replace, []
def replace_or_die(source, target):
    images.extend([target] if str(target).endswith(".png") else [])
    if len(images) == 3:
        {after} and replace(source, target)
        os.kill(os.getpid(), 9)
    replace(source, target)
os.replace = replace_or_die
from dds_train.cli.main import main
main()
"""


def begin(*argv: object, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dds_train", *map(str, argv)]
    env = {**environment(cwd), **variables}
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def results(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name[0] in "01234567"}


def leavings(folder: Path) -> list[Path]:
    return list(folder.rglob(".partial-*"))


def write_images(folder: Path, first: int) -> None:
    for number in range(8):
        Image.fromarray(render(critter(first + number, species="cat"), 32)).save(folder / f"{number}.png")


@pytest.fixture
def world(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with a translator and images."""
    export_random(tmp_path / "translator", tiny("epsilon"), {"lion": Task("a cat", "a lion", "a lion")}, std=0.05)
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", 0)
    return tmp_path


# ---------------------------------------------------------------- predict and optimize

PREDICT = ("predict", "ckpt=translator", "image=images", "output_dir=out", "batch_size=2", "device=cpu")


@pytest.mark.parametrize("after", [False, True])
def test_images_of_a_killed_run_never_count_as_those_of_another(world: Path, after: bool) -> None:
    (world / "killed.py").write_text(KILLED.format(after=after))
    run(*PREDICT, cwd=world)
    of_first = results(world / "out")
    assert len(of_first) == 8
    assert "strength=1.0 (now 0.5)" in run(*PREDICT, "strength=0.5", cwd=world, code=2)
    assert results(world / "out") == of_first

    write_images(world / "images", 100)
    run(*PREDICT, cwd=world, code=-signal.SIGKILL, start=("killed.py",))
    assert after or leavings(world / "out")
    assert 0 < sum(content != of_first[name] for name, content in results(world / "out").items()) < 8
    write_images(world / "images", 0)
    printed = run(*PREDICT, cwd=world)
    assert results(world / "out") == of_first
    assert "8 of 8" not in printed
    assert not leavings(world / "out")
    assert f"8 of 8 images are in {world / 'out'} already" in run(*PREDICT, cwd=world)


def test_images_with_nan_fail_by_name(world: Path) -> None:
    """A network that answers NaN to one of eight images."""
    (world / "program.py").write_text(
        "import torch, dds_train.translator.pipeline as pipeline\n"
        "translate = pipeline.translate_latents\n"
        "def with_nan(network, z, text, strength):\n"
        "    answer, sums = translate(network, z, text, strength), z.double().sum((1, 2, 3))\n"
        f"    answer[(sums - {latent_sum(world / 'images' / '5.png', world)}).abs() < 1e-4, 0, 0, 0] = float('inf')\n"
        "    return answer\n"
        "pipeline.translate_latents = with_nan\n"
        "from dds_train.cli.main import main\n"
        "main()\n"
    )
    printed = run(*PREDICT, cwd=world, code=3, start=("program.py",))
    assert f"error: 1 of 8 images failed; the reasons are in {world / 'out/failed.csv'}" in printed
    assert f"{world / 'images/5.png'},the translator's output is NaN or Inf" in (world / "out" / "failed.csv").read_text()
    assert "Traceback" not in printed
    assert sorted(results(world / "out")) == [f"{number}.png" for number in range(8) if number != 5]
    assert f"7 of 8 images are in {world / 'out'} already" in run(*PREDICT, cwd=world)
    assert len(results(world / "out")) == 8
    assert not (world / "out" / "failed.csv").exists()


def latent_sum(path: Path, world: Path) -> float:
    from dds_train import Translator
    from dds_train.images.files import read_image

    translator = Translator.from_pretrained(world / "translator", device="cpu")
    return float(translator.autoencoder.encode(read_image(path)[None], translator.multiple).double().sum())


def test_translators_and_teachers_are_known_by_their_weights(world: Path, tiny: Callable[[str], Path]) -> None:
    run(*PREDICT, cwd=world)
    shutil.copytree(world / "translator", world / "elsewhere")
    shutil.copytree(tiny("epsilon"), world / "teacher")
    (world / "teacher" / "vae" / ".DS_Store").touch()
    shutil.copy(
        world / "teacher" / "vae" / "diffusion_pytorch_model.safetensors",
        world / "teacher" / "vae" / "diffusion_pytorch_model.fp16.safetensors",
    )
    moved = (*PREDICT, "ckpt=elsewhere", "teacher.path=teacher")
    assert f"8 of 8 images are in {world / 'out'} already" in run(*moved, cwd=world)
    weights, config = world / "elsewhere" / "translator.safetensors", world / "elsewhere" / "config.json"
    vae = world / "teacher" / "vae" / "diffusion_pytorch_model.safetensors"
    with_another_bit(weights)
    assert "is damaged" in run(*moved, cwd=world, code=2)
    kept = config.read_text()
    config.write_text(json.dumps({**json.loads(kept), CHECKSUM: file_digest(weights)}))  # another translator
    printed = run(*moved, cwd=world, code=2)
    assert "holds a run with other settings" in printed
    assert "ckpt=" in printed
    with_another_bit(weights)  # as it was
    config.write_text(kept)
    with_another_bit(vae)
    printed = run(*moved, cwd=world, code=2)
    assert "holds a run with other settings" in printed
    assert "teacher.weights=" in printed


def with_another_bit(file: Path) -> None:
    """Flip the last one; size and time stay."""
    content, stat = file.read_bytes(), file.stat()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# ---------------------------------------------------------------- fit


def test_a_finished_run_stays_as_it_is(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = tiny("epsilon")
    fit(teacher, tmp_path)
    before = contents(tmp_path / "run")
    assert "finished already, 4 training steps" in fit(teacher, tmp_path, "workers=1", "log_every=2", "trainer.devices=auto")
    for change, says in (
        ("lr=0.5", "lr=0.001 (now 0.5)"),
        ("loss=sds", "loss.name=dds (now sds)"),
        ("seed=3", "seed=0 (now 3)"),
        ("batch_size=4", "batch_size=2 (now 4)"),
        ("target=a dog", "target=a photo of a lion (now a dog)"),
        ("data.count=13", "data.count=12 (now 13)"),
        (f"teacher.path={tiny('v_prediction')}", "teacher.scheduler="),
        ("trainer.max_steps=3", "last.ckpt has 4 training steps"),
    ):
        printed = fit(teacher, tmp_path, change, code=2)
        assert says in printed
        assert "resume=never" in printed
        assert printed.strip().count("\n") == 0, printed
        assert contents(tmp_path / "run") == before

    for part in ("previews", "translator"):
        shutil.rmtree(tmp_path / "run" / part)
    fit(teacher, tmp_path)  # only exports
    after = contents(tmp_path / "run")
    assert all(after[name] == before[name] for name in ("translator/translator.safetensors", "metrics.csv"))
    printed = fit(teacher, tmp_path, "lr=0.5", "resume=never", "trainer.max_steps=2")
    assert "resuming" not in printed
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["last.ckpt", "step-0000002.ckpt"]
    assert (tmp_path / "run" / "earlier-1" / "checkpoints" / "step-0000004.ckpt").exists()
    assert "lr=0.5 (now 0.001)" in fit(teacher, tmp_path, code=2)


def test_another_run_s_checkpoint_must_fit(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    teacher, resume = tiny("epsilon"), "resume=run/checkpoints/last.ckpt"
    fit(teacher, tmp_path)
    more = ("output_dir=second", resume, "trainer.max_steps=6")
    assert "with other tasks" in fit(teacher, tmp_path, *more, "target=a dog", code=2)
    shutil.copytree(teacher, tmp_path / "other")
    weights = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.001 for name, tensor in load_file(weights).items()}, weights)
    assert "with another teacher" in fit(tmp_path / "other", tmp_path, *more, code=2)
    assert not (tmp_path / "second").exists()
    assert "at training step 4" in fit(teacher, tmp_path, *more, "lr=0.01")
    assert "finished already" in fit(teacher, tmp_path, *more, "lr=0.01")


def test_one_run_at_a_time_and_a_killed_one_does_not_block(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    long = fit_arguments(tiny("epsilon"), "trainer.max_steps=100000", "checkpoint_every=5", "workers=1")
    first = begin(*long, cwd=tmp_path)
    wait_for("images/s", first)
    printed = run(*long, cwd=tmp_path, code=2)
    assert f"in use by fit (process {first.pid} on " in printed
    assert printed.strip().count("\n") == 0
    first.kill()
    first.communicate()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").stat()
    second = begin(*long, cwd=tmp_path)
    wait_for("resuming from", second)
    wait_for("images/s", second)
    second.send_signal(signal.SIGINT)
    second.communicate()
    assert second.returncode == 130
    assert not leavings(tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "rank", "joining"), [(signal.SIGINT, 0, True), (signal.SIGTERM, 1, True), (signal.SIGTERM, 1, False)]
)
def test_a_signal_to_one_rank_ends_both_whenever_it_comes(
    tiny: Callable[[str], Path], tmp_path: Path, number: signal.Signals, rank: int, joining: bool
) -> None:
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=100000", "checkpoint_every=100000")
    first = begin(*fit_arguments(tiny("epsilon"), *two), cwd=tmp_path)
    wait_for("Initializing distributed: GLOBAL_RANK: 0" if joining else "images/s", first)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    (second,) = (int(pid) for pid in children if b"LOCAL_RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill((first.pid, second)[rank], number)
    first.communicate(timeout=30)
    assert first.returncode == 128 + number
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() != joining
    deadline = time.monotonic() + 10
    while is_alive(second):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ranks_of_one_run_share_a_folder_of_their_own(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    own_folder = [one for one in fit_arguments(tiny("epsilon")) if not str(one).startswith("output_dir=")]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "dds_train")
    for _ in range(2):
        run(*own_folder, "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=2", cwd=tmp_path, start=launcher)
    folders = list((tmp_path / "outputs" / "fit").iterdir())
    assert len(folders) == 2
    assert all((folder / "translator" / "config.json").exists() for folder in folders)


def test_runs_without_output_dir_have_folders_of_their_own(world: Path) -> None:
    processes = [begin("predict", "ckpt=translator", "image=images", cwd=world) for _ in range(2)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert [len(results(folder)) for folder in (world / "outputs" / "predict").iterdir()] == [8, 8]


# ---------------------------------------------------------------- synthesize


@pytest.mark.parametrize("ranks", [True, False])
def test_several_processes_synthesize_together_only_as_ranks_of_one_run(
    tiny: Callable[[str], Path], tmp_path: Path, ranks: bool
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        of_all = {"WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    argv = ("synthesize", "prompts=a cat", "count=16", "per_shard=2", "steps=2", "output_dir=cats", "device=cpu")
    processes = [
        begin(*argv, f"teacher.path={tiny('epsilon')}", cwd=tmp_path, **({"RANK": str(n), **of_all} if ranks else {}))
        for n in range(4)
    ]
    printed = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert not any("Traceback" in text for text in printed), printed
    assert len(list((tmp_path / "cats").glob("*.tar"))) == 8
    assert (tmp_path / "cats" / "manifest.json").exists()
    if ranks:
        assert codes == [0] * 4
        records = [path.read_text() for path in (tmp_path / "cats").glob("record*.jsonl")]
        assert sum(text.count('"claim"') for text in records) == 1
    else:
        refused = [text for text, code in zip(printed, codes, strict=True) if code == 2]
        assert 0 in codes
        assert all("in use by synthesize (process " in text for text in refused)
        assert set(codes) <= {0, 2}


# ---------------------------------------------------------------- export


def test_an_exported_folder_is_that_of_one_translator_and_format(world: Path) -> None:
    command = ("export", "ckpt=translator", "output_dir=out")
    run(*command, cwd=world)
    run(*command, "examples=images/0.png", cwd=world)
    before = contents(world / "out")
    assert "format=safetensors (now diffusers)" in run(*command, "format=diffusers", cwd=world, code=2)
    assert contents(world / "out") == before
