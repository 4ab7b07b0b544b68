"""The command line: argv -> Hydra -> a command's ``run(cfg)``.

Checks everything that can be checked without loading a model first, so that a mistake costs one line and a second; torch and
Lightning are imported by the commands alone.
"""

import contextlib
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dds_train.cli import checks
from dds_train.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "fit": "train a translator from two sentences",
    "predict": "edit pictures with a trained translator, one pass each",
    "optimize": "edit pictures one at a time, by descent on their latents",
    "evaluate": "measure editors on many pictures: scores, and a page that shows them",
    "demo": "try a trained translator in the browser",
    "export": "write a trained translator for diffusers, for ONNX, or for the hub",
    "synthesize": "let the teacher draw a data set of source images",
}
# Values of these keys are free text or paths. Hydra would read commas, brackets and equals signs in them as its own grammar.
TEXT_KEYS = {
    "source", "target", "instruction", "prompt", "prompts", "image", "ckpt", "output_dir", "output", "resume",
    "teacher.path", "data.path", "data.prompts", "clip.model", "structure.model", "loss.negative",
    "mask", "cache", "examples", "push", "targets", "fid", "lpips.hub_dir", "host", "metrics",
}  # fmt: skip
OPEN = ("tasks.", "words.", "data.words.", "method.", "critters.source.", "critters.edit.")  # groups whose keys users name
TASK_TEXT = re.compile(r"tasks\.[^.]+\.(source|target|instruction)")
# Beside the package in a checkout, inside it in a wheel.
CONF = next(p for p in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf") if p.is_dir())


def main() -> None:
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if argv else 2)
    try:
        command, overrides = split(argv)
    except UserError as error:
        fail(error)
    if any(o in ("-h", "--help") for o in overrides):
        print(command_help(command))
        return
    overrides = flags_first([quoted(opened(o)) for o in overrides])
    # One stamp for all processes of a run: under a launcher each would read its own clock.
    os.environ.setdefault("DDS_RUN_STAMP", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    # Rewritten, not consumed: Lightning starts its other ranks with this same argv.
    sys.argv[1:] = ["--config-name", command, *overrides]
    launch(command, overrides)


def split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """argv without the program -> (command, overrides).

    Accepts what `main` rewrote as well ("--config-name fit ..."): the ranks that Lightning starts come that way.
    """
    command, *rest = argv[1:] if argv[0] == "--config-name" else argv
    if command not in COMMANDS:
        raise UserError(f"no command '{command}'{nearest(command, COMMANDS)}; the commands are {', '.join(COMMANDS)}")
    return command, rest


def launch(command: str, overrides: list[str]) -> None:
    import hydra

    only_overrides = not any(o.startswith("-") for o in overrides)  # Hydra's own flags change what is composed
    if only_overrides and "LOCAL_RANK" not in os.environ:
        try:
            check(command, overrides)
        except UserError as error:
            fail(error)

    def task(cfg: "DictConfig") -> None:
        run: Callable[[DictConfig], None] = importlib.import_module(f"dds_train.commands.{command}").run
        try:
            run(cfg)
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(task)()


# ---------------------------------------------------------------- checks before anything is loaded


def check(command: str, overrides: Sequence[str]) -> None:
    """Compose the configuration and look for what is unknown, missing or of the wrong kind.

    Raises:
        UserError: naming the key, the value and the remedy.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        if override.startswith("experiment="):
            raise UserError(f"experiments are added with a plus sign: +{override}")
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"'{override}' is no key=value; see: python -m dds_train {command} --help")
    groups = {p.name for p in CONF.iterdir() if p.is_dir()}
    choices = [o for o in overrides if o.lstrip("+").split("=")[0] in groups]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        usual = compose(command)
        try:
            usual = compose(command, choices)
            cfg = compose(command, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error, usual, overrides)) from error
    expected, values = leaves(usual), leaves(cfg)
    checks.check_missing(command, values)
    checks.check_kinds(expected, values)
    checks.check_ranges(values)
    checks.check_tasks(values)
    checks.check_paths(values)


def explain(error: Exception, usual: "DictConfig", overrides: Sequence[str]) -> str:
    """Hydra's complaint in one line."""
    text = " ".join(str(error).split())
    unknown = re.search(r"Key '([^']+)' is not in struct", text) or re.search(r"Could not override '([^']+)'", text)
    option = re.search(r"[Cc]ould not find '?([\w/]+?)/([^'/]+)'", text)
    if option:
        group, name = option.groups()
        known = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        return f"{group}={name}: no such choice{nearest(name, known)}; there are {', '.join(known)}"
    if unknown:
        full = next((o.split("=")[0] for o in overrides if o.split("=")[0].endswith(unknown[1])), unknown[1])
        return f"no key '{full}' in this command's configuration{nearest(full, leaves(usual))}"
    if "LexerNoViableAltException" in text or "no viable alternative" in text or "mismatched input" in text:
        quoted_whole = (o for o in overrides if o in text)
        bad = next(quoted_whole, next((o for o in overrides if o.split("=", 1)[-1] in text), overrides[0]))
        key, _, value = bad.removeprefix("++").partition("=")  # two are ours: see `opened`
        if " " in key:
            return f"{key}: a key has no spaces"
        return f"{key}={value}: quote the value: {key}=\"'{value}'\""
    return text.split(" See ")[0]


def leaves(cfg: "DictConfig") -> dict[str, Any]:
    """{"trainer.max_steps": 2000, "trainer": None, ...}: groups have keys too. What cannot be resolved stays as written."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    found: dict[str, Any] = {}

    def visit(node: dict[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, str) and value.startswith("${"):
                with contextlib.suppress(OmegaConfBaseException):
                    resolved = OmegaConf.select(cfg, key)
                    value = OmegaConf.to_container(resolved) if OmegaConf.is_config(resolved) else resolved
            found[key] = None if isinstance(value, dict) else value
            if isinstance(value, dict):
                visit(value, f"{key}.")

    visit(OmegaConf.to_container(cfg, resolve=False), "")  # type: ignore[arg-type]
    return found


def nearest(word: str, known: Any) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def flags_first(overrides: Sequence[str]) -> list[str]:
    """Hydra takes flags of its own (--config-dir DIR, --cfg job) only in front of the overrides."""

    def is_flag(one: str) -> bool:
        return one.startswith("-") or not ("=" in one or one.startswith("~"))

    return sorted(overrides, key=lambda one: not is_flag(one))


def opened(override: str) -> str:
    """Under `tasks` and `words` users name keys of their own: there Hydra is told to add what is not there yet."""
    bare = override.lstrip("+")
    return f"++{bare}" if bare.startswith(OPEN) else override


def quoted(override: str) -> str:
    """Quote a free-text value for Hydra, unless the user did or it is a list."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if not equals or not (name in TEXT_KEYS or TASK_TEXT.fullmatch(name)) or value in ("null", "???", ""):
        return override
    is_list = value.startswith("[") and value.endswith("]") and not Path(value).exists()
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if is_list or is_quoted or value.startswith("${"):
        return override
    # Hydra's rule: a quote is escaped, and so are the backslashes before one; others stand for themselves.
    escaped = re.sub(r"(\\*)'", r"\1\1\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"{key}='{escaped}{escaped[len(escaped) - trailing :]}'"


def fail(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------- help


def usage() -> str:
    lines = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    return f"""usage: python -m dds_train COMMAND [KEY=VALUE ...]

{lines}

python -m dds_train COMMAND --help shows a command's keys and their usual values.
Groups of keys are switched as a whole (teacher=sd15, loss=sds); experiments are added (+experiment=cat2lion)."""


def command_help(command: str) -> str:
    """The command's configuration file is its documentation."""
    groups = sorted(p.name for p in CONF.iterdir() if p.is_dir())
    choices = "\n".join(f"  {g}: {', '.join(sorted(p.stem for p in (CONF / g).glob('*.yaml')))}" for g in groups)
    body = (CONF / f"{command}.yaml").read_text()
    return f"""python -m dds_train {command}: {COMMANDS[command]}

{body}
Groups (GROUP=CHOICE; experiments with a plus sign, +experiment=CHOICE):
{choices}"""
