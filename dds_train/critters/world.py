"""The parameters of a critter: what there is to know about one picture, and how to draw a new one.

A `Critter` determines its picture completely, so replacing one field and rendering again gives the *exact*
counterfactual of that picture: what an ideal editor asked for that change, and only that change, would return.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

SPECIES = ("cat", "lion", "dog", "bear", "rabbit", "panda", "tiger", "pig")
FURS = ("orange", "gray", "brown", "white", "black", "golden", "blue", "pink")
BACKDROPS = ("green", "blue", "yellow", "purple", "red", "teal", "white", "gray")


@dataclass(frozen=True)
class Critter:
    """One picture's parameters. Lengths are fractions of the image's side; angles are in degrees."""

    species: str  # one of SPECIES
    fur: str  # one of FURS
    backdrop: str  # one of BACKDROPS
    glasses: bool
    hat: bool
    x: float  # centre of the head
    y: float
    radius: float  # of the head
    tilt: float  # clockwise rotation of the head
    hue: float  # shifts of the fur's colour in HSV
    saturation: float
    value: float
    eyes: float  # size of the eyes, 1 = usual
    gaze_x: float  # where the pupils look, -1 left .. 1 right
    gaze_y: float  # -1 up .. 1 down
    mouth: float  # -1 frown .. 1 smile
    shade: float  # how much lighter the backdrop is at the top than in the middle

    def __post_init__(self) -> None:
        for field, known in (("species", SPECIES), ("fur", FURS), ("backdrop", BACKDROPS)):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {getattr(self, field)!r}")

    def replaced(self, **changes: Any) -> "Critter":
        """The exact counterfactual: the same critter but for `changes`, e.g. ``cat.replaced(species="lion")``."""
        return replace(self, **changes)


def sample_critter(rng: random.Random, **fixed: Any) -> Critter:
    """Draw a critter; `fixed` fields keep the value given and change nothing about the draw of the others."""
    drawn: dict[str, Any] = {
        "species": rng.choice(SPECIES),
        "fur": rng.choice(FURS),
        "backdrop": rng.choice(BACKDROPS),
        "glasses": rng.random() < 0.2,
        "hat": rng.random() < 0.2,
        "x": rng.uniform(0.44, 0.56),
        "y": rng.uniform(0.50, 0.60),
        "radius": rng.uniform(0.25, 0.28),
        "tilt": rng.uniform(-15, 15),
        "hue": rng.uniform(-0.015, 0.015),
        "saturation": rng.uniform(-0.06, 0.06),
        "value": rng.uniform(-0.05, 0.05),
        "eyes": rng.uniform(0.85, 1.25),
        "gaze_x": rng.uniform(-1, 1),
        "gaze_y": rng.uniform(-1, 1),
        "mouth": rng.uniform(-1, 1),
        "shade": rng.uniform(-0.2, 0.2),
    }
    return Critter(**{**drawn, **fixed})


def critter(seed: int, **fixed: Any) -> Critter:
    """The critter number `seed`: the same on every machine."""
    return sample_critter(random.Random(seed), **fixed)
