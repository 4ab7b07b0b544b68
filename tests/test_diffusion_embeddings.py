"""Textual inversions of others: as in diffusers' own pipelines."""

from pathlib import Path

import pytest
import torch
from own_teachers import reference, refusal
from safetensors.torch import save_file
from tiny_families import TINY

from dds_train.diffusion import Additions, DiffusionCheckpoint

PARTS = ("denoiser", "vae", "text", "scheduler")


def with_embeddings(model_dir: Path, *files: tuple[str | None, Path]) -> DiffusionCheckpoint:
    return DiffusionCheckpoint(
        str(model_dir), additions=Additions(embeddings=tuple((token, str(path)) for token, path in files))
    )


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("written", ["diffusers", "a1111", "a1111.pt", "bin"])
def test_embeddings_are_those_of_diffusers(model_dir: Path, tmp_path: Path, vectors: int, written: str) -> None:
    tensor = torch.randn(vectors, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / ("<sks>.pt" if written == "a1111.pt" else "<sks>.bin" if written == "bin" else "<sks>.safetensors")
    if written == "a1111.pt":
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": "<sks>", "step": 3}, path)
    elif written == "bin":
        torch.save({"<sks>": tensor}, path)
    else:
        save_file({"<sks>" if written == "diffusers" else "emb_params": tensor}, path)
    pipeline = reference(model_dir)
    pipeline.load_textual_inversion({"<sks>": tensor})
    prompts = ["a <sks> cat", "a cat"]
    checkpoint, plain = with_embeddings(model_dir, (None, path)), DiffusionCheckpoint(str(model_dir))
    got = checkpoint.text_encoder().embed(prompts)["text"]
    assert torch.equal(got, pipeline.encode_prompt(prompts, "cpu", 1, False)[0])
    known = plain.text_encoder().embed(prompts)["text"]
    assert torch.equal(got[1], known[1])
    assert not torch.allclose(got[0], known[0])
    assert [part for part in PARTS if checkpoint.digest(part) != plain.digest(part)] == ["text"]


def test_a_token_of_ones_own(model_dir: Path, tmp_path: Path) -> None:
    save_file({"<sks>": torch.randn(1, 32)}, path := tmp_path / "a.safetensors")
    one, other = with_embeddings(model_dir, (None, path)), with_embeddings(model_dir, ("zzz", path))
    expected = one.text_encoder().embed("a <sks>")["text"]
    assert torch.equal(other.text_encoder().embed("a zzz")["text"], expected)
    assert one.digest("text") != other.digest("text")
    save_file({"<other>": torch.randn(1, 32)}, again := tmp_path / "b.safetensors")
    assert with_embeddings(model_dir, (None, path), (None, again)).text_encoder().embed("<sks> <other>")


@torch.no_grad()
@pytest.mark.parametrize(("family", "second"), [("sdxl", "clip_g"), ("flux", "t5")])
def test_embeddings_of_two_encoders(tmp_path: Path, family: str, second: str) -> None:
    torch.manual_seed(0)
    TINY[family]().save_pretrained(folder := tmp_path / family)
    vectors = {"clip_l": torch.randn(2, 32), second: torch.randn(2, 32)}
    save_file(vectors, path := tmp_path / "sks.safetensors")
    pipeline, plain = reference(folder), DiffusionCheckpoint(str(folder)).text_encoder().embed("a sks")
    for name, end in (("clip_l", ""), (second, "_2")):
        parts = {"text_encoder": getattr(pipeline, f"text_encoder{end}"), "tokenizer": getattr(pipeline, f"tokenizer{end}")}
        pipeline.load_textual_inversion(vectors[name], token="sks", **parts)
    if family == "sdxl":
        text, _, pooled, _ = pipeline.encode_prompt(["a sks"], device="cpu", do_classifier_free_guidance=False)
    else:
        text, pooled, _ = pipeline.encode_prompt("a sks", None, device="cpu")
    got = with_embeddings(folder, (None, path)).text_encoder().embed("a sks")
    for key, expected in (("text", text), ("pooled", pooled)):
        assert torch.equal(got[key], expected)
        assert not torch.allclose(got[key], plain[key])


def test_embeddings_that_do_not_fit_are_refused(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, reason in (
        ({"<sks>": torch.zeros(1, 48)}, "vectors of 48, where those of text_encoder have 32"),
        ({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 32)}, "where those of text_encoder_2 have None"),
        ({"a": torch.zeros(1, 32), "b": torch.zeros(1, 32)}, "no textual inversion: it has 2 tensors, such as a"),
        ({"a</w>": torch.zeros(1, 32)}, "already in tokenizer vocabulary"),
    ):
        save_file(content, path)
        message = refusal(with_embeddings(model_dir, (None, path)).text_encoder)
        assert message.startswith(f"teacher.embeddings={path}: ")
        assert reason in message
    path.write_bytes(b"")
    assert f"teacher.embeddings={path}: " in refusal(with_embeddings(model_dir, (None, path)).text_encoder)


def test_too_long_a_prompt_counts_all_vectors(model_dir: Path, tmp_path: Path) -> None:
    save_file({"<sks>": torch.randn(80, 32)}, path := tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="prompt of 82 tokens, of which the last 5 are cut"):
        with_embeddings(model_dir, (None, path)).text_encoder().embed("<sks>")
