"""Several images in one file: grids and animations."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from diffusers.utils import export_to_gif, export_to_video
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.utils import make_grid

from dds_train.images.files import from_pil, read_image, save_image, to_pil
from dds_train.runs.files import atomic_write

SHOWN = 64  # pairs in before_after.png


def image_grid(rows: Sequence[Tensor]) -> Tensor:
    """Rows of images of one size, each [N,3,H,W], as one image [3,H',W'] with white borders. Only the last may be shorter."""
    output: Tensor = make_grid(torch.cat([*rows]), nrow=len(rows[0]), pad_value=1)
    return output


def save_animation(frames: Sequence[Tensor], path: str | Path, fps: int = 8) -> None:
    """Save images [3,H,W] of one size as a GIF that loops, or as an MP4 (requires imageio with ffmpeg), by the extension. The
    last one is shown longer."""
    images = [to_pil(frame) for frame in frames]
    images += images[-1:] * fps
    with atomic_write(path) as partial:
        if partial.suffix == ".gif":
            export_to_gif(images, str(partial), fps)
        else:
            export_to_video(images, str(partial), fps, macro_block_size=2)


def fit_into(image: Tensor, side: int) -> Tensor:
    """[3,H,W] -> [3,side,side]: resized to fit, centred on white."""
    return from_pil(ImageOps.pad(with_both_sides(to_pil(image), side), (side, side), color="white"))


def with_both_sides(image: Image.Image, side: int) -> Image.Image:
    """`image`, or a thinner strip at the size of its longer side, to which Pillow would leave no pixels."""
    width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
    return image.resize((width, height)) if min(width, height) == 1 else image


def labelled_grid(columns: Mapping[str, Sequence[Tensor]], rows: Sequence[str] = (), side: int = 96, gap: int = 2) -> Tensor:
    """Columns of images [3,H,W] of any size as one image [3,H',W'], column names above, optional row names beside."""
    count = max(map(len, columns.values()))
    names, row_names = (["\n".join(textwrap.wrap(name, (side - 8) // 6)) for name in some] for some in (columns, rows))
    top, left = 14 * max(name.count("\n") + 1 for name in names) + 6, side + gap if row_names else 0
    sheet = Image.new("RGB", (left + len(names) * (side + gap) - gap, top + count * (side + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, name in enumerate(row_names[:count]):
        draw.multiline_text((4, top + row * (side + gap) + side // 2), name, "black", font, anchor="lm")
    for column, (name, images) in enumerate(zip(names, columns.values(), strict=True)):
        x = left + column * (side + gap)
        draw.multiline_text((x + side // 2, 2), name, "black", font, anchor="ma", align="center")
        for row, image in enumerate(images):
            sheet.paste(to_pil(fit_into(image, side)), (x, top + row * (side + gap)))
    return from_pil(sheet)


def before_after_grid(pairs: Iterable[tuple[Tensor, Tensor]], side: int = 256, limit: int = SHOWN) -> Tensor:
    """One image of up to `limit` pairs of any size, in blocks of 8 columns: inputs above results."""
    fitted = [(fit_into(before, side), fit_into(after, side)) for before, after in islice(pairs, limit)]
    columns = min(8, len(fitted))
    fitted += [(torch.ones(3, side, side),) * 2] * (-len(fitted) % columns)
    blocks = (fitted[start : start + columns] for start in range(0, len(fitted), columns))
    return image_grid([torch.stack(row) for block in blocks for row in zip(*block, strict=True)])


def save_before_after(pairs: Sequence[tuple[Path, Path]], path: Path) -> None:
    """Save the `before_after_grid` of image files, if there are any."""
    if pairs:
        save_image(before_after_grid((read_image(before, 256), read_image(after, 256)) for before, after in pairs), path)
