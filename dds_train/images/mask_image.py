"""Mask images as people make them: black and white, of 0 and 1, of labels, painted on transparency."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dds_train.images.files import UnusableImage, open_image, white_level

DARK = 8  # of 255: compression artefacts in black
GRAY = 32  # of 255: channels that differ by less are gray


def read_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A mask [1,H,W] in [0,1] of `size` = (H, W): white = 1. Also 1 are the ones of a mask of 0 and 1, the one colour of a mask
    that is black elsewhere, what is painted in one colour on transparency, and the holes of what is all black.

    Raises:
        UserError: if it is not a readable image, has another aspect ratio, or does not say where to edit.
    """
    with open_image(path, str(path), enough=max(size)) as image:
        (height, width), (own_width, own_height) = size, image.size
        if abs(own_height * width - own_width * height) > max(own_height, own_width) * max(height, width) * 0.01:
            raise UnusableImage(f"a mask of {own_width} x {own_height} pixels for an image of {width} x {height}")
        mask = torch.from_numpy(mask_levels(image))[None, None]
    mask = F.interpolate(mask, size, mode="bilinear", antialias=True)[0] if mask.shape[-2:] != size else mask[0]
    return torch.where(mask < DARK / 255, 0, mask)


def mask_levels(image: Image.Image) -> np.ndarray:
    """[H,W] in [0,1] of an image of any mode.

    Raises:
        UnusableImage: if it is not clear where it is white.
    """
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image, np.float32)
        return as_white(levels, 255 if image.mode != "F" and levels.max() <= 255 else white_level(image))
    if image.has_transparency_data:
        *colours, alpha = np.moveaxis(np.asarray(image.convert("RGBA")), -1, 0)
        if alpha.min() < 255:
            painted = np.stack(colours)[:, alpha > 0]
            if painted.size and np.ptp(painted, axis=1).max() >= DARK:
                raise UnusableImage("has transparent pixels beside others of several colours; save it without transparency")
            black = painted.size and painted.max() < DARK
            edited: np.ndarray = (255 - alpha if black else alpha).astype(np.float32) / 255
            return edited
    image = image.convert("RGB")
    levels = np.asarray(image)
    if int((levels.max(axis=2) - levels.min(axis=2)).max()) < GRAY:
        return as_white(np.asarray(image.convert("L"), np.float32), 255)
    colours = [colour for _, colour in image.getcolors(2) or ()]
    if (0, 0, 0) not in colours:
        raise UnusableImage("has colours; save it black, and white where to edit")
    coloured: np.ndarray = (levels.max(axis=2) > 0).astype(np.float32)
    return coloured


def as_white(levels: np.ndarray, white: float) -> np.ndarray:
    """Levels of gray in [0,1]: of `white`, unless they are 0 and 1."""
    highest = float(levels.max())
    if 1 < highest < DARK and white > 1:
        raise UnusableImage(f"its brightest value is {highest:g} of {white:g}; save it black, and white where to edit")
    result: np.ndarray = (levels / (1 if highest <= 1 else white)).clip(0, 1)
    return result
