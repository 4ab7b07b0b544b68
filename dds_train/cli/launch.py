"""One command line: composed by Hydra, whatever flags are given, and checked."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dds_train.cli.conf import CONF
from dds_train.cli.overrides import expanded, key_of, prepared, quoted
from dds_train.cli.schema import Section, alternatives, nearest
from dds_train.cli.validate import known_keys, unknown_key, validate
from dds_train.errors import UserError
from dds_train.runs.ranks import rank_and_world
from dds_train.runs.stamp import run_stamp

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Mistakes(Exception):
    """All mistakes of a command line, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


class Launch:
    """What a command line asks for.

    Args:
        command: its name.
        arguments: overrides and flags of Hydra, in any order.

    Raises:
        Mistakes: of all overrides together.
    """

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self.command = command
        self.config: Section | None = None  # None for a sweep, and for flags that only show something
        self.jobs: list[list[str]] = []  # arguments of a sweep's jobs
        self._mistakes: dict[str, str] = {}  # line -> the key that it is about
        self._unknown: list[str] = []  # keys
        self._dropped: list[str] = []  # keys of overrides that are mistaken
        parser = get_args_parser()
        parser.error = self._flag_error  # type: ignore[method-assign]
        self.flags = parser.parse_intermixed_args(list(arguments))
        if self.flags.config_dir:
            self.flags.config_dir = os.path.expanduser(self.flags.config_dir)
        self.folders = [CONF, *([Path(self.flags.config_dir)] if self.flags.config_dir else [])]
        self.typed = {key_of(one): "".join(one.partition("=")[1:]) for one in self.flags.overrides or ()}
        in_full = [one for typed in self.flags.overrides or () for one in expanded(command, typed, self.folders, self.typed)]
        self.overrides = [prepared(command, one, self.folders, self.flags.multirun) for one in in_full]
        if any(getattr(self.flags, name) for name in ("hydra_help", "shell_completion", "info")):
            self._hydra(arguments, lambda cfg: None)
            return
        if self.flags.experimental_rerun:
            self._flag_error("--experimental-rerun: a pickled run is not checked; give its overrides")
        if self.flags.multirun and rank_and_world()[1] > 1:
            self._flag_error("--multirun: each job starts its own processes; use trainer.devices=N instead of a launcher")
        self._check_syntax()
        while not self._composes():
            pass
        if self._mistakes:
            raise Mistakes(sorted(self._mistakes, key=lambda line: self._position(self._mistakes[line])))

    def _composes(self) -> bool:
        """Whether this was the last attempt: without an override that Hydra refuses, further mistakes are found."""
        flags = ["--config-name", self.command]  # in front, see `main`
        for name in ("config_name", "config_dir", "config_path"):
            value = getattr(self.flags, name)
            flags += [f"--{name.replace('_', '-')}", value] if value and value != self.command else []

        def task(cfg: "DictConfig") -> None:
            config = self._checked(cfg)
            if self.flags.cfg:
                return
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                self._add_job(flags, config)
            else:
                self.config = config

        try:
            if self.flags.cfg:
                shown = ["--cfg", self.flags.cfg, *(["--resolve"] if self.flags.resolve else [])]
                shown += ["--package", self.flags.package] if self.flags.package else []
                self._hydra([*flags, *shown, *self.overrides], task)
            if self.flags.multirun:
                with tempfile.TemporaryDirectory() as scratch:  # Hydra writes a file for each sweep
                    self._hydra([*flags, "--multirun", *self.overrides, f"hydra.sweep.dir={scratch}"], task)
            else:
                self._hydra([*flags, *self.overrides], task)
        except (HydraException, OmegaConfBaseException) as error:
            return not self._drop(error)
        return True

    def _hydra(self, arguments: Sequence[str], task: Callable[["DictConfig"], None]) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
        sys.argv[1:] = arguments  # Lightning starts its other ranks with these
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.command)(task)()

    def _add_job(self, flags: Sequence[str], config: Any) -> None:
        """Each job is a process of its own, or DDP would run the whole sweep in every rank; its folder has its number."""
        job = HydraConfig.get()
        own = [one for one in job.overrides.hydra if not one.startswith(("hydra.mode", "hydra.sweep"))]
        overrides = [_unescaped(one) for one in job.overrides.task if key_of(one) != "output_dir"]
        if config is not None and hasattr(config, "output_dir"):
            overrides.append(prepared(self.command, f"output_dir={Path(config.output_dir) / str(job.job.num)}"))
        self.jobs.append([*flags, *own, *overrides])

    # ---------------------------------------------------------------- mistakes

    def _checked(self, cfg: "DictConfig") -> Section | None:
        config, mistakes = validate(self.command, cfg, self.typed, self._dropped, HydraConfig.get().runtime.choices)
        if self.flags.cfg:
            mistakes.pop("", None)  # what is missing may be missing where it is only shown
        unresolved: Any = OmegaConf.to_container(cfg)
        known = known_keys(self.command, unresolved)
        for key in self._unknown:
            self._mistakes[unknown_key(self.command, key, self.typed.get(key, ""), known)] = key
        self._mistakes |= {line: key for key, line in mistakes.items()}
        if config is None or self._mistakes:
            return None
        if "DDS_RUN_STAMP" in str(unresolved.get("output_dir")) and "DDS_RUN_STAMP" not in os.environ:
            try:  # Ranks agree on it, which takes a while. Lightning's other ranks have it from the environment.
                os.environ["DDS_RUN_STAMP"] = run_stamp()
            except UserError as error:
                self._mistakes[str(error)] = ""
                return None
            return self._checked(cfg)
        return config

    def _check_syntax(self) -> None:
        for override in list(self.overrides):
            key, equals, value = override.lstrip("+").partition("=")
            if not equals and not override.startswith("~"):
                line = f"'{override}' is no key=value; see: python -m dds_train {self.command} --help"
            elif " " in key:
                line = f"{key}: a key has no spaces"
            else:
                try:
                    parsed = OverridesParser.create().parse_override(override).value()
                    if not self._is_group(key) or override.startswith("~") or isinstance(parsed, (str, list, Sweep)):
                        continue
                    line = self._choices(key, value)
                except HydraException:
                    line = f"{key}={value}: quote the value: {key}=\"'{value}'\""
            self._mistakes[line] = key_of(override)
            self._remove(override)

    def _drop(self, error: Exception) -> bool:
        """Explain an error of Hydra; False if it is not about one of the overrides."""
        text = " ".join(str(error).split())
        choice = re.search(r"[Cc]ould not find '?([\w/]+?)/([^'/]+)'", text)
        patterns = (r"Could not (?:override|append) '([^']+)'", r"Could not delete from config\. '([^']+)'", r"full_key: (\S+)")
        refused = next((match for pattern in patterns if (match := re.search(pattern, text))), None)
        key = choice[1] if choice else (refused[1] if refused else "")
        ending = f"={choice[2]}" if choice else ""
        override = next((one for one in self.overrides if key_of(one) == key and one.endswith(ending)), None)
        if override is None:
            self._mistakes[re.split(r" See | Check | Config search path", text)[0]] = ""
            return False
        if choice:
            self._mistakes[self._choices(key, choice[2])] = key
        elif key == "experiment":
            self._mistakes[f"{override}: {self.command} takes no experiment; fit and synthesize do"] = key
        elif not any(key.startswith(f"{one}.") for one in self._dropped):  # of a group whose choice is mistaken
            self._unknown.append(key)
        self._remove(override)
        return True

    def _is_group(self, key: str) -> bool:
        return any((folder / key).is_dir() for folder in self.folders)

    def _choices(self, group: str, value: str) -> str:
        known = sorted(path.stem for folder in self.folders for path in (folder / group).glob("*.yaml"))
        paths = ["a path"] if group in ("teacher", "data") else []
        return f"{group}={value}: take {alternatives([*known, *paths])}{nearest(value, known)}"

    def _remove(self, override: str) -> None:
        self.overrides.remove(override)
        self._dropped.append(key_of(override))

    def _position(self, key: str) -> int:
        """Where a key stands on the command line, or a part of it; behind the others if it does not."""
        pairs = [(f"{key}.", f"{typed}.") for typed in self.typed if key]
        places = [place for place, (one, other) in enumerate(pairs) if one.startswith(other) or other.startswith(one)]
        return places[0] if places else len(self.typed) + (not key)

    def _flag_error(self, message: str) -> NoReturn:
        raise Mistakes([message])


def _unescaped(override: str) -> str:
    """Hydra's sweeper writes texts with backslashes."""
    name, _, value = override.partition("=")
    return f"{name}={quoted(str(OverridesParser.create().parse_override(override).value()))}" if "\\" in value else override
