"""Two hundred images as people have them go through predict: none fails, and none comes out turned or mirrored."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from shell import run

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.images.files import from_pil
from dds_train.translator import Task, TranslatorConfig, UNetTranslator, export_translator

MODES = {
    ".jpg": ("RGB", "L", "CMYK"),
    ".jpeg": ("RGB",),
    ".png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    ".webp": ("RGB", "RGBA"),
    ".bmp": ("RGB", "L"),
    ".gif": ("P",),
    ".tif": ("RGB", "CMYK", "RGBA", "I;16"),
    ".avif": ("RGB", "RGBA"),
}
NAMES = ("it's", "IMG_1.2", "100%", "(1)", "-x")
FOLDERS = ("", "sub", "sub/ünïcode 猫", "a=b, [c]")


def slope(width: int, height: int, order: np.ndarray) -> Image.Image:
    """One colour grows to the right, one downwards, twice as much: no turn or mirror image looks alike, not even in gray."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    levels = np.stack([80 * across, 40 + 200 * down, 100 * across + 40 * down], -1)[..., order]
    return Image.fromarray(levels.astype(np.uint8))


def write(path: Path, image: Image.Image, mode: str, orientation: int, profile: bytes | None) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        alpha = Image.linear_gradient("L").resize(image.size).point(lambda value: 128 + value // 2)
        image = image.convert(mode)
        image.putalpha(alpha)
    else:
        image = image.convert(mode)
    exif = image.getexif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    keep = {"icc_profile": profile} if profile and mode in ("RGB", "RGBA") and path.suffix in (".jpg", ".png", ".webp") else {}
    image.save(path, **({} if path.suffix in (".bmp", ".gif") else {"exif": exif}), **keep)


@pytest.mark.slow
def test_two_hundred_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = itertools.cycle([(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, (suffix, mode) in zip(range(200), kinds, strict=False):
        width, height = (int(side) for side in np.exp(rng.uniform(np.log(9), np.log(400), 2)))
        image = slope(width, height, rng.permutation(3))
        path = tmp_path / "photos" / FOLDERS[number % 4] / f"{number:03d} {NAMES[number % 5]}{suffix}"
        write(path, image, mode, number % 8 + 1, profile if number % 3 == 0 else None)

    # A translator that was not trained yet leaves everything as it is: the VAE alone changes them.
    parts = DiffusionCheckpoint("bundled")
    width = parts.text_encoder().embed("")["text"].shape[-1]
    network = UNetTranslator(parts.autoencoder().channels, width, channels=[16], attention=[False], depth=1, heads=1, groups=8)
    tasks = {"lion": Task("a cat", "a lion", "a lion")}
    export_translator(tmp_path / "translator", network, TranslatorConfig(tasks, "bundled", network.config))

    photos = sorted(path for path in (tmp_path / "photos").rglob("*") if path.is_file())
    for form in ("png", "same"):
        run("predict", "ckpt=translator", "image=photos", f"output_dir={form}", f"format={form}", "tile=256", cwd=tmp_path)
        for photo in photos:
            name = photo.relative_to(tmp_path / "photos")
            with Image.open(tmp_path / form / (name.with_suffix(".png") if form == "png" else name)) as file:
                result, orientation = file.convert("RGBA"), file.getexif().get(0x0112, 1)
            with Image.open(photo) as file:
                upright = ImageOps.exif_transpose(file)
                assert orientation == 1  # a viewer does not turn it again
                assert result.size == upright.size, name
                if min(result.size) >= 16:  # of smaller ones the VAE keeps too little to tell
                    assert is_upright(np.asarray(from_pil(result)), np.asarray(from_pil(upright))), name


def is_upright(result: np.ndarray, input: np.ndarray) -> bool:
    """Nearer to the input as it is than to any of its mirror images and turns, those that look the same aside."""

    def turns(image: np.ndarray) -> list[np.ndarray]:
        quarter = np.rot90(image, axes=(1, 2))
        all_turns = [image, image[:, ::-1], image[:, :, ::-1], image[:, ::-1, ::-1]]
        if quarter.shape == image.shape:
            all_turns += [quarter, quarter[:, ::-1], quarter[:, :, ::-1], quarter[:, ::-1, ::-1]]
        return all_turns

    errors = [float(np.square(result - other).mean()) for other in turns(input)]
    return errors[0] <= min(errors)
