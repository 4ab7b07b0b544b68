"""The noise schedule and the teacher's conversions, with diffusers' schedulers as the oracle."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from gaussian import as_flow, schedule
from torch import Tensor, nn

from dds_train.diffusion import DiffusionCheckpoint, Teacher
from dds_train.distillation import NoiseSchedule, Prompt
from dds_train.distillation.rng import draw, seeded_rng

ORACLE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SCHEDULE = NoiseSchedule.from_alphas_cumprod(ORACLE.alphas_cumprod)


def test_add_noise_agrees_with_diffusers() -> None:
    z, eps = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    t = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(SCHEDULE.add_noise(z, eps, t), ORACLE.add_noise(z, eps, t))
    torch.testing.assert_close(SCHEDULE.alpha**2 + SCHEDULE.sigma**2, torch.ones(1000))


def test_every_prediction_type_converts_to_noise() -> None:
    z, eps = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    t = torch.tensor([20, 300, 600, 999])
    z_t = SCHEDULE.add_noise(z, eps, t)
    predictions = {"epsilon": eps, "v_prediction": ORACLE.get_velocity(z, eps, t), "sample": z}
    for kind, prediction in predictions.items():
        torch.testing.assert_close(SCHEDULE.eps_from(prediction, z_t, t, kind), eps, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="v_prediction"):
        SCHEDULE.eps_from(eps, z_t, t, "cosine")
    flow = NoiseSchedule.flow(shift=3.0)
    torch.testing.assert_close(flow.eps_from(eps - z, flow.add_noise(z, eps, t), t, "flow"), eps)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_teacher_agrees_with_diffusers(tiny: Callable[[str], Path], kind: str) -> None:
    """One DDIM step by diffusers from the network's raw output contains the noise that our teacher must report."""
    folder = tiny(kind)
    teacher = DiffusionCheckpoint(str(folder)).teacher()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False)
    scheduler.set_timesteps(1000)
    z_t, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    t = torch.tensor([400, 400])
    with torch.no_grad():
        raw = unet(z_t, t, encoder_hidden_states=text).sample
    x0 = scheduler.step(raw, 400, z_t).pred_original_sample
    alpha, sigma = teacher.schedule.at(t)
    torch.testing.assert_close(
        teacher.predict_eps(z_t, t, Prompt({"text": text})), (z_t - alpha * x0) / sigma, atol=1e-4, rtol=1e-4
    )


def test_teacher_is_not_a_submodule(tiny: Callable[[str], Path]) -> None:
    class Holder(nn.Module):
        def __init__(self, teacher: Teacher) -> None:
            super().__init__()
            self.teacher = teacher

    teacher = DiffusionCheckpoint(str(tiny("epsilon"))).teacher()
    holder = Holder(teacher).train()
    assert not holder.state_dict()
    assert not list(holder.parameters())
    assert not teacher.network.training
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_autocast_does_not_reach_the_teacher(tiny: Callable[[str], Path]) -> None:
    checkpoint = DiffusionCheckpoint(str(tiny("epsilon")))
    teacher, autoencoder = checkpoint.teacher(), checkpoint.autoencoder()
    z_t, t, text, image = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 77, 32), torch.rand(1, 3, 32, 32)
    prompt = Prompt({"text": text})
    outside = teacher.predict_eps(z_t, t, prompt), autoencoder.encode(image)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher.predict_eps(z_t, t, prompt), autoencoder.encode(image)
    assert torch.equal(outside[0], inside[0])
    assert torch.equal(outside[1], inside[1])


def test_draws_differ_by_every_part_of_the_key_and_repeat() -> None:
    def one(seed: int, use: str) -> tuple[Tensor, Tensor]:
        return draw((2, 4, 4), (50, 950), "cpu", [(seed, use, position) for position in range(8)])

    t, eps = one(0, "training")
    assert torch.equal(one(0, "training")[0], t)
    assert torch.equal(one(0, "training")[1], eps)
    for other in ((1, "training"), (0, "validation")):
        assert not torch.equal(one(*other)[0], t)
        assert not torch.equal(one(*other)[1], eps)
    assert len({noise.sum().item() for noise in eps}) == 8


def test_noise_does_not_depend_on_the_batch() -> None:
    keys = [(0, position) for position in range(6)]
    t, eps = draw((2, 3, 3), (0, 1000), "cpu", keys)
    for chosen in ([4], [5, 2, 0]):
        alone = draw((2, 3, 3), (0, 1000), "cpu", [keys[i] for i in chosen])
        assert torch.equal(alone[0], t[chosen])
        assert torch.equal(alone[1], eps[chosen])


def test_draws_cover_their_range() -> None:
    t, eps = draw((1, 1, 1), (50, 60), "cpu", [(3, i) for i in range(20_000)])
    assert sorted(t.unique().tolist()) == list(range(50, 60))
    assert abs(eps.mean()) < 0.03
    assert abs(eps.std() - 1) < 0.03


def test_generator_does_not_touch_the_global_state() -> None:
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    torch.rand(5, generator=seeded_rng("anything"))
    assert torch.equal(torch.rand(1), before)


def test_schedules_know_whether_they_are_flows() -> None:
    assert as_flow(schedule()).is_flow
    assert NoiseSchedule.flow(shift=3.0).is_flow
    assert not schedule().is_flow
