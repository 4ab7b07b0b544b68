"""Augmentation as a function of the position."""

from typing import Any

import torch

from dds_train.data.batches import PositionedDataset


def test_augmentation_is_a_function_of_the_position() -> None:
    from dds_train.data.augment import FlipAndZoom

    image = torch.rand(3, 32, 32) * 2 - 1
    images: Any = [{"image": image}] * 2
    placed = PositionedDataset(images, [0, 1], seed=0, augment=FlipAndZoom(flip=True, zoom=0.7))
    assert torch.equal(placed[(5, 0)]["image"], placed[(5, 1)]["image"])
    made = [placed[(position, 0)]["image"] for position in range(40)]
    assert all(one.shape == image.shape and one.abs().max() <= 1 for one in made)
    assert len({one.sum().item() for one in made}) > 30  # few places to zoom into coincide
    flips = PositionedDataset(images, [0], seed=0, augment=FlipAndZoom(flip=True))
    mirrored = sum(torch.equal(flips[(p, 0)]["image"], image.flip(-1)) for p in range(40))
    assert 8 < mirrored < 32
    assert all(
        torch.equal(one, image) or torch.equal(one, image.flip(-1)) for one in (flips[(p, 0)]["image"] for p in range(40))
    )
