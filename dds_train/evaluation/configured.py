"""Methods from configuration: checked before anything is loaded, built when it is their turn."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dds_train.distillation.losses import loss_options
from dds_train.errors import UserError
from dds_train.methods.registry import METHODS, Method, MethodContext, instructions
from dds_train.translator import find_translator, read_config, weights_digest

T = TypeVar("T")

REFERENCES = ("identity", "vae_reconstruction")  # always evaluated: without them no value means much


@dataclass(frozen=True)
class ConfiguredMethod:
    """A method of `METHODS` and its options.

    Raises:
        UserError: for a kind, an option or a loss that does not exist.
    """

    name: str
    kind: str
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in METHODS:
            raise UserError(f"method.{self.name}.kind={self.kind}: no such kind; take {', '.join(METHODS)}")
        _, *parameters = inspect.signature(METHODS[self.kind]).parameters.values()
        known = [parameter.name for parameter in parameters]
        for key in self.options:
            if key not in known:
                raise UserError(
                    f"method.{self.name}.{key}: a method of kind {self.kind} has {', '.join(known) or 'no options'}"
                )
        if self.kind == "optimize":
            self._named(self._check_loss)

    def _check_loss(self) -> None:
        name, known = self.options.get("loss", "dds"), loss_options(self.options.get("loss", "dds"))
        for key in self.options.get("options") or {}:
            if key not in known:
                raise ValueError(f"loss {name} has no option {key}; it takes {', '.join(known)}")

    def check_edits(self, edits: Sequence[tuple[str, str]]) -> None:
        """Raises UserError if it is a translator without a task for one of these pairs of source and target prompt."""
        if self.kind == "translator":
            self._named(lambda: instructions(read_config(Path(self.options["ckpt"])), edits, self.options.get("task")))

    def build(self, context: MethodContext) -> Method:
        """Raises UserError for options with values that its kind refuses."""
        return self._named(lambda: METHODS[self.kind](context, **self.options))

    def identity(self) -> dict[str, Any]:
        """What its results depend on: plain data, with a translator's weights by digest."""
        weights = {"ckpt": weights_digest(Path(self.options["ckpt"]))} if "ckpt" in self.options else {}
        return {"kind": self.kind, **self.options, **weights}

    def _named(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"method.{self.name}: {error}") from error


def configured_methods(
    options: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] | None,
    optimization: Mapping[str, Any],
    ckpts: Sequence[str] = (),
    strengths: Sequence[float] = (1.0,),
    step_counts: Sequence[int] = (),
    task: str | None = None,
) -> dict[str, ConfiguredMethod]:
    """The references, the methods of `names`, and the translators, by name.

    Args:
        options: by name: kind ("optimize" by default) and options.
        names: None for all.
        optimization: options of methods of kind "optimize" that do not have them.
        ckpts: translators; strengths: each at these.
        step_counts: methods of kind "optimize" also after so many steps.
        task: the translators', by name; None for the one that makes the edit.

    Raises:
        UserError: for a name, kind, option or loss that does not exist.
    """
    known = {**{name: {"kind": name} for name in REFERENCES}, **options}
    methods: dict[str, ConfiguredMethod] = {}
    for name in [*REFERENCES, *(known if names is None else names)]:
        if name not in known:
            raise UserError(f"methods=[{','.join(names or [])}]: no method {name}; there are {', '.join(known)}")
        kind, own = known[name].get("kind", "optimize"), {key: value for key, value in known[name].items() if key != "kind"}
        if kind != "optimize":
            methods[name] = ConfiguredMethod(name, kind, own)
            continue
        own = {**optimization, **own}
        for count in sorted({one for one in step_counts if one < own["steps"]}):
            fewer = f"{name}, {count} steps"
            methods[fewer] = ConfiguredMethod(fewer, kind, {**own, "steps": count})
        methods[name] = ConfiguredMethod(name, kind, own)
    for ckpt, run_name in run_names(ckpts).items():
        for strength in strengths:
            name = f"translator {run_name}" + ("" if list(strengths) == [1] else f", strength {strength:g}")
            methods[name] = ConfiguredMethod(name, "translator", {"ckpt": ckpt, "strength": strength, "task": task})
    return methods


def run_names(ckpts: Sequence[str]) -> dict[str, str]:
    """Names of translators: the folders of their runs, with as much of the path as tells them apart."""
    paths = {ckpt: find_translator(Path(ckpt)).resolve() for ckpt in ckpts}
    folders = {ckpt: path.parents[1] if path.parent.name == "checkpoints" else path.parent for ckpt, path in paths.items()}
    for depth in range(1, max((len(folder.parts) for folder in folders.values()), default=0) + 1):
        names = {ckpt: "/".join(folder.parts[-depth:]) for ckpt, folder in folders.items()}
        if len(set(names.values())) == len(names):
            return names
    return {ckpt: ckpt for ckpt in ckpts}


def curves(methods: Mapping[str, ConfiguredMethod]) -> list[list[str]]:
    """Methods that differ in strength or steps alone, in that order."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for name, method in methods.items():
        dials = {key: value for key, value in method.options.items() if key in ("strength", "steps")}
        rest = {key: value for key, value in method.options.items() if key not in dials}
        groups.setdefault(json.dumps([method.kind, rest], default=str), []).append((sum(dials.values()), name))
    return [[name for _, name in sorted(group)] for group in groups.values() if len(group) > 1]
