"""LoRA of others: as in diffusers' own pipelines, and part of the identity."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from own_teachers import reference, refusal, save_lora
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_families import TINY

from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.translator import make_translator

PARTS = ("denoiser", "vae", "text", "scheduler")


def with_lora(model_dir: Path, *files: tuple[Path, float], **more: Any) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(
        str(model_dir), additions=Additions(lora=tuple((str(path), weight) for path, weight in files), **more)
    )


def answers(checkpoint: DiffusionCheckpoint) -> list[torch.Tensor]:
    """Embedded prompts and a prediction for them."""
    teacher, prompt = checkpoint.teacher(), checkpoint.text_encoder().embed(["a cat", "a photo of a lion"])
    z = torch.randn(2, teacher.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return [*prompt.tensors.values(), teacher.predict_eps(z, torch.tensor([100, 800]), prompt)]


def expected(model_dir: Path, *files: tuple[Path, float]) -> list[torch.Tensor]:
    """`answers` of diffusers' networks with its adapters beside the weights."""
    pipeline, plain = reference(model_dir), DiffusionCheckpoint(str(model_dir))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        for number, (path, _) in enumerate(files):
            pipeline.load_lora_weights(path, adapter_name=f"a{number}")
    pipeline.set_adapters([f"a{number}" for number in range(len(files))], [weight for _, weight in files])
    plain.teacher().network = getattr(pipeline, plain.family.denoiser)
    text = plain.text_encoder()
    text.pipeline = pipeline
    return answers(plain)


def three(model_dir: Path, *files: tuple[Path, float]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`answers` with the files, those of diffusers with them, and without."""
    return zip(
        answers(with_lora(model_dir, *files)),
        expected(model_dir, *files),
        answers(DiffusionCheckpoint(str(model_dir))),
        strict=True,
    )


@pytest.mark.parametrize("name", ["sd", *(name for name in TINY if name != "pixart_sigma")])
def test_lora_is_that_of_diffusers(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    if name == "sd":
        model_dir = tiny("epsilon")
    else:
        torch.manual_seed(0)
        model_dir = tmp_path / name
        TINY[name]().save_pretrained(model_dir)
    path = save_lora(model_dir, tmp_path / "lora")
    for got, diffusers, plain in three(model_dir, (path, 0.7)):
        torch.testing.assert_close(got, diffusers, rtol=1e-5, atol=1e-5)
        last = got, plain
    assert not torch.allclose(*last, atol=1e-3)


def test_several_lora_add_up(model_dir: Path, tmp_path: Path) -> None:
    files = [
        (save_lora(model_dir, tmp_path / "a", 1), 0.5),
        (save_lora(model_dir, tmp_path / "b", 2, text=False), -1.5),
    ]
    for got, diffusers, _ in three(model_dir, *files):
        torch.testing.assert_close(got, diffusers, rtol=1e-5, atol=1e-5)


def test_kohyas_format(model_dir: Path, tmp_path: Path) -> None:
    """With alphas of its own."""
    weights = load_file(save_lora(model_dir, tmp_path / "lora") / "pytorch_lora_weights.safetensors")
    kohya = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
        layer = re.split(r"\.lora", rest)[0].replace(".", "_")
        end = "lora_down" if ".down." in rest or "_A." in rest else "lora_up"
        kohya |= {f"{prefix}{layer}.{end}.weight": tensor.contiguous(), f"{prefix}{layer}.alpha": torch.tensor(1.0)}
    save_file(kohya, path := tmp_path / "kohya.safetensors", {"format": "pt"})
    for got, diffusers, plain in three(model_dir, (path, 1.0)):
        torch.testing.assert_close(got, diffusers, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(got, plain, atol=1e-3)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_pefts_format(name: str, rslora: bool, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A network with adapters, saved by peft itself, as training scripts of one's own do; its settings scale the weights."""
    if name == "sd":
        model_dir = tiny("epsilon")
    else:
        torch.manual_seed(0)
        TINY[name]().save_pretrained(model_dir := tmp_path / name)
    plain = DiffusionCheckpoint(str(model_dir))
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=5, use_rslora=rslora, target_modules=["to_q", "to_out.0"], init_lora_weights="gaussian")
    adapted = get_peft_model(plain.teacher().network, config)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder := tmp_path / "peft")
    plain.teacher().network = adapted.base_model.model  # with its adapters
    for got, expected in zip(answers(with_lora(model_dir, (folder, 1.0))), answers(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, answers(DiffusionCheckpoint(str(model_dir)))[-1], atol=1e-3)

    identity = with_lora(model_dir, (folder, 1.0)).digest("denoiser")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 6}))
    assert with_lora(model_dir, (folder, 1.0)).digest("denoiser") != identity
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    message = refusal(with_lora(model_dir, (folder, 1.0)).teacher)
    assert "not use_dora" in message


def test_lora_is_part_of_the_identity_of_what_it_changes(model_dir: Path, tmp_path: Path) -> None:
    both, alone = save_lora(model_dir, tmp_path / "a"), save_lora(model_dir, tmp_path / "b", text=False)
    plain = {part: DiffusionCheckpoint(str(model_dir)).digest(part) for part in PARTS}

    def changed(*files: tuple[Path, float]) -> list[str]:
        return [part for part in PARTS if with_lora(model_dir, *files).digest(part) != plain[part]]

    assert changed((both, 1.0)) == ["denoiser", "text"]
    assert changed((alone, 1.0)) == ["denoiser"]
    kinds = [with_lora(model_dir, *files).digest("denoiser") for files in (((both, 1.0),), ((both, 0.5),), ((alone, 1.0),))]
    assert len({*kinds, plain["denoiser"]}) == 4
    copied = shutil.copytree(both, tmp_path / "copy")
    assert with_lora(model_dir, (copied, 1.0)).digest() == with_lora(model_dir, (both, 1.0)).digest()


def test_a_lora_that_does_not_fit_is_refused(model_dir: Path, tmp_path: Path) -> None:
    lora = load_file(save_lora(model_dir, tmp_path / "lora") / "pytorch_lora_weights.safetensors")
    path = tmp_path / "other.safetensors"
    for change, reason in (
        (lambda name, tensor: (name.replace("blocks", "rooms"), tensor), "does not fit this teacher"),
        (lambda name, tensor: (name, torch.zeros(7, 7)), "does not fit this teacher"),
        (lambda name, tensor: (name.replace("unet", "transformer").replace("text_encoder", "t"), tensor), "no LoRA for unet"),
        (lambda name, tensor: (name.replace("lora", "x"), tensor), "no LoRA for unet"),
    ):
        save_file(dict(change(*item) for item in lora.items() if item[0].startswith("unet")), path, {"format": "pt"})
        message = refusal(with_lora(model_dir, (path, 1.0)).teacher)
        assert message.startswith(f"teacher.lora={path}: ")
        assert reason in message
    some = {name.replace("down_blocks", "rooms"): tensor for name, tensor in lora.items() if name.startswith("unet")}
    save_file(some, path, {"format": "pt"})
    with pytest.warns(UserWarning, match="only 24 of 32 weights fit the unet"):
        with_lora(model_dir, (path, 1.0)).teacher()
    path.write_bytes(b"nothing")
    assert f"teacher.lora={path}" in refusal(with_lora(model_dir, (path, 1.0)).teacher)
    assert f"teacher.lora={path}" in refusal(with_lora(model_dir, (path, 1.0)).digest)


def test_a_lora_translator_on_a_teacher_with_lora(model_dir: Path, tmp_path: Path) -> None:
    """Its adapters off, the teacher predicts as before, bit for bit; another LoRA's are gone."""
    checkpoint = with_lora(model_dir, (save_lora(model_dir, tmp_path / "lora"), 0.7))
    before = answers(checkpoint)[-1]
    translator = make_translator({"kind": "lora", "rank": 2}, lambda: checkpoint.teacher().network, checkpoint.family)
    assert len(translator.adapters) > 0
    assert torch.equal(answers(checkpoint)[-1], before)
