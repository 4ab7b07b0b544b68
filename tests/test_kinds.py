"""Translators on the teacher's own UNet, and copies of it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.families import find_family
from dds_train.distillation import Prompt
from dds_train.errors import UserError
from dds_train.training.memory import PeakMemory, step_bytes
from dds_train.translator import (
    LoRATranslator,
    Task,
    TeacherInitTranslator,
    TranslatorConfig,
    UNetTranslator,
    export_translator,
    load_translator,
    make_translator,
)

B = 3
FAMILY = find_family("StableDiffusionPipeline")


def inputs() -> tuple[Tensor, Prompt, Tensor]:
    rng = torch.Generator().manual_seed(1)
    z, text = torch.randn(B, 4, 8, 8, generator=rng), torch.randn(B, 77, 32, generator=rng)
    return z, Prompt({"text": text}), torch.ones(B)


def trained(translator: torch.nn.Module) -> Any:
    """As if: every parameter off its initial value, so that adapters and head do something."""
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in translator.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return translator


@pytest.fixture
def checkpoint(tiny: Callable[[str], Path]) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(str(tiny("epsilon")))


def ask(teacher: Any) -> Tensor:
    z, prompt, _ = inputs()
    return teacher.predict_eps(z, torch.tensor([10, 500, 900]), prompt)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_teacher_is_unchanged_with_adapters_off(tiny: Callable[[str], Path], dtype: torch.dtype) -> None:
    plain = DiffusionCheckpoint(str(tiny("epsilon")), dtype=dtype).teacher()
    shared = DiffusionCheckpoint(str(tiny("epsilon")), dtype=dtype).teacher()
    translator = trained(LoRATranslator(shared.network, FAMILY, rank=4))
    assert torch.equal(ask(shared), ask(plain))
    with torch.no_grad():
        changed = translator(*inputs())
    assert not torch.equal(changed, inputs()[0])
    assert torch.equal(ask(shared), ask(plain))


def test_output_depends_on_the_adapters(checkpoint: DiffusionCheckpoint) -> None:
    translator = trained(LoRATranslator(checkpoint.teacher().network, FAMILY, rank=4))
    with torch.no_grad():
        before = translator(*inputs())
        for adapter in translator.adapters.values():
            adapter.mul_(3)
        assert not torch.allclose(translator(*inputs()), before)


@pytest.mark.parametrize("kind", ["lora", "teacher_init"])
def test_output_is_the_input_at_initialisation(checkpoint: DiffusionCheckpoint, kind: str) -> None:
    translator = make_translator({"kind": kind}, lambda: checkpoint.teacher().network, FAMILY)
    assert torch.equal(translator(*inputs()), inputs()[0])


@pytest.mark.parametrize("kind", ["unet", "lora", "teacher_init"])
def test_checkpointing_changes_no_gradient(checkpoint: DiffusionCheckpoint, kind: str) -> None:
    """With the teacher asked in between, as a training step does: what is computed again must have the adapters on."""
    options = {"channels": [16, 32], "groups": 8, "heads": 2} if kind == "unet" else {}

    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(0)
        teacher = DiffusionCheckpoint(checkpoint.path).teacher()
        translator = trained(make_translator({"kind": kind, **options}, lambda: teacher.network, FAMILY)).train()
        if checkpointing:
            translator.enable_gradient_checkpointing()
        changed = translator(*inputs())
        answer = ask(teacher)
        (changed * answer).sum().backward()
        assert torch.equal(ask(teacher), answer)
        return [p.grad for p in translator.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_lora_state_dict_is_adapters_and_head(checkpoint: DiffusionCheckpoint) -> None:
    unet = checkpoint.teacher().network
    frozen = {name for name, _ in unet.named_parameters()}
    translator = LoRATranslator(unet, FAMILY, rank=2)
    names = set(translator.state_dict())
    assert names == {"head.weight", "head.bias"} | {n for n in names if "lora_A" in n or "lora_B" in n}
    assert all(not p.requires_grad for name, p in unet.named_parameters() if name in frozen)
    averaged = copy.deepcopy(translator)
    assert averaged._shared is translator._shared
    first, second = next(iter(averaged.adapters.values())), next(iter(translator.adapters.values()))
    assert first is not second


def test_lora_on_one_unet_twice_is_refused(checkpoint: DiffusionCheckpoint) -> None:
    unet = checkpoint.teacher().network
    LoRATranslator(unet, FAMILY, rank=2)
    with pytest.raises(ValueError, match="adapters already"):
        LoRATranslator(unet, FAMILY, rank=2)
    for wrong in ({"rank": 0}, {"targets": ["identity"]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LoRATranslator(checkpoint.load_denoiser(), FAMILY, **wrong)


def test_teacher_init_starts_as_the_teacher(checkpoint: DiffusionCheckpoint) -> None:
    unet = checkpoint.teacher().network
    translator = TeacherInitTranslator.copy_of(unet, FAMILY)
    weights = unet.state_dict()
    for name, tensor in translator.denoiser.state_dict().items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if name.startswith("conv_out.") else weights[name])
    assert all(p.requires_grad for p in translator.parameters())


@pytest.mark.parametrize("kind", ["unet", "lora", "teacher_init"])
def test_export_round_trip(checkpoint: DiffusionCheckpoint, tmp_path: Path, kind: str) -> None:
    options = {"channels": [16, 32], "groups": 8, "heads": 2} if kind == "unet" else {}
    translator = trained(make_translator({"kind": kind, **options}, lambda: checkpoint.teacher().network, FAMILY)).eval()
    card = TranslatorConfig({"a": Task("x", "y", "z")}, checkpoint.path, translator.config)
    export_translator(tmp_path, translator, card)
    again, read = load_translator(tmp_path)
    assert read == card
    with torch.no_grad():
        assert torch.equal(again(*inputs()), translator(*inputs()))


def test_a_hostile_denoiser_takes_no_memory_and_one_line(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    translator = TeacherInitTranslator.copy_of(checkpoint.teacher().network, FAMILY)
    export_translator(tmp_path, translator, TranslatorConfig({"a": Task("x", "y", "z")}, checkpoint.path, translator.config))
    plain = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"layers_per_block": 10**9},
        {"block_out_channels": [2**16, 2**16]},
        {"cross_attention_dim": "x"},
        {"norm_num_groups": 0},
        {"sample_size": float("nan"), "in_channels": float("nan")},
        {"down_block_types": ["NoBlock"]},
    ):
        denoiser = {**translator.config["denoiser"], **change}
        (tmp_path / "config.json").write_text(
            json.dumps({**plain, "translator": {"kind": "teacher_init", "denoiser": denoiser}})
        )
        with pytest.raises(UserError, match="corrupted, or not a translator") as error:
            load_translator(tmp_path)
        assert "\n" not in str(error.value)


def test_lora_of_stable_diffusion_is_below_one_percent() -> None:
    """Stable Diffusion 1.5's UNet, on the meta device: shapes and no weights."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280))
        size = sum(p.numel() for p in unet.parameters())
        translator = LoRATranslator(unet, FAMILY)
    assert 859e6 < size < 860e6
    trained = sum(p.numel() for p in translator.parameters())
    # What is exported, and a training checkpoint: weights, their average, and Adam's two moments.
    assert trained < 0.002 * size
    assert 4 * trained < 0.01 * size


def test_peak_memory_counts_live_tensors() -> None:
    with torch.device("meta"), PeakMemory() as memory:
        x = torch.empty(1000)  # 4000 bytes
        y = x + 1
        assert memory.now == 8000
        del x
        z = y.view(10, 100)  # no storage of its own
        assert memory.now == 4000
        del y, z
    assert (memory.now, memory.peak) == (0, 8000)


def test_peak_memory_leaves_out_what_was_there() -> None:
    weight = torch.empty(10, 100, device="meta")
    with PeakMemory() as memory:
        product = torch.empty(5, 100, device="meta") @ weight.t()
    assert memory.peak == 4 * (5 * 100 + product.numel())


def test_memory_of_a_step_falls_with_checkpointing_and_grows_with_the_batch(checkpoint: DiffusionCheckpoint) -> None:
    def bytes_of(images: int, checkpointing: bool) -> int:
        return step_bytes(
            {"kind": "teacher_init"},
            checkpoint.teacher().network.config,
            FAMILY,
            size=(32, 32),
            prompt=Prompt({"text": torch.empty(1, 77, 32)}),
            images=images,
            edits=1,
            evaluations=4,
            translator_dtype=torch.float32,
            teacher_dtype=torch.float32,
            checkpointing=checkpointing,
        )

    assert bytes_of(8, True) < bytes_of(8, False)
    assert 1.5 * bytes_of(8, False) < bytes_of(16, False)


def test_unknown_kinds_and_options_are_refused() -> None:
    for wrong, says in (({"kind": "gan"}, "unet, lora"), ({"kind": "unet", "latent_channels": 4, "width": 3}, "width")):
        with pytest.raises(ValueError, match=says):
            make_translator(wrong, lambda: None, FAMILY)  # type: ignore[arg-type,return-value]


def test_all_kinds_have_one_interface(checkpoint: DiffusionCheckpoint) -> None:
    for kind in ("unet", "lora", "teacher_init"):
        translator = make_translator({"kind": kind}, lambda: DiffusionCheckpoint(checkpoint.path).teacher().network, FAMILY)
        assert (translator.latent_channels, translator.text_dim) == (4, 32)
        assert translator.config["kind"] == kind
    assert isinstance(translator, TeacherInitTranslator)
    assert not isinstance(translator, UNetTranslator)
