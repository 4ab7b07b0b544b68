"""Another family of teachers, added by its own file and one line of the registry: PixArt-Sigma, a transformer that reads T5's
masked prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from dds_train.diffusion import DiffusionCheckpoint, PromptTable, sample_latents
from dds_train.diffusion.families import FAMILIES, DenoiserShape, Family
from dds_train.distillation import Prompt
from dds_train.distillation.cache import SourceCache
from dds_train.errors import UserError
from dds_train.methods.masks import automatic_mask
from dds_train.methods.optimize import optimize_latent
from dds_train.training.tasks import TaskBank
from dds_train.translator import Task, TranslatorConfig, export_translator, load_translator, make_translator

# ---------------------------------------------------------------- the family's file


def shape(transformer: Any) -> DenoiserShape:
    side = transformer["sample_size"]
    return DenoiserShape(transformer["in_channels"], transformer["caption_channels"], (side, side), transformer["patch_size"])


def check(transformer: Any, vae: Any, text_encoder: Any) -> None:
    if transformer["in_channels"] != vae["latent_channels"]:
        raise ValueError("its transformer and its VAE differ in channels")


def embed(pipeline: Any, prompts: Sequence[str]) -> Prompt:
    text, mask, _, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    length = int(mask.sum(dim=1).max())
    return Prompt({"text": text[:, :length], "mask": mask[:, :length]})


def denoise(transformer: Any, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
    sizes = {"resolution": None, "aspect_ratio": None}
    return transformer(z_t, prompt["text"], t, sizes, encoder_attention_mask=prompt["mask"]).sample.chunk(2, dim=1)[0]


PIXART = Family(
    name="PixArt-Sigma",
    denoiser="transformer",
    network=PixArtTransformer2DModel,
    last_layer="proj_out",
    lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
    shape=shape,
    check=check,
    embed=embed,
    denoise=denoise,
)

# ---------------------------------------------------------------- a tiny checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -3.0) for c in range(33, 127))]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
    text_encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
    )
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    path = tmp_path_factory.mktemp("pixart")
    PixArtSigmaPipeline(tokenizer, text_encoder, vae, transformer, scheduler).save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> DiffusionCheckpoint:
    monkeypatch.setitem(FAMILIES, "PixArtSigmaPipeline", PIXART)
    return DiffusionCheckpoint(str(folder))


def latents(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_is_refused_until_it_is_registered(folder: Path) -> None:
    with pytest.raises(UserError, match="checkpoints of PixArtSigmaPipeline are not supported"):
        DiffusionCheckpoint(str(folder)).teacher()


def test_the_guided_prediction_is_that_of_its_pipeline(checkpoint: DiffusionCheckpoint, folder: Path) -> None:
    """The pipeline's scheduler is shown the guided answer at every step; ours must be the same at the same latents."""
    pipeline = PixArtSigmaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[tuple[Tensor, int, Tensor]] = []
    step = pipeline.scheduler.step

    def spy(answer: Tensor, t: Any, z_t: Tensor, **options: Any) -> Any:
        seen.append((answer, int(t), z_t))
        return step(answer, t, z_t, **options)

    pipeline.scheduler.step = spy
    pipeline("a cat", num_inference_steps=3, guidance_scale=4.0, height=32, width=32, use_resolution_binning=False)
    condition = checkpoint.text_encoder().condition("a cat")
    from dds_train.distillation.guidance import guided_eps

    with torch.no_grad():
        for answer, t, z_t in seen:
            got = guided_eps(checkpoint.teacher(), z_t, torch.tensor([t]), condition, 4.0)
            torch.testing.assert_close(got, answer, rtol=1e-3, atol=1e-4)


def test_methods_take_it(checkpoint: DiffusionCheckpoint) -> None:
    teacher, z = checkpoint.teacher(), latents(2)
    table = PromptTable.of(checkpoint.text_encoder(), ["a cat", "a photo of a lion", "ugly"])
    source, target = table.condition(["a cat"] * 2), table.condition(["a photo of a lion", "a cat"], "ugly")
    ends = []
    for model in (teacher, cached := SourceCache(teacher, {}), cached):
        *_, last = optimize_latent(model, z, source, target, loss="dds", steps=3, guidance=3.0)
        ends.append(last.z)
    assert torch.equal(ends[1], ends[2])
    assert cached.hits == cached.queries // 2
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ends[0][0], z[0])
    torch.testing.assert_close(ends[0][1], z[1], rtol=1e-4, atol=1e-4)  # its target is its source: nothing to do
    assert automatic_mask(teacher, z, source, target, maps=2).shape == (2, 1, 8, 8)
    assert sample_latents(teacher, checkpoint.sampler(), target, [0, 1], steps=2).shape == z.shape
    assert checkpoint.autoencoder().decode(z).shape == (2, 3, 32, 32)
    assert checkpoint.image_size() == (32, 4)
    with pytest.raises(UserError, match="loss cds: self-attention features of PixArt-Sigma are not available"):
        optimize_latent(teacher, z, source, target, loss="cds", steps=1).__next__()


def test_prompts_of_any_length_in_a_table_on_disk(checkpoint: DiffusionCheckpoint, tmp_path: Path) -> None:
    table = PromptTable.of(checkpoint.text_encoder(), ["a cat", "a much longer prompt"])
    table.save(tmp_path / "prompts.safetensors")
    again = PromptTable.load(tmp_path / "prompts.safetensors")
    z, t = latents(1), torch.tensor([500])
    with torch.no_grad():
        for text, prompt in table.rows.items():
            expected = checkpoint.teacher().predict_eps(z, t, prompt)
            torch.testing.assert_close(checkpoint.teacher().predict_eps(z, t, again.rows[text]), expected)
    tasks = {"lion": Task("a cat", "a much longer prompt", "a cat")}
    source, target = TaskBank.embed(tasks, again).conditions(torch.tensor([0, 0]), None)
    assert target.text["text"].shape == source.text["text"].shape == source.null["text"].shape


@pytest.mark.parametrize("kind", ["unet", "lora", "teacher_init"])
def test_translators_of_all_kinds(checkpoint: DiffusionCheckpoint, tmp_path: Path, kind: str) -> None:
    teacher, z = checkpoint.teacher(), latents(2)
    prompt = checkpoint.text_encoder().embed("a lion").expand(2)
    before = teacher.predict_eps(z, torch.tensor([100, 800]), prompt)
    options = {"channels": [16, 32], "groups": 8, "heads": 2} if kind == "unet" else {}
    translator = make_translator({"kind": kind, **options}, lambda: teacher.network, checkpoint.family)
    assert (translator.latent_channels, translator.text_dim) == (4, 32)
    assert torch.equal(translator(z, prompt, torch.ones(2)), z)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in translator.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
        changed = translator(z, prompt, torch.ones(2))
    assert not torch.allclose(changed, z)
    assert torch.equal(teacher.predict_eps(z, torch.tensor([100, 800]), prompt), before)
    export_translator(tmp_path, translator, TranslatorConfig({}, checkpoint.path, translator.config))
    with torch.no_grad():
        assert torch.equal(load_translator(tmp_path)[0](z, prompt, torch.ones(2)), changed)
