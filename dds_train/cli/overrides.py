"""Overrides as users type them -> as Hydra reads them."""

import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import BaseModel

from dds_train.cli.conf import CONF
from dds_train.cli.schema import MODELS, FreeText


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def prepared(command: str, override: str, folders: Sequence[Path] = (CONF,), sweep: bool = False) -> str:
    """`override` with its free text quoted, and a plus where users choose the names.

    Args:
        folders: of YAML files.
        sweep: whether choice(...) means several values, also of free text.
    """
    if override.startswith("~") or "=" not in override:
        return override
    key, _, value = override.lstrip("+").partition("=")
    kinds = list(types_at(MODELS[command], key.split(".")))
    if any(FreeText in marks for _, marks, _ in kinds) and not (sweep and re.fullmatch(r"choice\(.*\)", value)):
        value = quoted(value)
    is_group = any((folder / key).is_dir() for folder in folders)
    if key == "experiment":
        return f"experiment={value}"  # in the defaults of fit and synthesize
    if not is_group and not key.startswith("hydra.") and (override.startswith("+") or any(own for *_, own in kinds)):
        return f"++{key}={value}"
    return f"{override.partition('=')[0]}={value}"


Typed = tuple[Any, set[type], bool]


def types_at(annotation: Any, parts: Sequence[str], marks: Sequence[Any] = (), own: bool = False) -> Iterator[Typed]:
    """Everything that a dotted key can stand for in a model: type, marks, and whether its name is the user's own."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from types_at(arguments[0], parts, [*marks, *arguments[1:]], own)
    elif origin in (Union, types.UnionType):
        for one in arguments:
            yield from types_at(one, parts, marks, own)
    elif not parts:
        yield annotation, {type(mark) for mark in marks}, own
    elif is_model(annotation):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if parts[0] in fields:
            yield from types_at(fields[parts[0]].annotation, parts[1:], fields[parts[0]].metadata, own)
        elif own and annotation.model_config.get("extra") == "allow":
            yield Any, set(), own
    elif origin is dict:
        yield from types_at(arguments[1], parts[1:], (), own or arguments[0] is str)
    elif annotation is Any:
        yield Any, set(), own


def subkeys(command: str, key: str) -> list[str]:
    """Dotted keys beside `key` that the schema knows, such as those of a task."""
    group, _, _ = key.rpartition(".")
    models = [kind for kind, *_ in types_at(MODELS[command], group.split("."))] if group else []
    names = [field.alias or name for kind in models if is_model(kind) for name, field in kind.model_fields.items()]
    return [f"{group}.{name}" for name in names]


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def quoted(value: str) -> str:
    """Free text for Hydra, which would read commas, brackets and equals signs in it as its own grammar; or a list of texts."""
    is_list = value.startswith("[") and value.endswith("]") and not os.path.exists(value)
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if is_list and not any(mark in value for mark in "'\""):
        return f"[{','.join(quoted(one.strip()) for one in value[1:-1].split(',') if one.strip())}]"
    if value in ("null", "???", "") or is_list or is_quoted or value.startswith("${"):
        return value
    # Hydra's rule: a quote is escaped, and so are the backslashes before one; others stand for themselves.
    escaped = re.sub(r"(\\*)'", r"\1\1\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{escaped[len(escaped) - trailing :]}'"
