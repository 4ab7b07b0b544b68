"""Reading and writing image files of any kind."""

import contextlib
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from dds_train.errors import UserError, first_line
from dds_train.images.find import FORMATS, HAS_HEIC, remedies
from dds_train.runs.files import atomic_write

if HAS_HEIC:
    from pillow_heif import register_heif_opener

    register_heif_opener()

MAX_PIXELS = 128_000_000  # of an image while it is decoded, 4 bytes each; half of it where fewer are enough
MAX_WHOLE = 25_000_000  # pixels of an image as a tensor, of which there are several copies; and more of a file that
PIXELS_PER_BYTE = 20  # is not larger than this: photographs have fewer, decompression bombs hundreds
MAX_SCANNED = 10**10  # scans times pixels of a progressive JPEG, which take two seconds
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `open_image` checks the size itself
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # ComfyUI writes whole workflows into its images


@dataclass(frozen=True)
class AlphaAndProfile:
    """What an image file has besides its colours, and a result can keep."""

    alpha: Tensor | None = None  # [1,H,W] opacity in [0,1]
    icc: bytes | None = None  # an RGB colour profile


def read_image(path: str | Path, enough: int | None = None) -> Tensor:
    """Pixels [3,H,W] in [-1,1] of an image file.

    EXIF orientation is applied; gray, palette, CMYK, 16-bit and floating-point files become RGB; transparent pixels become
    white; an animation is its first frame.

    Args:
        enough: pixels on the longer side that are needed. An image too large to be read whole is then read smaller.

    Raises:
        UserError: if it is not a readable image, or too large.
    """
    return decode_image(path, str(path), enough)


def read_with_alpha_and_profile(path: str | Path, enough: int | None = None) -> tuple[Tensor, AlphaAndProfile]:
    """`read_image`, with the alpha channel (unless all pixels are opaque) and the colour profile (if it is an RGB one)."""
    with open_image(path, str(path), enough) as image:
        icc = image.info.get("icc_profile")
        if icc is not None and icc[16:20] != b"RGB ":
            icc = None
        if not image.has_transparency_data:
            return from_pil(image), AlphaAndProfile(None, icc)
        alpha = torch.from_numpy(np.array(image.convert("RGBA").getchannel("A"))).float() / 255
        return from_pil(image), AlphaAndProfile(alpha[None] if (alpha < 1).any() else None, icc)


def decode_image(file: str | Path | BinaryIO, name: str, enough: int | None = None) -> Tensor:
    """`read_image` of a path or an open file; `name` is for error messages."""
    with open_image(file, name, enough) as image:
        return from_pil(image)


def upright_size(file: str | Path | BinaryIO, name: str) -> tuple[int, int]:
    """(height, width) of an image that `read_image` reads whole. Its pixels are not decoded."""
    with opened(file, name) as (image, _):
        # The size of a TIFF is upright; a PNG without EXIF in front would be decoded, for what may follow its pixels.
        in_header = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = in_header and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        width, height = image.size[::-1] if turned else image.size
        return height, width


class UnusableImage(UserError):
    """What is wrong with an image that Pillow reads; `opened` adds the name of the file."""


@contextlib.contextmanager
def open_image(file: str | Path | BinaryIO, name: str, enough: int | None = None) -> Iterator[Image.Image]:
    """An upright Pillow image, for a block that converts it; see `read_image`."""
    with opened(file, name) as (image, size):
        yield ImageOps.exif_transpose(within_budget(image, size, enough))


@contextlib.contextmanager
def opened(file: str | Path | BinaryIO, name: str) -> Iterator[tuple[ImageFile.ImageFile, int]]:
    """A Pillow image whose pixels are not decoded yet, and the size of its file in bytes.

    Raises:
        UserError: naming it, for whatever Pillow raises in the block for a damaged file or another format.
    """
    try:
        if not isinstance(file, (str, Path)):
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
        elif stat.S_ISREG(os.stat(file).st_mode):
            size = os.stat(file).st_size
        else:
            raise UnusableImage("not a file")  # to open a pipe would wait for ever
        with Image.open(file, formats=[one for one in FORMATS if one != "MPO"]) as image:
            yield image, size
    except UnusableImage as error:
        raise UserError(f"{name}: {error}") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        problem = f"cannot be read ({reason})" if reason else f"not a readable image ({first_line(error)})"
        remedy = remedies({Path(str(name)).suffix.lower()})
        raise UserError("; ".join(filter(None, (f"{name}: {problem}", remedy)))) from error


def within_budget(image: ImageFile.ImageFile, size: int, enough: int | None) -> Image.Image:
    """`image`, of a file of `size` bytes; if its pixels are too many, smaller, but not below `enough` on the longer side.

    Raises:
        UnusableImage: if decoding it takes too much memory or time.
    """
    pixels, longer = math.prod(image.size), max(image.size)
    allowed = min(MAX_PIXELS, max(MAX_WHOLE, PIXELS_PER_BYTE * size))
    if image.info.get("progressive") and image.fp is not None:
        image.fp.seek(0)
        scans = image.fp.read().count(b"\xff\xda")
        if scans * pixels > MAX_SCANNED:
            raise UnusableImage(f"a progressive JPEG of {image.width} x {image.height} pixels in {scans} scans")
    if pixels <= (allowed if enough is None else min(allowed, MAX_PIXELS // 2)):
        return image
    problem = f"{image.width} x {image.height} is more than {allowed:,} pixels"
    small: Image.Image = image
    if enough is not None:
        # A JPEG is decoded at a half, a quarter or an eighth of its size.
        image.draft(None, (-(-image.width * enough // longer), -(-image.height * enough // longer)))
        small = reduced(image, enough) if math.prod(image.size) <= MAX_PIXELS else image
    if math.prod(small.size) > allowed:
        side = longer // math.ceil(math.sqrt(pixels / allowed))
        raise UnusableImage(f"{problem}; give max_side={side}, or scale it down first")
    return small


def reduced(image: Image.Image, enough: int) -> Image.Image:
    """`image` as RGB or RGBA, smaller by a whole factor; in strips, for converting all of it takes several times the memory."""
    factor = max(image.size) // enough
    if factor < 2:
        return image
    convert, height = eight_bits(image), 64 * factor
    tops = range(0, image.height, height)
    strips = (convert(image.crop((0, top, image.width, min(top + height, image.height)))).reduce(factor) for top in tops)
    rows = np.concatenate([np.asarray(strip) for strip in strips])
    small = Image.fromarray(rows)
    small.info = {name: value for name, value in image.info.items() if name == "icc_profile"}
    small.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return small


def from_pil(image: Image.Image) -> Tensor:
    """An image of any mode -> pixels [3,H,W] in [-1,1].

    Raises:
        UnusableImage: for floating-point values whose range is not known.
    """
    image = eight_bits(image)(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB")))
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1)


def eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A conversion to RGB or RGBA of `image`, or of parts of it."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip instead of scaling
        white = white_level(image)
        return lambda part: Image.fromarray(
            (np.asarray(part, np.float64).clip(0, white) / white * 255).round().astype(np.uint8)
        ).convert("RGB")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return lambda part: part if part.mode == mode else part.convert(mode)


def white_level(image: Image.Image) -> float:
    """White in an image of integers of more than 8 bits, or of floating-point values.

    Raises:
        UnusableImage: for floating-point values whose range is not known.
    """
    levels = np.asarray(image)
    low, high = float(levels.min()), float(levels.max())
    if image.mode != "F":
        return 255 if image.mode == "I" and high <= 255 else 65535
    if low >= -0.01 and high <= 1.01:
        return 1
    if low >= 0 and 8 <= high <= 255.5:
        return 255
    raise UnusableImage(f"floating-point values from {low:g} to {high:g}; save them within 0 and 1")


def to_pil(image: Tensor) -> Image.Image:
    """Pixels [3,H,W] in [-1,1] -> 8-bit RGB, rounded to the nearest level."""
    result: Image.Image = to_pil_image(((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte())
    return result


def rounded(image: Tensor) -> Tensor:
    """Pixels in [-1,1] rounded to 8 bits, as they are after saving and reading."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


# The highest quality of each format.
QUALITY: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".jfif": {"quality": 95, "subsampling": 0},
    ".avif": {"quality": 95, "subsampling": "4:4:4"},
    ".webp": {"lossless": True},
    ".heic": {"quality": 95},
    ".heif": {"quality": 95},
}


def save_image(image: Tensor, path: str | Path, alpha_and_profile: AlphaAndProfile | None = None) -> None:
    """Save pixels [3,H,W] in [-1,1], in the format of the extension; the file appears complete or not at all.

    Raises:
        UserError: if it cannot be written: the disk is full, the folder read-only.
    """
    path, alpha_and_profile = Path(path), alpha_and_profile or AlphaAndProfile()
    settings = dict(QUALITY.get(path.suffix.lower(), {}))
    if alpha_and_profile.icc:
        settings["icc_profile"] = alpha_and_profile.icc
    pil = to_pil(image) if alpha_and_profile.alpha is None else with_alpha(image, alpha_and_profile.alpha)
    try:
        with atomic_write(path) as partial:
            pil.save(partial, **settings)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def file_suffix(path: Path) -> str:
    """The extension of an image file, or the usual one of its format where it has none or another format's.

    Raises:
        UserError: as `read_image` does.
    """
    with opened(path, str(path)) as (image, _):
        known = FORMATS[str(image.format)]
    return path.suffix if path.suffix.lower() in known else known[0]


def with_alpha(image: Tensor, alpha: Tensor) -> Image.Image:
    """The RGBA image that looks like `image` [3,H,W] on white; alpha [1,H0,W0] in [0,1] is resized."""
    if alpha.shape[-2:] != image.shape[-2:]:
        alpha = F.interpolate(alpha[None], image.shape[-2:], mode="bilinear", antialias=True)[0]
    pil = to_pil(1 - (1 - image.cpu()) / alpha.clamp(min=1 / 255))  # without the white background
    pil.putalpha(Image.fromarray((alpha[0] * 255).round().byte().numpy()))
    return pil


def centre_crop(image: Tensor, height: int, width: int) -> Tensor:
    """[3,H,W] -> [3,height,width]: resized until it just covers that, then a centre crop."""
    return from_pil(ImageOps.fit(to_pil(image), (width, height), method=Image.Resampling.LANCZOS))
