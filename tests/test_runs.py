"""runs: digests of data and files, and the record of what a folder holds."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from dds_train.runs.digest import CACHE_FROM, digest, file_digest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def aged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `path` look old enough for its digest to be cached."""
    now = path.stat().st_ctime + 3600
    monkeypatch.setattr("dds_train.runs.digest.time.time", lambda: now)


# ---------------------------------------------------------------- digests


def test_equal_data_has_one_digest() -> None:
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": (1.5, None), "a": 1})
    assert len({digest(value) for value in (1, 1.5, "1", True, None, [1], {"1": 1}, [[1]], "", [])}) == 10


def test_file_digests_are_of_all_bytes(cache: Path, tmp_path: Path) -> None:
    content = os.urandom(3 * CACHE_FROM + 5)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert file_digest(tmp_path / "b") != file_digest(tmp_path / "a")


def test_digests_of_large_files_are_cached(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(CACHE_FROM))
    file_digest(path)
    assert not cache.exists()  # written a moment ago: a second change might have the same time
    aged(path, monkeypatch)
    before = file_digest(path)
    (entry,) = (cache / "digests").iterdir()
    entry.write_text(entry.read_text().replace(before, "0" * 64))
    assert file_digest(path) == "0" * 64
    entry.write_text("{")
    assert file_digest(path) == before


def test_a_changed_file_is_read_again_whatever_its_time(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(bytes(CACHE_FROM))
    stat = path.stat()
    aged(path, monkeypatch)
    before = file_digest(path)
    other.write_bytes(b"1" * CACHE_FROM)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shutil.copy2(other, path)  # as long, and as old
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert file_digest(path) != before


def test_an_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DDS_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "weights").write_bytes(bytes(CACHE_FROM))
    aged(tmp_path / "weights", monkeypatch)
    assert file_digest(tmp_path / "weights") == hashlib.sha256(bytes(CACHE_FROM)).hexdigest()
