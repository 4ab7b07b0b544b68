"""A key-value store of tensors in one file, which several runs can share, and the teacher that uses it."""

import sqlite3
import weakref
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation.cache import SourceCache
from dds_train.distillation.noise import ScoreModel
from dds_train.errors import UserError


class TensorStore(MutableMapping[str, Tensor]):
    """A dict of tensors in an SQLite file; what has been written survives a kill of the process.

    Raises:
        UserError: if the file cannot be written, or is not such a store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            weakref.finalize(self, self.database.close)
            self.database.execute("PRAGMA journal_mode = WAL")
            self.database.execute("PRAGMA synchronous = NORMAL")
            self.database.execute("CREATE TABLE IF NOT EXISTS tensors (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cache={path}: cannot be used as a cache file ({error}); give another, or delete it") from error

    def __getitem__(self, key: str) -> Tensor:
        row = self.database.execute("SELECT value FROM tensors WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        output: Tensor = load(row[0])["value"]
        return output

    def __setitem__(self, key: str, value: Tensor) -> None:
        blob = save({"value": value.detach().cpu().contiguous()})
        self.database.execute("INSERT OR REPLACE INTO tensors VALUES (?, ?)", (key, blob))

    def __delitem__(self, key: str) -> None:
        if not self.database.execute("DELETE FROM tensors WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (key for (key,) in self.database.execute("SELECT key FROM tensors"))

    def __len__(self) -> int:
        return int(self.database.execute("SELECT count(*) FROM tensors").fetchone()[0])


def with_source_cache(cache: str | None, checkpoint: DiffusionCheckpoint) -> ScoreModel:
    """The teacher of `checkpoint`; its predictions for inputs are kept in "memory" or in the file `cache`."""
    teacher = checkpoint.teacher()
    if cache is None:
        return teacher
    store: MutableMapping[str, Tensor] = {} if cache == "memory" else TensorStore(cache)
    device = teacher.device.type  # others round differently
    return SourceCache(teacher, store, f"{checkpoint.digest('denoiser', 'scheduler')}/{checkpoint.precision}/{device}")
