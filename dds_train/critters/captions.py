"""Captions of critters."""

import random

from dds_train.critters.world import Critter

OPENINGS = ("", "a photo of ", "a picture of ", "a drawing of ")


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def full_caption(critter: Critter) -> str:
    """The caption with all attributes, e.g. "a photo of a gray cat wearing a hat on a green background"."""
    worn = [name for name, on in (("glasses", critter.glasses), ("a hat", critter.hat)) if on]
    wearing = f" wearing {' and '.join(worn)}" if worn else ""
    backdrop = with_article(critter.backdrop)
    return f"a photo of {with_article(f'{critter.fur} {critter.species}')}{wearing} on {backdrop} background"


def sample_caption(critter: Critter, rng: random.Random) -> str:
    """A true caption with some attributes left out: users' prompts are short ("a photo of a cat")."""
    words = with_article(f"{critter.fur} {critter.species}" if rng.random() < 0.6 else critter.species)
    worn = [name for name, on in (("glasses", critter.glasses), ("a hat", critter.hat)) if on and rng.random() < 0.75]
    if worn:
        words += f" wearing {' and '.join(worn)}"
    if rng.random() < 0.55:
        words += f" on {with_article(critter.backdrop)} background"
    # "a photo of" as often as all the others together: it is what everybody writes.
    return rng.choice(OPENINGS[:1] + OPENINGS[1:2] * 3 + OPENINGS[2:]) + words
