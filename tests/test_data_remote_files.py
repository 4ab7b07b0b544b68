"""Files of a web server in a bounded cache: a slow server, a broken one, one that dies."""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from range_server import RangeServer, serving

from dds_train.data import remote_files
from dds_train.data.remote_files import FetchAhead, FileCache, LostFile
from dds_train.errors import UserError


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """Files a.tar to d.tar of 1000 bytes each."""
    monkeypatch.setattr(remote_files, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served").mkdir()
    for name in "abcd":
        (tmp_path / "served" / f"{name}.tar").write_bytes(name.encode() * 1000)
    with serving(tmp_path / "served") as running:
        yield running


def new_cache(folder: Path, limit: int = 10**6) -> FileCache:
    cache = FileCache(folder / "cache", limit)
    cache.prepare()
    return cache


def cached(cache: FileCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.iterdir() if path.is_file())


def test_a_file_is_fetched_once_in_ranges(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "CHUNK", 300)
    server.delay = 0.02
    cache = new_cache(tmp_path)
    file = cache.locate(f"{server.url}/a.tar")
    assert (file.name, file.size) == ("a.tar", 1000)
    for again in (cache, new_cache(tmp_path), pickle.loads(pickle.dumps(cache))):
        assert again.fetch(file).read_bytes() == b"a" * 1000
    assert len(server.fetched()) == 4
    server.ranges = False
    assert cache.fetch(cache.locate(f"{server.url}/b.tar")).read_bytes() == b"b" * 1000
    assert len(server.fetched()) == 5


def test_what_is_too_short_is_fetched_again(server: RangeServer, tmp_path: Path) -> None:
    class Short:
        def cat_file(self, *_: object, **__: object) -> bytes:
            return b"a" * 9

    cache = new_cache(tmp_path)
    file = cache.locate(f"{server.url}/a.tar")
    with pytest.raises(EOFError, match="9 bytes in place of 10"):
        remote_files.read_range(Short(), file, 0, 10)
    cache.fetch(file).write_bytes(b"a" * 999)  # as a power failure may leave it
    assert cache.fetch(file).read_bytes() == b"a" * 1000


def test_another_version_is_another_file(server: RangeServer, tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    before = cache.locate(f"{server.url}/a.tar")
    cache.fetch(before)
    (server.folder / "a.tar").write_bytes(b"x" * 1000)
    after = cache.locate(f"{server.url}/a.tar")
    assert after.version != before.version
    assert cache.fetch(after).read_bytes() == b"x" * 1000


@pytest.mark.parametrize("fault", ["503", "429", "cut", "reset"])
def test_what_passes_is_tried_again(server: RangeServer, tmp_path: Path, fault: str) -> None:
    cache = new_cache(tmp_path)
    file = cache.locate(f"{server.url}/a.tar")
    if fault.isdigit():
        server.statuses = [int(fault)] * 3
    else:
        server.cuts = [0 if fault == "reset" else 500] * 3
    assert cache.fetch(file).read_bytes() == b"a" * 1000
    assert len(server.fetched()) == 4


def test_what_stays_is_lost_and_named(server: RangeServer, tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    files = [cache.locate(f"{server.url}/{name}.tar") for name in "abc"]
    server.missing = {"a.tar", "b.tar"}
    for tries in (remote_files.TRIES, 0):  # not again in this process
        server.requests.clear()
        with pytest.raises(LostFile, match=rf"^{server.url}/a.tar: cannot be had \(status 503, 7 tries\)$"):
            cache.fetch(files[0])
        assert len(server.requests) == tries
    with pytest.raises(LostFile, match=r"b.tar: cannot be had \(status 503\)$"):  # a single try, after a loss
        cache.fetch(files[1])
    assert cache.fetch(files[2]).stat().st_size == 1000  # which is a sign of life
    server.missing = set()
    assert new_cache(tmp_path).fetch(files[0]).stat().st_size == 1000  # another process
    server.requests.clear()
    with pytest.raises(LostFile, match=r"none.tar: cannot be had \(status 404\)"):
        cache.locate(f"{server.url}/none.tar?secret=1")
    assert len(server.requests) == 2  # HEAD and GET
    assert cached(cache) == 2000


def test_a_server_that_dies_half_way_loses_what_is_not_cached(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "CHUNK", 300)
    cache = new_cache(tmp_path)
    a, b = (cache.locate(f"{server.url}/{name}.tar") for name in "ab")
    cache.fetch(a)
    read, calls = remote_files.read_range, itertools.count()

    def dying(*arguments: object) -> bytes:
        if next(calls) == 2:
            server.die()
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remote_files, "read_range", dying)
    with pytest.raises(LostFile, match=r"b.tar: cannot be had \(.*, 7 tries\)"):
        cache.fetch(b)
    assert cache.fetch(a).read_bytes() == b"a" * 1000
    assert cached(cache) == 1000
    server.start()  # for the fixture's end


def test_the_cache_stays_below_its_limit(server: RangeServer, tmp_path: Path) -> None:
    cache = new_cache(tmp_path, limit=2500)
    a, b, c, d = (cache.locate(f"{server.url}/{name}.tar") for name in "abcd")
    with a.open() as opened:
        for number, file in enumerate((b, a, c)):  # for which b has to go, whose last use is the longest ago
            os.utime(cache.fetch(file), ns=(number, number))
            assert cached(cache) == 2000
        server.requests.clear()
        cache.fetch(a)
        assert server.requests == []
        for file in (b, d, b, d):
            cache.fetch(file)
        assert len(server.requests) == 2
        assert opened.read() == b"a" * 1000


def test_fetches_at_once_stay_below_the_limit_together(server: RangeServer, tmp_path: Path) -> None:
    server.delay = 0.02
    cache, most = new_cache(tmp_path, limit=2500), [0]
    files = [cache.locate(f"{server.url}/{name}.tar") for name in "abcd"]
    threads = [threading.Thread(target=cache.fetch, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # Under the lock, where files come and go, or some that are gone would count beside new ones.
        with contextlib.suppress(FileNotFoundError), FileLock(cache.locks / "room"):
            most.append(cached(cache))
    assert max(most) == 2000
    assert sorted(server.fetched()) == [f"{name}.tar" for name in "abcd"]


def kill_half_way(folder: Path, url: str) -> None:
    read, calls = remote_files.read_range, itertools.count()

    def killed(*arguments: object) -> bytes:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments)  # type: ignore[arg-type]

    remote_files.CHUNK, remote_files.read_range = 300, killed  # type: ignore[assignment]
    cache = new_cache(folder)
    cache.fetch(cache.locate(url))


@pytest.mark.slow
def test_a_kill_leaves_a_valid_cache(server: RangeServer, tmp_path: Path) -> None:
    url = f"{server.url}/a.tar"
    process = multiprocessing.get_context("spawn").Process(target=kill_half_way, args=(tmp_path, url))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = new_cache(tmp_path)
    assert cached(cache) == 0
    assert cache.fetch(cache.locate(url)).read_bytes() == b"a" * 1000


def test_several_share_the_cache(server: RangeServer, tmp_path: Path) -> None:
    server.delay = 0.02
    caches = [new_cache(tmp_path) for _ in range(4)]
    file = caches[0].locate(f"{server.url}/a.tar")
    threads = [threading.Thread(target=cache.fetch, args=(file,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.fetched()) == 1


def test_files_are_fetched_ahead_in_order(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "FETCHERS", 1)
    cache = new_cache(tmp_path)
    c, a, b = (cache.locate(f"{server.url}/{name}.tar") for name in "cab")
    server.missing, ahead = {"a.tar"}, FetchAhead()
    ahead([c, a, b])
    while server.fetched()[-1:] != ["b.tar"]:
        time.sleep(0.01)
    assert list(dict.fromkeys(server.fetched())) == ["c.tar", "a.tar", "b.tar"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match=r"^data\.cache_dir=.*cache: cannot be written \(.*\); give data\.cache_dir=FOLDER$"):
        new_cache(tmp_path)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str) -> None:
    monkeypatch.setattr("fsspec.filesystem", lambda *_: __import__("no_such_package"))
    with pytest.raises(UserError, match=rf"^data\.path={scheme}://\.\.\.: .*: pip install 'dds_train\[{scheme}\]'$"):
        new_cache(tmp_path).locate(f"{scheme}://b/a.tar")
