"""Prompts from templates such as "a photo of a {breed} cat, {place}"."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter

import torch
import yaml

from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError


def fill_all(prompts: Sequence[str], words: Mapping[str, Sequence[str]], count: int, seed: int) -> list[str]:
    """Prompts of images 0 to count - 1. The prompt of image i depends on (seed, i) alone.

    Raises:
        UserError: for a placeholder without words.
    """
    return [fill(prompts, words, seeded_rng(seed, "prompt", i)) for i in range(count)]


def fill(templates: Sequence[str], words: Mapping[str, Sequence[str]], rng: torch.Generator) -> str:
    """A random template with random words for its placeholders, and "an" for "a" before a vowel."""

    def pick(options: Sequence[str]) -> str:
        return str(options[int(torch.randint(len(options), (), generator=rng))])

    template = pick(templates)
    filled = ""
    for literal, name, _, _ in Formatter().parse(template):
        filled += literal
        if name is None:
            continue
        if not words.get(name):
            raise UserError(f"prompts: '{template}' requires a list of words for {{{name}}}, such as words.{name}=[one,two]")
        word = pick(words[name])
        if filled.endswith((" a ", "A ")) and word[:1].lower() in "aeiou":
            filled = filled[:-1] + "n "
        filled += word
    return filled


def read_prompts(
    prompts: str | Sequence[str], words: Mapping[str, Sequence[str]]
) -> tuple[list[str], dict[str, Sequence[str]]]:
    """Templates and words: those of the arguments, or of a YAML file with the keys prompts and words.

    Raises:
        UserError: if there are none, or the file has another structure.
    """
    all_words = dict(words)
    if isinstance(prompts, str) and prompts.endswith((".yaml", ".yml")):
        path = Path(prompts).expanduser()
        if not path.is_file():
            raise UserError(f"prompts={prompts}: no such file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"prompts={prompts}: not YAML: {str(error).splitlines()[0]}") from error
        content = {"prompts": content} if isinstance(content, list) else content
        if not isinstance(content, dict) or not content.get("prompts") or set(content) - {"prompts", "words"}:
            raise UserError(f"prompts={prompts}: requires a list 'prompts' and, for templates, lists under 'words'")
        prompts, all_words = content["prompts"], {**(content.get("words") or {}), **all_words}
    templates = [prompts] if isinstance(prompts, str) else [str(prompt) for prompt in prompts]
    if not templates:
        raise UserError("prompts: give at least one")
    return templates, all_words
