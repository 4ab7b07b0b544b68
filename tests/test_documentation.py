"""Commands and keys that the documentation shows: each is a valid configuration."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from configuration import configure

from dds_train.cli.conf import CONF
from dds_train.cli.overrides import types_at
from dds_train.cli.schema import MODELS

REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "conf/README.md", "data/README.md", "scripts/README.md", "Makefile")
RUNS = ("cat2lion", "cat2lion_flow", "cat2many", "cat2bear")
FOLDERS = (*(f"outputs/{run}/translator" for run in RUNS), "photos")
FILES = ("cat.png", "photos/cat.jpg", "mask.png", "sks_dog.safetensors")


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of each `python -m dds_train COMMAND ...`."""
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        for written, meant in (("\\\n", " "), ("$(OUT)", "outputs/cat2lion"), ("$a", "bear")):
            text = text.replace(written, meant)
        for line in re.findall(r"(?:python -m )?dds_train ([a-z]+ .+)", text):
            yield page, re.split(r"`| {2,}#|, after ", line)[0].strip()


# That with files of the reader's own is run by test_commands_fit, test_a_data_source_of_ones_own.
SHOWN = [(page, line) for page, line in commands() if line.split()[0] in MODELS and "--config-dir" not in line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has when they type these commands."""
    monkeypatch.chdir(tmp_path)
    for name in FOLDERS:
        (tmp_path / name).mkdir(parents=True)
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "edits.csv").write_text("image,source,target\ncat.png,a cat,a dog\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/examples").symlink_to(REPOSITORY / "data/examples")
    (tmp_path / "data/cats").mkdir()
    (tmp_path / "data/cats/00000.tar").touch()
    return tmp_path


def test_all_pages_are_read() -> None:
    assert {page for page, _ in SHOWN} >= {"README.md", "conf/README.md", "data/README.md", "Makefile"}
    assert {line.split()[0] for _, line in SHOWN} == set(MODELS)


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_a_shown_command_is_valid(folder: Path, page: str, line: str) -> None:
    configure(*shlex.split(line))


def test_shown_keys_exist() -> None:
    """Every `key=` in a code span of conf/README.md is a key or a group of some command."""
    text = (CONF / "README.md").read_text()
    spans = [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]
    keys = {match[1] for word in spans if (match := re.match(r"\+?([a-z_]+(?:\.[a-z_]+)*)=", word))}
    keys -= {"key", "group", "group.key"}  # of the table that says what overrides look like
    assert len(keys) > 40
    unknown = [key for key in keys if not any(list(types_at(model, key.split("."))) for model in MODELS.values())]
    assert [key for key in unknown if not (CONF / key).is_dir()] == []
