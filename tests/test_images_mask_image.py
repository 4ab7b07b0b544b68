"""Masks as numpy, paint programs and labelling tools save them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dds_train.errors import UserError
from dds_train.images.mask_image import read_mask

WHERE = np.zeros((16, 20), np.uint8)
WHERE[4:8, 4:12] = 1


def palette(*colours: int) -> Image.Image:
    image = Image.fromarray(WHERE).convert("P")
    image.putpalette(list(colours))
    return image


def painted(colour: tuple[int, int, int, int], elsewhere: tuple[int, int, int, int]) -> Image.Image:
    return Image.fromarray(np.where(WHERE[..., None] > 0, np.uint8(colour), np.uint8(elsewhere)))


SAME = {
    "white": ("m.png", Image.fromarray(WHERE * 255)),
    "0 and 1": ("m.png", Image.fromarray(WHERE)),
    "0 and 1, 16 bits": ("m.png", Image.fromarray(WHERE.astype(np.uint16))),
    "0 to 255 in 16 bits": ("m.png", Image.fromarray(WHERE.astype(np.uint16) * 255)),
    "16 bits": ("m.png", Image.fromarray(WHERE.astype(np.uint16) * 65535)),
    "0 and 1, 32 bits": ("m.tiff", Image.fromarray(WHERE.astype(np.int32))),
    "float 0 to 1": ("m.tiff", Image.fromarray(WHERE.astype(np.float32))),
    "float 0 to 255": ("m.tiff", Image.fromarray(WHERE.astype(np.float32) * 255)),
    "bool": ("m.png", Image.fromarray(WHERE.astype(bool))),
    "RGB": ("m.png", Image.fromarray(np.stack([WHERE * 255] * 3, -1))),
    "red": ("m.png", Image.fromarray(np.stack([WHERE * 255, WHERE * 0, WHERE * 0], -1))),
    "labels in colour": ("m.png", palette(0, 0, 0, 128, 0, 0)),
    "labels in black": ("m.png", palette(0, 0, 0, 1, 1, 1)),
    "white on transparent": ("m.png", painted((255, 255, 255, 255), (0, 0, 0, 0))),
    "red on transparent": ("m.png", painted((255, 0, 0, 255), (255, 255, 255, 0))),
    "a hole in black": ("m.png", painted((9, 9, 9, 0), (0, 0, 0, 255))),
}


@pytest.mark.parametrize("kind", SAME)
def test_all_say_the_same(tmp_path: Path, kind: str) -> None:
    name, image = SAME[kind]
    image.save(tmp_path / name)
    assert torch.equal(read_mask(tmp_path / name, (16, 20))[0], torch.from_numpy(WHERE).float())


def test_gray_is_a_weaker_edit(tmp_path: Path) -> None:
    Image.fromarray(WHERE * 128).save(tmp_path / "m.png")
    torch.testing.assert_close(read_mask(tmp_path / "m.png", (16, 20)).max(), torch.tensor(128 / 255))


NOISE = np.random.default_rng(0).integers(0, 256, (16, 20, 4), np.uint8)
UNCLEAR = {
    "has colours": ("m.png", Image.fromarray(NOISE[..., :3])),
    "has colours; save it black": ("m.png", palette(255, 0, 0, 0, 0, 255)),
    "its brightest value is 3 of 255": ("m.png", Image.fromarray(WHERE * 3)),
    "has transparent pixels beside others": ("m.png", Image.fromarray(NOISE)),
    "floating-point values from -1 to": ("m.tiff", Image.fromarray(WHERE.astype(np.float32) - 1)),
    "floating-point values from nan": ("m.tiff", Image.fromarray(WHERE * np.float32("nan"))),
}


@pytest.mark.parametrize("says", UNCLEAR)
def test_what_does_not_say_where_to_edit_is_refused(tmp_path: Path, says: str) -> None:
    name, image = UNCLEAR[says]
    image.save(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: {says}"):
        read_mask(tmp_path / name, (16, 20))
