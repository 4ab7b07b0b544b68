"""What --help prints: the YAML files, which are the documentation."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dds_train.cli.conf import CONF

COMMANDS = {
    "fit": "train a translator from two prompts",
    "predict": "edit images with a trained translator, one forward pass each",
    "optimize": "edit images one at a time, by optimising their latents",
    "evaluate": "compare editing methods on many images: metrics, a table, a report",
    "demo": "try a trained translator in the browser",
    "export": "write a trained translator for diffusers, for ONNX, or for the hub",
    "synthesize": "sample a data set of source images from the teacher",
}


def usage() -> str:
    lines = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    return f"""usage: python -m dds_train COMMAND [KEY=VALUE ...]

{lines}

python -m dds_train COMMAND --help shows a command's keys and their defaults.
Groups of keys are switched as a whole (teacher=sd15, loss=sds); experiments are added (+experiment=cat2lion)."""


def command_help(command: str) -> str:
    """The command's own YAML file, then those of its groups: the default choice in full, the others by what they change."""
    from dds_train.cli.schema import MODELS

    header, _, body = (CONF / f"{command}.yaml").read_text(encoding="utf-8").partition("defaults:\n")
    entries = "".join(line for line in body.splitlines(True) if line.startswith("  ") and "  - " in line)
    keys = body[body.rindex("  - ") :].partition("\n")[2]
    shared = [name for name in re.findall(r"^  - (\w+)$", entries, re.MULTILINE) if name not in ("_self_", "hydra_settings")]
    groups = [
        pair for pair in re.findall(r"^  - (\w+): (\w+)", entries, re.MULTILINE) if pair[0] in MODELS[command].model_fields
    ]
    parts = [f"python -m dds_train {command}: {COMMANDS[command]}\n", header, keys.lstrip("\n")]
    parts += ["\n" + (CONF / f"{name}.yaml").read_text(encoding="utf-8") for name in shared]
    parts += ["\n" + group_help(CONF / group, choice) for group, choice in groups]
    if "  - experiment: null" in entries:
        parts.append(f"\n# +experiment=NAME: {', '.join(sorted(file.stem for file in (CONF / 'experiment').glob('*.yaml')))}\n")
    return "".join(parts).rstrip("\n")


def group_help(folder: Path, choice: str) -> str:
    text = (folder / f"{choice}.yaml").read_text(encoding="utf-8")
    usual = dict(leaves(yaml.safe_load(text)))
    lines = [f"{folder.name}:  # {folder.name}={choice}", *(f"  {line}" for line in text.splitlines())]
    for file in sorted(folder.glob("*.yaml")):
        other = dict(leaves(yaml.safe_load(file.read_text(encoding="utf-8"))))
        changed = {key: value for key, value in other.items() if usual.get(key) != value and key != "defaults"}
        if any(value != "null" for value in changed.values()):
            lines.append(f"  # {folder.name}={file.stem}: {' '.join(f'{key}={value}' for key, value in changed.items())}")
    return "\n".join(lines) + "\n"


def leaves(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys, and values as they would be typed."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", as_typed(value)


def as_typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(as_typed, value))}]" if isinstance(value, list) else str(value)
