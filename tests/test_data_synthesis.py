"""Data sets sampled from the teacher, and their prompts."""

import gc
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dds_train.data import synthesis
from dds_train.data.kept_index import index_beside
from dds_train.data.prompts import fill_all
from dds_train.data.shards import ShardSource
from dds_train.data.synthesis import Recipe, image_seed, recipe_for, synthesize, verify
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.errors import UserError
from dds_train.runs.files import HOST, atomic_write

PROMPTS = fill_all(["a photo of a {fur} cat", "a cat"], {"fur": ["gray", "orange"]}, 7, seed=0)


def recipe(checkpoint: DiffusionCheckpoint, **changes: Any) -> Recipe:
    return recipe_for(checkpoint, PROMPTS, **{"guidance": 2.0, "steps": 2, "seed": 0, "per_shard": 3, **changes})


def content(folder: Path) -> list[dict[str, Any]]:
    """Every sample's image, latent and description, read with tarfile alone."""
    samples: dict[str, dict[str, Any]] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                read: dict[str, Callable[[bytes], Any]] = {
                    "png": lambda b: np.asarray(Image.open(io.BytesIO(b))),
                    "z.npy": lambda b: np.load(io.BytesIO(b)),
                    "json": json.loads,
                }
                samples.setdefault(key, {})[extension] = read[extension](data)
    return [samples[key] for key in sorted(samples)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_one_error(checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shard could not write does not come up again when it is collected."""
    written = atomic_write
    monkeypatch.setattr(
        synthesis, "atomic_write", lambda path, durable: nullcontext(Path("/dev/full")) if durable else written(path)
    )
    later: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", later.append)
    with pytest.raises(OSError, match="No space left"):
        synthesize(checkpoint, recipe(checkpoint), tmp_path, batch_size=3)
    gc.collect()
    assert later == []


def test_samples_do_not_depend_on_batch_size_or_processes(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    r = recipe(checkpoint)
    assert synthesize(checkpoint, r, tmp_path / "one", batch_size=3)
    assert not synthesize(checkpoint, r, tmp_path / "two", batch_size=3, rank=1, world_size=2)
    assert synthesize(checkpoint, r, tmp_path / "two", batch_size=3, rank=0, world_size=2)
    # Processes change nothing at all, the batch size rounding errors.
    for name in r.shards:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    synthesize(checkpoint, r, tmp_path / "batch", batch_size=2)
    for a, b in zip(content(tmp_path / "one"), content(tmp_path / "batch"), strict=True):
        assert np.abs(a["png"].astype(int) - b["png"]).max() <= 1
        assert a["json"] == b["json"]


def test_a_sample_has_image_latent_prompt_and_seed(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    r = recipe(checkpoint)
    synthesize(checkpoint, r, tmp_path / "d", batch_size=7)
    samples = content(tmp_path / "d")
    assert [s["json"]["prompt"] for s in samples] == PROMPTS
    assert all(index_beside(shard).exists() for shard in (tmp_path / "d").glob("*.tar"))
    table = PromptTable.load(tmp_path / "d" / "prompts.safetensors")
    for number, sample in enumerate(samples):
        assert list(table.rows)[sample["json"]["prompt_id"]] == sample["json"]["prompt"]
        assert sample["json"]["seed"] == image_seed(r, number, 0)
        # The latent is that of the saved image, as predict encodes it.
        image = torch.from_numpy(sample["png"].astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        torch.testing.assert_close(torch.from_numpy(sample["z.npy"])[None], checkpoint.autoencoder().encode(image))
    for prompt, row in table.rows.items():
        assert torch.equal(row["text"], checkpoint.text_encoder().embed(prompt)["text"])


def test_missing_and_damaged_shards_are_sampled_again(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    r = recipe(checkpoint)
    synthesize(checkpoint, r, tmp_path / "d", batch_size=3)
    first, second = ((tmp_path / "d" / name) for name in r.shards[:2])
    kept, lost, manifest = first.stat().st_mtime_ns, second.read_bytes(), (tmp_path / "d" / "manifest.json").read_text()
    second.unlink()
    killed = subprocess.Popen(["sleep", "0"])
    killed.wait()
    partial = tmp_path / "d" / f".partial-{HOST}-{killed.pid}-00000000.tar"
    partial.write_bytes(lost[:100])
    synthesize(checkpoint, r, tmp_path / "d", batch_size=3)
    assert first.stat().st_mtime_ns == kept
    assert not partial.exists()
    assert second.read_bytes() == lost
    assert (tmp_path / "d" / "manifest.json").read_text() == manifest
    verify(tmp_path / "d")
    second.write_bytes(lost[:600] + b"x" + lost[601:])
    with pytest.raises(UserError, match=r"shard-00001\.tar: checksum mismatch"):
        verify(tmp_path / "d")
    synthesize(checkpoint, r, tmp_path / "d", batch_size=3)
    assert second.read_bytes() == lost
    with pytest.raises(UserError, match=r"seed=0 \(now 1\)"):
        synthesize(checkpoint, recipe(checkpoint, seed=1), tmp_path / "d", batch_size=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        synthesize(checkpoint, r, tmp_path / "mine", batch_size=3)


def test_synthesized_shards_need_neither_vae_nor_text_encoder(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = DiffusionCheckpoint(str(tiny("epsilon")))
    synthesize(checkpoint, recipe(checkpoint), tmp_path / "d", batch_size=3, extra_prompts=["a photo of a lion"])
    fresh = DiffusionCheckpoint(checkpoint.path)
    source = ShardSource(str(tmp_path / "d"), fresh)
    source.prepare()
    dataset: Any = source.dataset()
    assert [s["json"]["prompt"] for s in content(tmp_path / "d")] == source.captions
    for one, sample in zip(dataset, content(tmp_path / "d"), strict=True):
        assert torch.equal(one["z"], torch.from_numpy(sample["z.npy"]))
    assert source.prompts is not None
    assert source.prompts.missing(["a photo of a lion", "a cat"]) == []
    # The preview has the size of the images.
    assert source.preview is not None
    shown = source.preview(dataset[0]["z"][None])
    assert shown.shape == (1, 3, 32, 32)
    assert not {"teacher", "autoencoder", "text_encoder"} & set(fresh._loaded)

    other = DiffusionCheckpoint(str(tiny("v_prediction")))
    vae = tmp_path / "other"
    other.autoencoder().network.save_pretrained(vae / "vae")
    with torch.no_grad():
        other.autoencoder().network.encoder.conv_in.weight.mul_(2)
    other.autoencoder().network.save_pretrained(vae / "vae")
    for part in ("unet", "tokenizer", "text_encoder", "scheduler", "model_index.json"):
        (vae / part).symlink_to(Path(checkpoint.path) / part)
    with pytest.raises(UserError, match="made with another VAE"):
        ShardSource(str(tmp_path / "d"), DiffusionCheckpoint(str(vae))).prepare()
    ShardSource(str(tmp_path / "d"), DiffusionCheckpoint(str(vae)), latents=False)  # images suit any VAE


def test_filtered_by_clip(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    """Image 0 fails once, image 4 always."""
    tried: list[tuple[int, int]] = []
    r = recipe(checkpoint, score="test", least=0.5, tries=3)
    seeds = {image_seed(r, index, attempt): (index, attempt) for index in range(7) for attempt in range(3)}
    seeds_of_batch: list[int] = []

    import dds_train.data.synthesis as module

    real = module.sample_images

    def spy(checkpoint: DiffusionCheckpoint, recipe: Recipe, prompts: list[str], now: list[int]) -> tuple[Tensor, Tensor]:
        seeds_of_batch[:] = now
        return real(checkpoint, recipe, prompts, now)

    def score(images: Tensor, prompts: Sequence[str]) -> list[float]:
        tried.extend(seeds[seed] for seed in seeds_of_batch)
        return [0.1 if seeds[seed] == (0, 0) or seeds[seed][0] == 4 else 0.9 for seed in seeds_of_batch]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sample_images", spy)
        synthesize(checkpoint, r, tmp_path / "d", batch_size=2, score=score)
    assert sorted(tried) == sorted([(i, 0) for i in range(7)] + [(0, 1), (4, 1), (4, 2)])
    samples = content(tmp_path / "d")
    assert [s["json"]["seed"] for s in samples] == [image_seed(r, i, 1 if i == 0 else 0) for i in (0, 1, 2, 3, 5, 6)]
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["left_out"]) == (6, 1)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("score", [None, lambda images, prompts: [float(image.mean() > -0.1) for image in images]])
def test_a_kill_loses_one_batch_and_changes_no_bit(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    r = recipe(checkpoint, per_shard=100, **({"score": "test", "least": 0.5, "tries": 3} if score else {}))
    sampled: list[int] = []
    sample = synthesis.sample_images

    def counting(checkpoint: DiffusionCheckpoint, r: Recipe, prompts: list[str], seeds: list[int]) -> Any:
        if len(sampled) >= limit:
            raise Killed
        sampled.extend(seeds)
        return sample(checkpoint, r, prompts, seeds)

    monkeypatch.setattr(synthesis, "sample_images", counting)
    limit = 1000
    synthesize(checkpoint, r, tmp_path / "whole", batch_size=2, score=score)
    expected = list(sampled)
    sampled.clear()
    limit = 6
    with pytest.raises(Killed):
        synthesize(checkpoint, r, tmp_path / "killed", batch_size=2, score=score)
    limit = 1000
    synthesize(checkpoint, r, tmp_path / "killed", batch_size=2, score=score)
    assert sampled == expected
    for name in (*r.shards, "manifest.json", "preview.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "killed" / ".work").exists()


def test_kept_images_are_used_by_batches_of_another_size_and_by_this_recipe_alone(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, sampled = synthesis.sample_images, []

    def dying(*arguments: Any) -> Any:
        if sampled:
            raise Killed
        sampled.append(len(arguments[3]))
        return sample(*arguments)

    monkeypatch.setattr(synthesis, "sample_images", dying)
    with pytest.raises(Killed):
        synthesize(checkpoint, recipe(checkpoint, per_shard=7), tmp_path, batch_size=3)
    (work,) = (tmp_path / ".work").iterdir()
    (work / "1.safetensors").write_bytes(b"cut")

    def counting(*arguments: Any) -> Any:
        sampled.append(len(arguments[3]))
        return sample(*arguments)

    monkeypatch.setattr(synthesis, "sample_images", counting)
    shutil.copytree(tmp_path, tmp_path / "other")
    synthesize(checkpoint, recipe(checkpoint, per_shard=7), tmp_path, batch_size=4)
    assert sampled == [3, 1, 3]
    sampled.clear()
    # Of a run without results, whose settings do not count.
    synthesize(checkpoint, recipe(checkpoint, per_shard=7, seed=1), tmp_path / "other", batch_size=4)
    assert sampled == [4, 3]


def test_a_newer_manifest_is_not_overwritten(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    synthesize(checkpoint, recipe(checkpoint), tmp_path, batch_size=3)
    manifest = tmp_path / "manifest.json"
    newer = json.dumps({**json.loads(manifest.read_text()), "format": 99})
    manifest.write_text(newer)
    (tmp_path / "shard-00001.tar").unlink()
    with pytest.raises(UserError, match="of format 99"):
        synthesize(checkpoint, recipe(checkpoint), tmp_path, batch_size=3)
    assert manifest.read_text() == newer


def test_copies_of_the_teacher_take_its_shards(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = DiffusionCheckpoint(str(tiny("epsilon")))
    synthesize(checkpoint, recipe(checkpoint), tmp_path / "d", batch_size=7)
    copy = shutil.copytree(checkpoint.path, tmp_path / "copy")
    for path in copy.rglob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        path.with_name(".DS_Store").touch()
    ShardSource(str(tmp_path / "d"), DiffusionCheckpoint(str(copy))).prepare()
