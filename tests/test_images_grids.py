"""Grids of images."""

import torch

from dds_train.images.grids import before_after_grid, image_grid, labelled_grid


def test_grids_of_mixed_sizes() -> None:
    images = [torch.rand(3, h, w) * 2 - 1 for h, w in ((37, 511), (64, 64), (10, 3))]
    grid = before_after_grid([(p, p) for p in images], side=32)
    assert grid.shape == (3, 2 * 34 + 2, 3 * 34 + 2)
    assert image_grid([torch.stack(images[1:2] * 2)]).shape == (3, 64 + 4, 2 * 66 + 2)


def test_labelled_grid_has_a_row_per_image_and_a_header() -> None:
    columns = {
        "red": [torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(3, 5, 9)] * 2,
        "a name of many words": [torch.zeros(3, 8, 8)],
    }
    grid = labelled_grid(columns, side=40, gap=4)
    head = grid.shape[1] - 2 * 40 - 4
    assert grid.shape[2] == 2 * 40 + 4
    assert head >= 14 * 3
    assert (grid[:, head + 20, 20] == torch.tensor([1.0, -1, -1])).all()  # padded, in the middle
    assert (grid[:, head + 2, 20] == 1).all()
    assert (grid[:, head + 44 + 20, 64] == 1).all()  # no second image here
    named = labelled_grid(columns, ["one", "two"], side=40, gap=4)
    torch.testing.assert_close(named[..., 44:], grid)
    assert (named[:, head : head + 40, :40] < 0).any()


def test_a_short_last_block_keeps_inputs_above_their_results() -> None:
    black, gray = -torch.ones(3, 8, 8), torch.zeros(3, 8, 8)
    grid = before_after_grid([(black, gray)] * 10, side=8)
    assert grid.shape == (3, 4 * 10 + 2, 8 * 10 + 2)
    middles = grid[0, 6::10, 6::10]  # a pixel of each cell
    assert middles[0].tolist() == [-1] * 8
    assert middles[2].tolist() == [-1] * 2 + [1] * 6
    torch.testing.assert_close(middles[3], torch.tensor([0.0] * 2 + [1.0] * 6), atol=0.01, rtol=0)


def test_a_strip_of_a_pixel_stays_visible() -> None:
    strip = -torch.ones(3, 1, 2000)
    assert (before_after_grid([(strip, strip.mT)], side=32) == -1).any(dim=2).all(dim=0).sum() >= 2
    assert (labelled_grid({"": [strip]}, side=32)[0, -32:] == -1).any()
