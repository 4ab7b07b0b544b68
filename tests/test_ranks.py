"""Commands on several ranks, under torchrun and with srun's environment variables: shared work, kills, images that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_translator import export_random
from shell import PROMPTS, environment, run

from dds_train.translator import Task

pytestmark = pytest.mark.slow

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
PREDICT = ("predict", "ckpt=translator", "image=images", "output_dir=out", "batch_size=2", "device=cpu")
COUNT = 10

# The command line, of which one rank is killed when its third image takes its name.
KILLED = """
import os
replace, images = os.replace, []
def replace_or_die(source, target):
    images.extend([target] if str(target).endswith(".png") else [])
    if len(images) == 3 and os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), 9)
    replace(source, target)
os.replace = replace_or_die
from dds_train.cli.main import main
main()
"""


@pytest.fixture
def world(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with a translator and images of two sizes."""
    export_random(tmp_path / "translator", tiny("epsilon"), {"lion": Task("a cat", "a lion", "a lion")}, std=0.05)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (16, 16 + 8 * (number % 3 == 0), 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def srun(*argv: object, cwd: Path, step: int, world: int = 2) -> list[subprocess.Popen[str]]:
    """The tasks of a job step."""
    command = [sys.executable, "-m", "dds_train", *map(str, argv)]
    of_all = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": str(step), "SLURM_STEP_NUM_TASKS": str(world)}
    return [
        subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment(cwd), **of_all, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    printed = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], printed


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[0-9]*.png")}


def made(folder: Path) -> Counter[str]:
    """How often each result was made, by the records of all ranks."""
    lines = [line for path in folder.glob("record*.jsonl") for line in path.read_text().splitlines()]
    return Counter(event["result"] for event in map(json.loads, lines) if "result" in event)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rerun_after_a_kill_makes_what_is_missing(world: Path, rank: int) -> None:
    (world / "killed.py").write_text(KILLED.format(rank=rank))
    run(*PREDICT, cwd=world, code=1, start=(*TORCHRUN, "killed.py"))
    before = made(world / "out")
    assert 0 < len(before) < COUNT
    printed = run(*PREDICT, cwd=world, start=(*TORCHRUN, "-m", "dds_train"))
    assert f"{len(before)} of {COUNT} images are in {world / 'out'} already" in printed
    assert printed.count(f"{COUNT} images in {world / 'out'}") == 1
    assert made(world / "out") == Counter({f"{number}.png": 1 for number in range(COUNT)})
    assert not list((world / "out").rglob(".partial-*"))
    assert f"{COUNT} of {COUNT} images are in {world / 'out'} already" in run(*PREDICT, cwd=world)  # on one
    of_two = pictures(world / "out")
    run(*PREDICT, "output_dir=alone", cwd=world)
    for name, content in pictures(world / "alone").items():
        (world / "a.png").write_bytes(content)
        (world / "b.png").write_bytes(of_two[name])
        difference = np.asarray(Image.open(world / "a.png")).astype(int) - np.asarray(Image.open(world / "b.png"))
        assert np.abs(difference).max() <= 1  # in batches of others: rounding


def test_tasks_of_srun_leave_out_what_cannot_be_read(world: Path) -> None:
    (world / "images" / "page.png").write_text("<html>")
    (world / "images" / "3.png").write_bytes((world / "images" / "3.png").read_bytes()[:-200])  # its header is whole
    codes, printed = ended(srun(*PREDICT, cwd=world, step=0))
    assert codes == [3, 0], printed
    assert printed[1] == ""
    assert f"error: 2 of {COUNT + 1} images failed; the reasons are in {world / 'out/failed.csv'}" in printed[0]
    rows = (world / "out" / "failed.csv").read_text().splitlines()
    assert rows[0] == "image,reason"
    assert [row.split(",")[0] for row in rows[1:]] == [str(world / "images" / name) for name in ("3.png", "page.png")]
    assert all("not a readable image" in row for row in rows[1:])
    assert sorted(pictures(world / "out")) == [f"{number}.png" for number in range(COUNT) if number != 3]

    Image.new("RGB", (16, 16)).save(world / "images" / "3.png")
    printed = [run(*PREDICT, cwd=world, code=3)]
    assert f"{COUNT - 1} of {COUNT + 1} images are in {world / 'out'} already" in printed[0]
    assert len((world / "out" / "failed.csv").read_text().splitlines()) == 2
    (world / "images" / "page.png").unlink()
    run(*PREDICT, cwd=world)
    assert not (world / "out" / "failed.csv").exists()
    assert made(world / "out") == Counter({f"{number}.png": 1 for number in range(COUNT)})


def test_a_single_file_that_cannot_be_read_stops_and_leaves_nothing(world: Path) -> None:
    (world / "page.png").write_text("<html>")
    printed = run(*PREDICT, "image=page.png", cwd=world, code=2)
    assert "page.png: not a readable image" in printed
    assert printed.strip().count("\n") == 0
    assert not (world / "out").exists()
    (world / "images" / "page.png").write_text("<html>")
    assert "page.png: not a readable image" in run(*PREDICT, "on_error=stop", cwd=world, code=2)


def test_a_task_that_dies_leaves_nobody_waiting(world: Path) -> None:
    codes, printed = ended(srun(*PREDICT, cwd=world, step=0))  # so that the next ones have nothing to do, and wait
    assert codes == [0, 0], printed
    first, second = srun(*PREDICT, cwd=world, step=1)
    state = world / "out" / ".lock.rank-1.json"
    while not state.exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(second.pid, signal.SIGKILL)
    codes, printed = ended([first, second])
    if "value" not in json.loads(state.read_text() if state.exists() else '{"value": 0}'):  # else it was done before the kill
        assert codes == [2, -signal.SIGKILL]
        assert "rank 1 of 2 has ended before its share was done; run the same command again" in printed[0]
    codes, printed = ended(srun(*PREDICT, cwd=world, step=2))
    assert codes == [0, 0], printed


def test_another_launch_is_refused(world: Path, tiny: Callable[[str], Path]) -> None:
    long = (
        "optimize",
        *PROMPTS,
        "image=images",
        f"teacher.path={tiny('epsilon')}",
        "steps=100000",
        "output_dir=out",
        "device=cpu",
    )
    tasks = srun(*long, cwd=world, step=0)
    while not (world / "out" / ".lock.rank-1.json").exists():
        assert all(task.poll() is None for task in tasks)
        time.sleep(0.1)
    assert f"in use by optimize (process {tasks[0].pid} on " in run(*long, cwd=world, code=2)
    tasks[0].kill()
    tasks[0].wait()
    assert f"in use by optimize (process {tasks[1].pid} on " in run(*long, cwd=world, code=2)  # the other one goes on
    tasks[1].kill()
    ended(tasks)


def test_ranks_share_edits_and_their_evaluation(world: Path, tiny: Callable[[str], Path]) -> None:
    teacher = f"teacher.path={tiny('epsilon')}"
    optimize = ("optimize", "image=images", "source=a cat", "target=[a lion,a dog]", teacher, "steps=2", "output_dir=edits")
    printed = run(*optimize, "device=cpu", cwd=world, start=(*TORCHRUN, "-m", "dds_train"))
    assert f"{2 * COUNT} edits in {world / 'edits'}" in printed
    assert set(made(world / "edits").values()) == {1}
    assert all((world / "edits" / f"{number}-a-dog.json").exists() for number in range(COUNT))

    evaluate = ("evaluate", "image=images", *PROMPTS, teacher, "methods=[]", "clip=null", "structure=null", "lpips.nets=[]")
    codes, printed_by = ended(srun(*evaluate, "device=cpu", "output_dir=table", cwd=world, step=3))
    assert codes == [0, 0], printed_by
    assert f"{COUNT} images, 2 methods: {world / 'table/report.html'}" in printed_by[0]
    assert len((world / "table" / "per_image.csv").read_text().splitlines()) == 1 + 2 * COUNT
    for path in (world / "table" / "record.jsonl", world / "table" / "record.rank-1.jsonl"):
        assert path.read_text().count('"key"') == COUNT
