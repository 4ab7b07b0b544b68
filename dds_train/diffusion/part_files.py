"""The files of a checkpoint's parts: which ones are loaded, and the identity of the weights in them."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dds_train.errors import UserError, first_line
from dds_train.runs.digest import cached_by_file

TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))
TOKENIZER_FILES = (
    TOKENIZER_CONFIG, *(name for files in VOCABULARIES for name in files), "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
# Of weights the first one that exists: whole precision before variants, safetensors before pickles.
WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model.bin",
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
VARIANT = re.compile(r"(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(?:safetensors|bin)\.index)?\.(\w+)\.\w+")
POINTER = b"version https://git-lfs"


def find_weights(names: Collection[str]) -> tuple[str | None, str | None]:
    """The file, or index of files, that holds the weights among the files of a part; and its variant, such as fp16."""
    variants = {match[1] for name in names if (match := VARIANT.fullmatch(name))}
    for variant in (None, *sorted(variants, key=lambda one: (one != "fp16", one))):
        for name in WEIGHTS:
            stem, _, extension = name.rpartition(".")
            name = f"{stem}.{variant}.{extension}" if variant else name
            if name in names:
                return name, variant
    return None, None


def files_to_load(names: Collection[str]) -> list[str]:
    """Of the files of a part those that are loaded, but for configurations: a tokenizer's, or weights with all their shards."""
    weights, variant = find_weights(names)
    tokenizer = [name for name in TOKENIZER_FILES if name in names]
    if weights is None or not weights.endswith(".json"):
        return [*tokenizer, *([weights] if weights else [])]
    (stem, kind), of_variant = weights.split(".")[:2], rf"(\.{variant})?" if variant else ""
    shards = re.compile(rf"{stem}{of_variant}-\d+-of-\d+{of_variant}\.{kind}")
    return [*tokenizer, weights, *sorted(name for name in names if shards.fullmatch(name))]


def is_complete(folder: Path) -> bool:
    """Whether a part has all files that are loaded, as far as its own files tell: of a network, tokenizer or scheduler."""
    names = _names(folder)
    if "scheduler_config.json" in names:
        return True
    if folder.name.startswith("tokenizer"):
        return TOKENIZER_CONFIG in names and has_vocabulary(names)
    weights, _ = find_weights(names)
    shards = read_json(folder / weights)["weight_map"].values() if weights and weights.endswith(".json") else ()
    return weights is not None and "config.json" in names and set(shards) <= names


def has_vocabulary(names: Collection[str]) -> bool:
    """Whether a tokenizer with these files knows any tokens: without, it loads all the same."""
    return any(set(files) <= set(names) for files in VOCABULARIES)


def refuse_pointers(root: Path, folders: Collection[str], key: str) -> None:
    """Raises UserError, naming `key`, if a file to be loaded is what git leaves where git-lfs has not fetched it."""
    for folder in folders:
        for name in files_to_load(_names(root / folder)):
            with (root / folder / name).open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    raise UserError(f"{key}: {folder}/{name} is a git-lfs pointer, not the file; run git lfs pull in {root}")


def weights_digests(folder: Path) -> dict[str, list[str]]:
    """The identity of the weights in `folder`, whatever the files' names, number and format: "exact", and "half", which is
    that of a copy in half precision too.

    A tensor counts by its values: its name and shape differ between versions of the libraries that wrote it.

    Raises:
        UserError: if there are none, or they cannot be read.
    """
    names = [name for name in files_to_load(_names(folder)) if name.endswith((".safetensors", ".bin"))]
    if not names:
        raise UserError(f"teacher: no weights in {folder} (looked for {', '.join(WEIGHTS)}, and their variants such as fp16)")
    digests = [cached_by_file(folder / name, "weights", _file_digests) for name in names]
    return {kind: sorted(one for each in digests for one in each[kind]) for kind in ("exact", "half")}


def read_json(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict):
            raise ValueError("it has no keys")
        return result
    except OSError as error:
        raise UserError(f"teacher: {path}: {error.strerror}; copy the checkpoint whole") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"teacher: {path} cannot be read as JSON: {error}") from error


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()


def tensor_digests(tensors: Iterable[Tensor]) -> dict[str, list[str]]:
    """The identity of weights, as `weights_digests`."""
    exact, half = [], []
    for tensor in tensors:
        if tensor.is_floating_point():  # others are buffers, such as positions
            exact.append(_sha256(tensor.float()))
            half.append(_sha256(tensor.float().half()))
    return {"exact": sorted(exact), "half": sorted(half)}


def _file_digests(path: Path) -> dict[str, list[str]]:
    try:
        return tensor_digests(_tensors(path))
    except Exception as error:  # whatever the two readers raise
        reason = first_line(error)
        raise UserError(f"teacher: {path} cannot be read: {reason}") from error


def _tensors(path: Path) -> Iterator[Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield file.get_tensor(name)
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        yield from {(one.data_ptr(), one.shape): one for one in loaded.values()}.values()  # safetensors have tied weights once


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().flatten().numpy().data).hexdigest()[:32]
