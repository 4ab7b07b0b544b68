"""Prompts from templates and files."""

from pathlib import Path

import pytest

from dds_train.data.prompts import fill, fill_all, read_prompts
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError


def test_templates_and_articles() -> None:
    words = {"fur": ["orange", "gray"], "place": ["here"]}
    made = {fill(["a photo of a {fur} cat {place}", "a cat"], words, seeded_rng(i)) for i in range(50)}
    assert made == {"a photo of an orange cat here", "a photo of a gray cat here", "a cat"}
    with pytest.raises(UserError, match=r"words\.breed"):
        fill(["a {breed} cat"], words, seeded_rng(0))


def test_prompts_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("prompts: ['a {breed} cat']\nwords: {breed: [tabby]}\n")
    assert fill_all(*read_prompts(str(tmp_path / "p.yaml"), {}), 2, 0) == ["a tabby cat"] * 2
    assert read_prompts("a cat, sitting", {}) == (["a cat, sitting"], {})
    (tmp_path / "bad.yaml").write_text("prompt: x")
    for wrong in (str(tmp_path / "bad.yaml"), str(tmp_path / "none.yaml"), []):
        with pytest.raises(UserError, match="prompts"):
            read_prompts(wrong, {})
