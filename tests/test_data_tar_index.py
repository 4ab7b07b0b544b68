"""Samples of tar files by offset: few open files, and errors that are the machine's, not a sample's."""

import errno
import io
import multiprocessing
import os
import pickle
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dds_train.data.source import StorageError
from dds_train.data.tar_index import OpenFiles, ShardSample, plain_members, scan_shard, tar_members


def write_shard(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A limit of 50 more open files than there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/dev/fd"))) + 50
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_shards_than_open_files(tmp_path: Path, few_descriptors: int) -> None:
    shards = [write_shard(tmp_path / f"{n:03d}.tar", **{"0_txt": f"{n}".encode()}) for n in range(80)]
    samples: list[ShardSample] = [scan_shard(shard)[0][0] for shard in shards]
    files, before = OpenFiles(), len(os.listdir("/dev/fd"))
    for _ in range(2):
        assert [files.read(s.shard, *s.members["txt"]) for s in samples] == [f"{n}".encode() for n in range(80)]
        assert len(os.listdir("/dev/fd")) <= before + files.limit
    files.close()
    assert len(os.listdir("/dev/fd")) == before


def test_the_last_used_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    for path in (a, b, c):
        path.write_text(path.name)
    files, opened, open_ = OpenFiles(limit=2), [], Path.open

    def counting(path: Path, mode: str) -> object:
        opened.append(path.name)
        return open_(path, mode)

    monkeypatch.setattr(Path, "open", counting)
    assert b"".join(files.read(path, 0, 1) for path in (a, b, a, c, a, b)) == b"abacab"
    assert opened == ["a", "b", "c", "b"]


def test_removed_files_are_closed_when_another_is_opened(tmp_path: Path) -> None:
    a, b = (write_shard(tmp_path / f"{name}.tar") for name in "ab")
    files, before = OpenFiles(), len(os.listdir("/dev/fd"))
    files.read(a, 0, 1)
    a.unlink()
    assert files.read(a, 0, 512) == bytes(512)  # while it is open
    files.read(b, 0, 1)
    assert len(os.listdir("/dev/fd")) == before + 1
    files.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_do_not_share_a_position_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    context, files = multiprocessing.get_context("fork"), OpenFiles()
    assert files.read(tmp_path / "a", 0, 5) == bytes(range(5))
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(files.read(tmp_path / "a", 10, 5)))
    child.start()
    assert queue.get() == bytes(range(10, 15))
    child.join()
    assert child.exitcode == 0
    assert files.read(tmp_path / "a", 50, 5) == bytes(range(50, 55))
    sent: OpenFiles = pickle.loads(pickle.dumps(files))  # as to a process that is not forked
    assert sent.read(tmp_path / "a", 20, 5) == bytes(range(20, 25))


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.EMFILE, "ulimit -n"), (errno.EIO, "check the disk"), (errno.ENOENT, "check the disk")]
)
def test_failures_of_the_machine_name_the_shard_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    shard = write_shard(tmp_path / "a.tar", **{"0_txt": b"x"})
    (sample,), _ = scan_shard(shard)

    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(shard))

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(tarfile, "open", failing)
    for read in (lambda: OpenFiles().read(shard, *sample.members["txt"]), lambda: scan_shard(shard)):
        with pytest.raises(StorageError, match=rf"a\.tar: cannot be read \({os.strerror(code)}\); .*{remedy}"):
            read()


def test_a_damaged_header_ends_a_shard(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", **{"0_txt": b"x", "1_txt": b"y"})
    content = bytearray(shard.read_bytes())
    content[1024 + 124 : 1024 + 136] = b"\xff" * 12  # a size of -1
    content[1024 + 148 : 1024 + 156] = b"%06o\0 " % (sum(content[1024:1536]) - sum(content[1172:1180]) + 8 * 32)
    shard.write_bytes(content)
    samples, note = scan_shard(shard)
    assert [sample.key for sample in samples] == ["0"]
    assert note is not None
    assert "a.tar: damaged after 1 samples" in note


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", [False, True])
def test_plain_members_are_those_of_tarfile(tmp_path: Path, format: int, long: bool) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        last = f"{'d' * 60}/{'e' * (70 if long else 9)}.txt"
        for number, name in enumerate(("a.png", "b/é.json", "b/c.z.npy", last)):
            folder = tarfile.TarInfo("b/")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size = 400 * number
            tar.addfile(info, io.BytesIO(bytes(400 * number)))
    with (tmp_path / "a.tar").open("rb") as file:
        plain, expected = plain_members(file), list(tar_members(file))
    assert len(expected) == 4
    has_more = format == tarfile.PAX_FORMAT or (format == tarfile.GNU_FORMAT and long)  # headers than one for each member
    assert plain == (None if has_more else expected)


def test_what_is_damaged_is_left_to_tarfile(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", **{"0_txt": b"x", "1_txt": b"y"})
    content = shard.read_bytes()
    for damaged in (content[:1536], content[:1200], content[:1030] + b"?" + content[1031:], b"", bytes(512) + content):
        shard.write_bytes(damaged)
        with shard.open("rb") as file:
            assert not plain_members(file)
