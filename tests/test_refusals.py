"""What optimize refuses once files and models are known: one line, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from dds_train.cli.main import CONF, opened
from dds_train.commands import optimize
from dds_train.errors import UserError

COMMANDS = {"optimize": optimize.run}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDS_RUN_STAMP", "now")
    Image.new("RGB", (64, 64), "red").save("0.png")
    Image.new("L", (150, 61)).save("mask.png")
    Path("text.sqlite").write_text("certainly not a data base" * 100)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "wrong", "says"),
    [
        ("optimize", ["mask=mask.png"], "a mask of 150 x 61 pixels for a picture of 64 x 64"),
        ("optimize", ["cache=text.sqlite"], "cannot be used as a cache"),
        ("optimize", ["auto_mask.timestep=1000"], "within [0,1000]"),
        ("optimize", ["loss=nfsd", "loss.negative=null"], "loss.negative"),
        ("optimize", ["loss=pds", "t_range=[1,500]"], "within [2,1000]"),
        ("optimize", ["loss.weight=sigma"], "loss.weight must be one of one, sigma2"),
    ],
)
def test_refused_in_one_line(tiny: Callable[[str], Path], folder: Path, command: str, wrong: list[str], says: str) -> None:
    given = ["image=0.png", "source=a cat", "target=a lion", f"teacher.path={tiny('epsilon')}", "output_dir=never"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, [*given, *map(opened, wrong)])
    with pytest.raises(UserError) as error:
        COMMANDS[command](cfg)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "never").exists()
