"""Overrides as users type them -> as Hydra reads them."""

import contextlib
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Union

import yaml
from pydantic import BaseModel

from dds_train.cli.conf import CONF
from dds_train.cli.schema import MODELS, CheckpointTeacher, FreeText, Short
from dds_train.data.paths import is_url

# A text between quotes that have no others of their kind inside.
QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""


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
    texts = [mark for _, marks, _ in kinds for mark in marks if isinstance(mark, FreeText)]
    if texts and not (sweep and re.fullmatch(r"choice\(.*\)", value)):
        value = quoted(value, literal=not any(mark.is_path for mark in texts))
    is_group = any((folder / key).is_dir() for folder in folders)
    if key == "experiment":
        return f"experiment={value}"  # in the defaults of fit and synthesize
    if not is_group and not key.startswith("hydra.") and (override.startswith("+") or any(own for *_, own in kinds)):
        return f"++{key}={value}"
    return f"{override.partition('=')[0]}={value}"


def expanded(
    command: str, override: str, folders: Sequence[Path] = (CONF,), typed: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Short forms in full: a value for a group of keys that has one (`Short`), a path for a teacher or a data source; a
    teacher's path with the settings of its family; and {...} for keys of the user's own, in place of those that are there.

    Args:
        folders: of YAML files.
        typed: all overrides, key -> "=value".
    """
    key, equals, value = override.lstrip("+").partition("=")
    family = typed.get("teacher.config", "")[1:] or value  # of a single file
    if key == "teacher.path" and "teacher" not in typed:
        return [*teacher_settings(command, family), override]
    if value.startswith("{") and not override.startswith("+"):
        kinds = [kind for kind, _, own in types_at(MODELS[command], key.split(".")) if not own]
        if any(typing.get_origin(kind) is dict and typing.get_args(kind)[0] is str for kind in kinds):
            return [f"~{key}", f"+{override}"]
    field = MODELS[command].model_fields.get(key)
    if not equals or field is None or override.startswith("~"):
        return [override]
    short = next((mark.key for mark in field.metadata if isinstance(mark, Short)), None)
    if short and not value.startswith("{"):
        return [f"{key}.{short}={value}"]
    is_choice = any((folder / key / f"{value}.yaml").is_file() for folder in folders)
    if key not in ("teacher", "data") or is_choice or not looks_like_path(value):
        return [override]
    if key == "data":
        has_shards = value.endswith(".tar") or is_url(value) or any(Path(value).expanduser().glob("*.tar"))
        return [f"data={'shards' if has_shards else 'folder'}", f"data.path={value}"]
    return [*teacher_settings(command, family), f"teacher.path={value}"]


def teacher_settings(command: str, path: str) -> list[str]:
    """The choice in conf/teacher whose settings suit a checkpoint, where the command has such settings: that of the same path,
    or of the class of its pipeline, and Stable Diffusion's while that is not known."""
    path = path.strip("'\"")
    if MODELS[command].model_fields["teacher"].annotation is CheckpointTeacher or re.match(r"null$|choice\(|\$\{", path):
        return []
    files = {file: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted((CONF / "teacher").glob("*.yaml"))}
    of_path = next((file.stem for file, settings in files.items() if settings["path"] == path), None)
    if of_path:
        return [f"teacher={of_path}"]
    pipeline = pipeline_class(path)
    of_class = (file.stem for file, settings in files.items() if settings.get("pipeline") == pipeline is not None)
    return [f"teacher={next(of_class, 'sd15')}"]


def pipeline_class(path: str) -> str | None:
    """What the model_index.json of a checkpoint says, in its folder or in a hub's cache."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        from dds_train.hub import cached_snapshot  # its imports take time

        folder = cached_snapshot(path) or folder
    for index in (folder / "model_index.json", *folder.glob("snapshots/*/model_index.json")):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return str(json.loads(index.read_text(encoding="utf-8")).get("_class_name"))
    return None


def looks_like_path(value: str) -> bool:
    return "/" in value or "\\" in value or value.startswith(("~", ".")) or value.endswith(".tar") or os.path.exists(value)


Typed = tuple[Any, Sequence[Any], bool]


def types_at(annotation: Any, parts: Sequence[str], marks: Sequence[Any] = (), own: bool = False) -> Iterator[Typed]:
    """Everything that a dotted key can stand for in a model: type, marks, and whether its name is the user's own."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from types_at(arguments[0], parts, [*marks, *arguments[1:]], own)
    elif origin in (Union, types.UnionType):
        for one in arguments:
            yield from types_at(one, parts, marks, own)
    elif not parts:
        yield annotation, marks, own
    elif is_model(annotation):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if parts[0] in fields:
            yield from types_at(fields[parts[0]].annotation, parts[1:], fields[parts[0]].metadata, own)
        elif own and annotation.model_config.get("extra") == "allow":
            yield Any, (), own
    elif origin is dict:
        yield from types_at(arguments[1], parts[1:], (), own or arguments[0] is str)
    elif annotation is Any:
        yield Any, (), own


def subkeys(command: str, key: str) -> list[str]:
    """Dotted keys beside `key` that the schema knows, such as those of a task."""
    group, _, _ = key.rpartition(".")
    models = [kind for kind, *_ in types_at(MODELS[command], group.split("."))] if group else []
    names = [field.alias or name for kind in models if is_model(kind) for name, field in kind.model_fields.items()]
    return [f"{group}.{name}" for name in names]


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def quoted(value: str, literal: bool = False) -> str:
    """Free text for Hydra, which would read commas, brackets and equals signs in it as its own grammar; or a list of texts.

    Args:
        literal: ${...} stands for itself, and for no other key.
    """
    if value.startswith("[") and value.endswith("]") and not os.path.exists(value):
        return f"[{','.join(quoted_text(one, literal) for one in split_list(value[1:-1]))}]"
    return value if value in ("null", "???", "") or (value.startswith("${") and not literal) else quoted_text(value, literal)


def split_list(inside: str) -> list[str]:
    """Texts between commas; those within quotes, with commas and all."""
    items = [match[1].strip() for match in re.finditer(rf"\s*((?:{QUOTED})(?=\s*(?:,|$))|[^,]*)\s*(?:,|$)", inside)]
    return [item for item in items if item]


def quoted_text(value: str, literal: bool) -> str:
    if re.fullmatch(QUOTED, value, re.DOTALL):
        return re.sub(r"(?<!\\)\$\{", r"\${", value) if literal else value
    if literal:  # OmegaConf's rule: a backslash before it, and the backslashes in front doubled
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    # Hydra's rule: a quote is escaped, and so are the backslashes before one; others stand for themselves.
    escaped = re.sub(r"(\\*)'", r"\1\1\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{escaped[len(escaped) - trailing :]}'"
