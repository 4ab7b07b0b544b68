"""runs: digests of data and files, and the record of what a folder holds."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from dds_train.errors import UserError
from dds_train.runs.digest import CACHE_FROM, digest, file_digest
from dds_train.runs.ranks import rank_and_world
from dds_train.runs.stamp import run_stamp


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


# ---------------------------------------------------------------- the name of a run's own folder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "DDS_RUN_STAMP"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_runs_of_one_second_have_folders_of_their_own(alone: pytest.MonkeyPatch) -> None:
    assert len({run_stamp() for _ in range(20)}) == 20
    alone.setenv("DDS_RUN_STAMP", "that of the launcher")
    assert run_stamp() == "that of the launcher"


def test_ranks_of_a_slurm_step_share_a_name_and_array_jobs_do_not(alone: pytest.MonkeyPatch) -> None:
    names = []
    for job in (7, 8):
        for rank in (0, 1):
            for name, value in (("JOB_ID", job), ("STEP_ID", 0), ("PROCID", rank), ("STEP_NUM_TASKS", 2)):
                alone.setenv(f"SLURM_{name}", str(value))
            assert rank_and_world() == (rank, 2)
            names.append(run_stamp())
    assert names == ["slurm-7.0", "slurm-7.0", "slurm-8.0", "slurm-8.0"]


@pytest.mark.slow
@pytest.mark.parametrize("serves", ["agent", "rank 0"])
def test_ranks_of_a_launcher_agree_on_a_name(alone: pytest.MonkeyPatch, serves: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = "from dds_train.runs.stamp import run_stamp; print(run_stamp(), flush=True); input()"
    ranks = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    agent = None
    if serves == "agent":
        ranks["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        agent = torch.distributed.TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**ranks, "RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    first, second = (process.stdout.readline().strip() for process in processes if process.stdout)
    for process in processes:
        process.communicate("\n")
    assert first == second != ""
    del agent


def test_processes_that_cannot_meet_are_refused(alone: pytest.MonkeyPatch) -> None:
    alone.setenv("RANK", "0")
    alone.setenv("WORLD_SIZE", "2")
    alone.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="give output_dir=DIR"):
        run_stamp()
