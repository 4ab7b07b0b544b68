"""Exact scores of edits of critters, whose ground truth is known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dds_train.critters.dataset import to_tensor
from dds_train.critters.render import render, render_backdrop
from dds_train.critters.world import ATTRIBUTES, SPECIES, Critter


@dataclass(frozen=True)
class CritterScores:
    """Means over images; the background PSNR is pooled over all pixels of all images (see `pooled_psnr`).

    Each attribute is classified by rendering all of its values and taking the one with the lowest MSE: edited attributes with
    all others as in the ground truth, then species, then the rest with those as classified. It is right if it is the ground
    truth's: the target value if the attribute is edited, the source's value if it is not.
    """

    gap_closed: float  # 1 - mse(output, ground truth) / mse(input, ground truth): 0 for the input, 1 for the ground truth
    edit_accuracy: float  # share of outputs in which every edited attribute is right
    species: float  # share with the right species
    fur: float  # share with the right fur
    backdrop: float  # share with the right backdrop
    accessories: float  # share with the right glasses and hat, both worn and not worn
    background_psnr: float  # dB, against the ground truth, over the pixels that no species covers; inf if they are equal


def score_edit(outputs: Tensor, sources: Sequence[Critter], changes: Mapping[str, Any]) -> CritterScores:
    """Score outputs [N,3,S,S] in [-1,1], made from renders of `sources`, as edits that set `changes`, e.g. ``{"hat": True}``.

    Raises:
        ValueError: if the edit changes nothing of a source.
    """
    rows = [_score(output, source, changes) for output, source in zip(outputs.cpu(), sources, strict=True)]
    *means, psnrs, pixels = torch.tensor(rows, dtype=torch.float64).T
    fields = [*(values.mean().item() for values in means), pooled_psnr(psnrs.tolist(), pixels.tolist())]
    return CritterScores(*fields)


def pooled_psnr(psnrs: Sequence[float], pixels: Sequence[float]) -> float:
    """PSNR in dB over all pixels of all images, from the PSNR and the number of pixels of each.

    Unlike the mean of the images' PSNRs, it is finite as soon as one image differs, and nearly equal images do not hide others.
    """
    squares = [10 ** (-psnr / 10) * count for psnr, count in zip(psnrs, pixels, strict=True) if count]
    return _psnr(sum(squares) / sum(pixels)) if squares else math.nan


def background_pixels(source: Critter, changes: Mapping[str, Any], size: int) -> int:
    """Number of pixels that the background PSNR is taken over."""
    return int((background_mask(source, size) & background_mask(source.replaced(**changes), size)).sum())


@lru_cache(4096)
def background_mask(source: Critter, size: int) -> Tensor:
    """[S,S], True where the image is bare backdrop whatever the species."""
    bare = render_backdrop(source, size)
    covered = [(render(source.replaced(species=s), size) != bare).any(-1) for s in SPECIES]
    return torch.from_numpy(~np.any(covered, axis=0))


def mse(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).square().mean().item()


def _score(output: Tensor, source: Critter, changes: Mapping[str, Any]) -> tuple[float, ...]:
    """The fields of `CritterScores` for one image, and the number of background pixels."""
    size, truth = output.shape[-1], source.replaced(**changes)
    if truth == source:
        raise ValueError(f"the edit {dict(changes)} changes nothing of {source}")

    def classified(like: Critter, *attributes: str) -> dict[str, Any]:
        """Attributes of the render nearest to the output among those that differ from `like` in these attributes alone."""
        values = [ATTRIBUTES.get(name) or (getattr(source, name), getattr(truth, name)) for name in attributes]
        variants = [dict(zip(attributes, some, strict=True)) for some in product(*values)]
        errors = [mse(output, to_tensor(like.replaced(**variant), size)) for variant in variants]
        return variants[errors.index(min(errors))] if math.isfinite(min(errors)) else dict.fromkeys(attributes)

    def right(reading: Mapping[str, Any]) -> bool:
        return all(value == getattr(truth, name) for name, value in reading.items())

    def as_read(like: Critter, reading: Mapping[str, Any]) -> Critter:
        return like.replaced(**{name: value for name, value in reading.items() if value is not None})

    edited = {name: classified(truth, name)[name] for name in changes}
    like = as_read(truth, edited)
    species = {"species": edited["species"]} if "species" in edited else classified(like, "species")
    like = as_read(like, species)
    before, after = to_tensor(source, size), to_tensor(truth, size)
    background = background_mask(source, size) & background_mask(truth, size)
    pixels = int(background.sum())
    return (
        1 - mse(output, after) / mse(before, after),
        right(edited),
        right(species),
        right(classified(like, "fur")),
        right(classified(like, "backdrop")),
        right(classified(like, "glasses", "hat")),
        _psnr(((output - after) / 2).square().sum(0)[background].sum().item() / (3 * pixels)) if pixels else math.nan,
        pixels,
    )


def _psnr(mean_square: float) -> float:
    return -10 * math.log10(mean_square) if mean_square else math.inf
