"""Prompts from templates such as "a photo of a {breed} cat, {place}"."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import torch
import yaml

from dds_train.data.paths import PROMPT_FILES
from dds_train.distillation.rng import seeded_rng
from dds_train.errors import UserError, first_line


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
    for literal, name in parse(template):
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


def parse(template: str) -> list[tuple[str, str | None]]:
    """Literal text and the name of the placeholder behind it, or None, in turns.

    Raises:
        UserError: for braces that are no placeholder.
    """
    remedy = "a placeholder is {name}, with words.name=[one,two]; write {{ and }} for braces in the text"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"prompts: '{template}': {str(error).lower()}; {remedy}") from error
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not re.fullmatch(r"\w+", name)):
            raise UserError(f"prompts: '{template}': {{{name}}} is no placeholder; {remedy}")
    return [(literal, name) for literal, name, _, _ in parts]


def as_templates(prompts: Iterable[str]) -> list[str]:
    """Templates of prompts that are none: their braces stand for themselves.

    Raises:
        UserError: for the placeholder of captions, which images that are yet to be sampled do not have.
    """
    prompts = list(prompts)
    for prompt in prompts:
        if "{caption}" in prompt:
            raise UserError(f"source={prompt}: images that are synthesized have no captions yet; give data.prompts=...")
    return [prompt.replace("{", "{{").replace("}", "}}") for prompt in prompts]


def read_prompts(
    prompts: str | Sequence[str], words: Mapping[str, Sequence[str]]
) -> tuple[list[str], dict[str, Sequence[str]]]:
    """Templates and words: those of the arguments; of a YAML file with the keys prompts and words; or of a text file with a
    template in each line.

    Raises:
        UserError: if there are none, or the file has another structure.
    """
    all_words = {name: [one] if isinstance(one, str) else one for name, one in words.items()}
    if isinstance(prompts, str) and prompts.endswith(PROMPT_FILES):
        content = read_prompt_file(prompts)
        file_words = {name: [one] if isinstance(one, str) else one for name, one in content["words"].items()}
        prompts, all_words = content["prompts"], {**file_words, **all_words}
    templates = [prompts] if isinstance(prompts, str) else list(prompts)
    if not templates:
        raise UserError("prompts: give at least one")
    for template in templates:  # all of them: `fill` sees those that it picks
        parse(template)
    return templates, all_words


def read_prompt_file(path: str) -> dict[str, Any]:
    """The prompts and words of a file, as texts; raises UserError as `read_prompts`."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        if path.endswith(".txt"):
            return {"prompts": [line.strip() for line in text.splitlines() if line.strip()], "words": {}}
        content = yaml.load(text, Loader=yaml.BaseLoader)  # in which no and 1.0 are texts too
    except FileNotFoundError as error:
        raise UserError(f"prompts={path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={path}: cannot be read as UTF-8 text ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"prompts={path}: not YAML: {first_line(error)}") from error
    content = {"prompts": content} if isinstance(content, list) else content
    if not isinstance(content, dict) or set(content) - {"prompts", "words"}:
        content = {}
    prompts, words = content.get("prompts") or [], content.get("words") or {}
    texts = isinstance(words, dict) and all(
        isinstance(one, str) or (isinstance(one, list) and all(isinstance(word, str) for word in one))
        for one in [prompts, *words.values()]
    )
    if not prompts or not texts:
        raise UserError(f"prompts={path}: requires a list 'prompts' and, for templates, lists under 'words'")
    return {"prompts": [prompts] if isinstance(prompts, str) else prompts, "words": words}
