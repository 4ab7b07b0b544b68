"""Diffusion checkpoints: their identity, and what is refused before anything is sampled."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel, VQModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from dds_train import hub
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.text_encoder import TextEncoder
from dds_train.errors import UserError


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(tiny("epsilon"), tmp_path / "teacher")


def weights_of(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def refusal(load: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- identity


def test_files_that_are_not_loaded_do_not_change_the_identity(folder: Path) -> None:
    before = DiffusionCheckpoint(str(folder)).digest()
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part / ".DS_Store").write_bytes(b"finder")
        (folder / part / "README.md").write_text("notes")
    for part in ("unet", "vae", "text_encoder"):
        path = weights_of(folder, part)
        shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
        path.with_suffix(".bin").write_bytes(b"an older format beside it")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_diffusers_version": "9.9"}, indent=7))
    assert DiffusionCheckpoint(str(folder)).digest() == before


@pytest.mark.parametrize(("part", "role"), [("unet", "denoiser"), ("vae", "vae"), ("text_encoder", "text")])
def test_a_change_anywhere_in_the_weights_changes_the_identity(folder: Path, part: str, role: str) -> None:
    path = weights_of(folder, part)
    # As large as the weights of a real model, for which the start of the file once stood: the last byte counts.
    rewrite(path, lambda tensors: tensors.update(zzz_padding=torch.zeros(5 * 2**20)))
    before = {name: DiffusionCheckpoint(str(folder)).digest(name) for name in ("denoiser", "vae", "text", "scheduler")}
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert path.stat().st_size == stat.st_size
    after = {name: DiffusionCheckpoint(str(folder)).digest(name) for name in before}
    assert [name for name in before if before[name] != after[name]] == [role]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "change", "role"),
    [
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "scheduler"),
        ("vae/config.json", {"scaling_factor": 0.5}, "vae"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 40}, "text"),
    ],
)
def test_configurations_and_tokenizers_are_part_of_the_identity(
    folder: Path, file: str, change: dict[str, Any], role: str
) -> None:
    before = {name: DiffusionCheckpoint(str(folder)).digest(name) for name in ("denoiser", "vae", "text", "scheduler")}
    edit_json(folder / file, **change)
    after = {name: DiffusionCheckpoint(str(folder)).digest(name) for name in before}
    assert [name for name in before if before[name] != after[name]] == [role]


def test_the_vocabulary_is_part_of_the_identity(folder: Path) -> None:
    before, path = DiffusionCheckpoint(str(folder)).digest("text"), folder / "tokenizer" / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    model["vocab"] |= {"c</w>": model["vocab"]["d</w>"], "d</w>": model["vocab"]["c</w>"]}
    edit_json(path, model=model)
    assert DiffusionCheckpoint(str(folder)).digest("text") != before


def as_pickles(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        torch.save(load_file(path), path.with_name(path.name.replace("model.safetensors", "model.bin")))
        path.unlink()
    (folder / "text_encoder" / "model.bin").rename(folder / "text_encoder" / "pytorch_model.bin")


def as_older_libraries_named_them(folder: Path) -> None:
    path = weights_of(folder, "text_encoder")
    save_file({f"text_model.{name}": tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    rewrite(path, lambda tensors: tensors.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    for part in ("unet", "vae"):  # which wrote no defaults
        config = json.loads((folder / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def saved_again(folder: Path) -> None:
    DiffusionCheckpoint(str(folder)).text_encoder().pipeline.save_pretrained(folder / "again")
    for part in ("tokenizer", "text_encoder"):
        shutil.rmtree(folder / part)
        shutil.move(folder / "again" / part, folder)


def in_half(folder: Path, variant: str = "") -> None:
    for path in folder.rglob("*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(tensors, path.with_name(f"{path.stem}{variant}.safetensors"), {"format": "pt"})
    edit_json(folder / "text_encoder" / "config.json", dtype="float16")


@pytest.mark.parametrize("rewritten", [as_pickles, as_older_libraries_named_them, saved_again])
def test_copies_in_another_format_are_the_same_checkpoint(folder: Path, rewritten: Callable[[Path], None]) -> None:
    before = DiffusionCheckpoint(str(folder)).digest()
    prompt = DiffusionCheckpoint(str(folder)).text_encoder().embed("a cat")
    rewritten(folder)
    copy = DiffusionCheckpoint(str(folder))
    assert copy.digest() == before
    assert torch.equal(copy.text_encoder().embed("a cat")["text"], prompt["text"])
    copy.autoencoder()
    copy.teacher()


def test_a_copy_in_half_precision_is_the_same_up_to_half(folder: Path) -> None:
    whole = DiffusionCheckpoint(str(folder))
    exact, half = whole.digest(), whole.digest(up_to_half=True)
    in_half(folder)
    assert DiffusionCheckpoint(str(folder)).digest(up_to_half=True) == half
    assert DiffusionCheckpoint(str(folder)).digest() != exact
    rewrite(weights_of(folder, "vae"), lambda tensors: next(iter(tensors.values())).add_(0.01))
    assert DiffusionCheckpoint(str(folder)).digest(up_to_half=True) != half


def test_shards_are_part_of_the_identity(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    before = DiffusionCheckpoint(str(folder)).digest("denoiser")
    rewrite(sorted((folder / "unet").glob("*.safetensors"))[-1], lambda tensors: next(iter(tensors.values())).add_(1))
    assert DiffusionCheckpoint(str(folder)).digest("denoiser") != before


def test_parts_that_are_not_there_are_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    checkpoint = DiffusionCheckpoint(str(folder))
    assert checkpoint.digest("denoiser")
    for load in (checkpoint.digest, checkpoint.autoencoder):
        assert "vae" in refusal(load)


# ---------------------------------------------------------------- refusals


def test_a_folder_that_is_not_there_is_named_once() -> None:
    with pytest.raises(UserError, match=r"^teacher\.path=/models/sd15: no such folder, and not a hub id such as owner/name$"):
        DiffusionCheckpoint("/models/sd15").family  # noqa: B018


def test_an_unknown_family_is_refused_with_those_supported(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "KandinskyPipeline"}))
    checkpoint = DiffusionCheckpoint(str(folder))
    for load in (checkpoint.teacher, checkpoint.autoencoder, checkpoint.text_encoder, checkpoint.image_size, checkpoint.digest):
        message = refusal(load)
        assert "checkpoints of KandinskyPipeline are not supported; supported: StableDiffusionPipeline, " in message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"in_channels": 9}, "9 channels to 4, the VAE's latents have 4: inpainting"),
        ({"in_channels": 8}, "8 channels to 4"),
        ({"out_channels": 8}, "4 channels to 8"),
        ({"class_embed_type": "timestep"}, "class_embed_type=timestep"),
        ({"num_class_embeds": 10}, "num_class_embeds=10"),
        ({"cross_attention_dim": 48}, "prompts of width 48, its text encoder writes width 32"),
        (
            {"addition_embed_type": "text", "encoder_hid_dim": 32, "addition_embed_type_num_heads": 4},
            "addition_embed_type=text",
        ),
    ],
)
def test_an_unet_with_other_inputs_is_refused_before_its_weights_are_read(
    folder: Path, options: dict[str, Any], reason: str
) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, **options}).save_pretrained(folder / "unet")
    weights_of(folder, "unet").write_bytes(b"")
    checkpoint = DiffusionCheckpoint(str(folder))
    for load in (checkpoint.teacher, checkpoint.load_denoiser):
        message = refusal(load)
        assert reason in message
        assert str(folder) in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["missing", "shape", "cut"])
def test_weights_that_do_not_fit_are_an_error(folder: Path, part: str, damage: str) -> None:
    path = weights_of(folder, part)
    name = min(name for name in load_file(path) if name.endswith("weight"))
    if damage == "missing":
        rewrite(path, lambda tensors: tensors.pop(name))
    elif damage == "shape":
        rewrite(path, lambda tensors: tensors.update({name: torch.zeros(3, 5)}))
    else:
        path.write_bytes(path.read_bytes()[:-1000])
    checkpoint = DiffusionCheckpoint(str(folder))
    load = {"unet": checkpoint.teacher, "vae": checkpoint.autoencoder, "text_encoder": checkpoint.text_encoder}[part]
    message = refusal(load)
    assert part in message
    assert damage == "cut" or name.removeprefix("text_model.") in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_besides_are_an_error(folder: Path, part: str) -> None:
    rewrite(weights_of(folder, part), lambda tensors: tensors.update(more=torch.zeros(3)))
    checkpoint = DiffusionCheckpoint(str(folder))
    load = {"unet": checkpoint.teacher, "vae": checkpoint.autoencoder, "text_encoder": checkpoint.text_encoder}[part]
    assert f"{part} is not of class" in refusal(load)
    assert "has besides 1 weights, such as more" in refusal(load)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "MyScheduler"},
        {"prediction_type": "flow_prediction"},
        {"use_flow_sigmas": True},
    ],
)
def test_a_scheduler_without_a_noise_schedule_is_refused(folder: Path, change: dict[str, Any]) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", **change)
    checkpoint = DiffusionCheckpoint(str(folder))
    for load in (checkpoint.teacher, checkpoint.sampler, checkpoint.ddim, checkpoint.ddim_inverse):
        assert str(next(iter(change.values()))) in refusal(load) or "without flow matching" in refusal(load)


def test_a_scheduler_that_the_index_names_is_refused_too(folder: Path) -> None:
    edit_json(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    assert "FlowMatchEulerDiscreteScheduler" in refusal(DiffusionCheckpoint(str(folder)).teacher)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_other_samplers_of_the_same_noise_are_taken(folder: Path, name: str) -> None:
    schedule = DiffusionCheckpoint(str(folder)).teacher().schedule
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name=name)
    edit_json(folder / "model_index.json", scheduler=["diffusers", name])
    assert torch.equal(DiffusionCheckpoint(str(folder)).teacher().schedule.alpha, schedule.alpha)


def test_a_git_lfs_pointer_is_said_first(folder: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    edit_json(folder / "unet" / "config.json", in_channels=9)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pointer)  # not loaded
    assert "9 channels" in refusal(DiffusionCheckpoint(str(folder)).teacher)
    weights_of(folder, "unet").write_bytes(pointer)
    checkpoint = DiffusionCheckpoint(str(folder))
    for load in (checkpoint.teacher, checkpoint.autoencoder, checkpoint.digest, checkpoint.image_size):
        assert "unet/diffusion_pytorch_model.safetensors is a git-lfs pointer" in refusal(load)
        assert f"git lfs pull in {folder}" in refusal(load)


@pytest.mark.parametrize("variant", [".fp16", ".bf16"])
def test_a_folder_with_variants_alone_loads(folder: Path, variant: str) -> None:
    in_half(folder, variant)
    (folder / "unet" / ".ipynb_checkpoints").mkdir()
    checkpoint = DiffusionCheckpoint(str(folder))
    assert checkpoint.teacher().network.conv_in.weight.dtype == torch.float32
    assert checkpoint.digest()
    checkpoint.autoencoder()
    checkpoint.text_encoder().embed("a cat")


def test_a_hub_caches_folder_is_its_newest_snapshot(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    for age, name in enumerate(("newest", "older", "oldest")):
        shutil.copytree(folder, cache / "snapshots" / name)
        os.utime(cache / "snapshots" / name, (1e9 - age, 1e9 - age))
    for other in ("older", "oldest"):
        edit_json(cache / "snapshots" / other / "unet" / "config.json", in_channels=9)
    (cache / "snapshots" / "empty").mkdir()
    assert DiffusionCheckpoint(str(cache)).teacher().latent_shape == (4, 8, 8)
    assert "no model_index.json" in refusal(DiffusionCheckpoint(str(cache / "snapshots")).teacher)


def test_a_tiny_autoencoder_is_a_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    AutoencoderTiny(**widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).save_pretrained(folder / "vae")
    checkpoint = DiffusionCheckpoint(str(folder))
    image = torch.rand(2, 3, 32, 24) * 2 - 1
    z = checkpoint.autoencoder().encode(image)
    with torch.no_grad():
        torch.testing.assert_close(z, checkpoint.autoencoder().network.encode(image).latents)
    assert z.shape == (2, 4, 8, 6)
    assert checkpoint.autoencoder().decode(z).shape == image.shape
    assert checkpoint.image_size() == (32, 4)
    VQModel(norm_num_groups=8).save_pretrained(folder / "vae")
    assert "VAE is of class VQModel; supported: AutoencoderKL, AutoencoderTiny" in refusal(
        DiffusionCheckpoint(str(folder)).autoencoder
    )


def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path) -> None:
    def load() -> Any:
        return DiffusionCheckpoint(str(folder)).text_encoder().embed("a zzz")

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["zzz"])
    shutil.copytree(folder / "tokenizer", folder / "kept")
    tokenizer.save_pretrained(folder / "tokenizer")
    assert "tokens up to number 514, its text encoder embeddings for 514" in refusal(load)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(folder / "kept", folder / "tokenizer")
    edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=256)
    assert "model_max_length 256, its text encoder 77 positions" in refusal(load)
    for missing in ("tokenizer_config.json", "tokenizer.json"):
        shutil.rmtree(folder / "tokenizer")
        shutil.copytree(folder / "kept", folder / "tokenizer")
        (folder / "tokenizer" / missing).unlink()
        assert "tokenizer has no tokenizer_config.json, or no vocabulary" in refusal(load)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_weights_is_named(folder: Path, part: str) -> None:
    weights_of(folder, part).unlink()
    checkpoint = DiffusionCheckpoint(str(folder))
    load = {"unet": checkpoint.teacher, "vae": checkpoint.autoencoder, "text_encoder": checkpoint.text_encoder}[part]
    assert f"{part} does not load: no weights there" in refusal(load)
    assert f"no weights in {folder / part}" in refusal(checkpoint.digest)


def test_an_unet_without_sample_size_is_refused(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", sample_size=None)
    checkpoint = DiffusionCheckpoint(str(folder))
    for load in (checkpoint.teacher, checkpoint.image_size):
        assert "no sample_size" in refusal(load)


def test_what_looks_like_a_path_is_never_sent_to_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "cached_snapshot", fetch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "sd.safetensors").touch()
    paths = ["./a/b", "../b", "/a/b", "~/b", "a", "a/b/c", "models/sd", "models/", "a/b/", r"a\b", "sd.safetensors", ""]
    for path in paths:
        refusal(DiffusionCheckpoint(path).teacher)


@pytest.mark.parametrize("content", ["{", "[]", "3", "[" * 10**5])
def test_files_that_are_no_json_are_refused(folder: Path, content: str) -> None:
    for name in ("text_encoder/config.json", "unet/config.json", "model_index.json"):
        (folder / name).write_text(content)
        assert name in refusal(DiffusionCheckpoint(str(folder)).teacher)


def test_a_part_without_its_configuration_is_refused(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    expected = f"teacher: {folder}/unet/config.json: No such file or directory; copy the checkpoint whole"
    assert refusal(DiffusionCheckpoint(str(folder)).teacher) == expected


@pytest.mark.parametrize("change", [{"unet": None}, {"unet": ["diffusers", "Nope"]}, {"vae": 3}, {"text_encoder": []}])
def test_an_index_without_a_class_is_refused(folder: Path, change: dict[str, Any]) -> None:
    edit_json(folder / "model_index.json", **change)
    (folder / "unet" / "config.json").write_text((folder / "unet" / "config.json").read_text().replace('"_class_name"', '"_"'))
    assert f"names no class of diffusers or transformers for {next(iter(change))}" in refusal(
        DiffusionCheckpoint(str(folder)).teacher
    )


def test_a_text_encoders_configuration_that_makes_no_sense_is_refused(folder: Path) -> None:
    edit_json(folder / "text_encoder" / "config.json", num_attention_heads="many")
    for load in (DiffusionCheckpoint(str(folder)).teacher, DiffusionCheckpoint(str(folder)).digest):
        assert "text_encoder/config.json: " in refusal(load)


def test_a_hub_that_cannot_be_reached_is_refused_with_the_command_that_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.reachable.cache_clear()
    message = refusal(DiffusionCheckpoint("nobody/no-such-model").teacher)
    assert "hf download nobody/no-such-model --local-dir DIR" in message
    assert "huggingface-cli" not in message
    hub.reachable.cache_clear()


# ---------------------------------------------------------------- parts


def test_the_text_encoder_is_that_of_diffusers(tiny: Callable[[str], Path]) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny("epsilon"), safety_checker=None)
    prompts = ["a photo of a cat", "", "x" * 200]
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    with pytest.warns(UserWarning, match="prompt of 202 tokens, of which the last 125 are cut: 'xxx"):
        got = DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder().embed(prompts)
    assert torch.equal(got["text"], expected)


def test_parts_are_loaded_once_and_forgotten_on_release(folder: Path) -> None:
    checkpoint = DiffusionCheckpoint(str(folder))
    assert checkpoint.teacher() is checkpoint.teacher()
    assert checkpoint.load_denoiser() is not checkpoint.teacher().network
    first = checkpoint.text_encoder()
    checkpoint.release("text_encoder")
    assert checkpoint.text_encoder() is not first


def test_a_denoiser_needs_neither_vae_nor_text_encoder(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """As training on latents and embedded prompts does; what the UNet alone shows is still checked."""
    for part in ("scheduler", "model_index.json"):
        (tmp_path / part).symlink_to(tiny("epsilon") / part)
    shutil.copytree(tiny("epsilon") / "unet", tmp_path / "unet")
    assert DiffusionCheckpoint(str(tmp_path)).teacher().latent_shape[0] == 4
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    with pytest.raises(UserError, match="maps 9 channels to 4"):
        DiffusionCheckpoint(str(tmp_path)).teacher()


def test_parts_load_in_their_own_precision_and_never_in_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = DiffusionCheckpoint(str(folder), dtype=torch.bfloat16)
    loaded: dict[str, set[torch.dtype]] = {}
    load = DiffusionCheckpoint._load

    def spy(self: DiffusionCheckpoint, part: str, *of: Any) -> Any:
        network = load(self, part, *of)
        if isinstance(network, torch.nn.Module):
            loaded[part] = {parameter.dtype for parameter in network.parameters()}
        return network

    monkeypatch.setattr(DiffusionCheckpoint, "_load", spy)
    teacher, text, autoencoder = checkpoint.teacher(), checkpoint.text_encoder(), checkpoint.autoencoder()
    assert loaded == {"unet": {torch.bfloat16}, "text_encoder": {torch.bfloat16}, "vae": {torch.float32}}
    whole = DiffusionCheckpoint(str(folder)).teacher().network
    for name, weight in teacher.network.named_parameters():
        assert torch.equal(weight, whole.get_parameter(name).bfloat16())
    assert (teacher.dtype, text.dtype, autoencoder.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_text_encoder_is_freed_once_prompts_are_embedded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, asked = DiffusionCheckpoint(str(folder)), []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, text: (asked.append(text), embed(self, text))[1])
    table = checkpoint.embedded(["a cat", "a lion"])
    assert "text_encoder" not in checkpoint._loaded
    assert checkpoint.embedded(["a lion"]).rows.keys() == table.rows.keys()
    assert asked == ["", "a cat", "a lion"]
    expected = DiffusionCheckpoint(str(folder)).text_encoder().embed("a lion")
    assert torch.equal(checkpoint.embedded(["a dog"]).embed(["a lion"])["text"], expected["text"])
    assert asked[3:] == ["a lion", "", "a dog"]  # a new table has the empty prompt
    own = checkpoint.text_encoder()
    checkpoint.embedded(["a bear"])
    assert checkpoint.text_encoder() is own
