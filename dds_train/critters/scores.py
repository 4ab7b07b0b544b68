"""Exact scores of an edit of critters: the true result is known for every picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dds_train.critters.dataset import to_tensor
from dds_train.critters.render import render, render_backdrop
from dds_train.critters.world import BACKDROPS, FURS, SPECIES, Critter


@dataclass(frozen=True)
class CritterScores:
    """Means over pictures. An attribute reads as that of the nearest, in mean squared error, of the exact renders that differ
    in it alone; it counts if that is how the true edit has it: as wanted if the edit is about it, as it was if not."""

    gap_closed: float  # 1 - mse(output, truth) / mse(input, truth); 0 for doing nothing, 1 for the truth
    species: float  # share with the right species
    fur: float  # share with the right fur
    backdrop: float  # share with the right backdrop
    accessories: float  # share with glasses and hat as they should be, both there and not there
    background_psnr: float  # dB, over the pixels that no species covers; inf for doing nothing


def score_species_edit(outputs: Tensor, sources: Sequence[Critter], species: str) -> CritterScores:
    """Score outputs [N,3,S,S] in [-1,1], made from pictures of `sources`, as edits to `species`."""
    return score_edit(outputs, sources, {"species": species})


def score_edit(outputs: Tensor, sources: Sequence[Critter], changes: Mapping[str, Any]) -> CritterScores:
    """Score outputs [N,3,S,S] in [-1,1], made from pictures of `sources`, as edits that set `changes`, such as
    ``{"glasses": True}``. The sources must not have them already."""
    size = outputs.shape[-1]
    rows = [_score(output, source, changes, size) for output, source in zip(outputs.cpu(), sources, strict=True)]
    gap, right, fur, backdrop, accessories, error, pixels = torch.tensor(rows, dtype=torch.float64).T
    mean_error = (error.sum() / pixels.sum()).item()
    return CritterScores(
        gap_closed=gap.mean().item(),
        species=right.mean().item(),
        fur=fur.mean().item(),
        backdrop=backdrop.mean().item(),
        accessories=accessories.mean().item(),
        background_psnr=-10 * math.log10(mean_error) if mean_error else math.inf,
    )


def _score(output: Tensor, source: Critter, changes: Mapping[str, Any], size: int) -> tuple[float, ...]:
    def nearest(variants: Sequence[Critter]) -> Critter:
        errors = [mse(output, to_tensor(variant, size)) for variant in variants]
        return variants[errors.index(min(errors))]

    truth = source.replaced(**changes)
    assert truth != source, "an edit that changes nothing has no gap to close"
    reads = nearest([truth.replaced(species=s) for s in SPECIES]).species
    # Fur and the rest are read against the species that the output has become, be it the right one or not.
    like = truth.replaced(species=reads)

    def kept(variants: list[Critter]) -> bool:
        return nearest(variants) == like

    before, after = to_tensor(source, size), to_tensor(truth, size)
    background = background_mask(source, size) & background_mask(truth, size)
    error = ((output - before) / 2).square().sum(0)[background].sum().item()
    return (
        1 - mse(output, after) / mse(before, after),
        reads == truth.species,
        kept([like.replaced(fur=f) for f in FURS]),
        kept([like.replaced(backdrop=b) for b in BACKDROPS]),
        kept([like.replaced(glasses=g, hat=h) for g, h in product((False, True), repeat=2)]),
        error,
        3 * int(background.sum()),
    )


def background_mask(source: Critter, size: int) -> Tensor:
    """[S,S], True where the picture is bare backdrop whatever the species."""
    bare = render_backdrop(source, size)
    covered = [(render(source.replaced(species=s), size) != bare).any(-1) for s in SPECIES]
    return torch.from_numpy(~np.any(covered, axis=0))


def mse(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).square().mean().item()
