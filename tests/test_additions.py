"""LoRA, textual inversions and other VAEs of others: as diffusers' own pipelines with them, and part of the identity."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from configuration import configure
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from random_translator import export_random
from safetensors.torch import load_file, save_file
from shell import fit, run
from tiny_families import TINY

from dds_train import hub
from dds_train.commands import optimize
from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.translator import Task, make_translator, read_config, remembered
from dds_train.translator.pipeline import Translator

CAT = Path(__file__).parents[1] / "data" / "examples" / "cat1.png"
PARTS = ("denoiser", "vae", "text", "scheduler")
TASKS = {"lion": Task("a cat", "a lion", "a lion")}


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny("epsilon"), tmp_path / "teacher")


def reference(folder: Path) -> Any:
    """Diffusers' own pipeline."""
    options = {"safety_checker": None} if "StableDiffusionPipeline" in (folder / "model_index.json").read_text() else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, **options)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline


def with_lora(folder: Path, *files: tuple[Path, float], **more: Any) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(
        str(folder), additions=Additions(lora=tuple((str(path), weight) for path, weight in files), **more)
    )


def adapters(network: Any, targets: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ones, as diffusers' training scripts take them from a network."""
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights="gaussian"))
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(network).items()}


def save_lora(folder: Path, path: Path, seed: int = 0, text: bool = True) -> Path:
    """A LoRA for denoiser and CLIP text encoders, written by diffusers."""
    pipeline, layers = reference(folder), {}
    modules = pipeline._lora_loadable_modules
    for name in modules:
        network = getattr(pipeline, name, None)
        if name in ("unet", "transformer"):
            targets = ["to_q", "to_v"] if name == "unet" or hasattr(network, "transformer_blocks") else ["to_q"]
            layers[f"{name}_lora_layers"] = adapters(network, targets, seed)
        elif network is not None and text:
            layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(adapters(network, ["q_proj", "out_proj"], seed))
    pipeline.save_lora_weights(path, **layers)
    return path


def answers(checkpoint: DiffusionCheckpoint) -> list[torch.Tensor]:
    """Embedded prompts and a prediction for them."""
    teacher, prompt = checkpoint.teacher(), checkpoint.text_encoder().embed(["a cat", "a photo of a lion"])
    z = torch.randn(2, teacher.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return [*prompt.tensors.values(), teacher.predict_eps(z, torch.tensor([100, 800]), prompt)]


def expected(folder: Path, *files: tuple[Path, float]) -> list[torch.Tensor]:
    """`answers` of diffusers' networks with its adapters beside the weights."""
    pipeline, plain = reference(folder), DiffusionCheckpoint(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        for number, (path, _) in enumerate(files):
            pipeline.load_lora_weights(path, adapter_name=f"a{number}")
    pipeline.set_adapters([f"a{number}" for number in range(len(files))], [weight for _, weight in files])
    plain.teacher().network = getattr(pipeline, plain.family.denoiser)
    text = plain.text_encoder()
    text.pipeline = pipeline
    return answers(plain)


def three(folder: Path, *files: tuple[Path, float]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`answers` with the files, those of diffusers with them, and without."""
    return zip(
        answers(with_lora(folder, *files)), expected(folder, *files), answers(DiffusionCheckpoint(str(folder))), strict=True
    )


def refusal(load: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize("name", ["sd", *(name for name in TINY if name != "pixart_sigma")])
def test_lora_is_that_of_diffusers(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    if name == "sd":
        folder = tiny("epsilon")
    else:
        torch.manual_seed(0)
        folder = tmp_path / name
        TINY[name]().save_pretrained(folder)
    path = save_lora(folder, tmp_path / "lora")
    for got, diffusers, plain in three(folder, (path, 0.7)):
        torch.testing.assert_close(got, diffusers, rtol=1e-5, atol=1e-5)
        last = got, plain
    assert not torch.allclose(*last, atol=1e-3)


def test_several_lora_add_up(folder: Path, tmp_path: Path) -> None:
    files = [(save_lora(folder, tmp_path / "a", 1), 0.5), (save_lora(folder, tmp_path / "b", 2, text=False), -1.5)]
    for got, diffusers, _ in three(folder, *files):
        torch.testing.assert_close(got, diffusers, rtol=1e-5, atol=1e-5)


def test_kohyas_format(folder: Path, tmp_path: Path) -> None:
    """With alphas of its own."""
    weights = load_file(save_lora(folder, tmp_path / "lora") / "pytorch_lora_weights.safetensors")
    kohya = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
        layer = re.split(r"\.lora", rest)[0].replace(".", "_")
        end = "lora_down" if ".down." in rest or "_A." in rest else "lora_up"
        kohya |= {f"{prefix}{layer}.{end}.weight": tensor.contiguous(), f"{prefix}{layer}.alpha": torch.tensor(1.0)}
    save_file(kohya, path := tmp_path / "kohya.safetensors", {"format": "pt"})
    for got, diffusers, plain in three(folder, (path, 1.0)):
        torch.testing.assert_close(got, diffusers, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(got, plain, atol=1e-3)


def test_lora_is_part_of_the_identity_of_what_it_changes(folder: Path, tmp_path: Path) -> None:
    both, alone = save_lora(folder, tmp_path / "a"), save_lora(folder, tmp_path / "b", text=False)
    plain = {part: DiffusionCheckpoint(str(folder)).digest(part) for part in PARTS}

    def changed(*files: tuple[Path, float]) -> list[str]:
        return [part for part in PARTS if with_lora(folder, *files).digest(part) != plain[part]]

    assert changed((both, 1.0)) == ["denoiser", "text"]
    assert changed((alone, 1.0)) == ["denoiser"]
    kinds = [with_lora(folder, *files).digest("denoiser") for files in (((both, 1.0),), ((both, 0.5),), ((alone, 1.0),))]
    assert len({*kinds, plain["denoiser"]}) == 4
    copied = shutil.copytree(both, tmp_path / "copy")
    assert with_lora(folder, (copied, 1.0)).digest() == with_lora(folder, (both, 1.0)).digest()


def test_a_lora_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    lora = load_file(save_lora(folder, tmp_path / "lora") / "pytorch_lora_weights.safetensors")
    path = tmp_path / "other.safetensors"
    for change, reason in (
        (lambda name, tensor: (name.replace("blocks", "rooms"), tensor), "does not fit this teacher"),
        (lambda name, tensor: (name, torch.zeros(7, 7)), "does not fit this teacher"),
        (lambda name, tensor: (name.replace("unet", "transformer").replace("text_encoder", "t"), tensor), "no LoRA for unet"),
        (lambda name, tensor: (name.replace("lora", "x"), tensor), "no LoRA for unet"),
    ):
        save_file(dict(change(*item) for item in lora.items() if item[0].startswith("unet")), path, {"format": "pt"})
        message = refusal(with_lora(folder, (path, 1.0)).teacher)
        assert message.startswith(f"teacher.lora={path}: ")
        assert reason in message
    some = {name.replace("down_blocks", "rooms"): tensor for name, tensor in lora.items() if name.startswith("unet")}
    save_file(some, path, {"format": "pt"})
    with pytest.warns(UserWarning, match="only 24 of 32 weights fit the unet"):
        with_lora(folder, (path, 1.0)).teacher()
    path.write_bytes(b"nothing")
    assert f"teacher.lora={path}" in refusal(with_lora(folder, (path, 1.0)).teacher)
    assert f"teacher.lora={path}" in refusal(with_lora(folder, (path, 1.0)).digest)


def test_a_family_without_lora_or_embeddings_says_so(tmp_path: Path) -> None:
    TINY["pixart_sigma"]().save_pretrained(tmp_path / "t")
    (tmp_path / "x.safetensors").touch()
    x = str(tmp_path / "x.safetensors")
    for key, options in (("lora", {"lora": ((x, 1.0),)}), ("embeddings", {"embeddings": ((None, x),)})):
        checkpoint = DiffusionCheckpoint(str(tmp_path / "t"), additions=Additions(**options))  # type: ignore[arg-type]
        for load in (checkpoint.teacher, checkpoint.text_encoder, checkpoint.digest):
            assert refusal(load) == f"teacher.{key}: diffusers' PixArtSigmaPipeline takes none"


def test_files_are_found_before_any_weights_are_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "cached_snapshot", lambda repository: tmp_path / "snap" if repository == "o/cached" else None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "snap").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / "snap" / name).write_bytes(b"x")
    for place, reason in (
        (tmp_path / "nope.safetensors", "no such file or folder"),
        (tmp_path / "empty", "no file of weights there"),
        (tmp_path / "snap", "2 files of weights there (a.safetensors, b.safetensors); give the file"),
        ("o/cached", "2 files of weights there"),
        ("o/name", "is not on this disk and the hub did not deliver it"),
        ("o/cached/c.safetensors", "is not on this disk and the hub did not deliver it"),
    ):
        for key, options in (("lora", {"lora": ((str(place), 1.0),)}), ("embeddings", {"embeddings": ((None, str(place)),)})):
            checkpoint = DiffusionCheckpoint(str(folder), additions=Additions(**options))  # type: ignore[arg-type]
            for load in (partial(checkpoint.check_guidance, "sds", 1.0), checkpoint.image_size):
                message = refusal(load)
                assert message.startswith(f"teacher.{key}=o/" if str(place).startswith("o/") else f"teacher.{key}={place}: ")
                assert reason in message
    assert Additions(lora=(("o/cached/b.safetensors", 2.0),)).lora_files() == [(tmp_path / "snap" / "b.safetensors", 2.0)]


def test_a_lora_translator_on_a_teacher_with_lora(folder: Path, tmp_path: Path) -> None:
    """Its adapters off, the teacher predicts as before, bit for bit; another LoRA's are gone."""
    checkpoint = with_lora(folder, (save_lora(folder, tmp_path / "lora"), 0.7))
    before = answers(checkpoint)[-1]
    translator = make_translator({"kind": "lora", "rank": 2}, lambda: checkpoint.teacher().network, checkpoint.family)
    assert len(translator.adapters) > 0
    assert torch.equal(answers(checkpoint)[-1], before)


# ---------------------------------------------------------------- textual inversion


def with_embeddings(folder: Path, *files: tuple[str | None, Path]) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(str(folder), additions=Additions(embeddings=tuple((token, str(path)) for token, path in files)))


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("written", ["diffusers", "a1111", "a1111.pt", "bin"])
def test_embeddings_are_those_of_diffusers(folder: Path, tmp_path: Path, vectors: int, written: str) -> None:
    tensor = torch.randn(vectors, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / ("<sks>.pt" if written == "a1111.pt" else "<sks>.bin" if written == "bin" else "<sks>.safetensors")
    if written == "a1111.pt":
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": "<sks>", "step": 3}, path)
    elif written == "bin":
        torch.save({"<sks>": tensor}, path)
    else:
        save_file({"<sks>" if written == "diffusers" else "emb_params": tensor}, path)
    pipeline = reference(folder)
    pipeline.load_textual_inversion({"<sks>": tensor})
    prompts = ["a <sks> cat", "a cat"]
    checkpoint, plain = with_embeddings(folder, (None, path)), DiffusionCheckpoint(str(folder))
    got = checkpoint.text_encoder().embed(prompts)["text"]
    assert torch.equal(got, pipeline.encode_prompt(prompts, "cpu", 1, False)[0])
    known = plain.text_encoder().embed(prompts)["text"]
    assert torch.equal(got[1], known[1])
    assert not torch.allclose(got[0], known[0])
    assert [part for part in PARTS if checkpoint.digest(part) != plain.digest(part)] == ["text"]


def test_a_token_of_ones_own(folder: Path, tmp_path: Path) -> None:
    save_file({"<sks>": torch.randn(1, 32)}, path := tmp_path / "a.safetensors")
    one, other = with_embeddings(folder, (None, path)), with_embeddings(folder, ("zzz", path))
    expected = one.text_encoder().embed("a <sks>")["text"]
    assert torch.equal(other.text_encoder().embed("a zzz")["text"], expected)
    assert one.digest("text") != other.digest("text")
    save_file({"<other>": torch.randn(1, 32)}, again := tmp_path / "b.safetensors")
    assert with_embeddings(folder, (None, path), (None, again)).text_encoder().embed("<sks> <other>")


def test_embeddings_of_two_encoders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    TINY["sdxl"]().save_pretrained(tmp_path / "xl")
    vectors = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 32)}
    save_file(vectors, path := tmp_path / "sks.safetensors")
    pipeline = reference(tmp_path / "xl")
    for name, end in (("clip_l", ""), ("clip_g", "_2")):
        parts = {"text_encoder": getattr(pipeline, f"text_encoder{end}"), "tokenizer": getattr(pipeline, f"tokenizer{end}")}
        pipeline.load_textual_inversion(vectors[name], token="sks", **parts)
    text, _, pooled, _ = pipeline.encode_prompt(["a sks"], device="cpu", do_classifier_free_guidance=False)
    got = with_embeddings(tmp_path / "xl", (None, path)).text_encoder().embed("a sks")
    assert torch.equal(got["text"], text)
    assert torch.equal(got["pooled"], pooled)


def test_embeddings_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, reason in (
        ({"<sks>": torch.zeros(1, 48)}, "vectors of 48, where those of text_encoder have 32"),
        ({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 32)}, "where those of text_encoder_2 have None"),
        ({"a": torch.zeros(1, 32), "b": torch.zeros(1, 32)}, "no textual inversion: it has 2 tensors, such as a"),
        ({"a</w>": torch.zeros(1, 32)}, "already in tokenizer vocabulary"),
    ):
        save_file(content, path)
        message = refusal(with_embeddings(folder, (None, path)).text_encoder)
        assert message.startswith(f"teacher.embeddings={path}: ")
        assert reason in message
    path.write_bytes(b"")
    assert f"teacher.embeddings={path}: " in refusal(with_embeddings(folder, (None, path)).text_encoder)


def test_too_long_a_prompt_counts_all_vectors(folder: Path, tmp_path: Path) -> None:
    save_file({"<sks>": torch.randn(80, 32)}, path := tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="prompt of 82 tokens, of which the last 5 are cut"):
        with_embeddings(folder, (None, path)).text_encoder().embed("<sks>")


# ---------------------------------------------------------------- VAE


def another_vae(folder: Path, **options: Any) -> Path:
    torch.manual_seed(9)
    config = {**AutoencoderKL.load_config(folder / "vae"), **options}
    AutoencoderKL.from_config(config).save_pretrained(folder.parent / "vae")
    return folder.parent / "vae"


def test_another_vae_takes_the_place_of_the_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its folder, a checkpoint's, or a hub's cache."""
    vae, plain = another_vae(folder, scaling_factor=0.5), DiffusionCheckpoint(str(folder))
    monkeypatch.setattr(hub, "cached_snapshot", lambda repository: vae if repository == "owner/vae" else None)
    shutil.copytree(vae, folder.parent / "whole" / "vae")
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    network = AutoencoderKL.from_pretrained(vae).eval()
    with torch.no_grad():
        z = network.encode(image).latent_dist.mode() * 0.5
    for place in (str(vae), str(folder.parent / "whole"), "owner/vae"):
        checkpoint = DiffusionCheckpoint(str(folder), additions=Additions(vae=place))
        assert torch.equal(checkpoint.autoencoder().encode(image), z)
        assert [part for part in PARTS if checkpoint.digest(part) != plain.digest(part)] == ["vae"]
        checkpoint.teacher()
    shutil.rmtree(folder / "vae")
    assert torch.equal(DiffusionCheckpoint(str(folder), additions=Additions(vae=str(vae))).autoencoder().encode(image), z)


def test_a_tiny_autoencoder_in_place_of_the_vae(folder: Path) -> None:
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    AutoencoderTiny(**widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).save_pretrained(
        folder.parent / "taesd"
    )
    checkpoint = DiffusionCheckpoint(str(folder), additions=Additions(vae=str(folder.parent / "taesd")))
    assert checkpoint.autoencoder().encode(torch.rand(1, 3, 32, 32)).shape == (1, 4, 8, 8)
    assert checkpoint.digest("vae")


def test_a_vae_of_other_latents_is_refused(folder: Path) -> None:
    def load(vae: object) -> list[str]:
        checkpoint = DiffusionCheckpoint(str(folder), additions=Additions(vae=str(vae)))
        return [refusal(one) for one in (checkpoint.teacher, checkpoint.autoencoder)]

    for options, reason in (
        ({"latent_channels": 16}, "has 16 channels, the teacher's own VAE 4"),
        (
            {
                "block_out_channels": (8, 16),
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
            },
            "has 2 pixels per latent, the teacher's own VAE 4",
        ),
    ):
        assert load(another_vae(folder, **options)) == [f"teacher.vae={folder.parent / 'vae'}: {reason}"] * 2
    tiny_families.sana().vae.save_pretrained(folder.parent / "dc")
    assert "a AutoencoderDC, where the teacher's own is a AutoencoderKL" in load(folder.parent / "dc")[0]
    assert "no such file or folder" in load(folder.parent / "nope")[0]
    (folder.parent / "empty").mkdir()
    assert "no config.json there" in load(folder.parent / "empty")[0]


# ---------------------------------------------------------------- translators find it again


@pytest.fixture
def trained(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A translator trained in tmp_path with a LoRA, a token and another VAE, by relative paths."""
    monkeypatch.chdir(tmp_path)
    save_lora(folder, tmp_path / "lora")
    save_file({"<sks>": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}, "sks.safetensors")
    another_vae(folder, scaling_factor=0.5)
    additions = Additions(lora=(("lora", 0.7),), embeddings=(("<x>", "sks.safetensors"),), vae="vae")
    translator = export_random(tmp_path / "runs" / "translator", Path("teacher"), TASKS, 0.02)
    path = translator / "config.json"
    known = remembered(DiffusionCheckpoint("teacher", additions=additions))
    path.write_text(json.dumps({**json.loads(path.read_text()), **known}))
    return translator


def test_a_translator_finds_what_its_teacher_had(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = Translator.from_pretrained(trained)
    known = before.checkpoint.additions
    paths = [path for path, _ in known.lora] + [path for _, path in known.embeddings] + [known.vae]
    assert paths == [str(tmp_path / name) for name in ("lora", "sks.safetensors", "vae")]
    expected = before(image, "a <x> lion")
    moved = tmp_path / "moved"
    for name in ("teacher", "lora", "sks.safetensors", "vae", "runs"):
        shutil.move(tmp_path / name, moved / name)
    trained = moved / "runs" / "translator"
    after = Translator.from_pretrained(trained)
    assert torch.equal(after(image, "a <x> lion"), expected)  # type: ignore[arg-type]
    other = Translator.from_pretrained(trained, additions={"vae": None, "lora": []})
    assert not torch.equal(other(image, "a <x> lion"), expected)  # type: ignore[arg-type]
    assert torch.equal(Translator.from_pretrained(trained, teacher=str(moved / "teacher"))(image, "a <x> lion"), expected)  # type: ignore[arg-type]


def test_what_is_nowhere_is_named_where_it_is_needed(trained: Path, tmp_path: Path) -> None:
    save_lora(tmp_path / "teacher", tmp_path / "lora", text=False)  # of the denoiser alone
    path = trained / "config.json"
    config = read_config(trained)
    additions = Additions.of(config.teacher_additions)
    known = remembered(DiffusionCheckpoint("teacher", additions=additions))
    path.write_text(json.dumps({**json.loads(path.read_text()), **known}))
    shutil.rmtree(tmp_path / "lora")
    found = read_config(trained).find_teacher(trained)  # a translator of its own weights needs no denoiser
    assert found.additions.lora == ()
    Path("sks.safetensors").unlink()
    message = refusal(lambda: read_config(trained).find_teacher(trained))
    assert f"(has other weights, without {tmp_path / 'lora'} and {tmp_path / 'sks.safetensors'}: text)" in message
    message = refusal(lambda: read_config(trained).find_teacher(trained, str(tmp_path / "teacher")))
    assert "sks.safetensors, which is not there; give it as teacher.lora=" in message


# ---------------------------------------------------------------- commands


def test_optimize_with_them_is_another_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = save_lora(folder, tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    save_file({"<sks>": torch.randn(1, 32)}, "sks.safetensors")
    another_vae(folder)
    (tmp_path / "C:").mkdir()
    shutil.copy(lora, tmp_path / "C:" / "0.5")

    def edit(*more: str) -> str:
        given = ["source=a cat", "target=a <sks> cat", "steps=1", "snapshots=0", "teacher.path=teacher", "output_dir=out"]
        optimize.run(configure("optimize", f"image={CAT}", *given, *more))
        return capsys.readouterr().out

    own = ["teacher.lora=[lora:0.5,C:/0.5:2]", "teacher.embeddings=[sks.safetensors]", "teacher.vae=vae"]
    edit(*own)
    assert "are in" in edit(*own)
    for number, other in ((0, "teacher.lora=[lora:0.5,C:/0.5:3]"), (1, "teacher.embeddings=[]"), (2, "teacher.vae=null")):
        with pytest.raises(UserError, match="teacher"):
            edit(*own[:number], other, *own[number + 1 :])
    assert f"- {lora.parent}:0.5" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.slow
def test_a_translator_of_ones_own_teacher(folder: Path, tmp_path: Path) -> None:
    """fit on a single file with a LoRA, a token and another VAE; predict knows them, and takes another VAE if told."""
    from diffusers import StableDiffusionPipeline
    from original_layout import stable_diffusion

    weights = stable_diffusion(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "sd.safetensors")
    save_lora(folder, tmp_path / "lora")
    save_file({"<sks>": torch.randn(2, 32)}, tmp_path / "sks.safetensors")
    another_vae(folder, scaling_factor=0.5)
    for path in folder.rglob("*.safetensors"):  # configurations alone
        path.unlink()
    own = ("teacher.lora=[lora:0.5]", "teacher.embeddings=[<x>=sks.safetensors]", "teacher.vae=vae", "teacher.config=teacher")
    fit(Path("sd.safetensors"), tmp_path, *own, "target=a <x> cat", "translator=lora")
    assert "finished already" in fit(Path("sd.safetensors"), tmp_path, *own, "target=a <x> cat", "translator=lora")
    assert "teacher.denoiser=" in fit(
        Path("sd.safetensors"), tmp_path, "teacher.lora=[lora]", *own[1:], "target=a <x> cat", "translator=lora", code=2
    )
    run("predict", "ckpt=run/translator", f"image={CAT}", "output_dir=edited", cwd=tmp_path)
    run("predict", "ckpt=run/translator", f"image={CAT}", "output_dir=other", "teacher.vae=vae", cwd=tmp_path)
    assert (tmp_path / "edited" / "cat1.png").read_bytes() == (tmp_path / "other" / "cat1.png").read_bytes()
