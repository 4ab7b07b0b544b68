"""Reading and writing image files of any kind."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from dds_train.errors import UserError
from dds_train.runs.files import atomic_write

MAX_PIXELS = 100_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `open_image` checks the size itself


@dataclass(frozen=True)
class AlphaAndProfile:
    """What an image file has besides its colours, and a result can keep."""

    alpha: Tensor | None = None  # [1,H,W] opacity in [0,1]
    icc: bytes | None = None  # an RGB colour profile


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Pixels [3,H,W] in [-1,1] of an image file.

    EXIF orientation is applied; gray, palette, CMYK and 16-bit files become RGB; transparent pixels become white; an animation
    is its first frame.

    Raises:
        UserError: if it is not a readable image, or has more than `max_pixels`.
    """
    return decode_image(path, str(path), max_pixels)


def read_with_alpha_and_profile(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, AlphaAndProfile]:
    """`read_image`, with the alpha channel (unless all pixels are opaque) and the colour profile (if it is an RGB one)."""
    with open_image(path, str(path), max_pixels) as file:
        icc = file.info.get("icc_profile")
        if icc is not None and icc[16:20] != b"RGB ":
            icc = None
        upright = ImageOps.exif_transpose(file)
        if not upright.has_transparency_data:
            return from_pil(upright), AlphaAndProfile(None, icc)
        alpha = torch.from_numpy(np.array(upright.convert("RGBA").getchannel("A"))).float() / 255
        return from_pil(upright), AlphaAndProfile(alpha[None] if (alpha < 1).any() else None, icc)


def decode_image(file: str | Path | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """`read_image` of a path or an open file; `name` is for error messages."""
    with open_image(file, name, max_pixels) as image:
        return from_pil(ImageOps.exif_transpose(image))


@contextlib.contextmanager
def open_image(file: str | Path | BinaryIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """A Pillow image, for a block that decodes it.

    Raises:
        UserError: if it is too large by its header, or for whatever Pillow raises for a damaged file.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(f"{name}: {width} x {height} is more than {max_pixels:,} pixels; scale it down first")
            yield image
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        lines = str(error).splitlines() or [type(error).__name__]
        problem = f"cannot be read ({reason})" if reason else f"not a readable image ({lines[0]})"
        raise UserError(f"{name}: {problem}") from error


def from_pil(image: Image.Image) -> Tensor:
    """An image of any mode -> pixels [3,H,W] in [-1,1]."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """Pixels [3,H,W] in [-1,1] -> 8-bit RGB, rounded to the nearest level."""
    result: Image.Image = to_pil_image(((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte())
    return result


def rounded(image: Tensor) -> Tensor:
    """Pixels in [-1,1] rounded to 8 bits, as they are after saving and reading."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def read_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A mask [1,H,W] in [0,1] of `size` = (H, W): white or transparent = 1.

    Raises:
        UserError: if it is not a readable image, or has another aspect ratio.
    """
    mask = read_image(path).mean(dim=0)[None, None] / 2 + 0.5
    (height, width), (own_height, own_width) = size, mask.shape[-2:]
    if abs(own_height * width - own_width * height) > max(own_height, own_width) * max(height, width) * 0.01:
        raise UserError(f"{path}: a mask of {own_width} x {own_height} pixels for an image of {width} x {height}")
    mask = F.interpolate(mask, size, mode="bilinear", antialias=True)[0] if mask.shape[-2:] != size else mask[0]
    return torch.where(mask < 0.03, 0, mask)  # compression artefacts in black


# The highest quality of each format.
QUALITY: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".jfif": {"quality": 95, "subsampling": 0},
    ".avif": {"quality": 95, "subsampling": "4:4:4"},
    ".webp": {"lossless": True},
}


def save_image(image: Tensor, path: str | Path, alpha_and_profile: AlphaAndProfile | None = None) -> None:
    """Save pixels [3,H,W] in [-1,1], in the format of the extension; the file appears complete or not at all."""
    path, alpha_and_profile = Path(path), alpha_and_profile or AlphaAndProfile()
    settings = dict(QUALITY.get(path.suffix.lower(), {}))
    if alpha_and_profile.icc:
        settings["icc_profile"] = alpha_and_profile.icc
    pil = to_pil(image) if alpha_and_profile.alpha is None else with_alpha(image, alpha_and_profile.alpha)
    with atomic_write(path) as partial:
        pil.save(partial, **settings)


def with_alpha(image: Tensor, alpha: Tensor) -> Image.Image:
    """The RGBA image that looks like `image` [3,H,W] on white; alpha [1,H0,W0] in [0,1] is resized."""
    if alpha.shape[-2:] != image.shape[-2:]:
        alpha = F.interpolate(alpha[None], image.shape[-2:], mode="bilinear", antialias=True)[0]
    pil = to_pil(1 - (1 - image.cpu()) / alpha.clamp(min=1 / 255))  # without the white background
    pil.putalpha(Image.fromarray((alpha[0] * 255).round().byte().numpy()))
    return pil


def square_crop(image: Tensor, side: int) -> Tensor:
    """[3,H,W] -> [3,side,side]: the shorter side resized to `side`, then a centre crop."""
    return from_pil(ImageOps.fit(to_pil(image), (side, side), method=Image.Resampling.LANCZOS))
