"""What a mistake on the command line costs: one line, exit code 2, a second, and nothing written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dds_train.cli.main import check, flags_first, opened, quoted
from dds_train.errors import UserError

GIVEN = ["source=a cat", "target=a lion"]


@pytest.fixture(autouse=True)
def stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDS_RUN_STAMP", "now")  # as main() does


@pytest.fixture
def cat(tmp_path: Path) -> str:
    """Only looked for at this stage, not opened."""
    (tmp_path / "cat.png").touch()
    return f"image={tmp_path / 'cat.png'}"


@pytest.mark.parametrize(
    ("command", "overrides", "says"),
    [
        ("fit", [], "needs source=... target=..."),
        ("fit", ["sorce=a"], "did you mean 'source'"),
        ("fit", [*GIVEN, "trainer.max_stepz=3"], "did you mean 'trainer.max_steps'"),
        ("fit", [*GIVEN, "trainer.max_steps=many"], "expected a whole number, such as 2000"),
        ("fit", [*GIVEN, "trainer.max_steps=0"], "trainer.max_steps=0: must be at least 1"),
        ("fit", [*GIVEN, "optimizer.lr=abc"], "optimizer.lr=abc: expected a number, such as 0.001"),
        ("fit", [*GIVEN, "guidance.fraction=3"], "between 0 and 1"),
        ("fit", [*GIVEN, "t_range=[900,50]"], "give [FIRST,LAST]"),
        ("fit", [*GIVEN, "loss=ddd"], "did you mean 'dds'"),
        ("fit", [*GIVEN, "teacher=sd_15"], "did you mean 'sd15'"),
        ("fit", [*GIVEN, "data=folder"], "needs data.path=..."),
        ("fit", [*GIVEN, "data=folder", "data.count=3"], "no key 'data.count'"),
        ("fit", [*GIVEN, "data=folder", "data.path=/nowhere"], "data.path=/nowhere: no such file or folder"),
        ("fit", [*GIVEN, "resume=/nowhere.ckpt"], "no such checkpoint"),
        ("fit", [*GIVEN, f"output_dir={__file__}"], "is a file"),
        ("fit", ["experiment=cat2lion"], "+experiment=cat2lion"),
        ("fit", ["+experiment=cat2loin"], "did you mean 'cat2lion'"),
        ("fit", [*GIVEN, "trainer"], "is no key=value"),
        ("fit", ["source=a cat", "+tasks.lion.target=a lion", "+tasks.dog.truth.species=dog"], "needs target=..."),
        ("fit", [*GIVEN, "+tasks.lion.taget=a lion"], "tasks.lion.taget: a task has source, target"),
        ("fit", [*GIVEN, "+tasks.lion=a lion"], "tasks.lion.target=..."),
        ("fit", [*GIVEN, "tasks_per_image=2"], "there are 1 tasks"),
        ("fit", [*GIVEN, "data=shards"], "needs data.path=..."),
        ("fit", [*GIVEN, "data=shards", "data.path=pipe:ls"], "not a local path"),
        ("fit", [*GIVEN, "data=shards", "data.path=/nowhere"], "no shards"),
        ("fit", [*GIVEN, "translator=lora", "translator.rank=0"], "at least 1"),
        ("fit", [*GIVEN, "augment.zoom=2"], "between 0.1 and 1"),
        ("synthesize", ["prompts=a cat"], "needs output_dir=..."),
        ("synthesize", ["prompts=a cat", f"output_dir={__file__}"], "is a file"),
        ("synthesize", ["prompts=a cat", "output_dir=x", "count=0"], "count=0: must be at least 1"),
        ("optimize", [*GIVEN, "image=/nowhere"], "image=/nowhere: no such file"),
        ("optimize", [*GIVEN, f"image={__file__}", "mask=/nowhere"], "mask=/nowhere: no such file or folder"),
        ("optimize", [*GIVEN, f"image={__file__}", "trajectory=gif"], "expected a list, such as [strip]"),
        ("optimize", [*GIVEN, f"image={__file__}", "feather=-1"], "feather=-1: must be at least 0"),
        ("evaluate", ["methods=[dds]", "ckpt=[/nowhere]"], "ckpt=/nowhere: no such file"),
        ("evaluate", ["image=/nowhere"], "image=/nowhere: no such file"),
        ("predict", ["ckpt=/nowhere"], "needs image=..."),
    ],
)
def test_mistakes_are_explained(command: str, overrides: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        check(command, overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_tasks_say_what_the_command_line_need_not() -> None:
    check("fit", ["source=a cat", "+tasks.lion.target=a lion", "+tasks.dog.target=a dog", "tasks_per_image=2"])
    for command, overrides in (
        ("fit", ["+tasks.lion.source=a cat", "+tasks.lion.target=a lion, asleep"]),
        ("synthesize", ["prompts=a {fur} cat, asleep", "+words.fur=[gray]", "output_dir=new"]),
    ):
        check(command, [quoted(override) for override in overrides])


def test_mistakes_with_a_picture(cat: str) -> None:
    for overrides, says in (
        (["steps=1.5"], "expected a whole number, such as 200"),
        (["steps=0"], "steps=0: must be at least 1"),
        (["guidance=high"], "guidance=high: expected a number, such as"),
        (["seed={"], "quote the value"),
    ):
        with pytest.raises(UserError) as error:
            check("optimize", [*GIVEN, cat, *overrides])
        assert says in str(error.value)
    for strength in (-0.1, 1.1):
        with pytest.raises(UserError, match="between 0 and 1"):
            check("predict", [cat, f"ckpt={__file__}", f"strength={strength}"])


def test_every_choice_of_every_group_composes(tmp_path: Path) -> None:
    conf = Path(__file__).parents[1] / "conf"
    for file in conf.glob("*/*.yaml"):
        group, choice = file.parent.name, file.stem
        if choice == "of_checkpoint":
            continue  # for predict alone
        overrides = [f"+experiment={choice}"] if group == "experiment" else [*GIVEN, f"{group}={choice}"]
        if file.stem in ("folder", "shards"):
            (tmp_path / "one.tar").touch()
            overrides.append(f"data.path={tmp_path if file.stem == 'shards' else 'data/examples'}")
        check("evaluate" if group == "method" else "fit", overrides)


@pytest.mark.parametrize(
    "value", ["my cat (1).png", "epoch=3.ckpt", "a lion, smiling: [big]", "it's a lion", "c:\\new\\", "{a}", "plain"]
)
def test_free_text_reaches_the_configuration_as_it_was_typed(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(quoted(f"source={value}"))
    assert parsed.value() == value


def test_names_of_ones_own_need_no_plus() -> None:
    for given in ("tasks.lion.target=a lion, asleep", "+tasks.lion.target=a lion, asleep"):
        assert quoted(opened(given)) == "++tasks.lion.target='a lion, asleep'"
    assert opened("words.fur=[gray]") == "++words.fur=[gray]"
    assert opened("tasks_per_image=2") == "tasks_per_image=2"
    # Both a new one, and one that an experiment has.
    check("fit", [opened("tasks.cow.target=x"), "source=a"])
    check("fit", ["+experiment=cat2many", opened("tasks.lion.target=x"), opened("data.words.fur=[gray]")])


def test_flags_may_stand_anywhere() -> None:
    given = ["a=1", "--config-dir", "my_conf", "~b", "data=mine", "--cfg", "job"]
    assert flags_first(given) == ["--config-dir", "my_conf", "--cfg", "job", "a=1", "~b", "data=mine"]


def test_quoting_leaves_the_rest_alone() -> None:
    for override in ("steps=3", "image=[a.png,b.png]", "source='x, y'", "prompt=null", "t_range=[1,2]", "~data"):
        assert quoted(override) == override


def run(*argv: str, cwd: Path) -> tuple[int, str, float]:
    began = time.monotonic()
    command = [sys.executable, "-m", "dds_train", *argv]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    return result.returncode, result.stdout + result.stderr, time.monotonic() - began


def test_exit_codes_and_nothing_written(tmp_path: Path) -> None:
    for argv, code, says in (
        ((), 2, "usage:"),
        (("--help",), 0, "usage:"),
        (("fit", "--help"), 0, "guidance: {start: 1.0"),
        (("fti",), 2, "did you mean 'fit'"),
        (("fit", "sorce=a"), 2, "error: no key 'sorce'"),
        (("optimize", "image=none", "source=a", "target=b"), 2, "error: image=none"),
    ):
        status, printed, _ = run(*argv, cwd=tmp_path)
        assert status == code, printed
        assert says in printed
        assert "Traceback" not in printed
        assert code == 0 or argv == () or printed.count("\n") == 1
    assert not list(tmp_path.iterdir())
