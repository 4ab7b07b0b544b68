"""Shards of other tools, damaged and hostile ones."""

import bz2
import gzip
import json
import lzma
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tar_files import add, npy, png

from dds_train.data.batches import PositionedDataset, collate
from dds_train.data.shards import ShardSource
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError


def test_image_shards_of_other_tools(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(4):
            add(tar, f"dir/{i:03d}.png", png(i * 60))
            add(tar, f"dir/{i:03d}.txt", f"number {i}".encode())
    source = ShardSource(str(tmp_path / "*.tar"), checkpoint)
    source.prepare()
    assert source.captions == [f"number {i}" for i in range(4)]
    dataset: Any = source.dataset()
    assert [round((s["image"][0, 0, 0].item() + 1) * 127.5) for s in dataset] == [0, 60, 120, 180]
    assert dataset[0]["image"].shape == (3, 32, 32)
    assert source.prompts is None


def shard(path: Path, *samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for extension, content in members.items():
                add(tar, f"{number}.{extension}", content)


def latent(value: float, size: int = 8) -> bytes:
    return npy(np.full((4, size, size), value, np.float32))


def read(source: ShardSource) -> tuple[list[int], list[str]]:
    """Indices of the good samples, and the reasons of the bad ones."""
    dataset = source.dataset()
    placed = PositionedDataset(dataset, range(len(dataset)), seed=0)
    batch = collate([placed[(i, i)] for i in range(len(dataset))])
    return batch["position"], batch["bad"]


@pytest.mark.parametrize("cut", [2048 * 4, 2048 * 4 + 300, 2048 * 4 + 700])
def test_a_truncated_shard_has_its_complete_samples(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    """Cut between two samples (of 4 blocks each), in a header, and in a latent."""
    shard(tmp_path / "a.tar", *({"z.npy": latent(i)} for i in range(6)))
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:cut])
    source = ShardSource(str(tmp_path), checkpoint)
    source.prepare()
    assert f"{tmp_path / 'a.tar'}: damaged after 4 samples" in capsys.readouterr().out
    good, bad = read(source)
    assert good == list(range(10))
    dataset: Any = source.dataset()
    assert [dataset[i]["z"][0, 0, 0].item() for i in good] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    # What it has lost: as many as the other shard has more.
    assert [reason.split(":")[0] for reason in bad] == ["a.tar, sample 5", "a.tar, sample 6"]
    (tmp_path / "b.tar").unlink()
    assert len(read(ShardSource(str(tmp_path), checkpoint))[1]) == 1


@pytest.mark.parametrize("end", [b"", bytes(1024)])
def test_a_shard_cut_between_image_and_latent_keeps_its_latents(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: bytes
) -> None:
    shard(tmp_path / "a.tar", *({"png": png(i), "z.npy": latent(i)} for i in range(4)))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.rindex(b"3.z.npy")] + end)
    source = ShardSource(str(tmp_path), checkpoint)
    assert source.latents
    source.prepare()
    assert "1 of 4 samples have no .z.npy, and are left out" in capsys.readouterr().out
    good, bad = read(source)
    assert good == [0, 1, 2]
    assert bad[0] == "a.tar/3: has no .z.npy"
    assert not ShardSource(str(tmp_path), checkpoint, latents=False).latents
    shard(tmp_path / "b.tar", *({"png": png(i)} for i in range(3)))
    source = ShardSource(str(tmp_path), checkpoint)  # most have none
    assert not source.latents
    assert len(read(source)[0]) == 7


def test_latents_of_another_size_are_bad_samples(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    odd = [latent(0, 16), npy(np.zeros((3, 8, 8), np.float32)), npy(np.zeros((4, 8), np.float32))]
    shard(tmp_path / "a.tar", *({"z.npy": content} for content in [odd[0], *(latent(i) for i in range(4)), *odd[1:]]))
    good, bad = read(ShardSource(str(tmp_path), checkpoint))
    assert good == [1, 2, 3, 4]
    assert [reason.split(":")[0] for reason in bad] == ["a.tar/0", "a.tar/5", "a.tar/6"]
    assert bad[0].endswith("a latent of shape [4, 16, 16], most have [4, 8, 8]")


def test_no_code_in_a_shard_is_executed(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "pwned",))

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.z.npy", npy(np.array([Evil()], dtype=object)))
        add(tar, "1.z.npy", pickle.dumps(Evil()))
        add(tar, "../../2.z.npy", npy(np.full((4, 8, 8), np.nan, np.float32)))
        add(tar, "3.z.npy", npy(np.zeros((4, 8, 8), np.float16)))
        add(tar, "3.pyd", pickle.dumps(Evil()))
    placed = PositionedDataset(ShardSource(str(tmp_path), checkpoint).dataset(), range(4), seed=0)
    batch = collate([placed[(i, i)] for i in range(4)])
    assert batch["position"] == [3]
    assert len(batch["bad"]) == 3
    assert not (tmp_path / "pwned").exists()
    for wrong in ("pipe:touch pwned", "ssh://host/a.tar", "s3::https://host/a.tar", str(tmp_path / "none")):
        with pytest.raises(UserError, match=r"data\.path"):
            ShardSource(wrong, checkpoint)


def test_manifests_of_other_tools_are_ignored_and_damaged_ones_named(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", png(9))
    (tmp_path / "manifest.json").write_text('{"files": 3}')
    assert ShardSource(str(tmp_path), checkpoint).manifest is None
    for damaged in ('{"format": 2, "sha', '{"format": 2}', '{"format": 2, "shards": [{}]}', "[" * 10**5, "\xff"):
        (tmp_path / "manifest.json").write_text(damaged, encoding="latin-1")
        with pytest.raises(UserError, match=r"manifest\.json: damaged; delete it"):
            ShardSource(str(tmp_path), checkpoint)


@pytest.mark.parametrize("format", [3, 99, "2", None, 1.5, 1])
def test_a_manifest_of_an_unknown_format_is_refused(checkpoint: DiffusionCheckpoint, tmp_path: Path, format: object) -> None:
    shard(tmp_path / "a.tar", {"png": png(9)})
    (tmp_path / "manifest.json").write_text(json.dumps({"format": format, "shards": "in a way of its own"}))
    reason = (
        "written by an older dds_train; synthesize" if format == 1 else "of format .*this dds_train reads 2; upgrade dds_train"
    )
    with pytest.raises(UserError, match=rf"manifest\.json: {reason}"):
        ShardSource(str(tmp_path), checkpoint)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"prompt": 3}'])
def test_a_sample_without_a_caption_is_named(checkpoint: DiffusionCheckpoint, tmp_path: Path, content: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", png(9))
        add(tar, "0.json", content)
    with pytest.raises(UserError, match=r"a\.tar/0"):
        _ = ShardSource(str(tmp_path), checkpoint).captions


CAPTIONS = {
    "prompt": ({"json": b'{"prompt": "a cat", "caption": "a dog"}'}, "a cat"),
    "caption": ({"json": b'{"caption": "a cat", "url": "x"}'}, "a cat"),
    "list": ({"json": b'{"caption": ["", "a cat", "a dog"]}'}, "a cat"),
    "only a text": ({"json": b'"a cat"'}, "a cat"),
    "byte order mark": ({"json": b'\xef\xbb\xbf{"prompt": "a cat"}', "txt": b"a dog"}, "a cat"),
    "text": ({"txt": b"\xef\xbb\xbfa \n cat \n"}, "a cat"),
    "broken, and text": ({"json": b'{"prompt": "a d', "txt": b"a cat"}, "a cat"),
    "empty, and text": ({"json": b'{"prompt": " "}', "txt": b"a cat"}, "a cat"),
    "none": ({}, "no caption"),
    "empty": ({"json": b'{"prompt": ""}', "txt": b" \n"}, "no caption"),
    "broken": ({"json": b'{"prompt": "a c'}, ".json cannot be read"),
    "nested": ({"json": b'{"prompt": {"en": "a cat"}}'}, "no caption"),
    "nested deeply": ({"json": b"[" * 10**5}, ".json cannot be read"),
    "a number": ({"json": b'{"prompt": 3}'}, "no caption"),
    "Latin-1": ({"txt": "a caf\xe9".encode("latin-1")}, ".txt cannot be read"),
    "Latin-1 in json": ({"json": '{"prompt": "a caf\xe9"}'.encode("latin-1")}, ".json cannot be read"),
    "half a character": ({"json": b'{"prompt": "a \\ud83d"}'}, ".json cannot be read"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_are_read_or_their_samples_left_out(checkpoint: DiffusionCheckpoint, tmp_path: Path, name: str) -> None:
    members, expected = CAPTIONS[name]
    shard(tmp_path / "a.tar", {"png": png(1), **members}, {"png": png(2), "txt": b"a bear"})
    source = ShardSource(str(tmp_path), checkpoint)
    assert read(source)[0] == [0, 1]  # nobody asked for captions
    captions = source.captions
    good, bad = read(source)
    if expected == "a cat":
        assert (captions, good) == (["a cat", "a bear"], [0, 1])
    else:
        assert (captions, good) == (["", "a bear"], [1])
        assert bad[0].startswith("a.tar/0: no caption")
        assert expected in bad[0]


def test_compressed_shards_are_said_to_be(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"png": png(1)})
    content = (tmp_path / "a.tar").read_bytes()
    for name in ("b.tar.gz", "b.tgz", "b.tar.xz", "b.tar.zst"):
        (tmp_path / name).write_bytes(gzip.compress(content))
        for spec in (tmp_path, tmp_path / name, tmp_path / "*"):
            with pytest.raises(UserError, match=rf"{name} is compressed.*decompress it first"):
                ShardSource(str(spec), checkpoint)
        (tmp_path / name).unlink()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content))  # beside a.tar
    assert len(ShardSource(str(tmp_path), checkpoint).samples) == 1
    for packed in (gzip.compress(content), bz2.compress(content), lzma.compress(content)):
        (tmp_path / "a.tar").write_bytes(packed)
        with pytest.raises(UserError, match=r"a\.tar: compressed"):
            ShardSource(str(tmp_path / "a.tar"), checkpoint)
