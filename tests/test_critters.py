"""The critters benchmark: deterministic renders, exact counterfactuals, scores against the ground truth."""

import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dds_train.critters.captions import full_caption, sample_caption
from dds_train.critters.dataset import CritterDataset, to_tensor
from dds_train.critters.render import render, render_backdrop
from dds_train.critters.scores import CritterScores, background_mask, background_pixels, pooled_psnr, score_edit
from dds_train.critters.world import BACKDROPS, FURS, SPECIES, Critter, critter


def test_rendering_is_the_same_everywhere() -> None:
    """A digest of 32 images: it may change only together with the bundled teacher."""
    digest = hashlib.sha256(b"".join(render(critter(i), 64).tobytes() for i in range(32)))
    assert digest.hexdigest() == Path(__file__).with_name("critters.sha256").read_text().strip()


def test_any_size_shows_the_same_image() -> None:
    """A large render, averaged down, is the small one up to anti-aliasing."""
    for seed in range(5):
        small, large = (render(critter(seed), size).astype(float) for size in (64, 512))
        averaged = large.reshape(64, 8, 64, 8, 3).mean((1, 3))
        assert np.abs(averaged - small).mean() < 1.5


def test_counterfactual_changes_only_what_it_names() -> None:
    for seed in range(20):
        cat = critter(seed, species="cat", glasses=False, hat=False)
        bare = (render(cat) == render_backdrop(cat)).all(-1)
        other = cat.replaced(backdrop="red" if cat.backdrop != "red" else "teal")
        changed = (render(cat) != render(other)).any(-1)
        assert changed[bare].all()
        for species in SPECIES[1:]:
            assert (render(cat) != render(cat.replaced(species=species))).any()
        # Glasses leave everything below the eyes alone.
        below = int(64 * (cat.y + 0.65 * cat.radius))
        assert (render(cat)[below:] == render(cat.replaced(glasses=True))[below:]).all()


def test_fixed_fields_leave_the_other_draws_alone() -> None:
    assert critter(7, species="pig").replaced(species=critter(7).species) == critter(7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"species": "unicorn"}, "species must be one of cat"),
        ({"glasses": "maybe"}, "glasses must be one of False, True"),
        ({"mouth": "wide"}, "mouth must be a number"),
    ],
)
def test_invalid_parameters_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        critter(0, **wrong)


def test_captions_are_true() -> None:
    for seed in range(200):
        one, rng = critter(seed), random.Random(seed)
        full = full_caption(one)
        assert one.species in full
        for caption in (full, sample_caption(one, rng)):
            words = caption.split()
            assert one.species in words
            assert not set(SPECIES) & set(words) - {one.species}
            assert not set(FURS) & set(words) - {one.fur, one.backdrop}
            assert ("glasses" in words) <= one.glasses
            assert ("hat" in words) <= one.hat
            assert " a o" not in f" {caption}"


def test_a_dataset_counts_from_its_first_critter() -> None:
    dataset = CritterDataset(6, first=100, size=16, species="dog")
    for index in range(len(dataset)):
        assert torch.equal(dataset[index]["image"], to_tensor(critter(100 + index, species="dog"), 16))


# ---------------------------------------------------------------- exact scores

EDITS = [{"species": "lion"}, {"fur": "blue"}, {"backdrop": "red"}, {"glasses": True}, {"hat": True}, {"mouth": 1.0}]
PLAIN = {"species": "cat", "fur": "gray", "backdrop": "green", "glasses": False, "hat": False}


def images(critters: Sequence[Critter]) -> torch.Tensor:
    return torch.stack([to_tensor(one) for one in critters])


def replaced(critters: Sequence[Critter], **changes: Any) -> list[Critter]:
    return [one.replaced(**changes) for one in critters]


@pytest.mark.parametrize("changes", [*EDITS, {"species": "lion", "hat": True}], ids=str)
def test_scores_of_the_ground_truth_and_of_the_input(changes: dict[str, Any]) -> None:
    sources = [critter(i, **PLAIN) for i in range(4)]
    best, idle = (score_edit(images(some), sources, changes) for some in (replaced(sources, **changes), sources))
    assert best == CritterScores(1, 1, 1, 1, 1, 1, math.inf)
    assert idle.gap_closed == pytest.approx(0, abs=1e-6)
    assert idle.edit_accuracy == 0
    columns = {"species": "species", "fur": "fur", "backdrop": "backdrop", "glasses": "accessories", "hat": "accessories"}
    kept = set(columns.values()) - {columns.get(name) for name in changes}
    assert all(getattr(idle, name) == 1 for name in kept)
    assert idle.background_psnr == (pytest.approx(10, abs=10) if "backdrop" in changes else math.inf)


def test_edit_accuracy_needs_every_edited_attribute() -> None:
    """One of four outputs has both, two have one, one has none."""
    sources, changes = [critter(i, **PLAIN) for i in range(4)], {"species": "lion", "hat": True}
    made = [{**changes}, {"species": "lion"}, {"hat": True}, {}]
    outputs = images([source.replaced(**some) for source, some in zip(sources, made, strict=True)])
    scores = score_edit(outputs, sources, changes)
    assert (scores.edit_accuracy, scores.species, scores.accessories) == (0.25, 0.5, 0.5)


def test_edit_accuracy_of_species_is_the_share_of_that_species() -> None:
    cats = [critter(i, species="cat") for i in range(6)]
    outputs = images([one.replaced(species=species) for one, species in zip(cats, SPECIES, strict=False)])
    scores = score_edit(outputs, cats, {"species": "dog"})
    assert scores.edit_accuracy == scores.species == 1 / 6


def test_unwanted_changes_are_counted() -> None:
    cats = [critter(i, species="cat", fur="gray", backdrop="green") for i in range(6)]
    lions = replaced(cats, species="lion")

    def score(**changes: Any) -> CritterScores:
        return score_edit(images(replaced(lions, **changes)), cats, {"species": "lion"})

    assert score(fur="orange").fur == 0
    assert score(backdrop=BACKDROPS[3]).backdrop == 0
    assert score(backdrop=BACKDROPS[3]).background_psnr < 20
    hats = score_edit(images([one.replaced(hat=not one.hat) for one in lions]), cats, {"species": "lion"})
    assert hats.accessories == 0
    assert hats.fur == hats.species == 1


def test_background_psnr_is_pooled_over_images() -> None:
    """By hand: the squared errors of all bare pixels of all images, over their number."""
    cats = [critter(i, species="cat") for i in range(3)]
    truth = images(replaced(cats, species="lion"))
    outputs = truth + torch.tensor([0.0, 0.1, 0.02]).view(3, 1, 1, 1)
    masks = [background_mask(cat, 64) & background_mask(cat.replaced(species="lion"), 64) for cat in cats]
    squares = sum(mask.sum().item() * (level / 2) ** 2 for mask, level in zip(masks, (0, 0.1, 0.02), strict=True))
    expected = -10 * math.log10(squares / sum(mask.sum().item() for mask in masks))
    assert score_edit(outputs, cats, {"species": "lion"}).background_psnr == pytest.approx(expected, abs=1e-4)
    each = [score_edit(outputs[i : i + 1], cats[i : i + 1], {"species": "lion"}).background_psnr for i in range(3)]
    assert each[0] == math.inf
    pixels = [background_pixels(cat, {"species": "lion"}, 64) for cat in cats]
    assert pooled_psnr(each, pixels) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_output_has_no_attribute(value: float) -> None:
    lion = critter(0, species="lion")
    scores = score_edit(torch.full((1, 3, 64, 64), value), [lion], {"species": "cat"})  # the first of all species
    assert (scores.edit_accuracy, scores.species, scores.fur, scores.backdrop, scores.accessories) == (0, 0, 0, 0, 0)
    assert not math.isfinite(scores.gap_closed)


def test_an_edit_that_changes_nothing_is_refused() -> None:
    cat = critter(0, species="cat")
    with pytest.raises(ValueError, match="changes nothing"):
        score_edit(to_tensor(cat)[None], [cat], {"species": "cat"})


def test_background_mask_is_bare_for_every_species() -> None:
    one = critter(3)
    mask = background_mask(one, 64).numpy()
    assert mask.any()
    for species in SPECIES:
        assert (render(one.replaced(species=species))[mask] == render_backdrop(one)[mask]).all()
