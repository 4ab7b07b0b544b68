"""Prompts from templates and files."""

from pathlib import Path

import pytest

from dds_train.data.prompts import as_templates, fill, fill_all, read_prompts
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


def test_every_text_of_a_file_is_text(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "prompts: a {word} sign {number}\nwords: {word: [no, yes], number: 1.50}\n", encoding="utf-8"
    )
    made = set(fill_all(*read_prompts(str(tmp_path / "p.yaml"), {}), 20, 0))
    assert made == {"a no sign 1.50", "a yes sign 1.50"}
    assert fill_all(*read_prompts("a {fur} cat", {"fur": "gray"}), 1, 0) == ["a gray cat"]
    (tmp_path / "p.txt").write_text("\ufeffa cat, l'été\n\n  a dog  \n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.txt"), {}) == (["a cat, l'été", "a dog"], {})
    for text in ("", "words: {a: {b: c}}\nprompts: x", "prompts: [[a]]", "- a: b", "[", "7"):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(UserError, match="prompts="):
            read_prompts(str(tmp_path / "p.yaml"), {})


@pytest.mark.parametrize("braces", ["}", "{", "{red|blue}", "{}", "{0.a}", "{a!r}", "{a:b}"])
def test_braces_that_are_no_placeholder(braces: str) -> None:
    with pytest.raises(UserError, match=r"^prompts: 'a .*write \{\{ and \}\} for braces"):
        read_prompts([f"a {braces} cat", "a dog"], {"a": ["x"], "red|blue": ["y"], "0": ["z"]})
    # A source prompt is no template: its braces are part of it.
    assert fill_all(*read_prompts(as_templates([f"a {braces} cat"]), {}), 1, 0) == [f"a {braces} cat"]
    with pytest.raises(UserError, match="have no captions yet"):
        as_templates(["{caption}"])
