"""The command line's ways to end: by a full disk, by a reader who has gone, in any locale."""

import ast
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dds_train.cli import main
from dds_train.errors import UserError, system_error
from dds_train.methods.store import TensorStore
from dds_train.runs.files import atomic_write

PACKAGE = Path(main.__file__).parents[1]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can be larger than 20 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_checkpoint(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


def save_tensors(path: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, path)


def save_picture(path: Path) -> None:
    Image.effect_noise((300, 300), 99).save(path, format="png")


def save_prediction(path: Path) -> None:
    TensorStore(path.with_name("store"))["a"] = torch.zeros(100_000)


@pytest.mark.parametrize("save", [save_checkpoint, save_tensors, save_picture, save_prediction])
def test_a_full_disk_is_one_line(
    tmp_path: Path,
    full_disk: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    save: Callable[[Path], None],
) -> None:
    def command(argv: list[str]) -> None:
        with atomic_write(tmp_path / "result") as partial:
            save(partial)

    monkeypatch.setattr(main, "dispatch", command)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("error: ")
    assert "; " in printed.err
    assert not (tmp_path / "result").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial")]


def test_what_the_system_forbids_names_the_file() -> None:
    line = system_error(OSError(errno.EROFS, "read-only", "/data/run"))
    assert line == "/data/run: Read-only file system; check its permissions, or give another folder"
    wrapped = RuntimeError("Lightning says")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full", "/data/last.ckpt")
    assert str(system_error(wrapped)).startswith("/data/last.ckpt: No space left on device")
    for bug in (KeyError("a"), UserError("b"), FileNotFoundError(errno.ENOENT, "gone", "c"), ConnectionError("d")):
        assert system_error(bug) is None


def start(*argv: str, **environment: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "dds_train", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})


def test_a_reader_that_is_gone_ends_it_quietly() -> None:
    process = start("--help", PYTHONUNBUFFERED="")  # it writes when it ends
    assert process.stdout
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (main.BROKEN_PIPE, b"")


def test_output_in_an_encoding_that_lacks_a_letter() -> None:
    printed, errors = start("fit", "--cfg", "job", "source=été", "target=x", PYTHONIOENCODING="ascii:strict").communicate()
    assert errors == b""
    assert rb"source: \xe9t\xe9" in printed


def test_text_files_have_an_encoding_that_no_locale_changes() -> None:
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                modes = [one.value for one in call.args if isinstance(one, ast.Constant)]
                text = call.func.attr in ("read_text", "write_text") or (
                    call.func.attr == "open" and any(mode in ("r", "w", "a", "x") for mode in modes)
                )
                assert not text or any(one.arg == "encoding" for one in call.keywords), f"{path}:{call.lineno}"
