"""CDS against a slow implementation of its own: attention written out, one image, one place at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dds_train.diffusion import DiffusionCheckpoint, Teacher
from dds_train.distillation import LOSSES, Condition, Prompt
from dds_train.distillation.contrastive import patch_nce, shuffled

B, W = 2, 3.0
T = torch.tensor([300, 800])


@pytest.fixture(scope="module")
def teacher(tiny: Callable[[str], Path]) -> Teacher:
    return DiffusionCheckpoint(str(tiny("epsilon"))).teacher()


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ZS, EPS = randn(0, B, 4, 8, 8), randn(2, B, 4, 8, 8)
Z = ZS + 0.3 * randn(1, B, 4, 8, 8)
SOURCE_TEXT, TARGET_TEXT = randn(3, B, 5, 32), randn(5, B, 5, 32)
NULL = Prompt({"text": randn(4, 1, 5, 32)}).expand(B)
SOURCE, TARGET = Condition(Prompt({"text": SOURCE_TEXT}), NULL), Condition(Prompt({"text": TARGET_TEXT}), NULL)


class WrittenOut:
    """Attention as a softmax over places, which leaves what it puts out where the test finds it."""

    def __init__(self, found: list[Tensor]) -> None:
        self.found = found

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object) -> Tensor:
        to = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        inputs = (attn.to_q(hidden_states), attn.to_k(to), attn.to_v(to))
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in inputs)
        scores = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
        out: Tensor = attn.to_out[0]((scores @ value).transpose(1, 2).flatten(2))
        if encoder_hidden_states is None:
            self.found.append(out)
        return out


def slow_features(teacher: Teacher, z_t: Tensor, t: Tensor, text: Tensor) -> list[Tensor]:
    unet, found, before = teacher.network, [], teacher.network.attn_processors
    unet.set_attn_processor({n: WrittenOut(found if n.startswith("up") else []) for n in before})
    try:
        unet(z_t, t, encoder_hidden_states=text)
    finally:
        unet.set_attn_processor(before)
    return [f.transpose(1, 2).unflatten(2, (8, 8)) for f in found]  # [1, width, 8, 8]


def slow_pull(teacher: Teacher, row: int) -> Tensor:
    """The gradient of PatchNCE for one image, with all places as patches: by the book, in two loops."""
    one = slice(row, row + 1)
    alpha, sigma = (x[T[one]].view(1, 1, 1, 1) for x in (teacher.schedule.alpha, teacher.schedule.sigma))
    z = Z[one].clone().requires_grad_()
    with torch.no_grad():
        was = slow_features(teacher, alpha * ZS[one] + sigma * EPS[one], T[one], SOURCE_TEXT[one])
    now = slow_features(teacher, alpha * z + sigma * EPS[one], T[one], TARGET_TEXT[one])
    total = torch.zeros(())
    for a, b in zip(was, now, strict=True):
        for pool in (1, 2):
            keys, queries = (F.avg_pool2d(x, pool)[0].flatten(1).T for x in (b, a))
            for i, query in enumerate(queries):
                logits = torch.stack([F.cosine_similarity(query, key, dim=0) / 0.07 for key in keys])
                total = total - logits.log_softmax(0)[i] / len(queries)
    (gradient,) = torch.autograd.grad(total, z)
    return gradient


def test_gradient_is_that_of_a_slow_implementation_for_every_image_of_the_batch(teacher: Teacher) -> None:
    pull = torch.cat([slow_pull(teacher, row) for row in range(B)])
    dds = LOSSES["dds"](teacher, ZS, Z, SOURCE, TARGET, T, EPS, W).grad
    got = LOSSES["cds"](teacher, ZS, Z, SOURCE, TARGET, T, EPS, W, contrast=1000.0).grad
    torch.testing.assert_close(got - dds, 1000 * 64 / 2000 * pull, rtol=1e-3, atol=1e-5)
    assert (pull.flatten(1).norm(dim=1) > 1e-4).all()


def test_batched_edits_equal_single_edits(teacher: Teacher) -> None:
    prompts = Prompt.cat([TARGET.text, SOURCE.text])[torch.tensor([0, 2, 1, 3])]
    two = Condition(prompts, Prompt.cat([NULL, NULL]))
    both = LOSSES["cds"](teacher, ZS, torch.cat([Z, -Z])[[0, 2, 1, 3]], SOURCE, two, T, EPS, W, contrast=1000.0).grad
    alone = LOSSES["cds"](teacher, ZS, Z, SOURCE, TARGET, T, EPS, W, contrast=1000.0).grad
    torch.testing.assert_close(both[::2], alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["cds", "ids"])
def test_checkpointing_changes_nothing_and_leaves_the_teacher_as_it_was(tiny: Callable[[str], Path], name: str) -> None:
    teacher = DiffusionCheckpoint(str(tiny("epsilon"))).teacher()
    plain = LOSSES[name](teacher, ZS, Z, SOURCE, TARGET, T, EPS, W)
    teacher.enable_gradient_checkpointing()
    torch.testing.assert_close(LOSSES[name](teacher, ZS, Z, SOURCE, TARGET, T, EPS, W).grad, plain.grad, rtol=0, atol=0)
    assert all(p.grad is None for p in teacher.network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.network.modules())


def test_patch_nce_is_lowest_for_equal_features() -> None:
    features, eps = randn(0, 1, 16, 6, 6), randn(1, 1, 4, 6, 6)
    same, other = (patch_nce(features, x, eps, 256, 0.07) for x in (features, features.flip(-1)))
    assert same < 0.05 < 5 < other


def test_patches_are_sampled_per_image_and_noise() -> None:
    order = shuffled(EPS, 64)
    assert (order.sort(dim=1).values == torch.arange(64)).all()
    assert not torch.equal(order[0], order[1])
    assert torch.equal(order, shuffled(EPS, 64))
    # Every place is as likely as any other among the first few.
    counts = shuffled(randn(7, 4000, 4, 8, 8), 64)[:, :8].flatten().bincount(minlength=64)
    assert (counts - 500).abs().max() < 5 * 500**0.5
    noisy = randn(7, 4000, 4, 8, 8).flatten(1).gather(1, shuffled(randn(7, 4000, 4, 8, 8), 64)[:, :8])
    assert abs(noisy.mean()) < 0.03


def test_patch_nce_of_one_patch_is_zero() -> None:
    """With one patch there is nothing to confuse it with."""
    features = randn(0, 3, 16, 6, 6)
    torch.testing.assert_close(patch_nce(features, -features, randn(1, 3, 4, 6, 6), 1, 0.07), torch.zeros(3))
