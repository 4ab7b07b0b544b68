"""Reading pictures of every kind, and writing them."""

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


@dataclass(frozen=True)
class AlphaAndProfile:
    """What a file has beside its colours, and what a result can keep."""

    alpha: Tensor | None = None  # [1,H,W] in [0,1]: how opaque
    icc: bytes | None = None  # an RGB colour profile


def read_with_alpha_and_profile(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, AlphaAndProfile]:
    """`read_image`, and what else is in the file."""
    image = checked_image(path, str(path), max_pixels)
    with Image.open(path) as file:
        icc = file.info.get("icc_profile")
        upright = ImageOps.exif_transpose(file) if file.has_transparency_data else None
    if icc is not None and icc[16:20] != b"RGB ":  # of gray or CMYK, which the result is not
        icc = None
    if upright is None:
        return image, AlphaAndProfile(None, icc)
    alpha = torch.from_numpy(np.array(upright.convert("RGBA").getchannel("A"))).float() / 255
    return image, AlphaAndProfile(alpha[None] if (alpha < 1).any() else None, icc)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A picture as it is meant to be seen: pixels [3,H,W] in [-1,1].

    Turned upright by its EXIF orientation; gray, palette, CMYK and 16-bit files become RGB; transparent parts become
    white; of an animation the first frame.

    Raises:
        UserError: if it cannot be read as a picture, or has more than `max_pixels`.
    """
    return checked_image(path, str(path), max_pixels)


def checked_image(file: str | Path | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """`read_image` of a path or an open file; `name` is what an error calls it."""
    try:
        with Image.open(file) as image:
            width, height = image.size  # from the header: nothing is decoded yet
            if width * height > max_pixels:
                raise UserError(f"{name}: {width} x {height} is more than {max_pixels:,} pixels; scale it down first")
            return from_pil(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: not a picture that can be read ({str(error).splitlines()[0]})") from error


def from_pil(image: Image.Image) -> Tensor:
    """Any mode -> pixels [3,H,W] in [-1,1]."""
    if image.mode.startswith("I"):  # 16 bits, whose conversion to 8 would clip instead of scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """Pixels [3,H,W] in [-1,1] -> 8-bit RGB, rounded to the nearest value."""
    return to_pil_image(((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte())


def rounded(image: Tensor) -> Tensor:
    """Pixels in [-1,1] as a file of 8 bits has them."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def read_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A picture that says where: [1,H,W] in [0,1], white (or transparent) = 1, scaled to `size` = (H, W).

    Raises:
        UserError: if it cannot be read, or has another aspect.
    """
    mask = read_image(path).mean(dim=0)[None, None] / 2 + 0.5
    (height, width), (own_height, own_width) = size, mask.shape[-2:]
    if abs(own_height * width - own_width * height) > max(own_height, own_width) * max(height, width) * 0.01:
        raise UserError(f"{path}: a mask of {own_width} x {own_height} pixels for a picture of {width} x {height}")
    mask = F.interpolate(mask, size, mode="bilinear", antialias=True)[0] if mask.shape[-2:] != size else mask[0]
    return torch.where(mask < 0.03, 0, mask)  # what JPEG leaves of black


# As close to the pixels as the format allows.
BEST: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".jfif": {"quality": 95, "subsampling": 0},
    ".avif": {"quality": 95, "subsampling": "4:4:4"},
    ".webp": {"lossless": True},
}


def save_image(image: Tensor, path: str | Path, alpha_and_profile: AlphaAndProfile | None = None) -> None:
    """Pixels [3,H,W] in [-1,1] to a file whose extension says the format. It appears complete or not at all."""
    path, alpha_and_profile = Path(path), alpha_and_profile or AlphaAndProfile()
    settings = dict(BEST.get(path.suffix.lower(), {}))
    if alpha_and_profile.icc:
        settings["icc_profile"] = alpha_and_profile.icc
    picture = to_pil(image) if alpha_and_profile.alpha is None else with_alpha(image, alpha_and_profile.alpha)
    with atomic_write(path) as partial:
        picture.save(partial, **settings)


def with_alpha(image: Tensor, alpha: Tensor) -> Image.Image:
    """The RGBA picture that looks like `image` [3,H,W] on white; alpha [1,H0,W0] in [0,1] is scaled to it."""
    if alpha.shape[-2:] != image.shape[-2:]:
        alpha = F.interpolate(alpha[None], image.shape[-2:], mode="bilinear", antialias=True)[0]
    colour = 1 - (1 - image.cpu()) / alpha.clamp(min=1 / 255)  # takes the white out again
    picture = to_pil(colour)
    picture.putalpha(Image.fromarray((alpha[0] * 255).round().byte().numpy()))
    return picture


def square_crop(image: Tensor, side: int) -> Tensor:
    """[3,H,W] -> [3,side,side]: scaled so that the shorter side fits, then the middle cut out."""
    return from_pil(ImageOps.fit(to_pil(image), (side, side), method=Image.Resampling.LANCZOS))
