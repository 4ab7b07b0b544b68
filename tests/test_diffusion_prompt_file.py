"""Files of encoded prompts."""

import copy
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dds_train.diffusion import PromptFile
from dds_train.diffusion import prompt_file as module
from dds_train.distillation import Prompt
from dds_train.errors import UserError


class Encoder:
    """A prompt for each text, of its length, and a number that half precision cannot hold."""

    dtype = torch.float16

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, text: str) -> Prompt:
        self.embedded.append(text)
        rows = torch.tensor([[float(ord(letter))] * 64 for letter in f" {text}"])
        return Prompt({"text": rows[None], "mask": torch.ones(1, len(rows), dtype=torch.bool), "pooled": torch.tensor([[0.1]])})


def fill(path: Path, texts: list[str], encoder: Any = None) -> list[str]:
    """What had to be embedded."""
    encoder = encoder or Encoder()
    PromptFile(path).complete(texts, lambda: encoder)
    return encoder.embedded


def test_each_prompt_is_embedded_once_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path, texts = tmp_path / "new" / "p.sqlite", ["", "a cat", "löwe\0'", "a cat"]
    assert fill(path, texts) == ["", "a cat", "löwe\0'"]
    assert fill(path, ["a cat", "dog"]) == ["dog"]
    file = copy.deepcopy(PromptFile(path))
    assert file.missing(["dog", "a Cat", "a cat", "a Cat"]) == ["a Cat"]
    prompts = file.embed(["löwe\0'", "", "löwe\0'"])
    expected = Prompt.cat([Encoder().embed(text) for text in ("löwe\0'", "", "löwe\0'")])
    for name, tensor in expected.items():
        assert torch.equal(prompts[name], tensor)
        assert prompts[name].dtype == tensor.dtype
    condition = file.table(["dog"]).condition(["dog", "dog"])
    assert torch.equal(condition.null["text"], expected["text"][1:2, :1].expand(2, 1, 64))


def test_what_loses_nothing_is_in_the_precision_of_the_text_encoder(tmp_path: Path) -> None:
    texts = ["x" * 100, *map(str, range(100))]
    fill(tmp_path / "half", texts)
    whole = Encoder()
    whole.dtype = torch.float32
    fill(tmp_path / "whole", texts, whole)
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_kill_loses_what_was_not_written_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITTEN", 2)
    texts = ["a", "b", "c", "d", "e"]

    class Killed(Encoder):
        def embed(self, text: str) -> Prompt:
            if text == "d":
                os._exit(9)
            return super().embed(text)

    process = multiprocessing.get_context("fork").Process(target=fill, args=(tmp_path / "p", texts, Killed()))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert PromptFile(tmp_path / "p").missing(texts) == ["c", "d", "e"]
    assert fill(tmp_path / "p", texts) == ["c", "d", "e"]


def test_of_several_processes_one_embeds(tmp_path: Path) -> None:
    texts = [str(number) for number in range(200)]

    def embed(ours: Any) -> None:
        ours.send(fill(tmp_path / "p", texts))

    ends = [multiprocessing.Pipe() for _ in range(3)]
    processes = [multiprocessing.get_context("fork").Process(target=embed, args=(end[1],)) for end in ends]
    for process in processes:
        process.start()
    embedded = [end[0].recv() if end[0].poll(60) else "hangs" for end in ends]
    for process in processes:
        process.join()
    assert sorted(embedded, key=len) == [[], [], texts]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_complete_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "p.sqlite"
    fill(path, ["", "a"])
    path.chmod(stat.S_IRUSR)
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert fill(path, ["a"]) == []
        assert len(PromptFile(path).embed(["a"])) == 1
        with pytest.raises(UserError, match=r"cannot be read or written .*DDS_CACHE"):
            fill(path, ["b"])
    finally:
        path.parent.chmod(stat.S_IRWXU)


def damage(path: Path) -> None:
    path.write_bytes(b"<html></html>" * 100)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def foreign(path: Path) -> None:
    import sqlite3

    with sqlite3.connect(path) as database:
        database.execute("UPDATE prompts SET tensors = x'00'")
    database.close()


@pytest.mark.parametrize("break_it", [damage, cut, foreign])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, break_it: Callable[[Path], None]) -> None:
    path = tmp_path / "p.sqlite"
    fill(path, ["", *map(str, range(200))])
    break_it(path)
    with pytest.raises(UserError, match=r"p\.sqlite: embeddings of prompts cannot be read or written .* delete the file"):
        PromptFile(path).embed(["7"])


def test_a_prompt_that_is_gone(tmp_path: Path) -> None:
    fill(tmp_path / "p", ["", "a"])
    with pytest.raises(UserError, match="has lost the prompt 'b'"):
        PromptFile(tmp_path / "p").embed(["b"])
