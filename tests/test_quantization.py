"""Frozen weights in eight or four bits, on tiny pipelines: close answers, gradients for adapters, bytes as computed."""

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from configuration import configure, refusals
from diffusers import hooks
from tiny_families import TINY
from torch import Tensor, nn

from dds_train.commands import make_checkpoint
from dds_train.diffusion import DiffusionCheckpoint, quantization
from dds_train.diffusion.frozen import Frozen
from dds_train.diffusion.quantization import LIBRARIES, weight_bytes
from dds_train.errors import UserError
from dds_train.translator.lora import LoRATranslator

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
KINDS = ["fp8", pytest.param("int8", marks=needs_torchao)]
T = torch.tensor([300, 700])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A transformer, and a UNet with convolutions."""
    made: dict[str, Path] = {}

    def get(name: str) -> str:
        if name not in made:
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp(name)
            TINY[name]().save_pretrained(made[name])
        return str(made[name])

    return get


@contextlib.contextmanager
def no_warnings_of_torchao() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        yield


def inputs(checkpoint: DiffusionCheckpoint) -> tuple[Tensor, Any]:
    z = torch.randn(2, checkpoint.teacher().latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
    return z, checkpoint.embedded(["a cat", "a dog"]).embed(["a cat", "a dog"])


@pytest.mark.parametrize("name", ["z_image", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_close_and_adapters_train(folder: Callable[[str], str], name: str, kind: str) -> None:
    plain, checkpoint = DiffusionCheckpoint(folder(name)), DiffusionCheckpoint(folder(name), quantization=kind)
    z, prompt = inputs(plain)
    with no_warnings_of_torchao():
        teacher = checkpoint.teacher()
    with torch.no_grad():
        expected, got = (one.predict_eps(z, T, prompt) for one in (plain.teacher(), teacher))
    assert 1e-5 < (got - expected).norm() / expected.norm() < 0.05
    # Of the gradient that a loss takes through the teacher, too.
    gradients = []
    for one in (plain.teacher(), teacher):
        latents = z.clone().requires_grad_()
        one.predict_eps(latents, T, prompt).square().sum().backward()
        gradients.append(latents.grad)
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.1

    translator = LoRATranslator(teacher.network, checkpoint.family)
    assert torch.equal(translator(z, prompt, torch.ones(2)), z)
    with torch.no_grad():
        for parameter in translator.parameters():
            parameter.normal_(0, 0.1)
        assert torch.equal(teacher.predict_eps(z, T, prompt), got)
    steps = []
    for checkpointing in (False, True):
        if checkpointing:
            translator.enable_gradient_checkpointing()
        translator.zero_grad()
        translator(z, prompt, torch.ones(2)).square().sum().backward()
        steps.append([parameter.grad for parameter in translator.parameters()])
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in steps[-1])
    assert all(torch.equal(*pair) for pair in zip(*steps, strict=True))


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_take_the_bytes_that_are_expected(folder: Callable[[str], str], name: str, kind: str) -> None:
    with no_warnings_of_torchao():
        network = DiffusionCheckpoint(folder(name), "cpu", torch.bfloat16, quantization=kind).load_denoiser()
    family = DiffusionCheckpoint(folder(name)).family
    with torch.device("meta"):
        shapes = family.network.from_config({k: v for k, v in network.config.items() if k != "quantization_config"})

    def stored(tensor: Any) -> int:  # torchao's are several tensors; without the scale of each row
        return tensor.qdata.nbytes if hasattr(tensor, "qdata") else tensor.nbytes

    expected = weight_bytes(shapes, torch.bfloat16, kind, [family.last_layer])
    assert expected == sum(map(stored, network.parameters()))
    assert expected < 0.75 * weight_bytes(shapes, torch.bfloat16)


def test_bytes_of_nf4_and_of_blocks_that_wait() -> None:
    network = nn.ModuleDict(
        {
            "proj_out": nn.Linear(4, 4, bias=False),
            "blocks": nn.ModuleList([nn.Linear(64, size, bias=False) for size in (64, 640, 64)]),
        }
    ).to("meta")
    weights = 64 * 64, 64 * 640, 64 * 64
    nf4 = sum(math.ceil(one * (0.5 + 1 / 64 + 1 / 4096)) for one in weights)
    assert weight_bytes(network, torch.float16) == 2 * (16 + sum(weights))
    assert weight_bytes(network, torch.float16, "nf4", ["proj_out"]) == 2 * 16 + nf4
    assert weight_bytes(network, torch.float16, offload=True) == 2 * (16 + max(weights))


def test_text_encoders_are_quantized_but_for_clip_and_the_vae_is_not(folder: Callable[[str], str]) -> None:
    plain, checkpoint = (DiffusionCheckpoint(folder("sd3"), quantization=kind) for kind in (None, "fp8"))
    parts = checkpoint.text_encoder().pipeline.components
    kinds = {name: {p.dtype for p in parts[name].parameters()} for name in parts if name.startswith("text_encoder")}
    assert kinds["text_encoder"] == kinds["text_encoder_2"] == {torch.float32}
    assert torch.float8_e4m3fn in kinds["text_encoder_3"]
    assert {p.dtype for p in checkpoint.autoencoder().network.parameters()} == {torch.float32}
    expected, got = (one.text_encoder().embed("a cat")["text"] for one in (plain, checkpoint))
    assert 1e-5 < (got - expected).norm() / expected.norm() < 0.1
    assert plain.digest() == checkpoint.digest()


@pytest.mark.parametrize("kind", sorted(LIBRARIES))
def test_a_missing_library_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"teacher.quantization={kind}: needs (.*); pip install \\1, or take fp8"):
        DiffusionCheckpoint("nowhere", "cuda", quantization=kind)


def test_what_needs_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"teacher.quantization=nf4: needs a GPU, got device=cpu; take .*int8 or fp8"):
        DiffusionCheckpoint("nowhere", quantization="nf4")
    config = configure("optimize", "image=data/examples", "source=a", "target=b", "teacher.offload=blocks")
    with pytest.raises(UserError, match=r"teacher.offload=blocks: needs a GPU, got device=cpu; take teacher.offload=null"):
        make_checkpoint(config.teacher, "cpu")


def test_what_does_not_go_together_is_refused() -> None:
    fit = "fit", "source=a", "target=b"
    assert refusals(*fit, "teacher.offload=blocks", "teacher.quantization=int8") == [
        "teacher.offload=blocks: is not for teacher.quantization=int8; take fp8, or one of both"
    ]
    assert "adapters of translator=lora" in refusals(*fit, "teacher.offload=blocks", "translator=lora")[0]
    assert "full precision" in refusals(*fit, "teacher.quantization=fp8", "translator=teacher_init")[0]
    assert refusals(*fit, "teacher.quantization=int9")[0].startswith("teacher.quantization=int9: take int8, fp8 or nf4")
    assert refusals(*fit, "teacher.offload=blocks", "teacher.quantization=fp8") == []
    assert refusals("predict", "ckpt=.", "image=.", "teacher.quantization=fp8") == []


@pytest.mark.parametrize("kind", [None, "fp8"])
def test_blocks_of_an_offloaded_teacher_come_and_go(folder: Callable[[str], str], kind: str | None) -> None:
    """Without a GPU: from the CPU to the CPU."""
    checkpoint = DiffusionCheckpoint(folder("sd3"), quantization=kind)
    z, prompt = inputs(checkpoint)
    expected = checkpoint.teacher().predict_eps(z, T, prompt)
    object.__setattr__(checkpoint, "offload", "blocks")
    checkpoint.release("teacher")
    moved = []
    with pytest.MonkeyPatch.context() as patch:
        onload = hooks.group_offloading.ModuleGroup.onload_
        patch.setattr(hooks.group_offloading.ModuleGroup, "onload_", lambda group: (moved.append(group), onload(group)))
        teacher = checkpoint.teacher()
        assert teacher.device == torch.device("cpu")
        assert teacher.to("cpu") is teacher
        assert torch.equal(teacher.predict_eps(z, T, prompt), expected)
    blocks = [group for group in moved if any(block in group.modules for block in teacher.network.transformer_blocks)]
    assert len(blocks) == len(teacher.network.transformer_blocks)


def test_an_offloaded_network_is_never_moved_as_a_whole() -> None:
    calls = []

    class Network(nn.Linear):
        def enable_group_offload(self, *arguments: Any, **options: Any) -> None:
            calls.append((*arguments, options))

        def to(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("moved")

    frozen = Frozen(Network(2, 2), "cuda:1", offload=True)
    frozen.to("cuda:1")
    assert calls == [(torch.device("cuda:1"), {"num_blocks_per_group": 1})]
    assert frozen.device == torch.device("cuda:1")
