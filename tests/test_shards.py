"""Data sets that the teacher draws, shards in general, and what is wrong with some of them."""

import io
import json
import pickle
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dds_train.data.batches import PositionedDataset, StatelessBatchSampler, collate, hold_out, step_loader
from dds_train.data.folder import FolderSource
from dds_train.data.prompts import fill_all, read_prompts
from dds_train.data.shards import ShardSource
from dds_train.data.synthesis import Recipe, image_seed, recipe_for, synthesize, verify
from dds_train.diffusion import DiffusionCheckpoint, PromptTable
from dds_train.errors import UserError
from dds_train.runs.files import HOST

PROMPTS = fill_all(["a photo of a {fur} cat", "a cat"], {"fur": ["gray", "orange"]}, 7, seed=0)


@pytest.fixture
def checkpoint(tiny: Callable[[str], Path]) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(str(tiny("epsilon")))


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


def test_what_is_drawn_does_not_depend_on_batch_or_processes(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    r = recipe(checkpoint)
    assert synthesize(checkpoint, r, tmp_path / "one", batch_size=3)
    assert not synthesize(checkpoint, r, tmp_path / "two", batch_size=3, rank=1, world_size=2)
    assert synthesize(checkpoint, r, tmp_path / "two", batch_size=3, rank=0, world_size=2)
    # Processes change nothing at all, the batch size only what rounds the other way.
    for name in r.shards:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    synthesize(checkpoint, r, tmp_path / "batch", batch_size=2)
    for a, b in zip(content(tmp_path / "one"), content(tmp_path / "batch"), strict=True):
        assert np.abs(a["png"].astype(int) - b["png"]).max() <= 1
        assert a["json"] == b["json"]


def test_a_sample_is_picture_latent_prompt_and_seed(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    r = recipe(checkpoint)
    synthesize(checkpoint, r, tmp_path / "d", batch_size=7)
    samples = content(tmp_path / "d")
    assert [s["json"]["prompt"] for s in samples] == PROMPTS
    table = PromptTable.load(tmp_path / "d" / "prompts.safetensors")
    for number, sample in enumerate(samples):
        assert list(table.rows)[sample["json"]["prompt_id"]] == sample["json"]["prompt"]
        assert sample["json"]["seed"] == image_seed(r, number, 0)
        # The latent is what predict would make of the picture.
        image = torch.from_numpy(sample["png"].astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        torch.testing.assert_close(torch.from_numpy(sample["z.npy"])[None], checkpoint.autoencoder().encode(image))
    for prompt, row in table.rows.items():
        assert torch.equal(row["text"], checkpoint.text_encoder().embed(prompt)["text"])


def test_a_stopped_run_goes_on_and_a_lost_shard_comes_back(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
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


def test_training_reads_them_without_codec_and_text_encoder(tiny: Callable[[str], Path], tmp_path: Path) -> None:
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
    # The preview has the pictures' colours, if not their detail.
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
    ShardSource(str(tmp_path / "d"), DiffusionCheckpoint(str(vae)), latents=False)  # images suit any codec


def test_filtered_by_clip(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    """Of every three pictures the first attempt of image 0 fails once, image 4 always."""
    tried: list[tuple[int, int]] = []
    r = recipe(checkpoint, score="test", least=0.5, tries=3)
    seeds = {image_seed(r, index, attempt): (index, attempt) for index in range(7) for attempt in range(3)}
    drawn: list[int] = []

    import dds_train.data.synthesis as module

    real = module.sample_images

    def spy(checkpoint: DiffusionCheckpoint, recipe: Recipe, prompts: list[str], now: list[int]) -> tuple[Tensor, Tensor]:
        drawn[:] = now
        return real(checkpoint, recipe, prompts, now)

    def score(images: Tensor, prompts: Sequence[str]) -> list[float]:
        tried.extend(seeds[seed] for seed in drawn)
        return [0.1 if seeds[seed] == (0, 0) or seeds[seed][0] == 4 else 0.9 for seed in drawn]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sample_images", spy)
        synthesize(checkpoint, r, tmp_path / "d", batch_size=2, score=score)
    assert sorted(tried) == sorted([(i, 0) for i in range(7)] + [(0, 1), (4, 1), (4, 2)])
    samples = content(tmp_path / "d")
    assert [s["json"]["seed"] for s in samples] == [image_seed(r, i, 1 if i == 0 else 0) for i in (0, 1, 2, 3, 5, 6)]
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["left_out"]) == (6, 1)


def test_prompts_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("prompts: ['a {breed} cat']\nwords: {breed: [tabby]}\n")
    assert fill_all(*read_prompts(str(tmp_path / "p.yaml"), {}), 2, 0) == ["a tabby cat"] * 2
    assert read_prompts("a cat, sitting", {}) == (["a cat, sitting"], {})
    (tmp_path / "bad.yaml").write_text("prompt: x")
    for wrong in (str(tmp_path / "bad.yaml"), str(tmp_path / "none.yaml"), []):
        with pytest.raises(UserError, match="prompts"):
            read_prompts(wrong, {})


# ---------------------------------------------------------------- foreign and damaged shards


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(content, "PNG")
    return content.getvalue()


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def test_foreign_shards_of_pictures(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
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


def test_bad_samples_are_named_and_the_others_come_once(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    good = {"png": png(9)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, data in enumerate(
            [good["png"], b"<html></html>", good["png"], good["png"][:40], good["png"], good["png"], b"", good["png"]]
        ):
            add(tar, f"{i}.png", data)
    dataset = ShardSource(str(tmp_path), checkpoint).dataset()
    held_out, rest = hold_out(dataset, 2)
    assert held_out["position"] == [0, 1]
    assert rest == [3, 4, 5, 6, 7]
    assert len(held_out["bad"]) == 1
    assert "a.tar/1" in held_out["bad"][0]
    placed = PositionedDataset(dataset, rest, seed=0)
    batches = list(step_loader(placed, StatelessBatchSampler(5, 1, 0, 5, seed=0), workers=0))
    assert sum(len(batch["position"]) for batch in batches) == 3
    assert sorted(reason.split(":")[0] for batch in batches for reason in batch["bad"]) == ["a.tar/3", "a.tar/6"]
    with pytest.raises(UserError, match=r"too few \(3 cannot be read: a.tar/1"):
        hold_out(dataset, 6)


@pytest.mark.parametrize("cut", [2048 * 4, 2048 * 4 + 300, 2048 * 4 + 700])
def test_a_truncated_shard_gives_what_is_whole(
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


def test_nothing_in_a_shard_runs(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
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


def test_results_do_not_depend_on_workers(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(9):
            add(tar, f"{i}.z.npy", npy(np.full((4, 8, 8), i, np.float32)))
    from dds_train.data.augment import FlipAndZoom

    placed = PositionedDataset(ShardSource(str(tmp_path), checkpoint).dataset(), range(9), 0, FlipAndZoom(flip=True))

    def all_of(workers: int) -> list[Any]:
        return [(b["position"], b["z"]) for b in step_loader(placed, StatelessBatchSampler(9, 2, 3, 8, seed=0), workers)]

    for (p, a), (q, b) in zip(all_of(0), all_of(2), strict=True):
        assert p == q
        assert torch.equal(a, b)


def test_augmentation_is_a_function_of_the_position() -> None:
    from dds_train.data.augment import FlipAndZoom

    image = torch.rand(3, 32, 32) * 2 - 1
    images: Any = [{"image": image}] * 2
    placed = PositionedDataset(images, [0, 1], seed=0, augment=FlipAndZoom(flip=True, zoom=0.7))
    assert torch.equal(placed[(5, 0)]["image"], placed[(5, 1)]["image"])
    made = [placed[(position, 0)]["image"] for position in range(40)]
    assert all(one.shape == image.shape and one.abs().max() <= 1 for one in made)
    assert len({one.sum().item() for one in made}) > 30  # few places to zoom into coincide
    flips = PositionedDataset(images, [0], seed=0, augment=FlipAndZoom(flip=True))
    mirrored = sum(torch.equal(flips[(p, 0)]["image"], image.flip(-1)) for p in range(40))
    assert 8 < mirrored < 32
    assert all(
        torch.equal(one, image) or torch.equal(one, image.flip(-1)) for one in (flips[(p, 0)]["image"] for p in range(40))
    )


def test_captions_of_a_folder(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a gray cat\n")
    (tmp_path / "metadata.csv").write_text('file_name,text\nb.png,"a cat, asleep"\nc.png,a black cat\n')
    assert FolderSource(str(tmp_path), checkpoint).captions == ["a gray cat", "a cat, asleep", "a black cat"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,x\n")
    with pytest.raises(UserError, match=r"c\.png: no caption"):
        _ = FolderSource(str(tmp_path), checkpoint).captions
    (tmp_path / "metadata.csv").write_text("name,words\n")
    with pytest.raises(UserError, match="columns file_name and text"):
        _ = FolderSource(str(tmp_path), checkpoint).captions
    with pytest.raises(UserError, match=r"data\.size=30"):
        FolderSource(str(tmp_path), checkpoint, size=30)
