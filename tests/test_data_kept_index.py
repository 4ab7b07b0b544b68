"""Indexes that are kept, and made anew where they are not those of the shard."""

import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from tar_files import add

from dds_train.data import kept_index
from dds_train.data.kept_index import index_beside, index_local, index_path, kept_captions, write_beside
from dds_train.data.tar_index import ShardIndex, scan_shard


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard that is old and large enough for its index to be kept."""
    monkeypatch.setattr(kept_index, "KEPT_FROM", 1)
    monkeypatch.setattr(kept_index, "SETTLED", -1.0)
    return write_shard(tmp_path / "a.tar", "x")


def write_shard(path: Path, prefix: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in ("0.png", "0.json", "1é.json", "dir/2.z.npy", "3.cls", "0.TXT"):
            add(tar, prefix + name, (prefix + name).encode())
    return path


def test_a_scan_finds_all_samples(shard: Path) -> None:
    index, note = scan_shard(shard)
    assert note is None
    assert [sample.key for sample in index] == ["x0", "x1é", "xdir/2", "x3"]
    assert [set(sample.members) for sample in index] == [{"png", "json", "txt"}, {"json"}, {"z.npy"}, set()]
    assert index[-1].key == index[1:][-1].key == "x3"
    content = shard.read_bytes()
    for name, sample, extension in (("x0.png", 0, "png"), ("xdir/2.z.npy", 2, "z.npy")):
        offset, size = index[sample].members[extension]
        assert content[offset : offset + size] == name.encode()
    images = index.with_any({"png", "z.npy"})
    assert list(images) == [index[0], index[2]]
    assert images.has("json").tolist() == [True, False]
    assert len(index.with_any({"webp"})) == len(list(index.with_any({"webp"}))) == 0


def kept(shard: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the index is found; it is the right one in any case."""
    with monkeypatch.context() as patch:
        calls: list[Path] = []
        patch.setattr(kept_index, "scan_shard", lambda one: calls.append(one) or scan_shard(one))
        (index, note), (expected, expected_note) = index_local(shard, folder), scan_shard(shard)
        assert (list(index), note) == (list(expected), expected_note)
        return not calls


def test_an_index_is_kept_until_its_shard_changes(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kept"
    assert [kept(shard, folder, monkeypatch) for _ in range(2)] == [False, True]
    write_shard(shard, "y")  # of the same size
    assert [kept(shard, folder, monkeypatch) for _ in range(2)] == [False, True]
    shard.write_bytes(shard.read_bytes()[:3000])
    assert [kept(shard, folder, monkeypatch) for _ in range(2)] == [False, True]  # with the note that it is damaged
    monkeypatch.setattr(kept_index, "SETTLED", 60.0)
    assert not kept(shard, folder, monkeypatch)  # may change again within the resolution of its time
    assert not kept(shard, tmp_path / "a.tar" / "no folder", monkeypatch)


@pytest.mark.parametrize("damage", ["cut", "empty", "no zip", "pickle", "beyond", "order", "extension"])
def test_a_damaged_index_is_made_anew(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    assert not kept(shard, tmp_path, monkeypatch)
    path = index_path(shard, tmp_path)
    content = path.read_bytes()
    with np.load(path) as loaded:
        arrays = dict(loaded)
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "no zip":
            path.write_bytes(b"x" * 100)
        case _:
            arrays |= {
                "pickle": {"keys": np.array([object()])},
                "beyond": {"places": arrays["places"] + 10**6},
                "order": {"ends": arrays["ends"][::-1]},
                "extension": {"extensions": np.array(["sh"] * len(arrays["extensions"]))},
            }[damage]
            np.savez(path, allow_pickle=True, **arrays)
    assert [kept(shard, tmp_path, monkeypatch) for _ in range(2)] == [False, True]


def test_an_index_beside_a_shard_goes_with_it(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_beside(shard)
    moved = tmp_path / "moved" / "b.tar"
    moved.parent.mkdir()
    shard.rename(moved)
    index_beside(shard).rename(index_beside(moved))
    assert kept(moved, tmp_path, monkeypatch)
    with moved.open("ab") as file:
        file.write(bytes(512))
    assert not kept(moved, tmp_path, monkeypatch)


def test_captions_are_kept_with_their_samples(shard: Path, tmp_path: Path) -> None:
    def captions(index: ShardIndex, *found: str) -> list[list[str]]:
        return kept_captions(index, tmp_path, lambda: [[one, ""] for one in found])

    index, _ = scan_shard(shard)
    assert captions(index, "a", "b") == captions(index) == [["a", ""], ["b", ""]]
    assert captions(index.with_any({"png"}), "c") == [["c", ""]]
    index_path(shard, tmp_path).with_suffix(".captions.json").write_text("{")
    assert captions(index, "d") == [["d", ""]]
    later = time.time() + 9
    os.utime(shard, (later, later))
    assert captions(index, "e") == [["e", ""]]
