"""Aspect buckets: shapes, order, and whole data sets in them."""

import io
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tar_files import add, npy
from training_runs import build, trainer

from dds_train.data.augment import FlipAndZoom
from dds_train.data.buckets import BucketBatchSampler, bucket_shapes, nearest_shape
from dds_train.data.folder import FolderSource
from dds_train.data.shards import ShardSource
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError
from dds_train.training.checkpoints import Checkpoints
from dds_train.training.data import SourceData
from dds_train.training.sentinels import Sentinels


@pytest.mark.parametrize(("side", "unit"), [(32, 4), (64, 16), (512, 64), (1024, 16), (1000, 64)])
def test_shapes_of_about_one_area(side: int, unit: int) -> None:
    shapes = bucket_shapes(side, unit)
    assert (side, side) in shapes
    assert 3 <= len(shapes) <= 7
    for height, width in shapes:
        assert (width, height) in shapes
        assert abs(height * width / side**2 - 1) < 0.2
        assert (height, width) == (side, side) or height % unit == width % unit == 0


def test_the_nearest_shape_crops_least() -> None:
    shapes = bucket_shapes(512, 64)
    assert nearest_shape((300, 300), shapes) == (512, 512)
    assert nearest_shape((3000, 100), shapes) == max(shapes)
    for size in ((720, 1280), (1280, 720), (768, 1024), (500, 600)):
        kept = {(h, w): min(size[0] / size[1], h / w) / max(size[0] / size[1], h / w) for h, w in shapes}
        assert nearest_shape(size, shapes) == max(shapes, key=lambda shape: kept[shape])


BUCKETS = [(8, 8)] * 23 + [(6, 10)] * 9 + [(10, 6)] * 2
random.Random(0).shuffle(BUCKETS)


def batches(first: int, last: int, batch_size: int = 4, rank: int = 0, world_size: int = 1, seed: int = 0) -> list[Any]:
    return list(BucketBatchSampler(BUCKETS, batch_size, first, last, seed, rank, world_size))


def test_batches_are_of_one_shape_and_no_image_comes_more_often() -> None:
    count = 34 * 4  # steps: 16 times each image
    order = batches(0, count)
    assert [position for batch in order for position, _ in batch] == list(range(4 * count))
    assert all(len({BUCKETS[index] for _, index in batch}) == 1 for batch in order)
    seen: dict[Any, list[int]] = {shape: [] for shape in set(BUCKETS)}
    for _, index in (place for batch in order for place in batch):
        seen[BUCKETS[index]].append(index)
    for shape, indices in seen.items():
        size = BUCKETS.count(shape)
        assert abs(len(indices) - 16 * size) <= 4, shape  # in proportion, but for one step
        for start in range(0, len(indices) - size + 1, size):
            assert len(set(indices[start : start + size])) == size  # each once before any twice
        assert size == 2 or indices[:size] != indices[size : 2 * size]
    shapes = [BUCKETS[batch[0][1]] for batch in order]
    assert Counter(shapes[:8]) == {(8, 8): 5, (6, 10): 2, (10, 6): 1} or Counter(shapes[:7]) == {(8, 8): 5, (6, 10): 2}
    assert shapes[:7] != sorted(shapes[:7]) or shapes[7:14] != sorted(shapes[7:14])


def test_the_order_is_a_function_of_seed_and_step() -> None:
    whole = batches(0, 60)
    assert batches(37, 60) == whole[37:]
    assert batches(0, 60, seed=1) != whole
    one, two = (BucketBatchSampler(BUCKETS, 4, 0, 0, 0) for _ in range(2))
    assert [one.index_at(p) for p in (200, 3, 77)] == [whole[p // 4][p % 4][1] for p in (200, 3, 77)]
    assert two.index_at(77) == one.index_at(77)
    ranks = zip(*(batches(0, 60, 2, rank, 2) for rank in range(2)), strict=True)
    assert [first + second for first, second in ranks] == whole  # data parallelism is exact


SIZES = {"tall": (40, 60), "wide": (60, 40), "square": (50, 50), "turned": (60, 40), "panorama": (300, 30)}


def images() -> dict[str, bytes]:
    """By name; one is stored lying on its side, one is no image."""
    found = {}
    for name, size in SIZES.items():
        exif = Image.Exif()
        if name == "turned":
            exif[0x0112] = 6
        content = io.BytesIO()
        Image.new("RGB", size, "red").save(content, "JPEG", exif=exif)
        found[name] = content.getvalue()
    return {**found, "page": b"<html></html>"}


EXPECTED = {"tall": (40, 24), "wide": (24, 40), "square": (32, 32), "turned": (40, 24), "panorama": (24, 40)}


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_images_in_buckets(
    checkpoint: DiffusionCheckpoint, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "folder":
        for name, content in images().items():
            (tmp_path / f"{name}.jpg").write_bytes(content)
        source: Any = FolderSource(str(tmp_path), checkpoint, size=32, buckets=True)
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, content in images().items():
                add(tar, f"{name}.jpg", content)
        source = ShardSource(str(tmp_path), checkpoint, size=32, buckets=True)
    dataset = source.dataset()
    assert "buckets: 2 of 40 x 24" in capsys.readouterr().out
    for index in range(len(dataset)):
        name = Path(dataset.name(index)).stem.split("/")[-1]
        if name.startswith("page"):
            with pytest.raises(UserError, match="not a readable image"):
                dataset[index]
        else:
            assert dataset[index]["image"].shape == (3, *EXPECTED[name])
            assert dataset[index]["image"].shape[1:] == dataset.shapes[index]
            assert dataset.squares[index]["image"].shape == (3, 32, 32)


def test_latents_have_no_buckets(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.z.npy", npy(np.zeros((4, 8, 8), np.float32)))
    with pytest.raises(UserError, match=r"data\.buckets=true: needs images"):
        ShardSource(str(tmp_path), checkpoint, buckets=True)


def test_zoom_keeps_the_shape() -> None:
    image = torch.rand(3, 24, 40)
    assert FlipAndZoom(zoom=0.5)(image, seeded_rng("zoom")).shape == image.shape


def test_training_in_buckets_resumes_exactly(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for number, size in enumerate([(50, 50)] * 4 + [(60, 40)] * 4 + [(40, 60)] * 4):
        Image.effect_noise(size, 50).convert("RGB").save(tmp_path / f"{number:02}.png")
    source = FolderSource(str(tmp_path), DiffusionCheckpoint(str(tiny("epsilon"))), size=32, buckets=True)
    dataset, weights, shapes = source.dataset(), [], []
    for resume, workers in ((None, 0), (tmp_path / "run" / "ckpt" / "step-0000003.ckpt", 1)):
        data = SourceData(dataset, 2, held_out=2, workers=workers, seed=0, augment=FlipAndZoom(True, 0.8))
        assert data.held_out["image"].shape == (2, 3, 32, 32)
        module = build(tiny("epsilon"))
        encode = module.encode
        module.encode = lambda batch: (shapes.append(batch["image"].shape), encode(batch))[1]  # type: ignore[method-assign] # noqa: B023
        sentinels = Sentinels("stop", 1, 0.0, {"copy": [0, 100]})
        running = trainer(tmp_path / "run", 6, [sentinels], Checkpoints(tmp_path / "run" / "ckpt", every=3, keep=2))
        running.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        weights.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        assert running.callback_metrics["sentinel/copy"] > 0
        assert data.names([0]) == [str(source.paths[2 + data._batches(0, 0).index_at(0)])]
    assert {(2, 3, 24, 40), (2, 3, 40, 24)} <= set(shapes)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
