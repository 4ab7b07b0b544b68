"""A composed configuration as a typed one, or every mistake in it: one line each."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import ValidationError, create_model
from pydantic_core import ErrorDetails

from dds_train.cli.conf import CONF
from dds_train.cli.help import as_typed
from dds_train.cli.overrides import subkeys
from dds_train.cli.schema import (
    CROSS_CHECKS,
    EXPERIMENT_KEYS,
    MODELS,
    SOURCES,
    Section,
    SubkeyError,
    SyntheticData,
    alternatives,
    nearest,
)
from dds_train.errors import UserError, first_line
from dds_train.images.edit_list import is_edit_list, read_edit_list

if TYPE_CHECKING:
    from omegaconf import DictConfig

Mistakes = dict[str, str]  # key as it was typed -> line


def validate(
    command: str,
    cfg: "DictConfig",
    typed: Mapping[str, str] = MappingProxyType({}),
    dropped: Sequence[str] = (),
    choices: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Section | None, Mistakes]:
    """The configuration of `command`, unless there are mistakes.

    Args:
        cfg: what Hydra has composed.
        typed: overrides on the command line, key -> "=value".
        dropped: those that were mistaken and are not in `cfg`.
        choices: group -> the YAML file that was chosen.
    """
    model = MODELS[command]
    unused = EXPERIMENT_KEYS.get(command, frozenset())
    plain, interpolations, mistakes = resolve(cfg, OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in unused]))
    for key, text in typed.items():  # an experiment may have such a key
        if key.split(".")[0] in unused and key not in dropped:
            mistakes[key] = unknown_key(command, key, text, known_keys(command, plain))
    drop_synthetic_keys(plain, typed)
    for key in ("source", "target"):  # null is no prompt where there has to be one
        if plain.get(key, "") is None and default(command, key, {}) == "???":
            plain[key] = "???"
    missing = missing_keys(plain)
    wrong = {error_key(plain, error): error for error in reversed(errors_of(model, plain))}
    wrong = {key: error for key, error in wrong.items() if key not in missing}

    def follows(key: str) -> bool:
        """Whether the value of `key` comes from a key that is mistaken itself."""
        return any(f"{source}.".startswith(f"{other}.") for source in interpolations.get(key, ()) for other in wrong)

    def value(key: str) -> str:
        return shown(plain, key) or typed.get(key) or (f"={choices[key]}" if key in choices else "")

    mistakes = {key: line for key, line in mistakes.items() if not follows(key)}
    for key, error in wrong.items():
        if error["type"] == "extra_forbidden":
            mistakes[key] = unknown_key(command, key, value(key), known_keys(command, plain))
        elif key not in mistakes and not follows(key):
            mistakes[key] = f"{key}{value(key)}: {message(command, key, error, choices)}"
    bad = {key.split(".")[0] for key in (*mistakes, *wrong, *missing)}
    for key, problem in cross_checks(model, {name: one for name, one in plain.items() if name not in bad}):
        mistakes[key] = f"{key}{value(key)}: {problem}"
    lacking = " ".join(f"{key}=..." for key in sorted(missing) if key not in dropped)
    if lacking:
        mistakes[""] = f"{command} needs {lacking}; see: python -m dds_train {command} --help"
    return (None if mistakes or missing else model.model_validate(plain)), mistakes


# ---------------------------------------------------------------- resolve


def resolve(cfg: "DictConfig", used: "DictConfig") -> tuple[dict[str, Any], dict[str, list[str]], Mistakes]:
    """`used`, whose interpolations refer to `cfg`, as plain data; key -> keys that its interpolation names; what cannot be
    resolved."""
    interpolations: dict[str, list[str]] = {}
    mistakes: Mistakes = {}

    def visit(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            return {str(key): visit(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        if (isinstance(node, list) and any("${" in str(one) for one in node)) or (isinstance(node, str) and "${" in node):
            interpolations[path] = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", str(node))
            try:
                value = OmegaConf.select(cfg, path, throw_on_missing=True)
            except InterpolationToMissingValueError:
                return "???"
            except OmegaConfBaseException as error:
                mistakes[path] = f"{path}={node}: {first_line(error)}"
                return None
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        return node

    return visit(OmegaConf.to_container(used, resolve=False), ""), interpolations, mistakes


def drop_synthetic_keys(plain: dict[str, Any], typed: Mapping[str, str]) -> None:
    """An experiment says how its images are synthesized; with another of our data sources that has no meaning."""
    data = plain.get("data")
    if isinstance(data, dict) and SOURCES.get(str(data.get("_target_")), "synthetic") != "synthetic":
        own = set(yaml.safe_load((CONF / "data" / f"{SOURCES[data['_target_']]}.yaml").read_text(encoding="utf-8")))
        for name in set(SyntheticData.model_fields) - own - {key.partition(".")[2] for key in typed}:
            data.pop(name, None)


def missing_keys(plain: dict[str, Any]) -> list[str]:
    """Keys without a value ("???", which becomes None), but for source and target where each task or line of an edit list has
    its own."""

    def visit(node: Any, path: str) -> Iterator[str]:
        for key, value in node.items():
            name = f"{path}.{key}" if path else key
            if value == "???":
                node[key] = None
                yield name
            elif isinstance(value, dict):
                yield from visit(value, name)

    missing = list(visit(plain, ""))
    return [key for key in missing if not (key in ("source", "target") and supplied(plain, key))]


def supplied(plain: Mapping[str, Any], key: str) -> bool:
    tasks, image = plain.get("tasks"), plain.get("image")
    if isinstance(tasks, dict) and tasks:
        return all(isinstance(task, dict) and task.get(key) for task in tasks.values())
    try:
        return is_edit_list(image) and all(getattr(line, key) for line in read_edit_list(image))
    except UserError:  # the check of `image` names it
        return True


# ---------------------------------------------------------------- pydantic's errors in our words


def errors_of(model: type[Section], plain: dict[str, Any]) -> list[ErrorDetails]:
    try:
        model.model_validate(plain)
    except ValidationError as error:
        return error.errors()
    return []


def cross_checks(model: type[Section], known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Problems of several keys, of those that are valid alone."""
    fields = {name: (field.annotation, field) for name, field in model.model_fields.items() if name in known}
    valid = create_model("Valid", __base__=Section, **fields).model_validate(known)  # type: ignore[call-overload]
    for check in CROSS_CHECKS:
        names = list(inspect.signature(check).parameters)
        if set(names) <= set(known):
            yield from check(**{name: getattr(valid, name) for name in names})


def error_key(plain: Any, error: ErrorDetails) -> str:
    """The dotted key of an error; pydantic's location has the tags of unions too."""
    node, parts = plain, []
    for position, part in enumerate(error["loc"]):
        inside = isinstance(node, dict) and part in node
        last = position == len(error["loc"]) - 1 and error["type"] in ("missing", "extra_forbidden")
        if inside or last:
            parts.append(str(part))
        node = node[part] if inside else (None if isinstance(node, list) else node)
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, SubkeyError):
        parts.append(reason.key)
    if error["type"] == "union_tag_invalid":
        parts.append(error["ctx"]["discriminator"].strip("'"))
    return ".".join(parts)


def shown(plain: Any, key: str) -> str:
    """ "=value", as it would be typed."""
    value = plain
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return ""
        value = value[part]
    return "" if isinstance(value, dict) or not key else f"={as_typed(value)}"


KINDS = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "list_type": "expected a list",
}


def message(command: str, key: str, error: ErrorDetails, choices: Mapping[str, str]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        group = key.split(".")[0]
        return f"is not in {group}={choices[group]}; take another" if group in choices else f"is not there; set {key}=..."
    if kind in ("literal_error", "union_tag_invalid"):
        known = re.findall(r"'([^']*)'", context.get("expected", context.get("expected_tags", "")))
        return f"take {alternatives(known)}{nearest(str(error['input']), known)}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found"):
        return f"has several keys, such as {subkey_examples(command, key, choices)}"
    if kind == "too_short":
        return f"give at least one{suffix(command, key, choices)}"
    return f"{KINDS[kind]}{suffix(command, key, choices)}" if kind in KINDS else error["msg"]


def unknown_key(command: str, key: str, value: str, known: Sequence[str]) -> str:
    if value.startswith("={") and key in known:  # of what is in the braces
        return f"{key}{value}: give its keys one by one, as {key}.NAME=VALUE"
    what = "group" if (CONF / key).is_dir() else "key"
    more = () if (CONF / key.split(".")[0]).is_dir() else subkeys(command, key)  # a group has the keys of its YAML file
    return f"{key}{value}: no {what} '{key}' in {command}{nearest(key, [*known, *more])}"


def suffix(command: str, key: str, choices: Mapping[str, str]) -> str:
    usual = example(command, key, choices)
    return "" if usual is None else f", such as {usual}"


def example(command: str, key: str, choices: Mapping[str, str]) -> str | None:
    """The default in the YAML files, if it is a value."""
    value = default(command, key, choices)
    reference = re.fullmatch(r"\$\{([a-z_.]+)\}", value) if isinstance(value, str) else None
    if reference:
        return example(command, reference[1], choices)
    return None if value in (None, "", "???", {}, []) or "${" in str(value) else as_typed(value)


def default(command: str, key: str, choices: Mapping[str, str]) -> Any:
    group, _, rest = key.partition(".")
    path, inside = (CONF / group / f"{choices[group]}.yaml", rest) if group in choices else (CONF / f"{command}.yaml", key)
    value: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    for part in inside.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def subkey_examples(command: str, key: str, choices: Mapping[str, str]) -> str:
    keys = default(command, key, choices) or ({"target": "..."} if key.startswith("tasks.") else {"NAME": "VALUE"})
    return " ".join(
        f"{key}.{name}={example(command, f'{key}.{name}', choices) or as_typed(value)}" for name, value in keys.items()
    )


def known_keys(command: str, plain: Any) -> list[str]:
    """Dotted keys of a configuration, groups included."""

    def visit(node: Any, path: str) -> Iterator[str]:
        for name, value in node.items():
            key = f"{path}.{name}" if path else name
            if not path and name not in MODELS[command].model_fields:
                continue
            yield key
            if isinstance(value, dict):
                yield from visit(value, key)

    return list(visit(plain, ""))
