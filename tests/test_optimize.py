"""Descent on latents: masks, seeds, several edits, coming to rest, and the remembered source branch."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian import GaussianTeacher, condition, schedule
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation import LOSSES, Condition, Distilled, Prompt, dds_loss
from dds_train.distillation.cache import SourceCache
from dds_train.distillation.inject import inject
from dds_train.errors import UserError
from dds_train.methods.masks import automatic_mask, feathered, latent_mask, on_background, pixel_mask
from dds_train.methods.optimize import ConvergenceDetector, Step, optimize_latent
from dds_train.methods.store import TensorStore

TEACHER = GaussianTeacher(schedule())


def latents(count: int, seed: int = 0, size: int = 8) -> Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def joined(*parts: Condition) -> Condition:
    return Condition(*(Prompt.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Condition)))


def random_conditions() -> tuple[Condition, Condition]:
    text = torch.randn(3, 1, 5, 32, generator=torch.Generator().manual_seed(1))
    source, target, null, negative = (Prompt({"text": one}) for one in (text[0], text[1] + text[2], text[1], text[2]))
    return Condition(source, null, negative), Condition(target, null, negative)


def last(*arguments: object, **settings: object) -> Step:
    *_, step = optimize_latent(*arguments, **{"steps": 12, "lr": 0.05, "guidance": 3.0, **settings})  # type: ignore[arg-type]
    return step


# ---------------------------------------------------------------- many at once


def test_batched_edits_equal_single_edits() -> None:
    z, source, targets = latents(2), condition(0.2), [condition(1.5), condition(-2.0)]
    batched_call = last(TEACHER, z, source, joined(*targets, *targets), loss="sds", seed=[3, 4]).z
    assert len(batched_call) == 4
    for image in range(2):
        for number, target in enumerate(targets):
            alone = last(TEACHER, z[image : image + 1], source, target, loss="sds", seed=3 + image).z
            torch.testing.assert_close(batched_call[2 * image + number], alone[0])


def test_each_image_has_its_own_seed() -> None:
    z = latents(1).expand(3, -1, -1, -1)
    a, b, c = last(TEACHER, z, condition(0.2), condition(1.5), loss="sds", seed=[1, 2, 1]).z
    assert torch.equal(a, c)
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seed": [1, 2]}, "one seed"),
        ({"mask": torch.ones(1, 1, 4, 4)}, "a mask"),
        ({"mask": torch.ones(2, 1, 8, 8)}, "a mask"),
    ],
)
def test_seeds_and_masks_of_wrong_shape_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        optimize_latent(TEACHER, latents(3), condition(0.2), condition(1.5), **wrong)  # type: ignore[arg-type]


def test_stateful_losses_are_reset_for_each_run() -> None:
    """Whatever the loss: what has a `reset` is reset, and nothing else is asked of it."""

    class Momentum:
        def __init__(self) -> None:
            self.total, self.resets = torch.zeros(()), 0

        def reset(self) -> None:
            self.total, self.resets = torch.zeros(()), self.resets + 1

        def __call__(self, *arguments: Any) -> Distilled:
            self.total = 0.9 * self.total + dds_loss(*arguments).grad
            return Distilled(torch.zeros(()), self.total)

    loss = Momentum()
    ends = [last(TEACHER, latents(1), condition(0.2), condition(1.5), loss=loss).z for _ in range(2)]
    assert torch.equal(*ends)
    assert loss.resets == 2


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("name", list(LOSSES))
def test_masks_work_with_every_loss(tiny: Callable[[str], Path], name: str) -> None:
    teacher = DiffusionCheckpoint(str(tiny("epsilon"))).teacher()
    z, mask = latents(2).float(), torch.zeros(2, 1, 8, 8)
    mask[0, :, :3], mask[1, :, :, 4:] = 1, 1
    source, target = random_conditions()
    out = last(teacher, z, source, target, loss=name, steps=2, lr=1.0, mask=mask, optimizer=lambda p: torch.optim.Adam(p)).z
    moved = (out != z).any(dim=1, keepdim=True)
    assert torch.equal(moved, mask > 0)


def test_automatic_mask_is_where_predictions_differ() -> None:
    class Local(GaussianTeacher):
        """Says the same under all prompts, but for one corner."""

        def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
            same = super().predict_eps(z_t, t, Prompt({"text": torch.ones_like(prompt["text"])}))
            same[:, :, :3, :2] += prompt["text"][:, :1, :1, None]
            return same

    mask = automatic_mask(Local(TEACHER.schedule), latents(2), condition(0.2), condition(1.5))
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    expected[:, :, :3, :2] = 1
    assert torch.equal(mask, expected)


def test_latent_mask_is_the_maximum_over_pixels() -> None:
    mask = torch.zeros(1, 1, 13, 10)
    mask[0, 0, 12, 9] = 0.7
    small = latent_mask(mask, 4)
    assert small.shape == (1, 1, 4, 3)
    assert small[0, 0, 3, 2] == 0.7
    assert small.sum() == 0.7
    large = pixel_mask(small, 4, (13, 10))
    assert large.shape == mask.shape
    assert (large[0, 0, 12:, 8:] == 0.7).all()


@pytest.mark.parametrize("radius", [0, 0.4, 1, 2, 5.5])
def test_a_feather_stays_within_the_mask(radius: float) -> None:
    mask = torch.zeros(1, 1, 40, 50)
    mask[..., 10:30, 15:] = 1
    mask[..., 0:12, 40:] = 1  # with a corner that lies within
    soft = feathered(mask, radius)
    assert soft.shape == mask.shape
    assert (soft[mask == 0] == 0).all()
    assert soft.max() <= 1
    torch.testing.assert_close(soft[0, 0, 20, 30:], torch.ones(20), atol=1e-3, rtol=0)  # inside, and at the image's edge
    edge = soft[0, 0, 20, 15:30]
    assert (edge.diff() >= -1e-6).all()
    assert (edge[0] < 0.9) == (radius >= 1)


def test_background_is_unchanged_bit_for_bit() -> None:
    image = torch.randint(0, 256, (1, 3, 30, 20), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    before, after = torch.randn(2, 1, 3, 30, 20, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 30, 20)
    mask[..., 5:9, :] = 0.5
    out = on_background(image, mask, before, after)
    outside = mask.expand_as(image) == 0
    assert torch.equal(out[outside], image[outside])
    wanted = (image + 0.5 * (after - before)).clamp(-1, 1)
    torch.testing.assert_close(out[~outside], wanted[~outside])
    # What the VAE loses of an image that is not edited comes back, also when it worked on a smaller one.
    small = torch.randn(1, 3, 15, 10)
    assert torch.equal(on_background(image, torch.ones_like(mask), small, small), image)


# ---------------------------------------------------------------- coming to rest


def test_optimisation_ends_when_all_edits_have_converged() -> None:
    z = latents(2)
    # For a Gaussian teacher DDS is a straight pull; a learning rate that dies stands for an edit that has arrived.
    settings = {"steps": 60, "scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7)}
    source, target = condition(0.2), condition(1.5)
    steps = list(
        optimize_latent(TEACHER, z, source, target, convergence=ConvergenceDetector(5, 0.01), guidance=3.0, lr=0.3, **settings)
    )
    free = list(optimize_latent(TEACHER, z, source, target, guidance=3.0, lr=0.3, **settings))
    assert 10 <= len(steps) < len(free) == 60
    assert steps[-1].steps.tolist() == [len(steps)] * 2
    torch.testing.assert_close(steps[-1].z, free[len(steps) - 1].z)


def test_convergence_is_detected_per_edit() -> None:
    """One target is the source itself, where nothing moves: after two windows it is at rest, while the other goes on."""
    z = latents(1)
    both = joined(condition(0.2), condition(1.5))
    steps = list(
        optimize_latent(
            TEACHER, z, condition(0.2), both, convergence=ConvergenceDetector(5, 0.01), guidance=3.0, lr=0.001, steps=30
        )
    )
    assert steps[-1].steps.tolist() == [10, 30]
    assert torch.equal(steps[-1].z[0], z[0])


def test_momentum_does_not_move_a_converged_edit() -> None:
    class Halts(ConvergenceDetector):
        def update(self, z: Tensor, start: Tensor) -> Tensor:
            super().update(z, start)
            return torch.tensor([self.seen == 3, False])

    targets = joined(condition(1.5), condition(1.5))
    trajectory = [
        step.z
        for step in optimize_latent(
            TEACHER,
            latents(1),
            condition(0.2),
            targets,
            convergence=Halts(),
            steps=8,
            optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
        )
    ]
    assert torch.equal(trajectory[2][0], trajectory[-1][0])
    assert not torch.allclose(trajectory[2][1], trajectory[-1][1])


# ---------------------------------------------------------------- the remembered source branch


class Counting(GaussianTeacher):
    rows = 0

    def predict_eps(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        Counting.rows += len(z_t)
        return super().predict_eps(z_t, t, prompt)


def counted(run: Callable[[], Step]) -> tuple[int, Step]:
    Counting.rows = 0
    step = run()
    return Counting.rows, step


@pytest.mark.parametrize("on_disk", [False, True])
def test_cached_source_branch_halves_the_evaluations(tmp_path: Path, on_disk: bool) -> None:
    store = TensorStore(tmp_path / "new" / "cache.sqlite") if on_disk else {}
    z, source = latents(2), condition(0.2, 2)
    cached = SourceCache(Counting(TEACHER.schedule), store)
    first, edit = counted(lambda: last(cached, z, source, condition(1.5)))
    assert first == 12 * 2 * 4
    assert torch.equal(edit.z, last(Counting(TEACHER.schedule), z, source, condition(1.5)).z)
    if on_disk:
        cached = SourceCache(Counting(TEACHER.schedule), TensorStore(tmp_path / "new" / "cache.sqlite"))
    again, same = counted(lambda: last(cached, z, source, condition(1.5)))
    assert again == 12 * 2 * 2
    assert torch.equal(same.z, edit.z)
    other, edit = counted(lambda: last(cached, z, source, condition(-2.0), guidance=5.0, lr=0.01))
    assert other == 12 * 2 * 2
    assert torch.equal(edit.z, last(TEACHER, z, source, condition(-2.0), guidance=5.0, lr=0.01).z)


@pytest.mark.parametrize("change", ["image", "prompt", "seed", "model", "range"])
def test_cache_keys_depend_on_every_input(change: str) -> None:
    store: dict[str, Tensor] = {}
    z, prompt = latents(1), 0.2
    settings: dict[str, object] = {"loss": "dds", "seed": 0, "t_range": (50, 950)}
    last(SourceCache(TEACHER, store, "a"), z, condition(prompt), condition(1.5), **settings)
    model, mine = "a", Counting(TEACHER.schedule)
    if change == "image":
        z = z + 1e-9
    elif change == "prompt":
        prompt = 0.2 + 1e-9
    elif change == "seed":
        settings["seed"] = 1
    elif change == "range":
        settings["t_range"] = (51, 950)
    else:
        model = "b"
    rows, _ = counted(lambda: last(SourceCache(mine, store, model), z, condition(prompt), condition(1.5), **settings))
    # Of a changed prompt the half without one is still known.
    assert rows == 12 * (3 if change == "prompt" else 4)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_is_unchanged_by_the_cache(tiny: Callable[[str], Path], name: str) -> None:
    teacher = DiffusionCheckpoint(str(tiny("epsilon"))).teacher()
    source, target = random_conditions()
    z, cached = latents(1).float(), SourceCache(teacher, {})
    plain = last(teacher, z, source, target, loss=name, steps=2).z
    for _ in range(2):
        torch.testing.assert_close(last(cached, z, source, target, loss=name, steps=2).z, plain, rtol=1e-4, atol=1e-5)


def test_duplicates_in_a_batch_are_evaluated_once() -> None:
    z = latents(1).expand(2, -1, -1, -1)
    cached = SourceCache(Counting(TEACHER.schedule), {})
    rows, _ = counted(lambda: last(cached, z, condition(0.2), joined(condition(1.5), condition(-2.0)), steps=1))
    assert rows == 2 + 4
    assert (cached.queries, cached.hits) == (4, 2)


def test_a_store_is_a_dict_of_tensors(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "a.sqlite")
    store["a"], store["b"] = torch.arange(3.0), torch.ones(2, 2, dtype=torch.float16)
    store["a"] = torch.zeros(1)
    assert sorted(store) == ["a", "b"]
    assert len(store) == 2
    assert store["b"].dtype == torch.float16
    assert "c" not in store
    del store["b"]
    with pytest.raises(KeyError):
        store["b"]
    with pytest.raises(KeyError):
        del store["b"]
    (tmp_path / "b.sqlite").write_text("not a data base, but a text that is long enough to be looked at" * 20)
    with pytest.raises(UserError, match="cannot be used as a cache"):
        TensorStore(tmp_path / "b.sqlite")


def test_descending_timesteps_go_evenly_from_the_last_to_the_first() -> None:
    seen: list[int] = []

    def loss(
        teacher: object, z_source: Tensor, z: Tensor, source: object, target: object, t: Tensor, *rest: object
    ) -> Distilled:
        seen.append(int(t))
        return inject(z, torch.zeros_like(z))

    z, prompt = torch.zeros(1, 4, 2, 2, dtype=torch.float64), condition(0.0)
    teacher = GaussianTeacher(schedule())
    list(optimize_latent(teacher, z, prompt, prompt, loss=loss, steps=5, t_range=(100, 600), t_order="descending"))
    assert seen == [599, 499, 399, 299, 199]
    with pytest.raises(ValueError, match="t_order must be one of random, descending"):
        optimize_latent(teacher, z, prompt, prompt, steps=1, t_order="up")
