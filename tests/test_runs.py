"""runs: digests of data and files, and the record of what a folder holds."""

import contextlib
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
from dds_train.runs.digest import CACHE_FROM, cached_by_file, digest, file_digest
from dds_train.runs.files import atomic_write, remove_leavings
from dds_train.runs.ranks import Ranks, local_rank, rank_and_world
from dds_train.runs.record import Record
from dds_train.runs.stamp import own_ranks, run_stamp


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
    content = os.urandom(CACHE_FROM + 5)
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


def test_a_small_file_is_read_once_by_a_process(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "weights", []
    path.write_bytes(b"1")

    def compute(path: Path) -> int:
        read.append(path)
        return len(read)

    monkeypatch.setattr("dds_train.runs.digest.REMEMBERED", 2)
    monkeypatch.setattr("dds_train.runs.digest._remembered", {})
    assert [cached_by_file(path, "weights", compute) for _ in range(2)] == [1, 2]  # written a moment ago
    aged(path, monkeypatch)
    assert [cached_by_file(path, "weights", compute) for _ in range(3)] == [3, 3, 3]
    assert cached_by_file(path, "other", compute) == 4
    assert [cached_by_file(path, one, compute) for one in ("third", "weights")] == [5, 6]  # of few
    assert not cache.exists()


@pytest.mark.parametrize("size", [CACHE_FROM, 1])
def test_a_changed_file_is_read_again_whatever_its_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(bytes(size))
    stat = path.stat()
    aged(path, monkeypatch)
    before = file_digest(path)
    other.write_bytes(b"1" * size)
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
    code = "from dds_train.runs.stamp import own_ranks, run_stamp; print(run_stamp(), flush=True); input()"
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


# ---------------------------------------------------------------- files that appear complete


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.png"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        assert first.suffix == ".png"
        first.write_text("1")
        second.write_text("2")
        assert not path.exists()
    assert path.read_text() == "1"

    def fail() -> None:
        with atomic_write(path, durable=True) as partial:
            partial.write_text("3")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "1"
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_leavings_of_the_dead_are_removed_and_files_in_work_are_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from dds_train.runs.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as partial: partial.write_text('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "sub" / "a.png"])
    (leaving,) = (tmp_path / "sub").iterdir()
    other_host = tmp_path / ".partial-elsewhere-1-00000000.tar"
    other_host.touch()
    (tmp_path / ".partial-of-mine.png").touch()
    with atomic_write(tmp_path / "b.png") as own:
        own.touch()
        remove_leavings(tmp_path)
        assert own.exists()
    assert not leaving.exists()
    assert other_host.exists()
    os.utime(other_host, (0, 0))
    remove_leavings(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".partial-of-mine.png", "b.png", "sub"]


# ---------------------------------------------------------------- the record


SETTINGS = {"lr": 1e-3, "loss": {"name": "dds", "weight": "one"}, "devices": 1, "prompts": ["a", "b"]}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with two results."""
    with Record(tmp_path / "out", "predict") as record:
        record.claim(SETTINGS)
        for name in ("a.png", "sub/b.png"):
            with atomic_write(tmp_path / "out" / name) as partial:
                partial.write_text(name)
            record.add(name, f"key of {name}", values={"seconds": 1.0})
    return tmp_path / "out"


def test_results_are_done_as_they_were_made(made: Path) -> None:
    record = Record(made, "predict")
    assert record.is_done("a.png", "key of a.png")
    assert record.is_done("sub/b.png", "key of sub/b.png")
    assert not record.is_done("a.png", "another key")
    assert not record.is_done("c.png", "key of c.png")
    assert record.values("a.png") == {"seconds": 1.0}
    (made / "a.png").write_text("A.png")  # as long
    assert not record.is_done("a.png", "key of a.png")
    (made / "sub" / "b.png").unlink()
    assert not record.is_done("sub/b.png", "key of sub/b.png")


def test_a_result_is_struck_before_it_is_made_anew(made: Path) -> None:
    with Record(made, "predict") as record:
        record.strike("a.png", "sub/b.png", "never made")
        # Killed here, or after a file with the same content but for other inputs has appeared:
    record = Record(made, "predict")
    assert not record.is_done("a.png", "key of a.png")
    assert record.values("a.png") == {}
    record.add("a.png", "key of a.png", ["a.png", "sub/b.png"], {"seconds": 2})
    record.add_values("a.png", {"psnr": 3.5})
    again = Record(made, "predict")
    assert again.is_done("a.png", "key of a.png")
    assert again.values("a.png") == {"seconds": 2, "psnr": 3.5}
    assert (made / "record.jsonl").read_text().count("never made") == 0


def test_a_result_is_made_anew_of_its_own_image_alone(made: Path) -> None:
    with Record(made, "predict") as record:
        record.add("a.png", "seed 1", values=record.origin(made / "inputs" / "a.png"))
        record.check_origins({"a.png": made / "x" / ".." / "inputs" / "a.png", "new.png": made / "b.png"})
        assert not record.is_done("a.png", "seed 2")
        with pytest.raises(UserError, match=r"a\.png is there, the result of image=inputs/a\.png \(now b\.png\); give another"):
            record.check_origins({"a.png": made / "b.png"})


CUT = ['{"struck": "a.pn', '{"result": "a.png", "key"', "7\n", "\n", "null\n", '{"result": "z"}\n', "\x00"]


@pytest.mark.parametrize("cut", CUT)
def test_a_line_that_a_kill_has_cut_is_nothing(made: Path, cut: str) -> None:
    with (made / "record.jsonl").open("a") as file:
        file.write(cut)
    with Record(made, "predict") as record:
        record.add("c", "key of c", [])
    again = Record(made, "predict")
    assert all(again.is_done(name, f"key of {name}") for name in ("a.png", "sub/b.png", "c"))
    assert again.settings == SETTINGS


def test_other_settings_are_refused_with_old_and_new(made: Path) -> None:
    before = (made / "record.jsonl").read_bytes()
    changed = {**SETTINGS, "lr": 0.1, "loss": {"name": "sds", "stride": 3}, "devices": 2}
    with Record(made, "predict") as record, pytest.raises(UserError) as error:
        record.claim(changed, free=["devices"], remedy="or resume=never")
    for part in (
        "lr=0.001 (now 0.1)",
        "loss.name=dds (now sds)",
        "loss.weight=one (now not there)",
        "loss.stride=not there (now 3)",
        "or resume=never",
        f"output_dir={made}",
    ):
        assert part in str(error.value)
    assert "devices" not in str(error.value)
    assert "\n" not in str(error.value)
    with Record(made, "optimize") as record, pytest.raises(UserError, match="holds results of predict"):
        record.claim(SETTINGS)
    assert (made / "record.jsonl").read_bytes() == before


def test_what_may_differ_may_differ(made: Path) -> None:
    with Record(made, "predict") as record:
        record.claim({**SETTINGS, "devices": 2}, free=["devices"])
        record.claim({"method": {"dds": {"steps": 3}}}, growing=["method"])  # more of them
        record.claim({"method": {"sds": {"steps": 5}}}, growing=["method"])
    with Record(made, "predict") as record:
        assert record.settings["devices"] == 2
        assert record.settings["method"] == {"dds": {"steps": 3}, "sds": {"steps": 5}}
        with pytest.raises(UserError, match=r"method.dds.steps=3 \(now 4\)"):
            record.claim({"method": {"dds": {"steps": 4}, "new": {}}}, growing=["method"])
        record.claim(SETTINGS, free=["devices"])
        assert record.is_done("a.png", "key of a.png")


def test_settings_of_a_run_without_results_do_not_bind(tmp_path: Path) -> None:
    for command, settings in (("predict", SETTINGS), ("optimize", {"lr": 2}), ("optimize", {"lr": 3})):
        with Record(tmp_path / "out", command) as record:
            record.claim(settings)
            record.claim({"network": {"clip": 1}})
            assert record.settings == {**settings, "network": {"clip": 1}}
    with Record(tmp_path / "out", "optimize") as record, pytest.raises(UserError, match="lr=3"):
        record.claim({"lr": 4}, occupied=True)


def test_starting_over_keeps_the_old_run_out_of_the_new_one(made: Path) -> None:
    for number in (1, 2):
        with Record(made, "predict") as record:
            record.start_over(["*.png", "sub", "none"])
            assert not record.is_done("a.png", "key of a.png")
            record.claim({**SETTINGS, "lr": number})
            (made / "a.png").write_text(str(number))
    assert (made / "earlier-1" / "sub" / "b.png").exists()
    assert (made / "earlier-2" / "a.png").read_text() == "1"
    assert not Record(made / "earlier-1", "predict").is_done("a.png", "another")
    assert Record(made / "earlier-1", "predict").is_done("a.png", "key of a.png")


def test_a_run_that_fails_before_its_first_result_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with Record(tmp_path / "new" / "out", "predict"):
            assert (tmp_path / "new" / "out").is_dir()
            raise UserError("no such image")

    with pytest.raises(UserError, match="no such image"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"), Record(tmp_path / "file" / "out", "predict"):
        pass


# ---------------------------------------------------------------- one run at a time

HOLD = """
import sys
from pathlib import Path
from dds_train.runs.record import Record
with Record(Path(sys.argv[1]), "fit") as record:
    record.claim({"lr": 1})
    print("held", flush=True)
    if sys.argv[2:]:
        import os, time
        if os.fork() == 0:  # a loader process
            time.sleep(3)
            os._exit(0)
    input()
"""


def hold(folder: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_run_in_a_folder_learns_who_is_there(tmp_path: Path) -> None:
    process = hold(tmp_path / "out")
    with pytest.raises(UserError, match=rf"in use by fit \(process {process.pid} on .*, since 20.*\); wait"):
        Record(tmp_path / "out", "fit").__enter__()
    with Record(tmp_path / "out", "fit", Ranks(1)) as record:  # another rank of that run
        record.claim({"lr": 1})
    process.communicate("\n")
    with Record(tmp_path / "out", "fit"):
        assert (tmp_path / "out" / ".lock.json").exists()
    assert not (tmp_path / "out" / ".lock.json").exists()


@pytest.mark.parametrize("children", [(), ("fork",)])
def test_a_killed_run_holds_no_folder(tmp_path: Path, children: tuple[str, ...]) -> None:
    with hold(tmp_path / "out", *children) as process:
        process.kill()
    with Record(tmp_path / "out", "fit") as record:
        record.claim({"lr": 1})


def test_ranks_share_one_claim(tmp_path: Path) -> None:
    code = (
        "import sys; from dds_train.runs.ranks import Ranks; from dds_train.runs.record import Record\n"
        "with Record(sys.argv[1], 'fit', Ranks(int(sys.argv[2]))) as record: record.claim({'seed': 0})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "out", str(rank)]) for rank in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    lines = [line for path in (tmp_path / "out").glob("record*.jsonl") for line in path.read_text().splitlines()]
    assert sum('"claim"' in line for line in lines) == 1


# ---------------------------------------------------------------- ranks of one launch


def ranks_of(launch: str, world: int = 2) -> list[Ranks]:
    return [Ranks(rank, world, launch) for rank in range(world)]


def test_the_last_event_on_a_name_counts_whichever_rank_wrote_it(tmp_path: Path) -> None:
    def write(ranks: Ranks, value: int) -> None:
        with Record(tmp_path, "predict", ranks) as record:
            record.strike("a")
            record.add("a", f"key {value}", [], {"value": value})

    first, second = ranks_of("one")
    for value, ranks in enumerate((Ranks(), first, second, first, Ranks(), second, second, Ranks())):
        with Record(tmp_path, "predict", first) if ranks.rank else contextlib.nullcontext():
            write(ranks, value)
        assert Record(tmp_path, "predict").values("a") == {"value": value}
    assert len(list(tmp_path.glob("record*.jsonl"))) == 2


def test_the_first_rank_gathers_what_the_others_have_made(tmp_path: Path) -> None:
    first, second = ranks_of("one")
    with Record(tmp_path, "predict", first) as record:
        with Record(tmp_path, "predict", second) as other:
            other.add("b", "key", [])
            assert other.gather({"made": 1}) is None
        assert "b" not in record.results
        assert record.gather({"made": 2}) == [{"made": 2}, {"made": 1}]
        record.add_values("b", {"psnr": 3.0})
    assert Record(tmp_path, "predict").values("b") == {"psnr": 3.0}
    assert not list(tmp_path.glob(".lock*.json"))


def test_a_rank_that_has_ended_without_a_word_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ranks_of("one")
    with Record(tmp_path, "predict", first) as record:
        with Record(tmp_path, "predict", second):
            pass
        with pytest.raises(UserError, match="rank 1 of 2 has ended before its share was done"):
            record.gather(None)
    monkeypatch.setattr("dds_train.runs.lock.ARRIVAL", 0.0)
    with Record(tmp_path, "predict", ranks_of("two")[0]) as record, pytest.raises(UserError, match="rank 1 of 2 has not come"):
        record.gather(None)
    with pytest.raises(UserError, match="rank 0 of 2 does not work there"), Record(tmp_path, "predict", ranks_of("three")[1]):
        pass


def test_a_rank_that_outlives_its_launch_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dds_train.runs.lock.PATIENCE", 0.0)
    first, second = ranks_of("one")
    of_first = Record(tmp_path, "predict", first).__enter__()
    with Record(tmp_path, "predict", second):
        of_first.__exit__(None, None, None)
        with pytest.raises(UserError, match="in use by predict"), Record(tmp_path, "predict"):
            pass
    with Record(tmp_path, "predict"):
        pass


def test_items_are_shared_one_by_one() -> None:
    shares = [Ranks(rank, 3).share(range(8)) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert list(Ranks().share(range(3))) == [0, 1, 2]


def test_a_rank_knows_its_place_on_its_machine(alone: pytest.MonkeyPatch) -> None:
    assert (local_rank(), own_ranks()) == (0, Ranks())
    for name, value in (("JOB_ID", 7), ("STEP_ID", 3), ("PROCID", 5), ("LOCALID", 1), ("STEP_NUM_TASKS", 8)):
        alone.setenv(f"SLURM_{name}", str(value))
    assert (local_rank(), own_ranks()) == (1, Ranks(5, 8, "slurm-7.3.0"))
    alone.setenv("SLURM_STEP_NUM_TASKS", "1")  # the shell of a job
    assert (local_rank(), own_ranks()) == (0, Ranks())
    alone.setenv("LOCAL_RANK", "2")
    alone.setenv("RANK", "4")
    alone.setenv("WORLD_SIZE", "6")
    assert local_rank() == 2
    with pytest.raises(UserError, match="start the processes by torchrun or srun"):
        own_ranks()
