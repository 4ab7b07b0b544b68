"""predict on large and transparent images, images with colour profiles, and folders."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from random_translator import export_random
from torch import Tensor

from dds_train import Translator
from dds_train.errors import UserError
from dds_train.images.files import AlphaAndProfile, read_image, read_with_alpha_and_profile, save_image
from dds_train.images.streaming import WriteBehind, batches, begun, read_ahead, within_memory
from dds_train.images.tiles import fade, starts, tiled
from dds_train.translator import Task


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("size", [(30, 30), (31, 95), (100, 64), (65, 33)])
def test_tiles_cover_every_pixel_and_leave_no_seams(size: tuple[int, int]) -> None:
    images, seen = noise(2, 3, *size), []

    def edit(part: Tensor) -> Tensor:
        seen.append(part.shape[-2:])
        return part * 0.5 + 0.1

    torch.testing.assert_close(tiled(edit, images, 32, 8), images * 0.5 + 0.1)
    assert all(max(shape) <= 32 for shape in seen)
    assert len(seen) == (1 if max(size) <= 32 else len(starts(size[0], 32, 8)) * len(starts(size[1], 32, 8)))


@pytest.mark.parametrize(("length", "tile", "overlap"), [(33, 32, 8), (56, 32, 8), (57, 32, 8), (1000, 32, 8), (100, 32, 0)])
def test_neighbouring_tiles_overlap_enough(length: int, tile: int, overlap: int) -> None:
    found = starts(length, tile, overlap)
    assert found[0] == 0
    assert found[-1] == length - tile
    assert all(tile - (b - a) >= overlap for a, b in pairwise(found))
    assert (len(found) - 1) * (tile - overlap) + overlap < length  # one fewer would not do


def test_tiles_fade_into_one_another() -> None:
    """Two tiles that disagree: along the overlap the result goes from one to the other without a jump."""
    values = iter([0.0, 1.0])
    row = tiled(lambda part: torch.full_like(part, next(values)), torch.zeros(1, 3, 8, 56), 32, 8)[0, 0, 4]
    assert (row[:24] == 0).all()
    assert (row[32:] == 1).all()
    assert (row.diff() <= 0.12).all()
    assert (fade(8, 0) == 1).all()


# ---------------------------------------------------------------- what a file has beside its colours


def test_alpha_comes_back_and_looks_right_on_white(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    rgba[:5, :, 3] = 0
    rgba[5:10, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image, alpha_and_profile = read_with_alpha_and_profile(tmp_path / "a.png")
    assert alpha_and_profile.alpha is not None
    save_image(image, tmp_path / "b.png", alpha_and_profile)
    back = np.asarray(Image.open(tmp_path / "b.png"))
    assert np.array_equal(back[..., 3], rgba[..., 3])
    assert np.array_equal(back[5:10, :, :3], rgba[5:10, :, :3])  # what is opaque keeps its bits
    assert (read_image(tmp_path / "b.png") - image).abs().max() <= 2.1 / 127.5


def test_alpha_is_scaled_with_the_image(tmp_path: Path) -> None:
    alpha = torch.zeros(1, 40, 20)
    alpha[:, 20:] = 1
    save_image(noise(3, 20, 10), tmp_path / "a.png", AlphaAndProfile(alpha))
    saved = np.asarray(Image.open(tmp_path / "a.png"))
    assert saved.shape == (20, 10, 4)
    assert saved[0, 0, 3] == 0
    assert saved[-1, 0, 3] == 255


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff"])
def test_a_colour_profile_is_kept(tmp_path: Path, extension: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"a.{extension}", icc_profile=profile)
    image, alpha_and_profile = read_with_alpha_and_profile(tmp_path / f"a.{extension}")
    save_image(image, tmp_path / f"b.{extension}", alpha_and_profile)
    with Image.open(tmp_path / f"b.{extension}") as saved:
        assert saved.info["icc_profile"] == profile


def test_a_profile_of_another_kind_of_colours_is_dropped(tmp_path: Path) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg", icc_profile=bytes(profile))
    assert read_with_alpha_and_profile(tmp_path / "a.jpg")[1] == AlphaAndProfile(None, None)


# ---------------------------------------------------------------- from Python


@pytest.fixture(scope="module")
def exported(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = {"lion": Task("a cat", "a lion", "a lion")}
    return export_random(tmp_path_factory.mktemp("exported") / "translator", tiny("epsilon"), tasks, std=0.05)


def test_three_lines(exported: Path, tmp_path: Path) -> None:
    translator = Translator.from_pretrained(exported, device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8))
    image.save(tmp_path / "a.png")
    lion = translator(image)
    assert isinstance(lion, Image.Image)
    assert lion.size == image.size
    assert np.array_equal(np.asarray(lion), np.asarray(translator(tmp_path / "a.png", task="lion")))
    assert np.array_equal(np.asarray(lion), np.asarray(translator(str(tmp_path / "a.png"), "a lion", 1.0)))
    assert not np.array_equal(np.asarray(lion), np.asarray(translator(image, "a lion", 0.3)))
    pixels = translator(read_image(tmp_path / "a.png"))
    assert isinstance(pixels, Tensor)
    assert pixels.shape == (3, 37, 50)


def test_images_in_every_form(exported: Path, tmp_path: Path) -> None:
    translator = Translator.from_pretrained(exported, device="cpu")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)).save(tmp_path / "phone.png", exif=exif)
    with Image.open(tmp_path / "phone.png") as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
        results = translator([opened, tmp_path / "phone.png", str(tmp_path / "phone.png"), upright])
    assert isinstance(results, list)
    assert [np.asarray(one).shape for one in results] == [(40, 20, 3)] * 4
    assert all(np.array_equal(np.asarray(results[0]), np.asarray(one)) for one in results[1:])
    assert np.asarray(translator(upright[..., 0])).shape == (40, 20, 3)
    wrong: list[Any] = [None, 3, upright.astype(np.float32), np.zeros((1, 2, 8, 8), np.uint8), torch.zeros(1, 3, 8, 8)]
    for one in wrong:
        with pytest.raises(UserError, match="is no image: give a path"):
            translator(one)


def test_strength_zero_is_the_vae_round_trip(exported: Path) -> None:
    translator, images = Translator.from_pretrained(exported, device="cpu"), noise(2, 3, 20, 24)
    autoencoder = translator.autoencoder
    torch.testing.assert_close(
        translator.translate(images, "a lion", 0.0),
        autoencoder.decode(autoencoder.encode(images, translator.multiple), (20, 24)),
    )


def test_another_teacher_is_refused(exported: Path) -> None:
    with pytest.raises(UserError, match="not the teacher"):
        Translator.from_pretrained(exported, device="cpu", teacher="bundled")


def test_tiles_must_fit_the_vae(exported: Path) -> None:
    translator = Translator.from_pretrained(exported, device="cpu")
    for tile, overlap in ((33, 8), (32, 32)):
        with pytest.raises(UserError, match="tile="):
            Translator(translator.network, translator.config, translator.checkpoint, tile, overlap)


# ---------------------------------------------------------------- the device is kept busy, within its memory


def test_reading_ahead_keeps_the_order_and_is_one_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5):
            read.append(item)
            yield item

    for item in read_ahead(items()):
        time.sleep(0.02)
        assert read == [*range(min(item + 1, 4) + 1)]
    with pytest.raises(UserError, match="item 2"):
        list(read_ahead(map(fails_at(2), range(4))))


def test_what_has_begun_says_at_once_that_it_fails() -> None:
    with pytest.raises(UserError, match="item 0"):
        begun(map(fails_at(0), range(4)))
    later = begun(map(fails_at(1), range(4)))
    with pytest.raises(UserError, match="item 1"):
        list(later)
    assert list(begun(iter("abc"))) == ["a", "b", "c"]


def fails_at(number: int) -> Callable[[int], None]:
    def read(item: int) -> None:
        if item == number:
            raise UserError(f"item {item}")

    return read


def test_writing_behind_records_what_is_written_and_nothing_else() -> None:
    written, recorded = set(), []

    def write(number: int) -> None:
        time.sleep(0.01 * (5 - number % 5))
        written.add(number)

    def then(number: int) -> None:
        assert number in written
        recorded.append(number)

    with WriteBehind(workers=3) as writer:
        for number in range(20):
            writer.put(partial(write, number), partial(then, number))
            assert len(writer.waiting) <= writer.limit
    assert recorded == list(range(20))

    recorded.clear()

    def write_all() -> None:
        with WriteBehind(workers=1) as writer:
            for number in range(6):
                writer.put(partial(fails_at(3), number), partial(recorded.append, number))

    with pytest.raises(UserError, match="item 3"):
        write_all()
    assert recorded == [0, 1, 2]


def test_what_memory_does_not_hold_is_edited_in_parts() -> None:
    sizes: list[int] = []

    def edit(items: Sequence[int], limit: int) -> Tensor:
        if len(items) > limit:
            raise torch.OutOfMemoryError
        sizes.append(len(items))
        return torch.tensor(items)

    found = within_memory(partial(edit, limit=2), range(7), "rest")
    assert [int(one) for one in found] == list(range(7))
    assert max(sizes) == 2
    with pytest.raises(UserError, match=r"does not fit .*; take a smaller one"):
        within_memory(partial(edit, limit=0), range(7), "take a smaller one")


def test_batches_hold_images_of_one_size() -> None:
    sizes = {"a": (8, 8), "b": (8, 9), "c": (8, 8), "d": (8, 8), "e": (8, 9)}
    assert list(batches(sizes, sizes.__getitem__, lambda size: 2)) == [["a", "c"], ["b", "e"], ["d"]]
    assert list(batches(sizes, sizes.__getitem__, lambda size: 10 - size[1])) == [["b"], ["a", "c"], ["e"], ["d"]]


def test_batches_take_no_more_items_than_they_may_hold() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    for batch in batches(items(), lambda item: item % 50, lambda size: 8, ahead=10):
        assert len(taken) <= batch[0] + 11 or len(taken) == 100  # the item that waits longest goes first
    assert len(taken) == 100
