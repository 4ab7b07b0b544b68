"""All families of teachers: predictions, latents and samples are those of diffusers' own pipelines."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from safetensors.torch import load_file
from shell import PROMPTS, fit, run
from tiny_families import TINY
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint, PromptFile, PromptTable, sample_latents
from dds_train.diffusion.families import find_family
from dds_train.diffusion.families.base import unpack
from dds_train.diffusion.schedule import make_scheduler
from dds_train.distillation import LOSSES, NoiseSchedule
from dds_train.distillation.cache import SourceCache
from dds_train.distillation.guidance import guided
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError
from dds_train.export import check_family
from dds_train.export.lora_files import export_lora
from dds_train.methods.baselines import ddim_swap_latent, sdedit_latent
from dds_train.methods.masks import automatic_mask
from dds_train.methods.optimize import optimize_latent
from dds_train.training.memory import step_bytes
from dds_train.translator import Task, TranslatorConfig, export_translator, load_translator, make_translator, remembered
from dds_train.translator.pipeline import Translator

# Z-Image's pipeline calls a guidance of 3 2; Qwen-Image's rescales the guided prediction; FLUX.1 has guidance as an input.
REPOSITORY = Path(__file__).parents[1]
OF_PIPELINE, OURS = {"z_image": 2.0, "qwen_image": 1.0, "flux": 3.5}, {"qwen_image": 1.0, "flux": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            torch.manual_seed(0)
            folders[name] = tmp_path_factory.mktemp(name)
            pipeline = TINY[name]()
            for part in pipeline.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
            pipeline.save_pretrained(folders[name])
        return folders[name]

    return get


@pytest.fixture(params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(name: str, folder: Callable[[str], Path]) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(str(folder(name)))


@dataclass
class Step:
    """What a pipeline gives its scheduler, and gets."""

    prediction: Tensor
    t: Tensor
    z_t: Tensor  # as the denoiser reads it
    z: Tensor  # the next latents


def run_pipeline(name: str, path: Path, side: int) -> tuple[list[Step], Tensor]:
    """Three steps of diffusers' own pipeline, all latents as [B,C,h,w], and the image [1,3,H,W] in [-1,1]."""
    pipeline = DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    steps: list[Step] = []
    take = pipeline.scheduler.step

    def latents(x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.float()
        return x.transpose(1, 2).unflatten(2, (8, 8)) if name == "flux2_klein" else unpack(x, 8, 8)

    def spy(prediction: Tensor, t: Tensor, z: Tensor, **options: Any) -> Any:
        scaled = pipeline.scheduler.scale_model_input(z, t) if name == "sdxl" else z
        result = take(prediction, t, z, **options)
        steps.append(Step(latents(prediction), t, latents(scaled), latents(result[0])))
        return result

    pipeline.scheduler.step = spy
    options: dict[str, Any] = {"num_inference_steps": 3, "height": side, "width": side, "output_type": "pt"}
    options["true_cfg_scale" if name == "qwen_image" else "guidance_scale"] = OF_PIPELINE.get(name, 3.0)
    if name in ("sana", "pixart_sigma"):
        options |= {"use_resolution_binning": False, "clean_caption": False}
    image = pipeline(prompt="a cat", generator=torch.Generator().manual_seed(0), **options).images
    return steps, 2 * image - 1


def test_predictions_and_images_are_those_of_diffusers(name: str, checkpoint: DiffusionCheckpoint) -> None:
    """At the latents and times of its pipeline's steps: sign, packing, time, guidance, prompts and scaling."""
    teacher, autoencoder, text = checkpoint.teacher(), checkpoint.autoencoder(), checkpoint.text_encoder()
    steps, image = run_pipeline(name, Path(checkpoint.path), max(32, 8 * autoencoder.factor))
    condition, guidance = text.condition("a cat"), OURS.get(name, 3.0)
    with torch.no_grad():
        for step in steps:
            if teacher.is_flow:
                got = guided(teacher.predict, step.z_t, step.t.float().reshape(1) / 1000, condition, guidance)
            else:
                got = guided(teacher.predict_eps, step.z_t, step.t.long().reshape(1), condition, guidance)
            torch.testing.assert_close(got, step.prediction, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(autoencoder.decode(steps[-1].z), image, rtol=0, atol=1e-4)
    torch.testing.assert_close(autoencoder.encode(image).shape, steps[-1].z.shape)


def test_losses_are_those_of_the_networks_noise(checkpoint: DiffusionCheckpoint) -> None:
    """The noise that a velocity implies: ``z_t - alpha z`` over sigma, of the clean latent ``z_t - sigma v``."""
    teacher = checkpoint.teacher()
    if not teacher.is_flow:
        return
    prompt, t = checkpoint.text_encoder().embed(["a cat", "a lion"]), torch.tensor([100, 900])
    z_t = latents(2, teacher.latent_shape[0])
    alpha, sigma = teacher.schedule.at(t)
    assert torch.allclose(alpha + sigma, torch.ones(2, 1, 1, 1))
    with torch.no_grad():
        clean = z_t - sigma * teacher.predict(z_t, sigma.flatten(), prompt)
        torch.testing.assert_close(teacher.predict_eps(z_t, t, prompt), (z_t - alpha * clean) / sigma, rtol=1e-3, atol=1e-4)


def test_methods_take_all_families(checkpoint: DiffusionCheckpoint) -> None:
    teacher, text = checkpoint.teacher(), checkpoint.text_encoder()
    z = latents(2, teacher.latent_shape[0])
    table = PromptTable.of(text, ["a cat", "a photo of a lion"])
    source, target = table.condition(["a cat"] * 2), table.condition(["a photo of a lion", "a cat"])
    guidance = 3.0 if checkpoint.family.has_null else 1.0
    ends = []
    for model in (teacher, cached := SourceCache(teacher, {}), cached):
        *_, last = optimize_latent(model, z, source, target, loss="dds", steps=2, guidance=guidance)
        ends.append(last.z)
    assert torch.equal(ends[1], ends[2])
    assert cached.hits == cached.queries // 2
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ends[0][0], z[0])
    torch.testing.assert_close(ends[0][1], z[1], rtol=1e-3, atol=1e-3)  # its target is its source: nothing to do
    assert automatic_mask(teacher, z, source, target, maps=2).shape == (2, 1, 8, 8)
    sampled = sample_latents(teacher, checkpoint.sampler(), target, [0, 1], steps=2, size=(8, 8), guidance=guidance)
    assert sampled.shape == z.shape
    assert sampled.isfinite().all()
    assert checkpoint.autoencoder().decode(z).shape[-1] == 8 * checkpoint.autoencoder().factor


def test_samples_of_a_flow_are_those_of_diffusers(folder: Callable[[str], Path]) -> None:
    """FLUX.1, whose pipeline gives its scheduler the same even times."""
    checkpoint = DiffusionCheckpoint(str(folder("flux")))
    checkpoint.family.shape(checkpoint.teacher().network.config)
    steps, _ = run_pipeline("flux", folder("flux"), 8 * checkpoint.autoencoder().factor)
    scheduler = checkpoint.sampler()
    scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    tokens = 16  # of the pipeline's image; the checkpoint's schedule is that of 1024 x 1024 pixels
    expected = make_scheduler({"use_dynamic_shifting": True}, {"FlowMatchEulerDiscreteScheduler"}, tokens)
    expected.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    torch.testing.assert_close(torch.stack([step.t for step in steps]), expected.timesteps, rtol=1e-4, atol=1e-2)
    assert (scheduler.timesteps[1:] > expected.timesteps[1:]).all()


def test_baselines_of_a_flow(folder: Callable[[str], Path]) -> None:
    """SDEdit at full strength is sampling; inversion and its way back meet as steps grow, first order in their size."""
    checkpoint = DiffusionCheckpoint(str(folder("sd3")))
    teacher, condition = checkpoint.teacher(), checkpoint.text_encoder().condition("a cat")
    z, eps = latents(1, 4), torch.stack([torch.randn(4, 8, 8, generator=seeded_rng("sample", 3))])
    sampled = sample_latents(teacher, checkpoint.sampler(), condition, [3], steps=4, guidance=1.0)
    edited = sdedit_latent(teacher, checkpoint.ddim(), z, condition, eps, strength=1.0, steps=4, guidance=1.0)
    torch.testing.assert_close(edited, sampled)
    weaker = sdedit_latent(teacher, checkpoint.ddim(), z, condition, eps, strength=0.25, steps=4, guidance=1.0)
    assert (weaker - z).norm() < (edited - z).norm()
    errors = []
    for steps in (10, 40):
        parts = teacher, checkpoint.ddim_inverse(), checkpoint.ddim()
        errors.append((ddim_swap_latent(*parts, z, condition, condition, steps=steps, guidance=1.0) - z).norm())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.1 * z.norm()


@pytest.mark.parametrize("kind", ["lora", "teacher_init"])
def test_memory_and_checkpointing(checkpoint: DiffusionCheckpoint, kind: str) -> None:
    """Recomputed activations change no gradient; memory is known for all families before training."""
    teacher, prompt = checkpoint.teacher(), checkpoint.text_encoder().embed(["a lion", "a dog"])
    z = latents(2, teacher.latent_shape[0])
    config = {"kind": kind}
    gradients = []
    for checkpointing in (False, True):
        own = DiffusionCheckpoint(checkpoint.path)
        torch.manual_seed(0)
        translator = make_translator(config, own.load_denoiser, own.family).train()
        with torch.no_grad():
            for parameter in translator.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        if checkpointing:
            translator.enable_gradient_checkpointing()
        translator(z, prompt, torch.ones(2)).square().sum().backward()
        gradients.append([p.grad.clone() for p in translator.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 4
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    options: dict[str, Any] = {"size": (8, 8), "prompt": prompt, "edits": 1, "evaluations": 4, "checkpointing": False}
    options |= {"translator_dtype": torch.float32, "teacher_dtype": torch.float32}
    sizes = [step_bytes(config, teacher.network.config, checkpoint.family, images=n, **options) for n in (1, 8)]
    assert 0 < sizes[0] < sizes[1]


def test_prompts_of_any_length_in_a_file(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    file, texts = PromptFile(tmp_path / "prompts.sqlite"), ["", "a cat", "a much longer prompt"]
    checkpoint.embed_into(file, texts)
    table = PromptTable.of(checkpoint.text_encoder(), texts)
    for some in ([""], ["a cat"], ["a much longer prompt"], texts):
        ours, theirs = file.embed(some), table.embed(some)
        assert dict(ours.items()).keys() == dict(theirs.items()).keys()
        assert all(torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype for name, tensor in theirs.items())


def test_prompts_are_cut_at_max_tokens(checkpoint: DiffusionCheckpoint) -> None:
    """As diffusers' own `encode_prompt` does; prompts of other lengths are no copies of each other, weights are."""
    if checkpoint.family.embed_chunks:
        pytest.skip("see test_long_prompts_are_read_in_chunks")
    short, text = replace(checkpoint, max_tokens=20), "a cat and a much longer prompt"
    whole, cut = (one.text_encoder().embed(text)["text"] for one in (checkpoint, short))
    ahead = {"Stable Diffusion 3 and 3.5": 77}.get(checkpoint.family.name, 0)  # tokens of CLIP
    assert cut.shape[1] == ahead + 20 < whole.shape[1]
    again = DiffusionCheckpoint(checkpoint.path).text_encoder()
    encode = again.pipeline.encode_prompt
    again.pipeline.encode_prompt = lambda *args, **options: encode(*args, **options, max_sequence_length=20)
    assert torch.equal(cut, again.embed(text)["text"])
    assert short.digest("text") != checkpoint.digest("text") != replace(checkpoint, max_tokens=21).digest("text")
    assert short.digest("denoiser", "vae") == checkpoint.digest("denoiser", "vae")


@pytest.mark.filterwarnings("ignore:prompt of")
@pytest.mark.parametrize("teacher", ["sd", "sdxl"])
def test_long_prompts_are_read_in_chunks(folder: Callable[[str], Path], tiny: Callable[[str], Path], teacher: str) -> None:
    path = str(tiny("epsilon") if teacher == "sd" else folder("sdxl"))
    plain, one, two = (DiffusionCheckpoint(path, max_tokens=tokens).text_encoder() for tokens in (None, 75, 76))
    for text in ("", "a cat", "x" * 74):  # each letter is a token, and so is the end of a word
        assert all(torch.equal(tensor, plain.embed(text)[name]) for name, tensor in one.embed(text).items()), text
    first, second, other = "x " * 75, "y " * 70, "z " * 70
    long, changed = two.embed(f"{first}{second}"), two.embed(f"{first}{other}")
    assert torch.equal(long["text"], torch.cat([plain.embed(first)["text"], plain.embed(second)["text"]], dim=1))
    assert not torch.equal(long["text"], changed["text"])
    torch.testing.assert_close(two.embed([f"{first}{second}", f"{first}{other}"])["text"][1:], changed["text"])
    if teacher == "sd":  # whose null prompt is no row of zeros; shorter prompts are as long as the others
        condition = two.condition("a cat")
        empty = plain.embed("")["text"]
        assert torch.equal(condition.text["text"], torch.cat([plain.embed("a cat")["text"], empty], dim=1))
        assert torch.equal(condition.null["text"], torch.cat([empty, empty], dim=1))
    with pytest.warns(UserWarning, match=r"prompt of 302 tokens, of which the last 150 are cut: .*teacher\.max_tokens=302"):
        two.embed("x " * 300)


def test_stable_diffusion_3_without_t5(tmp_path: Path) -> None:
    """Its tokens are zeros, as many as `max_tokens`; a translator remembers how many."""
    torch.manual_seed(0)
    parts = TINY["sd3"]().components
    StableDiffusion3Pipeline(**{**parts, "text_encoder_3": None, "tokenizer_3": None}).save_pretrained(tmp_path / "sd3")
    checkpoint = DiffusionCheckpoint(str(tmp_path / "sd3"), max_tokens=1)
    text = checkpoint.text_encoder().embed(["a cat", ""])["text"]
    assert text.shape == (2, 78, 64)
    assert not text[:, 77:].any()
    assert text[:, :77].any()
    translator = make_translator({"kind": "lora"}, checkpoint.load_denoiser, checkpoint.family)
    config = TranslatorConfig(
        {"lion": Task("a cat", "a lion", "a lion")}, translator=translator.config, **remembered(checkpoint)
    )
    export_translator(tmp_path / "lion", translator, config)
    loaded = Translator.from_pretrained(tmp_path / "lion", device="cpu")
    assert loaded.checkpoint.text_encoder().embed("a lion")["text"].shape == (1, 78, 64)


@pytest.mark.parametrize("kind", ["unet", "lora", "teacher_init"])
def test_translators_of_all_kinds(checkpoint: DiffusionCheckpoint, tmp_path: Path, kind: str) -> None:
    teacher = checkpoint.teacher()
    z = latents(2, teacher.latent_shape[0])
    prompt = checkpoint.text_encoder().embed("a lion").expand(2)
    with torch.no_grad():
        before = teacher.predict_eps(z, torch.tensor([100, 800]), prompt)
    options = {"channels": [16, 32], "groups": 8, "heads": 2} if kind == "unet" else {}
    translator = make_translator({"kind": kind, **options}, lambda: teacher.network, checkpoint.family)
    assert (translator.latent_channels, translator.text_dim) == (z.shape[1], prompt["text"].shape[-1])
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        assert torch.equal(translator(z, prompt, torch.ones(2)), z)
        for parameter in translator.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
        changed = translator(z, prompt, torch.ones(2))
        assert not torch.allclose(changed, z)
        assert torch.equal(teacher.predict_eps(z, torch.tensor([100, 800]), prompt), before)
    export_translator(
        tmp_path, translator, TranslatorConfig({"lion": Task("a cat", "a lion", "a lion")}, checkpoint.path, translator.config)
    )
    with torch.no_grad():
        assert torch.equal(load_translator(tmp_path)[0](z, prompt, torch.ones(2)), changed)


def test_contrastive_loss_reads_image_tokens(checkpoint: DiffusionCheckpoint) -> None:
    """The image's part of each attention layer's output, as an image; of a latent that is no square."""
    teacher, text = checkpoint.teacher(), checkpoint.text_encoder()
    z, t = latents(2, teacher.latent_shape[0])[..., :4], torch.tensor([300, 800])
    source, target = text.condition(["a cat"] * 2), text.condition(["a lion"] * 2)
    if checkpoint.family.self_attention is None:
        with pytest.raises(UserError, match="loss cds: self-attention features of Z-Image base are not available"):
            teacher.features(z, t, source.text)
        return
    layers: list[Any] = [layer for _, group in checkpoint.family.self_attention(teacher.network) for layer in group]
    images: list[Tensor] = []
    handles = [layer.to_out[0].register_forward_hook(lambda _, __, output: images.append(output)) for layer in layers]
    features = teacher.features(z, t, source.text)
    for handle in handles:
        handle.remove()
    assert len(features) == len(images) == len(layers) > 0
    for one, tokens in zip(features, images, strict=True):
        assert one.shape[2] == 2 * one.shape[3]
        assert torch.equal(one.flatten(2).transpose(1, 2), tokens)
    guidance = 2.0 if checkpoint.family.has_null else 1.0
    arguments = teacher, z, 0.5 * z, source, target, t, z.flip(0), guidance
    contrast = LOSSES["cds"](*arguments).grad - LOSSES["dds"](*arguments).grad
    assert contrast.isfinite().all()
    assert (contrast.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # that of layers without one is zero
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")  # "proj_out" names single blocks of FLUX.1 too
def test_lora_files_load_in_diffusers(name: str, checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    """Its pipeline's denoiser then predicts the change; from the file for ComfyUI without the change of the last bias, which
    diffusers does not read there."""
    family, rng = checkpoint.family, torch.Generator().manual_seed(0)
    translator = make_translator({"kind": "lora", "rank": 3}, checkpoint.load_denoiser, family)
    z, prompt = latents(2, translator.latent_channels), checkpoint.text_encoder().embed(["a lion", "a dog"])
    if name == "pixart_sigma":
        with pytest.raises(UserError, match="format=lora: not available for translators on PixArt-Sigma"):
            check_family("lora", family)
        return
    check_family("lora", family)
    for parameter in translator.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=rng)
    export_lora(tmp_path, translator, family)
    comfyui = load_file(tmp_path / "comfyui.safetensors")
    bias = [comfyui.pop(key) for key in list(comfyui) if key.endswith(".diff_b")]
    assert len(bias) == (translator.head.bias is not None)
    with torch.no_grad():
        for weights in (tmp_path, comfyui):
            pipeline = DiffusionPipeline.from_pretrained(checkpoint.path)
            own = getattr(pipeline, family.denoiser).get_submodule(family.last_layer).bias
            pipeline.load_lora_weights(weights)
            change = family.denoise(getattr(pipeline, family.denoiser), z, torch.zeros(2, dtype=torch.long), prompt)
            if weights is comfyui and bias:
                torch.testing.assert_close(bias[0] + own, translator.head.bias)
                translator.head.bias.copy_(own)
            torch.testing.assert_close(change, translator(z, prompt, torch.ones(2)) - z, rtol=1e-5, atol=1e-5)


def test_all_blocks_get_adapters(checkpoint: DiffusionCheckpoint) -> None:
    """At both ends of each block's attention."""
    translator = make_translator({"kind": "lora", "targets": None}, checkpoint.load_denoiser, checkpoint.family)
    names, plain = [key.replace("/", ".") for key in translator.adapters], checkpoint.load_denoiser()
    blocks = [name for name, _ in plain.named_modules() if name.endswith((".attn", ".attn1", ".attention"))]
    assert len(blocks) > 1
    for block in blocks:
        inside = {name.removeprefix(f"{block}.").partition(".lora_")[0] for name in names if name.startswith(f"{block}.")}
        assert inside & {"to_q", "to_qkv_mlp_proj"}, block
        assert not hasattr(plain.get_submodule(block), "to_out") or inside & {"to_out", "to_out.0"}, block


@pytest.mark.parametrize(
    ("loss", "guidance", "key"),
    [("dds", 7.5, "guidance=7.5"), ("csd", 1.0, "loss=csd"), ("ssd", 1.0, "loss=ssd"), ("ids", 2.0, "guidance=2")],
)
def test_the_null_prompt_is_not_asked_of_distilled_guidance(
    folder: Callable[[str], Path], loss: str, guidance: float, key: str
) -> None:
    checkpoint = DiffusionCheckpoint(str(folder("flux")))
    with pytest.raises(UserError, match=f"{key}: FLUX.1 dev has guidance as an input"):
        checkpoint.check_guidance(loss, guidance)
    checkpoint.check_guidance("dds", 1.0)
    DiffusionCheckpoint(str(folder("sd3"))).check_guidance(loss, guidance)


def test_only_standalone_families_are_exported_for_diffusers(folder: Callable[[str], Path]) -> None:
    check_family("safetensors", find_family("FluxPipeline"))
    check_family("onnx", find_family("StableDiffusionPipeline"))
    with pytest.raises(UserError, match="format=onnx: not available for translators on FLUX"):
        check_family("onnx", find_family("FluxPipeline"))


@pytest.mark.slow
def test_commands_on_a_flow(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """fit, predict, optimize and evaluate, as a user types them, on Stable Diffusion 3."""
    teacher, cat = folder("sd3"), REPOSITORY / "data" / "examples" / "cat1.png"
    fit(teacher, tmp_path, "translator=lora", "guidance.end=2", "teacher.dtype=float32")
    run("predict", "ckpt=run/translator", f"image={cat}", "output_dir=edited", cwd=tmp_path)
    run(
        "optimize",
        *PROMPTS,
        f"image={cat}",
        f"teacher.path={teacher}",
        "teacher.dtype=float32",
        "steps=2",
        "output_dir=optimized",
        cwd=tmp_path,
    )
    methods = ("methods=[dds,sdedit,ddim_inversion]", "critters.count=2", "steps=2", "lpips.nets=[]")
    run("evaluate", *methods, f"teacher.path={teacher}", "teacher.dtype=float32", "output_dir=evaluated", cwd=tmp_path)
    assert all((tmp_path / name).exists() for name in ("edited/cat1.png", "optimized/cat1.png", "evaluated/table.md"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flux", {"guidance_embeds": False}, "step-distilled .* take black-forest-labs/FLUX.1-dev"),
        ("flux2_klein", {"is_distilled": True}, "step-distilled .* take black-forest-labs/FLUX.2-klein-base-4B"),
        ("sd3", {}, "step-distilled .turbo., .* take stabilityai/stable-diffusion-3.5-large"),
    ],
)
def test_step_distilled_models_are_refused(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    folder = tmp_path / ("model" if options else f"{name}-turbo")
    getattr(tiny_families, name)(**options).save_pretrained(folder)
    with pytest.raises(UserError, match=message):
        DiffusionCheckpoint(str(folder)).teacher()


def test_shift_of_a_flow(checkpoint: DiffusionCheckpoint) -> None:
    """In place of the scheduler's own, dynamic ones included."""
    if not checkpoint.family.is_flow:
        with pytest.raises(UserError, match=r"teacher\.shift=2\.5: .* is no rectified flow; take null"):
            replace(checkpoint, shift=2.5)
        return
    shifted = replace(checkpoint, shift=2.5)
    expected = NoiseSchedule.flow(1000, 2.5)
    torch.testing.assert_close(shifted.teacher().schedule.sigma, expected.sigma)
    assert not torch.allclose(checkpoint.teacher().schedule.sigma, expected.sigma, atol=1e-3)
    assert shifted.sampler().shift == 2.5
    assert shifted.digest("scheduler") != checkpoint.digest("scheduler")
    assert shifted.digest("text", "vae") == checkpoint.digest("text", "vae")


def latents(count: int, channels: int) -> Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["variant", "pickles"])
def test_a_checkpoints_files_may_be_of_other_kinds(name: str, kind: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Shards in half precision alone, of networks and text encoders; pickles where there is nothing else."""
    whole = DiffusionCheckpoint(str(folder(name)))
    if kind == "variant":
        pipeline = DiffusionPipeline.from_pretrained(folder(name)).to(torch.float16)
        pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="5KB")
        assert any("-of-" in path.name and "fp16" in path.name for path in tmp_path.glob("*/*"))
    else:
        shutil.copytree(folder(name), tmp_path, dirs_exist_ok=True)
        for path in tmp_path.rglob("*.safetensors"):
            stem = "pytorch_model" if path.stem == "model" else path.stem
            torch.save(load_file(path), path.with_name(f"{stem}.bin"))
            path.unlink()
    copy = DiffusionCheckpoint(str(tmp_path))
    assert copy.digest(up_to_half=True) == whole.digest(up_to_half=True)
    copy.teacher()
    copy.autoencoder()
    assert copy.text_encoder().embed("a cat")["text"].isfinite().all()
