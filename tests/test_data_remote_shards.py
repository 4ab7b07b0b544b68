"""Shards behind URLs as a data source: the same samples in the same order as on this disk, whatever the server does."""

import itertools
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from range_server import RangeServer, serving
from tar_files import add, npy, png
from training_runs import build, trainer

from dds_train.data import remote_files
from dds_train.data.kept_index import write_beside
from dds_train.data.remote_files import GIB
from dds_train.data.shards import ShardSource
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.training.data import SourceData

COUNT, PER_SHARD = 12, 4


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """Twelve shards of four latents each, that of sample i being i throughout."""
    monkeypatch.setattr(remote_files, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write_shards(tmp_path / "served")
    with serving(tmp_path / "served") as running:
        yield running


def write_shards(folder: Path) -> None:
    folder.mkdir()
    for shard in range(COUNT):
        with tarfile.open(folder / f"s-{shard:03d}.tar", "w") as tar:
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                add(tar, f"{number:03d}.z.npy", npy(np.full((4, 8, 8), number, np.float32)))
                add(tar, f"{number:03d}.txt", f"number {number}".encode())


def source(server: RangeServer, checkpoint: DiffusionCheckpoint, cache: Path, **options: Any) -> ShardSource:
    return ShardSource(f"{server.url}/s-{{000..{COUNT - 1:03d}}}.tar", checkpoint, cache_dir=str(cache), **options)


def batches(source: ShardSource, workers: int = 0, first: int = 0, last: int = 24) -> list[Any]:
    data = SourceData(source.dataset(), 4, 1, workers, seed=3)
    return [(batch["position"], batch["z"][:, 0, 0, 0].tolist()) for batch in data.loader(first, last)]


def small(folder: Path) -> float:
    """GiB of a cache for half of the shards."""
    return (folder / "s-000.tar").stat().st_size * COUNT / 2 / GIB


def test_remote_shards_are_as_those_on_this_disk(server: RangeServer, checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    server.delay = 0.002
    local, remote = ShardSource(str(server.folder), checkpoint), source(server, checkpoint, tmp_path)
    assert remote.captions == local.captions
    assert [remote.dataset().name(i) for i in range(48)] == [local.dataset().name(i) for i in range(48)]
    assert batches(remote, workers=2) == batches(local)
    assert sorted(server.fetched()) == [f"s-{n:03d}.tar" for n in range(COUNT)]
    server.requests.clear()
    again = source(server, checkpoint, tmp_path)
    assert again.captions == local.captions
    assert server.fetched() == []
    assert batches(again, first=7) == batches(local)[7:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_small_cache_changes_the_order_alone(
    server: RangeServer, checkpoint: DiffusionCheckpoint, tmp_path: Path, workers: int
) -> None:
    options = {"cache_gb": small(server.folder)}
    whole = batches(source(server, checkpoint, tmp_path, **options), workers)
    assert sum(path.stat().st_size for path in (tmp_path / "shards").iterdir() if path.is_file()) <= small(server.folder) * GIB
    read = list(itertools.chain(*(values for _, values in whole)))
    assert sorted(read[:47]) == sorted(read[47:94]) == [float(n) for n in range(1, 48)]
    assert read[:47] != read[47:94]
    another = source(server, checkpoint, tmp_path / "another", **options)
    assert batches(another, first=7) == whole[7:]
    with pytest.raises(UserError, match=r"^data\.cache_gb=.*: too small for three of these shards, .*; give at least"):
        source(server, checkpoint, tmp_path, cache_gb=small(server.folder) / 3)


def test_a_shard_that_cannot_be_had_is_as_a_damaged_one(
    server: RangeServer, checkpoint: DiffusionCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.missing = {"s-003.tar"}
    broken = source(server, checkpoint, tmp_path)
    broken.prepare()
    assert f"{server.url}/s-003.tar: cannot be had (status 503" in capsys.readouterr().out
    assert len(broken.samples) == 44
    assert [reason.split(":")[0] for reason in broken.lost] == [f"s-003.tar, sample {n}" for n in (1, 2, 3, 4)]
    server.missing = set()
    assert len(source(server, checkpoint, tmp_path).samples) == 48
    server.missing = {f"s-{n:03d}.tar" for n in range(COUNT)}
    assert len(source(server, checkpoint, tmp_path).samples) == 48  # by the kept indexes
    with pytest.raises(UserError, match=r"no samples in these shards .*cannot be had"):
        source(server, checkpoint, tmp_path / "another")
    server.die()
    with pytest.raises(UserError, match=r"^data\.path=.*\.tar: http.*cannot be had .* tries\); check address and network"):
        source(server, checkpoint, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_dies_stops_training_with_its_samples_named(
    server: RangeServer, checkpoint: DiffusionCheckpoint, tiny: Callable[[str], Path], tmp_path: Path, workers: int
) -> None:
    source(server, checkpoint, tmp_path)  # indexes
    for path in (tmp_path / "shards").iterdir():
        if path.is_file():
            path.unlink()
    data = SourceData(source(server, checkpoint, tmp_path).dataset(), 4, 2, workers, seed=0)
    server.die()
    with pytest.raises(UserError, match=r"of 46 samples cannot be read, more than max_bad_fraction=0.1") as stopped:
        trainer(tmp_path, 30, max_bad_fraction=0.1, limit_val_batches=0).fit(build(tiny("epsilon")), datamodule=data)
    server.start()
    assert "cannot be had" in str(stopped.value)
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert all(line.startswith("s-") and ".tar: cannot be had" in line for line in lines)


def write_manifest(folder: Path) -> None:
    for shard in folder.glob("*.tar"):
        write_beside(shard)
    manifest = {"format": 2, "samples": 48, "shards": [], "teacher": {}, "latents": [4, 8, 8], "image": [], "colours": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_embeddings_beside_shards_make_no_room_for_them(
    server: RangeServer, checkpoint: DiffusionCheckpoint, tmp_path: Path
) -> None:
    write_manifest(server.folder)
    (server.folder / "prompts.sqlite").write_bytes(b"embeddings")
    remote = source(server, checkpoint, tmp_path, cache_gb=small(server.folder))
    assert (prompts := remote.prompts) is not None
    batches(remote)
    assert prompts.path.read_bytes() == b"embeddings"


def test_what_synthesize_wrote_brings_its_indexes(
    server: RangeServer, checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(server.folder)
    remote = source(server, checkpoint, tmp_path)
    assert server.fetched() == []
    assert remote.dataset()[47]["z"][0, 0, 0] == 47
    assert server.fetched() == ["s-011.tar"]
    shutil.copy(server.folder / "s-000.index.npz", server.folder / "s-001.index.npz")
    (server.folder / "s-001.tar").write_bytes((server.folder / "s-001.tar").read_bytes() + bytes(512))
    server.requests.clear()
    assert torch.equal(source(server, checkpoint, tmp_path).dataset()[4]["z"], torch.full((4, 8, 8), 4.0))
    assert server.fetched() == ["s-001.tar"]


def test_buckets_need_a_cache_for_all_shards(server: RangeServer, checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    for path in server.folder.iterdir():
        path.unlink()
    for shard in range(COUNT):
        with tarfile.open(server.folder / f"s-{shard:03d}.tar", "w") as tar:
            add(tar, f"{shard}.png", png(shard))
    remote = source(server, checkpoint, tmp_path, size=32, buckets=True)
    assert remote.dataset()[0]["image"].shape == (3, 24, 40)
    with pytest.raises(UserError, match=r"^data\.buckets=true: .* do not fit data\.cache_gb="):
        source(server, checkpoint, tmp_path, size=32, buckets=True, cache_gb=small(server.folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the store's
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_shards_in_an_object_store(checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs, moto = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("NO_PROXY", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    store = moto.ThreadedMotoServer("127.0.0.1", port=0)
    store.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*store.get_host_and_port()))
        write_shards(tmp_path / "local")
        filesystem = s3fs.S3FileSystem()
        filesystem.mkdir("bucket")
        for path in (tmp_path / "local").iterdir():
            filesystem.put_file(str(path), f"bucket/dir/{path.name}")
        local = ShardSource(str(tmp_path / "local"), checkpoint)
        for spec in ("s3://bucket/dir/s-{000..011}.tar", "s3://bucket/dir", "s3://bucket/dir/s-*.tar"):
            remote = ShardSource(spec, checkpoint, cache_dir=str(tmp_path))
            assert remote.captions == local.captions
            assert batches(remote) == batches(local)
        with pytest.raises(UserError, match=r"no samples in these shards \(s3://bucket/none.tar: cannot be had"):
            ShardSource("s3://bucket/none.tar", checkpoint, cache_dir=str(tmp_path))
    finally:
        store.stop()


def test_ranks_that_see_other_samples_are_told_apart(
    server: RangeServer, checkpoint: DiffusionCheckpoint, tmp_path: Path
) -> None:
    whole = source(server, checkpoint, tmp_path).dataset().fingerprint
    server.missing = {"s-003.tar"}
    lacking = source(server, checkpoint, tmp_path / "another").dataset()
    assert len(lacking) == 48
    assert lacking.fingerprint != whole == source(server, checkpoint, tmp_path).dataset().fingerprint
