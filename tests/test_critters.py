"""The procedural world: deterministic, exact counterfactuals, metrics that know the truth."""

import hashlib
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dds_train.critters.captions import full_caption, sample_caption
from dds_train.critters.dataset import CritterDataset, CritterStream, to_tensor
from dds_train.critters.render import render, render_backdrop
from dds_train.critters.scores import background_mask, score_species_edit
from dds_train.critters.world import BACKDROPS, FURS, SPECIES, critter


def test_rendering_is_the_same_everywhere() -> None:
    """A digest of 32 pictures: it may change only together with the bundled teacher."""
    digest = hashlib.sha256(b"".join(render(critter(i), 64).tobytes() for i in range(32)))
    assert digest.hexdigest() == Path(__file__).with_name("critters.sha256").read_text().strip()


def test_any_size_shows_the_same_picture() -> None:
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


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="species must be one of cat"):
        critter(0, species="unicorn")


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


def test_datasets_agree() -> None:
    fixed = CritterDataset(6, first=100, species="dog")
    stream = itertools.islice(CritterStream(first=100, species="dog"), 6)
    for index, item in enumerate(stream):
        assert torch.equal(item["image"], fixed[index]["image"])
        assert torch.equal(item["image"], to_tensor(critter(100 + index, species="dog")))


def test_stream_workers_take_turns() -> None:
    loader = DataLoader(CritterStream(size=16), batch_size=None, num_workers=2)
    seen = [item["image"] for item in itertools.islice(loader, 6)]
    for index, image in enumerate(seen):
        assert torch.equal(image, to_tensor(critter(index), 16))


def test_scores_of_the_truth_and_of_doing_nothing() -> None:
    cats = [critter(i, species="cat") for i in range(12)]
    inputs = torch.stack([to_tensor(c) for c in cats])
    truth = torch.stack([to_tensor(c.replaced(species="lion")) for c in cats])
    best, idle = score_species_edit(truth, cats, "lion"), score_species_edit(inputs, cats, "lion")
    assert (best.gap_closed, best.species, best.fur, best.backdrop, best.accessories) == (1, 1, 1, 1, 1)
    assert best.background_psnr == math.inf
    assert idle.gap_closed == pytest.approx(0, abs=1e-6)
    assert (idle.species, idle.fur, idle.backdrop, idle.accessories) == (0, 1, 1, 1)
    assert idle.background_psnr == math.inf


def test_scores_notice_what_was_not_asked_for() -> None:
    cats = [critter(i, species="cat", fur="gray", backdrop="green") for i in range(6)]
    lions = [c.replaced(species="lion") for c in cats]

    def score(**changes: object) -> object:
        return score_species_edit(torch.stack([to_tensor(c.replaced(**changes)) for c in lions]), cats, "lion")

    assert score(fur="orange").fur == 0
    assert score(backdrop=BACKDROPS[3]).backdrop == 0
    assert score(backdrop=BACKDROPS[3]).background_psnr < 20
    hats = score_species_edit(torch.stack([to_tensor(c.replaced(hat=not c.hat)) for c in lions]), cats, "lion")
    assert hats.accessories == 0
    assert hats.fur == hats.species == 1


def test_background_mask_is_bare_for_every_species() -> None:
    one = critter(3)
    mask = background_mask(one, 64).numpy()
    assert mask.any()
    for species in SPECIES:
        assert (render(one.replaced(species=species))[mask] == render_backdrop(one)[mask]).all()
