"""What optimize refuses once files and models are read (one line, and nothing written), and what it says before it begins."""

from collections.abc import Callable
from pathlib import Path

import pytest
from configuration import configure
from PIL import Image

from dds_train.commands import optimize
from dds_train.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("0.png")
    Image.new("L", (150, 61)).save("mask.png")
    Path("text.sqlite").write_text("certainly not a data base" * 100)
    return tmp_path


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("mask=mask.png", "a mask of 150 x 61 pixels for an image of 64 x 64"),
        ("cache=text.sqlite", "cannot be used as a cache"),
        ("auto_mask.timestep=1000", "within [0,1000]"),
        ("t_range=[1,2000]", "within [0,1000]"),
    ],
)
def test_a_mistake_is_refused_in_one_line(tiny: Callable[[str], Path], folder: Path, mistake: str, message: str) -> None:
    prompts = ["source=a cat", "target=a lion"]
    config = configure("optimize", "image=0.png", *prompts, f"teacher.path={tiny('epsilon')}", "output_dir=never", mistake)
    with pytest.raises(UserError) as error:
        optimize.run(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "never").exists()


def test_several_targets_are_said(tiny: Callable[[str], Path], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A comma in a list begins another edit."""
    options = [f"teacher.path={tiny('epsilon')}", "output_dir=out", "steps=1", "snapshots=0"]
    optimize.run(configure("optimize", "image=0.png", "source=a cat", "target=[a lion, roaring]", *options))
    printed = capsys.readouterr().out
    assert printed.startswith("2 edits of each image: 'a lion', 'roaring'; quotes keep commas in one: ['a, b',c]\n")
