"""Shards of other tools, damaged and hostile ones."""

import pickle
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


@pytest.mark.parametrize("cut", [2048 * 4, 2048 * 4 + 300, 2048 * 4 + 700])
def test_a_truncated_shard_has_its_complete_samples(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    """Cut between two samples (of 4 blocks each), in a header, and in a latent."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(6):
            add(tar, f"{i}.z.npy", npy(np.full((4, 8, 8), i, np.float32)))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    source = ShardSource(str(tmp_path), checkpoint)
    source.prepare()
    assert f"{tmp_path / 'a.tar'}: damaged after {len(source.samples)} samples" in capsys.readouterr().out
    dataset: Any = source.dataset()
    assert [s["z"][0, 0, 0].item() for s in dataset] == list(range(len(source.samples)))
    assert len(source.samples) == 4


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
    for wrong in ("pipe:touch pwned", "https://example.org/a.tar", str(tmp_path / "none")):
        with pytest.raises(UserError, match=r"data\.path"):
            ShardSource(wrong, checkpoint)


def test_manifests_of_other_tools_are_ignored_and_damaged_ones_named(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", png(9))
    (tmp_path / "manifest.json").write_text('{"files": 3}')
    assert ShardSource(str(tmp_path), checkpoint).manifest is None
    (tmp_path / "manifest.json").write_text('{"format": 1, "sha')
    with pytest.raises(UserError, match=r"manifest\.json: damaged; delete it"):
        ShardSource(str(tmp_path), checkpoint)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"prompt": 3}'])
def test_a_sample_without_a_caption_is_named(checkpoint: DiffusionCheckpoint, tmp_path: Path, content: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", png(9))
        add(tar, "0.json", content)
    with pytest.raises(UserError, match=r"a\.tar/0"):
        _ = ShardSource(str(tmp_path), checkpoint).captions
