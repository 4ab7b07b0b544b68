"""A file of encoded prompts, of any number: only those that are asked for are in memory."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from dds_train.diffusion.prompt_table import PromptTable
from dds_train.diffusion.text_encoder import TextEncoder
from dds_train.distillation.prompt import Prompt
from dds_train.errors import UserError

WRITTEN = 64  # prompts at a time: a kill loses no more
TIMEOUT = 600.0  # seconds to wait while another process writes


class PromptFile:
    """Encoded prompts by their text in an SQLite file, each once, which several processes can share.

    The file is open during calls alone, so that copies and forks of its holder do no harm.

    Raises:
        UserError: from whatever needs the file, if it cannot be read or written, or is not one of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those of `texts` that are not in the file, each once."""
        unique = dict.fromkeys(texts)
        if not self.path.exists():
            return list(unique)
        with self._open() as file:
            known = "SELECT 1 FROM prompts WHERE text = ?"
            return [text for text in unique if file.execute(known, (text,)).fetchone() is None]

    def complete(self, texts: Iterable[str], encoder: Callable[[], TextEncoder]) -> None:
        """Embed those of `texts` that are missing; `encoder` is called if there are any. One process at a time does so, and
        what it has written before a kill stays."""
        if not (missing := self.missing(texts)):
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock")).acquire()
        except OSError as error:
            raise self._refusal(error) from error
        with lock:
            missing = self.missing(missing)  # by now
            with tqdm(total=len(missing), desc="embed prompts", unit="prompt", disable=not missing) as bar:
                for start in range(0, len(missing), WRITTEN):
                    network, some = encoder(), missing[start : start + WRITTEN]
                    # One at a time: a prompt's embedding does not depend on its batch, to the last bit.
                    rows = [(text, _packed(network.embed(text), network.dtype)) for text in some]
                    with self._open() as file, file:
                        file.executemany("INSERT OR IGNORE INTO prompts VALUES (?, ?)", rows)
                    bar.update(len(some))

    def table(self, texts: Iterable[str], device: torch.device | str = "cpu") -> PromptTable:
        """A table in memory of these texts and the empty one, all of which are in the file."""
        rows = {}
        with self._open() as file:
            for text in dict.fromkeys(["", *texts]):
                found = file.execute("SELECT tensors FROM prompts WHERE text = ?", (text,)).fetchone()
                if found is None:
                    raise UserError(f"{self.path}: has lost the prompt {text!r}; the same command embeds it again, and resumes")
                rows[text] = Prompt(load(found[0])).to(dtype=torch.float32)
        return PromptTable(rows, device)

    def embed(self, texts: Iterable[str]) -> Prompt:
        """N texts of the file as N prompts, on the CPU."""
        texts = list(texts)
        return self.table(texts).embed(texts)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=TIMEOUT)) as file:
                file.execute("PRAGMA trusted_schema = OFF")  # the file may come with somebody's shards
                file.execute("CREATE TABLE IF NOT EXISTS prompts (text TEXT PRIMARY KEY, tensors BLOB NOT NULL)")
                yield file
        except (sqlite3.Error, SafetensorError) as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path}: embeddings of prompts cannot be read or written ({error}); look at the disk, set the environment "
            "variable DDS_CACHE to another folder, or delete the file: prompts are embedded again"
        )


def _packed(prompt: Prompt, dtype: torch.dtype) -> bytes:
    """One prompt as safetensors; in `dtype`, of the text encoder, what loses nothing in it."""

    def narrow(tensor: Tensor) -> Tensor:
        narrowed = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return narrowed if torch.equal(narrowed.to(tensor.dtype), tensor) else tensor

    return bytes(save({name: narrow(tensor.cpu()).contiguous() for name, tensor in prompt.items()}))
