"""Each metric against an independent computation: written out, by hand, or by parts of another library."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torchmetrics
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import Resize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel
from transformers.image_transforms import get_resize_output_image_size

from dds_train.critters.dataset import to_tensor
from dds_train.critters.scores import score_edit
from dds_train.critters.world import critter
from dds_train.errors import UserError
from dds_train.evaluation.evaluate import measure
from dds_train.evaluation.items import EvaluationItem, ItemImages, critter_items
from dds_train.evaluation.metrics.background_psnr import BACKGROUND_PSNR
from dds_train.evaluation.metrics.clip import Clip, clip_metrics
from dds_train.evaluation.metrics.cost import DIVERGED, cost
from dds_train.evaluation.metrics.diversity import DIVERSITY, diversity
from dds_train.evaluation.metrics.edit_accuracy import EDIT_ACCURACY
from dds_train.evaluation.metrics.fid import frechet_distance
from dds_train.evaluation.metrics.full_reference import outside
from dds_train.evaluation.metrics.inception import Inception, clean_resize
from dds_train.evaluation.metrics.kid import kernel_distance
from dds_train.evaluation.metrics.lpips import Lpips
from dds_train.evaluation.metrics.metric import Batch, ResultSet
from dds_train.evaluation.metrics.mse import mse
from dds_train.evaluation.metrics.psnr import psnr
from dds_train.evaluation.metrics.registry import MetricOptions, build_metrics, load_networks
from dds_train.evaluation.metrics.ssim import ssim
from dds_train.evaluation.metrics.structure import Structure
from dds_train.images.files import to_pil


def images(seed: int, count: int = 2, size: tuple[int, int] = (40, 33)) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 5, generator=rng) * 2 - 1
    return F.interpolate(coarse, size, mode="bilinear") * 0.9 + 0.1 * (torch.rand(count, 3, *size, generator=rng) * 2 - 1)


def item(image: Tensor, mask: Tensor | None = None, truth: Tensor | None = None, **more: Any) -> EvaluationItem:
    height, width = image.shape[-2:]
    load = partial(ItemImages, image, mask, truth)
    more = {"name": "a", "source": "", "target": "", "has_mask": mask is not None, "has_truth": truth is not None, **more}
    return EvaluationItem(size=(height, width), load=load, **more)


def batch(items: list[EvaluationItem], outputs: Tensor) -> Batch:
    return Batch(items, [one.load() for one in items], outputs)


def measured(one: EvaluationItem, output: Tensor) -> dict[str, float]:
    """By all metrics that apply and need no network."""
    (row,) = measure(build_metrics(MetricOptions()), batch([one], output))
    return row


# ---------------------------------------------------------------- the registry


def test_every_metric_has_one_name_one_meaning_and_a_way_to_be_measured() -> None:
    options = MetricOptions(lpips_nets=["squeeze", "alex"], clip="a", structure="b", references=[Path("a"), Path("b")])
    metrics = build_metrics(options)
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert metric.meaning
        assert metric.direction in (-1, 0, 1)
        assert metric.per_image or metric.per_set
    needs = {metric.name for metric in metrics if metric.network}
    assert {name.split()[0] for name in needs} == {"LPIPS", "structure", "CLIP", "FID", "KID"}


def test_metrics_without_their_weights_are_unavailable_with_a_remedy(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    options = MetricOptions("cpu", ["vgg", "none"], nowhere, nowhere, nowhere, [tmp_path, tmp_path], nowhere)
    available, unavailable = load_networks(build_metrics(options))
    assert all(metric.network is None for metric in available)
    remedies = {name: one.remedy for one in unavailable for name in one.metrics}
    assert {"LPIPS vgg", "LPIPS none outside", "structure", "CLIP target", "CLIP direction", "FID", "KID"} < set(remedies)
    assert "take squeeze, alex, vgg" in remedies["LPIPS none"]
    assert "give lpips.hub_dir=FOLDER" in remedies["LPIPS vgg"]
    assert "give structure.model=FOLDER" in remedies["structure"]
    assert "give clip.model=FOLDER" in remedies["CLIP target"]
    assert "give fid=FILE" in remedies["FID"]
    assert len(unavailable) == 5  # by network


def test_metrics_of_a_batch_are_those_of_each_image() -> None:
    rng = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.rand(3, 3, 24, 20, generator=rng) * 2 - 1 for _ in range(2))
    masks = (torch.rand(3, 1, 24, 20, generator=rng) > 0.5).float()
    masks[1] = 1
    items = [item(inputs[i : i + 1], masks[i : i + 1], -inputs[i : i + 1]) for i in range(3)]
    items[2] = item(inputs[2:])  # neither mask nor ground truth
    together = measure(build_metrics(MetricOptions()), batch(items, outputs))
    for i in range(3):
        alone = measured(items[i], outputs[i : i + 1])
        assert alone.keys() == together[i].keys()
        for name, value in alone.items():
            assert value == pytest.approx(together[i][name], nan_ok=True), name
            assert math.isnan(value) == (name in ("s / image", "peak MiB") or (name.endswith("outside") and i == 1)), name
    assert "PSNR outside" not in together[2]


def test_values_of_outputs_that_diverged_are_nan() -> None:
    inputs, outputs = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    outputs[1, 0, 0, 0] = math.inf
    finite, lost = measure(build_metrics(MetricOptions()), batch([item(inputs[:1]), item(inputs[1:])], outputs))
    assert (finite[DIVERGED.name], lost[DIVERGED.name]) == (0, 1)
    assert finite["PSNR"] == pytest.approx(-10 * math.log10(0.25))
    assert all(math.isnan(value) for name, value in lost.items() if name != DIVERGED.name)


# ---------------------------------------------------------------- ground truth


def test_gap_closed_and_psnr_to_the_ground_truth() -> None:
    image, truth = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.8)
    half = measured(item(image, truth=truth), truth / 2)
    assert half["gap closed"] == pytest.approx(0.75)  # half of the way is a quarter of the squared error
    assert half["PSNR to ground truth"] == pytest.approx(-20 * math.log10(0.2), abs=1e-4)
    assert "edit accuracy" not in half
    assert math.isnan(measured(item(image, truth=image), truth)["gap closed"])  # no gap


@pytest.mark.parametrize(
    ("before", "edit"), [({"glasses": False}, {"glasses": True}), ({"species": "cat"}, {"species": "lion"})]
)
def test_metrics_of_critters_are_those_of_score_edit(before: dict[str, Any], edit: dict[str, Any]) -> None:
    """For each image, and pooled for the set where `score_edit` pools."""
    items = critter_items(3, before, edit, "a", "b")
    sources = [one.critter for one in items if one.critter]
    truths = torch.cat([images.truth for one in items if (images := one.load()).truth is not None])
    noise = torch.tensor([0.0, 0.05, 0.2]).view(3, 1, 1, 1) * torch.randn(
        truths.shape, generator=torch.Generator().manual_seed(0)
    )
    outputs = (truths + noise).clamp(-1, 1)
    rows = measure(build_metrics(MetricOptions()), batch(items, outputs))
    expected = score_edit(outputs, sources, edit)
    for name, field in (("gap closed", "gap_closed"), ("edit accuracy", "edit_accuracy"), ("fur", "fur")):
        assert np.mean([row[name] for row in rows]) == pytest.approx(getattr(expected, field), abs=1e-12)
    assert ("species" in rows[0]) == ("species" not in edit)
    values = {BACKGROUND_PSNR.name: [row[BACKGROUND_PSNR.name] for row in rows]}
    assert values[BACKGROUND_PSNR.name][0] == math.inf
    assert BACKGROUND_PSNR.per_set
    assert BACKGROUND_PSNR.per_set(ResultSet(items, lambda: outputs, values)) == pytest.approx(expected.background_psnr)


def test_doing_nothing_has_no_edit_accuracy() -> None:
    """Whatever is edited: glasses of cats that stay cats, too."""
    for edit in ({"glasses": True}, {"species": "lion"}, {"fur": "blue", "hat": True}):
        before = {"species": "cat", "fur": "gray", "glasses": False, "hat": False}
        (one,) = critter_items(1, before, edit, "a", "b")
        assert measured(one, one.load().image)[EDIT_ACCURACY.name] == 0
        assert measured(one, to_tensor(critter(20_000_000, **before).replaced(**edit))[None])[EDIT_ACCURACY.name] == 1


# ---------------------------------------------------------------- cost, diversity


def test_cost_is_time_and_peak_memory() -> None:
    def work() -> str:
        time.sleep(0.05)
        return "done"

    result, seconds, before = cost(work, "cpu")
    _, _, more = cost(lambda: np.ones(2**24).sum(), "cpu")  # 128 MiB
    _, _, after = cost(work, "cpu")
    assert result == "done"
    assert 0.05 <= seconds < 1
    if not math.isnan(more):
        assert 100 < more - before < 300
        assert after < more - 50  # the peak is that of this work alone


def test_diversity_is_a_ratio_of_spreads() -> None:
    inputs = torch.tensor([-1.0, 0, 1]).view(3, 1, 1, 1).expand(3, 2, 4, 4)
    assert diversity(inputs, 0.25 * inputs + 5).item() == pytest.approx(0.25)
    assert diversity(inputs, inputs[:1].expand(3, -1, -1, -1)) == 0
    items = [item(one[None]) for one in inputs]
    assert DIVERSITY.per_set
    assert DIVERSITY.per_set(ResultSet(items, lambda: 0.5 * inputs, {})) == pytest.approx(0.5)
    assert math.isnan(DIVERSITY.per_set(ResultSet([*items, item(torch.zeros(1, 2, 8, 8))], lambda: inputs, {})))
    assert math.isnan(DIVERSITY.per_set(ResultSet(items[:1], lambda: inputs[:1], {})))


# ---------------------------------------------------------------- pixels


def test_errors_of_a_known_size() -> None:
    a = images(0)
    b = a + 2 * torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)  # in [0,1]: 0.1 and 0.01
    torch.testing.assert_close(mse(a, b), torch.tensor([1e-2, 1e-4], dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=1e-3, atol=0)
    assert psnr(a, a).tolist() == [math.inf, math.inf]


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al., for one channel; images mirrored at their edges."""
    a, b = (np.pad(x, 5, mode="reflect") for x in (a, b))
    x = np.arange(11) - 5.0
    g = np.exp(-(x**2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()
    total, count = 0.0, 0
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 0.01**2, 0.03**2
            total += (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            count += 1
    return total / count


def test_structural_similarity_by_hand() -> None:
    a, b = images(0, 1, (21, 18)), images(1, 1, (21, 18))
    by_hand = np.mean([ssim_by_hand(a[0, c].numpy() / 2 + 0.5, b[0, c].numpy() / 2 + 0.5) for c in range(3)])
    assert ssim(a, b).item() == pytest.approx(by_hand, abs=1e-5)  # float32
    torch.testing.assert_close(ssim(a, a), torch.ones(1, dtype=torch.float64))
    assert math.isnan(ssim(a[..., :10], b[..., :10]).item())


def test_the_background_alone_counts_outside_a_mask() -> None:
    a, b = images(0), images(0)
    mask = torch.zeros(2, 1, 40, 33)
    mask[:, :, 5:20, 5:20] = 1
    b = torch.where(mask > 0, -b, b)
    assert (mse(a, b) > 0).all()
    assert (mse(outside(a, mask), outside(b, mask)) == 0).all()
    b[:, :, 30:] += 0.2
    share = 10 / 40  # black counts as equal
    torch.testing.assert_close(mse(outside(a, mask), outside(b, mask)), torch.full((2,), 0.01 * share, dtype=torch.float64))


# ---------------------------------------------------------------- networks


def test_lpips_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a random backbone, written out over torchvision's own layers and the published heads."""
    torch.manual_seed(0)
    backbone = torchvision.models.squeezenet1_1(weights=None).eval()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: backbone.state_dict())
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: backbone.state_dict())
    heads_at = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "squeeze.pth"
    heads = list(torch.load(heads_at, map_location="cpu", weights_only=True).values())
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def layers(image: Tensor) -> list[Tensor]:
        x, found = (image - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1), []
        with torch.no_grad():
            for number, layer in enumerate(backbone.features):
                x = layer(x)
                if number in (1, 4, 7, 9, 10, 11, 12):
                    found.append(x)
        return found

    a, b = images(0, 2, (64, 64)), images(1, 2, (64, 64))
    expected = torch.zeros(2)
    for p, q, head in zip(layers(a), layers(b), heads, strict=True):
        p, q = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8) for x in (p, q))
        expected += ((p - q).square() * head.view(1, -1, 1, 1)).sum(1).mean(dim=(1, 2))
    lpips = Lpips("squeeze")
    assert lpips(a[..., :30], b[..., :30]).isnan().all()
    torch.testing.assert_close(lpips(a, b).float(), expected, rtol=1e-4, atol=1e-6)
    assert (lpips(a, a) == 0).all()


def test_lpips_without_weights_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    with pytest.raises(UserError, match=r"lpips.nets=squeeze: .*squeezenet1_1"):
        Lpips("squeeze")


def test_structure_distance_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    structure = Structure(str(tmp_path))

    def keys(image: Tensor) -> Tensor:
        """By the weights: what enters the last layer, normalised, times the key matrix."""
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = ((image + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        state = model.state_dict()
        weight, bias = (
            next(v for k, v in reversed(state.items()) if k.endswith((f"k_proj.{e}", f".key.{e}"))) for e in ("weight", "bias")
        )
        norm = next(module for name, module in reversed(list(model.named_modules())) if name.endswith("layernorm_before"))
        with torch.no_grad():
            entering = model(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2]
            return norm(entering) @ weight.T + bias

    a, b = images(0, 1, (32, 32)).clamp(-1, 1), images(1, 1, (32, 32)).clamp(-1, 1)
    maps = []
    for image in (a, b):
        found = keys(image)[0]
        maps.append(torch.stack([torch.stack([F.cosine_similarity(p, q, dim=0) for q in found]) for p in found]))
    assert maps[0].shape == (17, 17)  # 16 patches and the class token
    assert structure(a, b).item() == pytest.approx((maps[0] - maps[1]).square().mean().item(), rel=1e-3)
    assert structure(a, a).item() == 0
    # PIE-Bench's code scales the shorter side, and does not divide by 255.
    for size in ((32, 32), (50, 61), (40, 200)):
        pair = [(images(seed, 1, size).clamp(-1, 1) * 127.5 + 127.5).round() for seed in (0, 1)]
        resize = Resize(32, max_size=68, antialias=False)
        first, second = (F.normalize(keys(2 * resize(image) - 1)[0], dim=-1) for image in pair)
        expected = (first @ first.T - second @ second.T).square().mean().item()
        assert structure.pie_bench(*(image / 127.5 - 1 for image in pair)).item() == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match=r"structure\.model="):
        Structure(str(tmp_path / "none"))


@pytest.fixture
def clip_folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={"vocab_size": 514, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(tiny("epsilon") / "tokenizer").save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


def test_clip_is_that_of_transformers(clip_folder: Path) -> None:
    clip, processor = Clip(str(clip_folder)), CLIPImageProcessor.from_pretrained(clip_folder)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    before, after = ((torch.rand(2, 3, 32, 32) * 255).round() / 127.5 - 1 for _ in range(2))
    source, target = ["a cat", "a dog on a mat"], ["a lion", "a bear"]

    def embed(images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        pixels = processor(images=[to_pil(image) for image in images], return_tensors="pt").pixel_values
        with torch.no_grad():
            output = model(pixel_values=pixels, **tokenizer(texts, padding=True, return_tensors="pt"))
        return F.normalize(output.image_embeds, dim=-1), F.normalize(output.text_embeds, dim=-1)

    (image_0, text_0), (image_1, text_1) = embed(before, source), embed(after, target)
    similar = F.cosine_similarity(image_0, text_0)
    torch.testing.assert_close(torch.tensor(clip.similarity(before, source)), similar, atol=1e-4, rtol=1e-3)
    moved = F.cosine_similarity(image_1 - image_0, text_1 - text_0)
    torch.testing.assert_close(clip.direction(before, after, source, target).float(), moved, atol=1e-3, rtol=1e-3)
    assert clip.direction(before, before, source, target).isnan().all()
    assert clip.images(torch.zeros(1, 3, 40, 64)).shape == (1, 16)
    with mock.patch.object(F, "interpolate", wraps=F.interpolate) as scaled:
        clip.images(torch.zeros(1, 3, 45, 33))
    assert tuple(scaled.call_args[0][1]) == get_resize_output_image_size(np.zeros((3, 45, 33)), 32, default_to_square=False)
    with pytest.raises(UserError, match=r"clip\.model=nowhere"):
        Clip("nowhere")


def test_metrics_by_clip(clip_folder: Path) -> None:
    clip, (a, b) = Clip(str(clip_folder)), (images(seed, 2, (32, 32)) for seed in (0, 1))
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:] = 1
    sources, targets = ["a cat 0", "a cat 1"], ["a dog 0", "a dog 1"]
    items = [item(a[i : i + 1], mask[i : i + 1], source=sources[i], target=targets[i]) for i in range(2)]
    rows = measure(clip_metrics(str(clip_folder), "cpu"), batch(items, b))
    values = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    like = torch.tensor(clip.similarity(b, targets))
    torch.testing.assert_close(values["CLIP target"], like)
    torch.testing.assert_close(values["CLIP target - source"], like - torch.tensor(clip.similarity(b, sources)))
    torch.testing.assert_close(values["CLIP direction"], clip.direction(a, b, sources, targets).float())
    black = b.clone()
    black[:, :, :8] = -1  # as in PIE-Bench: all but the edited part is black
    torch.testing.assert_close(values["CLIP target inside"], torch.tensor(clip.similarity(black, targets)))
    (plain,) = measure(clip_metrics(str(clip_folder), "cpu"), batch([item(a[:1])], b[:1]))
    assert set(plain) == set(values) - {"CLIP target inside"}


# ---------------------------------------------------------------- sets of images


def features(seed: int, count: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(5, 5, generator=rng, dtype=torch.float64)
    return torch.randn(count, 5, generator=rng, dtype=torch.float64) @ mix + seed


def test_frechet_distance_by_its_formula() -> None:
    a, b = features(0, 300), features(1, 200)
    covariances = a.T.cov(), b.T.cov()
    # The trace of sqrt(A B) is that of sqrt(sqrt(A) B sqrt(A)), which is symmetric.
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_by_its_formula() -> None:
    a, b = features(0, 12), features(1, 12)

    def kernel(x: Tensor, y: Tensor) -> float:
        return ((x @ y).item() / 5 + 1) ** 3

    def pairs(x: Tensor) -> float:
        return sum(kernel(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j) / (len(x) * (len(x) - 1))

    crossed = sum(kernel(p, q) for p in a for q in b) / (len(a) * len(b))
    assert kernel_distance(a, b) == pytest.approx(pairs(a) + pairs(b) - 2 * crossed, rel=1e-6)  # every subset is all of them
    state = torch.random.get_rng_state()
    assert kernel_distance(features(0, 30), b) == kernel_distance(features(0, 30), b)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_inception_sees_images_as_clean_fid_scales_them(tmp_path: Path) -> None:
    """Within rounding of Pillow's own scaling of 8-bit images, which does not alias: stripes of one pixel become gray."""
    rng = np.random.default_rng(0)
    levels = rng.integers(60, 200, (400, 350, 3), np.uint8)
    image = torch.from_numpy(levels).permute(2, 0, 1).float() / 127.5 - 1
    by_pillow = np.asarray(Image.fromarray(levels).resize((299, 299), Image.Resampling.BICUBIC))
    assert np.abs(clean_resize(image).permute(1, 2, 0).numpy() - by_pillow).max() < 1.5  # which rounds after each of two passes
    stripes = torch.ones(3, 598, 598)
    stripes[:, :, ::2] = -1
    assert (clean_resize(stripes)[:, 4:-4, 4:-4] - 127.5).abs().max() < 1

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(299), torch.nn.Flatten())

    torch.jit.script(Mean()).save(str(tmp_path / "inception-2015-12-05.pt"))
    inception = Inception(str(tmp_path))
    gray = [torch.full((3, 20 + i, 30), level) for i, level in enumerate((-1.0, 0.0, 1.0))]
    found = inception.features(gray, batch_size=2)
    torch.testing.assert_close(found[:, 0], torch.tensor([-1, 0, 127 / 128], dtype=torch.float64), atol=4e-3, rtol=0)
    with pytest.raises(UserError, match="give fid=FILE"):
        Inception(str(tmp_path / "none.pt"))
