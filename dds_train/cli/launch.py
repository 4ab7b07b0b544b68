"""Hydra's start of a command: whatever flags are given, the configuration that Hydra composes is checked, then run."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dds_train.cli.conf import CONF
from dds_train.cli.overrides import key_of, prepared
from dds_train.cli.schema import alternatives, nearest
from dds_train.cli.validate import known_keys, unknown_key, validate
from dds_train.errors import UserError
from dds_train.runs.stamp import run_stamp

if TYPE_CHECKING:
    from omegaconf import DictConfig


ONLY_SHOW = ("hydra_help", "shell_completion", "info", "experimental_rerun")  # flags that start nothing of ours


class Launch:
    """One command line.

    Args:
        command: its name.
        arguments: overrides and flags of Hydra, in any order.
    """

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self.command = command
        self.mistakes: dict[str, str] = {}  # line -> the key that it is about
        self.unknown: list[str] = []  # keys
        self.dropped: list[str] = []  # keys of overrides that are mistaken
        self.jobs: list[list[str]] = []  # arguments of a sweep's jobs
        parser = get_args_parser()
        parser.error = self._flag_error  # type: ignore[method-assign]
        self.flags = parser.parse_intermixed_args(list(arguments))
        if self.flags.config_dir:
            self.flags.config_dir = os.path.expanduser(self.flags.config_dir)
        folders = [self.flags.config_dir] if self.flags.config_dir else []
        self.overrides = [prepared(command, one, folders) for one in self.flags.overrides or ()]
        self.typed = {key_of(one): one.partition("=")[2] for one in self.flags.overrides or ()}

    def start(self, run: Callable[[str, Any], None]) -> list[str]:
        """Check everything, then ``run(command, config)``, or the jobs of a sweep; or else return all mistakes, a line each."""
        if any(getattr(self.flags, name) for name in ONLY_SHOW):
            self._hydra(sys.argv[1:], lambda cfg: None)
            return []
        self._check_syntax()
        with tempfile.TemporaryDirectory() as scratch:  # for what Hydra writes of a sweep
            while not self._composes(run, scratch):
                pass
        if self.mistakes:
            return sorted(self.mistakes, key=lambda line: self._position(self.mistakes[line]))
        return self._sweep() if self.jobs else []

    def _composes(self, run: Callable[[str, Any], None], scratch: str) -> bool:
        """Whether this was the last attempt: without overrides that Hydra refuses, further mistakes are found."""
        task_runs = False

        def task(cfg: "DictConfig") -> None:
            nonlocal task_runs
            task_runs = True
            config = self._validate(cfg)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                self._add_job(cfg)
            elif config is not None and not self.flags.cfg:
                run(self.command, config)
            task_runs = False

        try:
            if self.flags.cfg:
                shown = ["--cfg", self.flags.cfg, *(["--resolve"] if self.flags.resolve else [])]
                shown += ["--package", self.flags.package] if self.flags.package else []
                self._hydra([*shown, *self._flags(), *self.overrides], task)
                self.flags.resolve = False
            sweep = ["--multirun"] if self.flags.multirun else []
            own = [f"hydra.sweep.dir={scratch}"] if self.flags.multirun else []
            self._hydra([*sweep, *self._flags(), *self.overrides, *own], task)
        except (HydraException, OmegaConfBaseException) as error:
            if task_runs:
                raise
            return not self._drop(error)
        return True

    def _hydra(self, arguments: Sequence[str], task: Callable[["DictConfig"], None]) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
        sys.argv[1:] = arguments  # Lightning starts its other ranks with these
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.command)(task)()

    def _flags(self) -> list[str]:
        """Those that say where the configuration is; the command comes first, see `main`."""
        flags = ["--config-name", self.command]
        for name in ("config_name", "config_dir", "config_path"):
            value = getattr(self.flags, name)
            flags += [f"--{name.replace('_', '-')}", value] if value and value != self.command else []
        return flags

    # ---------------------------------------------------------------- mistakes

    def _flag_error(self, message: str) -> NoReturn:
        from dds_train.cli.main import fail

        fail([message])

    def _validate(self, cfg: "DictConfig") -> Any:
        config, mistakes = validate(self.command, cfg, self.typed, self.dropped, HydraConfig.get().runtime.choices)
        if self.flags.cfg:
            mistakes.pop("", None)  # what is missing may be missing where it is only shown
        unresolved: Any = OmegaConf.to_container(cfg)
        known = known_keys(self.command, unresolved)
        for key in self.unknown:
            self.mistakes[unknown_key(self.command, key, f"={self.typed[key]}", known)] = key
        self.mistakes |= {line: key for key, line in mistakes.items()}
        if config is None or self.mistakes:
            return None
        if "DDS_RUN_STAMP" in str(unresolved.get("output_dir")) and "DDS_RUN_STAMP" not in os.environ:
            try:  # Ranks agree on it, which takes a while. Lightning's other ranks have it from the environment.
                os.environ["DDS_RUN_STAMP"] = run_stamp()
            except UserError as error:
                self.mistakes[str(error)] = ""
                return None
            return self._validate(cfg)
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
                    OverridesParser.create().parse_override(override)
                    continue
                except HydraException:
                    line = f"{key}={value}: quote the value: {key}=\"'{value}'\""
            self.mistakes[line] = key_of(override)
            self._remove(override)

    def _drop(self, error: Exception) -> bool:
        """Explain an error of Hydra; False if it is not about one of the overrides."""
        text = " ".join(str(error).split())
        choice = re.search(r"[Cc]ould not find '?([\w/]+?)/([^'/]+)'", text)
        patterns = (r"Could not (?:override|append) '([^']+)'", r"Could not delete.*? key '([^']+)'", r"full_key: (\S+)")
        refused = next((match for pattern in patterns if (match := re.search(pattern, text))), None)
        key = choice[1] if choice else (refused[1] if refused else "")
        ending = f"={choice[2]}" if choice else ""
        override = next((one for one in self.overrides if key_of(one) == key and one.endswith(ending)), None)
        if override is None:
            self.mistakes[text.split(" See ")[0]] = ""
            return False
        if choice:
            known = sorted(path.stem for folder in self._folders() for path in (folder / key).glob("*.yaml"))
            self.mistakes[f"{key}={choice[2]}: take {alternatives(known)}{nearest(choice[2], known)}"] = key
        elif key == "experiment":
            self.mistakes[f"{override}: {self.command} takes no experiment; fit and synthesize do"] = key
        elif not any(key.startswith(f"{one}.") for one in self.dropped):  # of a group whose choice is mistaken
            self.unknown.append(key)
        self._remove(override)
        return True

    def _remove(self, override: str) -> None:
        self.overrides.remove(override)
        self.dropped.append(key_of(override))

    def _position(self, key: str) -> int:
        """Where a key stands on the command line, or a part of it; behind the others if it does not."""
        pairs = [(f"{key}.", f"{typed}.") for typed in self.typed if key]
        places = [place for place, (one, other) in enumerate(pairs) if one.startswith(other) or other.startswith(one)]
        return places[0] if places else len(self.typed) + (not key)

    def _folders(self) -> list[Path]:
        return [CONF, *([Path(self.flags.config_dir)] if self.flags.config_dir else [])]

    # ---------------------------------------------------------------- sweeps

    def _add_job(self, cfg: "DictConfig") -> None:
        """Each job is a process of its own, or DDP would run the whole sweep in every rank; its folder has its number."""
        composed = HydraConfig.get()
        own = [one for one in composed.overrides.hydra if not one.startswith(("hydra.mode", "hydra.sweep"))]
        has_folder = "output_dir" in cfg and not self.mistakes
        folder = [f"output_dir={Path(cfg.output_dir) / str(composed.job.num)}"] if has_folder else []
        self.jobs.append([*self._flags(), *own, *composed.overrides.task, *folder])

    def _sweep(self) -> list[str]:
        """Run the jobs one after the other; what failed."""
        failed = []
        for number, job in enumerate(self.jobs):
            print(f"job {number + 1} of {len(self.jobs)}: {' '.join(job[2:])}", flush=True)
            code = subprocess.run([sys.executable, "-m", "dds_train", *job]).returncode
            if code in (130, 143) or code < 0:
                raise SystemExit(code)
            if code:
                failed.append(f"job {number + 1} of {len(self.jobs)} ended with exit code {code}: {' '.join(job[2:])}")
        return failed
