"""What is different on a GPU: half precision, and memory that can be measured. Run with: pytest -m gpu"""

import pytest
import torch

from dds_train import Translator
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.evaluation.metrics.cost import cost
from dds_train.methods.optimize import optimize_latent
from dds_train.translator import Task, TranslatorConfig, UNetTranslator

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"


def parts_on(device: str) -> DiffusionCheckpoint:
    return DiffusionCheckpoint("bundled", device, torch.float16 if device == "cuda" else torch.float32)


def test_half_precision_gives_the_same_image() -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        parts = parts_on(device)
        network = UNetTranslator(parts.autoencoder().channels, parts.text_encoder().embed("")["text"].shape[-1])
        torch.nn.init.normal_(network.unet.conv_out.weight, std=0.05)
        card = TranslatorConfig({"lion": Task("a cat", "a lion", "a lion")}, "bundled", network.config)
        results.append(Translator(network, card, parts).translate(images, "a lion"))
    assert (results[0] - results[1]).abs().mean() * 127.5 < 1


def test_a_descent_in_half_precision_goes_the_same_way() -> None:
    ends = []
    z = None
    for device in ("cpu", DEVICE):
        parts = parts_on(device)
        z = torch.randn(1, parts.autoencoder().channels, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
        prompts = (parts.text_encoder().condition(f"a photo of a {one}") for one in ("cat", "lion"))
        *_, last = optimize_latent(parts.teacher(), z, *prompts, steps=20, guidance=7.5, t_range=(400, 980))
        ends.append((last.z - z).cpu())
    assert (ends[0] - ends[1]).norm() / ends[0].norm() < 0.05


def test_memory_is_that_of_the_work() -> None:
    before = torch.cuda.memory_allocated() / 2**20
    _, _, peak = cost(lambda: torch.zeros(2**22, device=DEVICE).sum(), DEVICE)
    assert before + 16 <= peak < before + 32
