"""Image files as people have them: rotated, CMYK, 16 bits, palettes, broken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dds_train.errors import UserError
from dds_train.images.files import from_pil, read_image, rounded, save_image, square_crop, to_pil


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], -1).astype(np.uint8))


def assert_like(image: torch.Tensor, expected: Image.Image, tolerance: float = 0.03) -> None:
    target = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1) / 127.5 - 1
    assert image.shape == target.shape
    assert (image - target).abs().mean() < tolerance


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    save_image(image, str(tmp_path / "b.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(gradient()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # A camera stores the inverse of the transform that a viewer applies.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose.FLIP_LEFT_RIGHT .. TRANSVERSE
    stored = gradient()
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=98)
    assert_like(read_image(tmp_path / "a.jpg"), gradient())


def test_cmyk(tmp_path: Path) -> None:
    gradient().convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert_like(read_image(tmp_path / "a.jpg"), gradient())


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(levels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 8, 64)
    torch.testing.assert_close(image[0, 0], torch.linspace(-1, 1, 64), atol=0.01, rtol=0)


def test_transparent_palette_is_composited_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "a.png", transparency=1)
    image = read_image(tmp_path / "a.png")
    assert image[:, 0, 0].tolist() == [1, 1, 1]
    assert image[:, 1, 1].tolist() == [1, -1, -1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "HSV", "YCbCr", "I", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    source = Image.new("L", (5, 3), 200) if mode in ("I", "I;16", "F") else gradient(5, 3)
    image = from_pil(source.convert(mode))
    assert image.shape == (3, 3, 5)
    assert image.min() >= -1
    assert image.max() <= 1


def test_broken_files_are_named(tmp_path: Path) -> None:
    gradient().save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    for name, data in {"cut.jpg": content[: len(content) // 2], "page.jpg": b"<html></html>", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("1", (13000, 13000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="13000 x 13000"):
        read_image(tmp_path / "bomb.png")


def test_square_crop_takes_the_middle() -> None:
    tall = from_pil(gradient(20, 60))
    assert_like(square_crop(tall, 20), to_pil(tall).crop((0, 20, 20, 40)))


def test_rounded_equals_a_png_round_trip(tmp_path: Path) -> None:
    image = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    save_image(image, tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), rounded(image))
    assert torch.equal(rounded(rounded(image)), rounded(image))
