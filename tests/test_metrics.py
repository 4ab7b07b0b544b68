"""Each metric against a computation of its own: written out, by hand, or by another library's parts."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from dds_train.errors import UserError
from dds_train.evaluation.metrics.clip import Clip
from dds_train.evaluation.metrics.distribution import Inception, clean_resize, frechet_distance, kernel_distance
from dds_train.evaluation.metrics.perceptual import Lpips, Structure
from dds_train.evaluation.metrics.pixels import mse, outside, psnr, ssim
from dds_train.evaluation.metrics.scores import EvaluationItem, clip_scores
from dds_train.images.files import to_pil


def pictures(seed: int, count: int = 2, size: tuple[int, int] = (40, 33)) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 5, generator=rng) * 2 - 1
    return F.interpolate(coarse, size, mode="bilinear") * 0.9 + 0.1 * (torch.rand(count, 3, *size, generator=rng) * 2 - 1)


# ---------------------------------------------------------------- pixels


def test_errors_of_a_known_size() -> None:
    a = pictures(0)
    b = a + 2 * torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)  # in [0,1]: 0.1 and 0.01
    torch.testing.assert_close(mse(a, b), torch.tensor([1e-2, 1e-4], dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=1e-3, atol=0)
    assert psnr(a, a).tolist() == [math.inf, math.inf]


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al., for one channel; windows over the edge see the picture mirrored."""
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
    a, b = pictures(0, 1, (21, 18)), pictures(1, 1, (21, 18))
    by_hand = np.mean([ssim_by_hand(a[0, c].numpy() / 2 + 0.5, b[0, c].numpy() / 2 + 0.5) for c in range(3)])
    assert ssim(a, b).item() == pytest.approx(by_hand, abs=1e-5)  # float32
    torch.testing.assert_close(ssim(a, a), torch.ones(1, dtype=torch.float64))
    assert math.isnan(ssim(a[..., :10], b[..., :10]).item())


def test_the_background_alone_counts_outside_a_mask() -> None:
    a, b = pictures(0), pictures(0)
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

    a, b = pictures(0, 2, (64, 64)), pictures(1, 2, (64, 64))
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
    with pytest.raises(UserError, match=r"LPIPS \(squeeze\): .*squeezenet1_1"):
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
            entering = model(pixels, output_hidden_states=True).hidden_states[-2]
            return norm(entering) @ weight.T + bias

    a, b = pictures(0, 1, (32, 32)).clamp(-1, 1), pictures(1, 1, (32, 32)).clamp(-1, 1)
    maps = []
    for image in (a, b):
        found = keys(image)[0]
        maps.append(torch.stack([torch.stack([F.cosine_similarity(p, q, dim=0) for q in found]) for p in found]))
    assert maps[0].shape == (17, 17)  # 16 patches and the class token
    assert structure(a, b).item() == pytest.approx((maps[0] - maps[1]).square().mean().item(), rel=1e-3)
    assert structure(a, a).item() == 0
    with pytest.raises(UserError, match="structure distance"):
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
    with pytest.raises(UserError, match="CLIP model nowhere"):
        Clip("nowhere")


def test_scores_by_clip(clip_folder: Path) -> None:
    clip, (a, b) = Clip(str(clip_folder)), (pictures(seed, 2, (32, 32)) for seed in (0, 1))
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:] = 1
    cases = [EvaluationItem(str(i), a[i : i + 1], f"a cat {i}", f"a dog {i}", mask[i : i + 1]) for i in range(2)]
    whole, inside = clip_scores(clip)
    found, targets = whole.measure(cases, b), ["a dog 0", "a dog 1"]
    like = torch.tensor(clip.similarity(b, targets))
    torch.testing.assert_close(found["CLIP target"], like)
    torch.testing.assert_close(found["CLIP target - source"], like - torch.tensor(clip.similarity(b, ["a cat 0", "a cat 1"])))
    torch.testing.assert_close(found["CLIP direction"], clip.direction(a, b, ["a cat 0", "a cat 1"], targets))
    black = b.clone()
    black[:, :, :8] = -1  # PIE-Bench's way: all but the edited part is black
    torch.testing.assert_close(inside.measure(cases, b)["CLIP target inside"], torch.tensor(clip.similarity(black, targets)))
    assert not inside.applies(EvaluationItem("a", a[:1], "", ""))


# ---------------------------------------------------------------- sets of pictures


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


def test_inception_sees_pictures_as_clean_fid_scales_them(tmp_path: Path) -> None:
    """Within rounding of Pillow's own scaling of 8-bit pictures, which does not alias: stripes of one pixel become gray."""
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
