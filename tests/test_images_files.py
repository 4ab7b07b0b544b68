"""Image files as people have them: rotated, CMYK, 16 bits, palettes, broken."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dds_train.errors import UserError
from dds_train.images import files
from dds_train.images.files import (
    centre_crop,
    file_suffix,
    from_pil,
    read_image,
    read_with_alpha_and_profile,
    rounded,
    save_image,
    to_pil,
)
from dds_train.images.find import find_images
from dds_train.images.input_image import read_input_image


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


def test_centre_crop_takes_the_middle() -> None:
    tall = from_pil(gradient(20, 60))
    assert_like(centre_crop(tall, 20, 20), to_pil(tall).crop((0, 20, 20, 40)))


def test_rounded_equals_a_png_round_trip(tmp_path: Path) -> None:
    image = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    save_image(image, tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), rounded(image))
    assert torch.equal(rounded(rounded(image)), rounded(image))


# ---------------------------------------------------------------- formats, budgets, failures


@pytest.mark.parametrize("kind", ["EPS", "BLP", "QOI", "PCX"])
def test_formats_that_nobody_asked_for_are_not_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decides by content, and runs Ghostscript for an EPS named cat.png."""
    monkeypatch.setattr("subprocess.check_call", lambda *args, **keys: pytest.fail("a program was started"))
    heads = {"EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "BLP": b"BLP2", "QOI": b"qoif"}
    heads["PCX"] = bytes([10, 5, 1, 8]) + bytes(124)
    (tmp_path / "cat.png").write_bytes(heads[kind] + bytes(200))
    with pytest.raises(UserError, match=r"cat\.png: not a readable image"):
        read_image(tmp_path / "cat.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif"])
def test_a_damaged_file_is_one_line_whatever_its_decoder_raises(tmp_path: Path, suffix: str) -> None:
    gradient().save(tmp_path / f"a{suffix}")
    content, rng = (tmp_path / f"a{suffix}").read_bytes(), np.random.default_rng(0)
    for _ in range(30):
        broken = bytearray(content[: int(rng.integers(8, len(content)))])
        for position in rng.integers(0, len(broken), 4):
            broken[position] = rng.integers(256)
        (tmp_path / f"b{suffix}").write_bytes(broken)
        said = ""
        try:
            read_image(tmp_path / f"b{suffix}")
        except UserError as error:
            said = str(error)
        assert not said or said.startswith(str(tmp_path / f"b{suffix}: ".removesuffix(" ")))
        assert "\n" not in said


def test_a_bomb_is_refused_and_with_enough_pixels_read_small(tmp_path: Path) -> None:
    Image.new("1", (5200, 5200), 1).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png: 5200 x 5200 is more than 25,000,000 pixels; give max_side=2600"):
        read_image(tmp_path / "bomb.png")
    image = read_input_image(tmp_path / "bomb.png", 300)
    assert image.size == (300, 300)
    assert image.original.shape[-1] < 700
    assert (image.image > 0.999).all()


def test_a_photograph_too_large_to_be_read_whole_is_read_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_WHOLE", 1_000_000)
    monkeypatch.setattr(files, "PIXELS_PER_BYTE", 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    large = gradient(60, 40).resize((1500, 1250))
    large.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=60)
    with pytest.raises(UserError, match="give max_side="):
        read_image(tmp_path / "a.jpg")
    assert_like(read_input_image(tmp_path / "a.jpg", 60).image[0], gradient(60, 50), tolerance=0.05)


def test_transparency_of_a_large_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_WHOLE", 100)
    monkeypatch.setattr(files, "PIXELS_PER_BYTE", 0)
    Image.new("RGBA", (64, 32), (255, 0, 0, 51)).save(tmp_path / "a.png")
    image, extras = read_with_alpha_and_profile(tmp_path / "a.png", 12)
    assert image.shape == (3, 7, 13)  # by a factor of 5
    assert extras.alpha is not None
    assert extras.alpha.shape == (1, 7, 13)
    torch.testing.assert_close(extras.alpha, torch.full((1, 7, 13), 0.2))
    torch.testing.assert_close(image[1], torch.full((7, 13), 0.6), atol=0.01, rtol=0)


def test_a_progressive_jpeg_of_endless_scans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient(64, 64).save(tmp_path / "a.jpg", progressive=True)
    content = (tmp_path / "a.jpg").read_bytes()
    assert read_image(tmp_path / "a.jpg").shape == (3, 64, 64)
    start = content.index(b"\xff\xda", content.index(b"\xff\xda") + 2)
    scan = content[start : content.index(b"\xff\xda", start + 2)]
    (tmp_path / "a.jpg").write_bytes(content[:start] + 500 * scan + content[start:])
    monkeypatch.setattr(files, "MAX_SCANNED", 2_000_000)
    for enough in (None, 8):
        with pytest.raises(UserError, match=r"a progressive JPEG of 64 x 64 pixels in 51\d scans"):
            read_image(tmp_path / "a.jpg", enough)


def test_large_text_beside_an_image_does_no_harm(tmp_path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("workflow", "x" * 5_000_000, zip=True)
    gradient().save(tmp_path / "a.png", pnginfo=about)
    assert read_image(tmp_path / "a.png").shape == (3, 24, 40)


def test_floating_point_images_within_one_or_255(tmp_path: Path) -> None:
    levels = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(8, 0)
    for white in (1, 255):
        Image.fromarray(levels * white).save(tmp_path / "a.tiff")
        torch.testing.assert_close(read_image(tmp_path / "a.tiff")[0, 0], torch.linspace(-1, 1, 64), atol=0.01, rtol=0)
    Image.fromarray(levels * 3).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff: floating-point values from 0 to 3"):
        read_image(tmp_path / "a.tiff")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: not a file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_result_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def save(self: Image.Image, path: Path, **settings: object) -> None:
        path.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(UserError, match=rf"a\.png: cannot be written \({os.strerror(code)}\)"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_suffix_of_a_result_in_the_format_of_its_input(tmp_path: Path) -> None:
    for name, kind, expected in [
        ("a", "PNG", ".png"),
        ("a.jpg", "PNG", ".png"),
        ("a.JPEG", "JPEG", ".JPEG"),
        ("a.dat", "WEBP", ".webp"),
        ("a.tiff", "TIFF", ".tiff"),
    ]:
        gradient().save(tmp_path / name, format=kind)
        assert file_suffix(tmp_path / name) == expected


def test_photographs_of_iphones(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    gradient(64, 48).save(tmp_path / "a.HEIC", quality=95)
    assert find_images(tmp_path) == [tmp_path / "a.HEIC"]
    assert file_suffix(tmp_path / "a.HEIC") == ".HEIC"
    image = read_image(tmp_path / "a.HEIC")
    assert_like(image, gradient(64, 48))
    save_image(image, tmp_path / "b.heic")
    assert_like(read_image(tmp_path / "b.heic"), gradient(64, 48))
