"""What --help prints: the YAML files, which are the documentation."""

import re

from dds_train.cli.conf import CONF

COMMANDS = {
    "fit": "train a translator from two prompts",
    "predict": "edit images with a trained translator, one forward pass each",
    "optimize": "edit images one at a time, by optimising their latents",
    "evaluate": "score editing methods on many images",
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
    body = (CONF / f"{command}.yaml").read_text()
    intro, _, rest = body.partition("defaults:\n")
    _, _, keys = rest.partition("_self_\n")
    sections = []
    for group, choice in re.findall(r"^  - (\w+): (\w+)", rest, re.MULTILINE):
        if group == "experiment":
            continue
        path = CONF / group
        others = ", ".join(sorted(file.stem for file in path.glob("*.yaml")))
        indented = "".join(f"  {line}\n" for line in (path / f"{choice}.yaml").read_text().splitlines())
        sections.append(f"{group}: {choice}    # of {others}\n{indented}")
    return f"python -m dds_train {command}: {COMMANDS[command]}\n\n{intro}\n{keys}\n" + "\n".join(sections)
