"""Parameters of critters, the procedural benchmark: cartoon animals whose edits have an exact ground truth.

A `Critter` determines its image completely, so replacing one field and rendering again gives the exact counterfactual: what an
ideal method would return for that edit, and that edit alone.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SPECIES = ("cat", "lion", "dog", "bear", "rabbit", "panda", "tiger", "pig")
FURS = ("orange", "gray", "brown", "white", "black", "golden", "blue", "pink")
BACKDROPS = ("green", "blue", "yellow", "purple", "red", "teal", "white", "gray")
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "species": SPECIES,
    "fur": FURS,
    "backdrop": BACKDROPS,
    "glasses": (False, True),
    "hat": (False, True),
}

# Numbers of the first critters for evaluation, and for validation and choosing settings; none from there on are trained on.
EVALUATION_SEED = 20_000_000
VALIDATION_SEED = 30_000_000
SPLITS = {"evaluation": EVALUATION_SEED, "validation": VALIDATION_SEED}


@dataclass(frozen=True)
class Critter:
    """Parameters of one image. Lengths are fractions of the image's side; angles are in degrees."""

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
        for name, value in vars(self).items():
            if name in ATTRIBUTES:
                if value not in ATTRIBUTES[name]:
                    raise ValueError(f"{name} must be one of {', '.join(map(str, ATTRIBUTES[name]))}, got {value!r}")
            elif not isinstance(value, (int, float)):
                raise ValueError(f"{name} must be a number, got {value!r}")

    def replaced(self, **changes: Any) -> "Critter":
        """The exact counterfactual: the same critter but for `changes`, e.g. ``cat.replaced(species="lion")``."""
        return replace(self, **changes)


def sample_critter(rng: random.Random, **fixed: Any) -> Critter:
    """A random critter; `fixed` fields have their values and do not change those of other fields."""
    sampled: dict[str, Any] = {
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
    return Critter(**{**sampled, **fixed})


def critter(seed: int, **fixed: Any) -> Critter:
    """Critter number `seed`, the same on every machine."""
    return sample_critter(random.Random(seed), **fixed)


def counterfactuals(
    first: int, count: int, attributes: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[list[Critter], list[Critter]]:
    """Critters number `first` and following with `attributes`, and the same with `changes`.

    Raises:
        ValueError: if the edit changes nothing of one of them.
        TypeError: for an unknown attribute.
    """
    sources = [critter(first + number, **attributes) for number in range(count)]
    truths = [one.replaced(**changes) for one in sources]
    if any(before == after for before, after in zip(sources, truths, strict=True)):
        edit = ", ".join(f"{name}={value}" for name, value in changes.items())
        others = [f"source.{name}={one}" for name, value in changes.items() for one in ATTRIBUTES.get(name, ()) if one != value]
        raise ValueError(f"some source critters already have {edit}; restrict them, e.g. {(others or ['another edit'])[0]}")
    return sources, truths
