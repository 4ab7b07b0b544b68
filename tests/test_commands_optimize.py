"""optimize, as a user types it."""

import gc
import json
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
from PIL import Image, ImageSequence
from shell import PROMPTS, run

from dds_train.critters.render import render
from dds_train.critters.world import critter

pytestmark = pytest.mark.slow


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, size in enumerate([(64, 64), (64, 64), (150, 61)]):
        Image.fromarray(render(critter(number, species="cat"), 64)).resize(size).save(tmp_path / f"{number}.png")
    mask = np.zeros((61, 150), np.uint8)
    mask[20:50, 40:90] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    lines = [
        "image,target,mask,seed",
        '0.png,"a lion, asleep",,1',
        "1.png,a dog,,2",
        "2.png,,mask.png,3",
        "2.png,a bear,auto,3",
    ]
    (tmp_path / "edits.csv").write_text("\n".join(lines))
    return tmp_path


def frames(path: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # imageio leaves its pipes to the garbage collector
        count = len(imageio.v3.imread(path))
        gc.collect()
    return count


@pytest.mark.parametrize("loss", ["dds", "cds"])
def test_a_list_of_edits(tiny: Callable[[str], Path], folder: Path, loss: str) -> None:
    settings = (f"teacher.path={tiny('epsilon')}", f"loss={loss}", "steps=4", "lr=1.0", "max_side=100", "feather=3")
    command = ("optimize", "image=edits.csv", *PROMPTS, *settings, "trajectory=[strip,gif,mp4]", "output_dir=out")
    assert f"4 edits in {folder / 'out'}" in run(*command, cwd=folder)
    out = folder / "out"
    names = ["0-a-lion-asleep", "1-a-dog", "2-a-photo-of-a-lion", "2-a-bear"]
    for name in names:
        record = json.loads((out / f"{name}.json").read_text())
        assert record["settings"]["loss"]["name"] == loss
        assert record["result"]["steps"] == 4
        with Image.open(out / f"{name}_steps.gif") as gif:
            assert sum(1 for _ in ImageSequence.Iterator(gif)) >= 5
        assert frames(out / f"{name}_steps.mp4") >= 5

    # Outside the masks not one bit has changed, at the image's own resolution; inside it has.
    before, mask = pixels(folder / "2.png"), pixels(folder / "mask.png") > 0
    after = pixels(out / "2-a-photo-of-a-lion.png")
    assert after.shape == before.shape
    assert np.array_equal(after[~mask], before[~mask])
    assert not np.array_equal(after, before)
    found = pixels(out / "2-a-bear_mask.png") > 0
    assert found.any()
    assert not found.all()

    # Edits that are done are skipped; a result that changed is made again, with the same pixels.
    made = {name: (out / f"{name}.png").stat().st_mtime_ns for name in names}
    results = {name: pixels(out / f"{name}.png") for name in names}
    (out / "1-a-dog.png").write_bytes(b"")
    assert f"3 of 4 edits are in {folder / 'out'} already" in run(*command, cwd=folder)
    again = {name: (out / f"{name}.png").stat().st_mtime_ns for name in names}
    assert [name for name in names if made[name] != again[name]] == ["1-a-dog"]
    difference = np.abs(pixels(out / "1-a-dog.png").astype(int) - results["1-a-dog"])
    assert difference.max() <= 1  # alone now, and not beside another: rounding
    assert f"4 edits in {folder / 'other'}" in run(*command[:-1], "output_dir=other", cwd=folder)
    for name in names:
        assert np.array_equal(pixels(folder / "other" / f"{name}.png"), results[name])
    assert "steps=4 (now 5)" in run(*command, "steps=5", cwd=folder, code=2)


def test_diverged_edits_are_named_and_leave_nothing(tiny: Callable[[str], Path], folder: Path) -> None:
    command = ("optimize", "image=0.png", *PROMPTS, f"teacher.path={tiny('epsilon')}", "steps=3", "output_dir=out")
    printed = run(*command, "lr=1e38", cwd=folder, code=2)
    assert f"{folder / '0.png'}: the edit diverged (NaN or Inf); lower lr= or guidance=" in printed
    assert "Traceback" not in printed
    assert not (folder / "out" / "0.png").exists()
    assert f"1 edit in {folder / 'out'}" in run(*command, "lr=0.05", cwd=folder)


def test_a_cached_source_branch_changes_nothing(tiny: Callable[[str], Path], folder: Path) -> None:
    command = ("optimize", "image=[0.png,1.png]", *PROMPTS, f"teacher.path={tiny('epsilon')}", "steps=3", "lr=1.0")
    run(*command, "cache=sub/cache.sqlite", "output_dir=a", cwd=folder)
    with closing(sqlite3.connect(folder / "sub" / "cache.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM tensors").fetchone() == (2 * 3 * 2,)
    run(*command, "cache=sub/cache.sqlite", "output_dir=b", cwd=folder)
    run(*command, "cache=memory", "output_dir=c", cwd=folder)
    for name in ("0", "1"):
        assert np.array_equal(pixels(folder / "a" / f"{name}.png"), pixels(folder / "b" / f"{name}.png"))
        assert np.array_equal(pixels(folder / "a" / f"{name}.png"), pixels(folder / "c" / f"{name}.png"))


def test_an_edit_that_rests_stops_early(tiny: Callable[[str], Path], folder: Path) -> None:
    still = (
        "scheduler=step",
        "scheduler.step_size=1",
        "scheduler.gamma=0.1",
        "early_stop.window=3",
        "early_stop.tolerance=0.1",
    )
    run(
        "optimize", "image=0.png", *PROMPTS, f"teacher.path={tiny('epsilon')}", "steps=60", *still, "output_dir=out", cwd=folder
    )
    assert json.loads((folder / "out" / "0.json").read_text())["result"]["steps"] < 20
