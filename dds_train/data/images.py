"""Reading pictures of every kind, and writing them."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from diffusers.utils import export_to_gif, export_to_video
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from dds_train.errors import UserError
from dds_train.frozen import Pretrained

MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Extras:
    """What a file has beside its colours, and what a result can keep."""

    alpha: Tensor | None = None  # [1,H,W] in [0,1]: how opaque
    icc: bytes | None = None  # an RGB colour profile


def read_with_extras(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, Extras]:
    """`read_image`, and what else is in the file."""
    image = checked_image(path, str(path), max_pixels)
    with Image.open(path) as file:
        icc = file.info.get("icc_profile")
        upright = ImageOps.exif_transpose(file) if file.has_transparency_data else None
    if icc is not None and icc[16:20] != b"RGB ":  # of gray or CMYK, which the result is not
        icc = None
    if upright is None:
        return image, Extras(None, icc)
    alpha = torch.from_numpy(np.array(upright.convert("RGBA").getchannel("A"))).float() / 255
    return image, Extras(alpha[None] if (alpha < 1).any() else None, icc)


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


def save_image(image: Tensor, path: str | Path, extras: Extras | None = None) -> None:
    """Pixels [3,H,W] in [-1,1] to a file whose extension says the format. It appears complete or not at all."""
    path, extras = Path(path), extras or Extras()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{path.suffix}")
    settings = dict(BEST.get(path.suffix.lower(), {}))
    if extras.icc:
        settings["icc_profile"] = extras.icc
    picture = to_pil(image) if extras.alpha is None else with_alpha(image, extras.alpha)
    picture.save(partial, **settings)
    partial.replace(path)


def with_alpha(image: Tensor, alpha: Tensor) -> Image.Image:
    """The RGBA picture that looks like `image` [3,H,W] on white; alpha [1,H0,W0] in [0,1] is scaled to it."""
    if alpha.shape[-2:] != image.shape[-2:]:
        alpha = F.interpolate(alpha[None], image.shape[-2:], mode="bilinear", antialias=True)[0]
    colour = 1 - (1 - image.cpu()) / alpha.clamp(min=1 / 255)  # takes the white out again
    picture = to_pil(colour)
    picture.putalpha(Image.fromarray((alpha[0] * 255).round().byte().numpy()))
    return picture


def strip(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Rows of equally large pictures, each [N,3,H,W], as one picture [3,H',W'], white between them and after short rows."""
    longest = max(len(row) for row in rows)

    def join(pictures: Sequence[Tensor], dim: int) -> Tensor:
        shape = list(pictures[0].shape)
        shape[dim] = gap
        white = torch.ones(shape)
        spaced = [part for picture in pictures for part in (white, picture)]
        return torch.cat(spaced[1:], dim)

    blank = torch.ones_like(rows[0][0])
    return join([join([*row, *[blank] * (longest - len(row))], 2) for row in rows], 1)


def save_animation(frames: Sequence[Tensor], path: str | Path, fps: int = 8) -> None:
    """Pictures [3,H,W] of one size as a GIF that loops, or an MP4 (which needs imageio with ffmpeg), by the path's extension.
    The last one is shown longer."""
    pictures = [to_pil(frame) for frame in frames]
    if Path(path).suffix == ".gif":
        export_to_gif([*pictures, *pictures[-1:] * fps], str(path), fps)
    else:
        export_to_video([*pictures, *pictures[-1:] * fps], str(path), fps, macro_block_size=2)


def fit_into(image: Tensor, side: int) -> Tensor:
    """[3,H,W] placed in the middle of a white square [3,side,side], scaled down if it is larger: for mixed overviews."""
    fitted = ImageOps.pad(to_pil(image), (side, side), color="white")
    return from_pil(fitted)


def square_crop(image: Tensor, side: int) -> Tensor:
    """[3,H,W] -> [3,side,side]: scaled so that the shorter side fits, then the middle cut out."""
    return from_pil(ImageOps.fit(to_pil(image), (side, side), method=Image.Resampling.LANCZOS))


def image_size(pretrained: Pretrained, size: int | None) -> int:
    """The side in pixels of training images: as asked for, or the teacher's own. Loads no weights.

    Raises:
        UserError: if the codec cannot work at that size.
    """
    own, factor = pretrained.image_size()
    if size is not None and (size < 1 or size % factor):
        raise UserError(f"data.size={size}: the codec needs a positive multiple of {factor}")
    return size or own


def labelled_grid(columns: Mapping[str, Sequence[Tensor]], rows: Sequence[str] = (), side: int = 96, gap: int = 2) -> Tensor:
    """Columns of pictures [3,H,W] of any size as one picture [3,H',W']: a row for each index. Columns stand under their names,
    rows beside theirs, if given."""
    count = max(map(len, columns.values()))
    names, besides = (["\n".join(textwrap.wrap(name, (side - 8) // 6)) for name in some] for some in (columns, rows))
    top, left = 14 * max(name.count("\n") + 1 for name in names) + 6, side + gap if besides else 0
    sheet = Image.new("RGB", (left + len(names) * (side + gap) - gap, top + count * (side + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, name in enumerate(besides[:count]):
        draw.multiline_text((4, top + row * (side + gap) + side // 2), name, "black", font, anchor="lm")
    for column, (name, pictures) in enumerate(zip(names, columns.values(), strict=True)):
        x = left + column * (side + gap)
        draw.multiline_text((x + side // 2, 2), name, "black", font, anchor="ma", align="center")
        for row, picture in enumerate(pictures):
            sheet.paste(ImageOps.pad(to_pil(picture), (side, side), color="white"), (x, top + row * (side + gap)))
    return from_pil(sheet)


def overview(pairs: Sequence[tuple[Tensor, Tensor]], side: int = 256, limit: int = 64) -> Tensor:
    """A before/after picture of up to `limit` pairs of any size, in blocks of 8 columns: inputs above results."""
    shown = [(fit_into(before, side), fit_into(after, side)) for before, after in pairs[:limit]]
    columns = min(8, len(shown))
    rows = []
    for start in range(0, len(shown), columns):
        befores, afters = zip(*shown[start : start + columns], strict=True)
        rows += [torch.stack(befores), torch.stack(afters)]
    return strip(rows)
