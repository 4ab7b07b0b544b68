"""Exact scores of an edit of critters: the true result is known for every picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dds_train.critters.dataset import to_tensor
from dds_train.critters.render import render, render_backdrop
from dds_train.critters.world import BACKDROPS, FURS, SPECIES, Critter


@dataclass(frozen=True)
class CritterScores:
    """Means over pictures. An attribute reads as that of the nearest, in mean squared error, of the exact renders that differ
    in it alone."""

    gap_closed: float  # 1 - mse(output, truth) / mse(input, truth); 0 for doing nothing, 1 for the truth
    species: float  # share that reads as the species wanted
    fur: float  # share that kept its fur
    backdrop: float  # share that kept its backdrop
    accessories: float  # share that kept glasses and hat as they were, both there and not there
    background_psnr: float  # dB, over the pixels that no species covers; inf for doing nothing


def score_species_edit(outputs: Tensor, sources: Sequence[Critter], species: str) -> CritterScores:
    """Score outputs [N,3,S,S] in [-1,1], made from pictures of `sources`, as edits to `species`."""
    size = outputs.shape[-1]
    rows = [_score(output, source, species, size) for output, source in zip(outputs.cpu(), sources, strict=True)]
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


def _score(output: Tensor, source: Critter, species: str, size: int) -> tuple[float, ...]:
    def nearest(variants: Sequence[Critter]) -> int:
        errors = [mse(output, to_tensor(variant, size)) for variant in variants]
        return errors.index(min(errors))

    def kept(make: Callable[[Critter], list[Critter]], like: Critter) -> bool:
        variants = make(like)
        return variants[nearest(variants)] == like

    before, truth = to_tensor(source, size), to_tensor(source.replaced(species=species), size)
    reads = SPECIES[nearest([source.replaced(species=s) for s in SPECIES])]
    # Fur and the rest are read against the species that the output has become, be it the right one or not.
    like = source.replaced(species=reads)
    background = background_mask(source, size)
    error = ((output - before) / 2).square().sum(0)[background].sum().item()
    return (
        1 - mse(output, truth) / mse(before, truth),
        reads == species,
        kept(lambda c: [c.replaced(fur=f) for f in FURS], like),
        kept(lambda c: [c.replaced(backdrop=b) for b in BACKDROPS], like),
        kept(lambda c: [c.replaced(glasses=g, hat=h) for g, h in product((False, True), repeat=2)], like),
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
