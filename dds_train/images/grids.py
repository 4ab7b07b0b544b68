"""Several images as one: grids, before and after, animations."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from diffusers.utils import export_to_gif, export_to_video
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dds_train.images.files import from_pil, read_image, save_image, to_pil
from dds_train.runs.files import atomic_write


def image_grid(rows: Sequence[Tensor], gap: int = 2) -> Tensor:
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
    with atomic_write(path) as partial:
        if partial.suffix == ".gif":
            export_to_gif([*pictures, *pictures[-1:] * fps], str(partial), fps)
        else:
            export_to_video([*pictures, *pictures[-1:] * fps], str(partial), fps, macro_block_size=2)


def fit_into(image: Tensor, side: int) -> Tensor:
    """[3,H,W] placed in the middle of a white square [3,side,side], scaled down if it is larger: for mixed overviews."""
    fitted = ImageOps.pad(to_pil(image), (side, side), color="white")
    return from_pil(fitted)


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


def before_after_grid(pairs: Iterable[tuple[Tensor, Tensor]], side: int = 256, limit: int = 64) -> Tensor:
    """One image of up to `limit` pairs of any size, in blocks of 8 columns: inputs above results."""
    shown = [(fit_into(before, side), fit_into(after, side)) for before, after in islice(pairs, limit)]
    columns = min(8, len(shown))
    rows = []
    for start in range(0, len(shown), columns):
        befores, afters = zip(*shown[start : start + columns], strict=True)
        rows += [torch.stack(befores), torch.stack(afters)]
    return image_grid(rows)


def save_before_after(pairs: Sequence[tuple[Path, Path]], path: Path) -> None:
    """Save the `before_after_grid` of image files, if there are any."""
    if pairs:
        save_image(before_after_grid((read_image(before), read_image(after)) for before, after in pairs), path)
