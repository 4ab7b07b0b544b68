"""Where a translator is, and where the teacher is that it was trained with."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dds_train.diffusion import Additions, DiffusionCheckpoint
from dds_train.diffusion.checkpoint import BUNDLED
from dds_train.diffusion.location import HUB_ID, local_folder, origin
from dds_train.errors import UserError

WEIGHTS = "translator.safetensors"
CONFIG = "config.json"


def find_translator(path: Path) -> Path:
    """A translator's folder or a training checkpoint, from either of them, a run's folder, or a file of a translator's folder.

    Raises:
        UserError: for weights without their configuration.
    """
    if path.is_dir() and not (path / CONFIG).exists():
        for inside in (path / "translator" / WEIGHTS, path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
            if inside.is_file():
                return inside.parent if inside.name == WEIGHTS else inside
    if path.is_file() and path.suffix == ".safetensors" and not (path.name == WEIGHTS and path.with_name(CONFIG).is_file()):
        raise UserError(f"ckpt={path}: weights alone; give the translator's folder, which has {CONFIG} and {WEIGHTS}")
    return path.parent if path.is_file() and path.name in (WEIGHTS, CONFIG) else path


def remembered(checkpoint: DiffusionCheckpoint) -> dict[str, Any]:
    """What finds a teacher again: `teacher`, its hub id or absolute path, `teacher_additions`, and `teacher_weights`, digests
    of its parts; and the `max_tokens` of its prompts."""
    weights = {}
    for part in ("vae", "text", "denoiser"):
        with contextlib.suppress(UserError):  # not there, and not needed to train on latents
            weights[part] = checkpoint.digest(part, up_to_half=True)
    return {
        "teacher": checkpoint.origin,
        "teacher_weights": weights,
        "teacher_additions": checkpoint.additions.replaced(origin).to_dict(),
        "max_tokens": checkpoint.max_tokens,
    }


def find_teacher(
    teacher: str,
    weights: Mapping[str, str],
    ckpt: Path,
    max_tokens: int | None = None,
    additions: Mapping[str, Any] = MappingProxyType({}),
) -> DiffusionCheckpoint:
    """The teacher that `remembered` describes: where it was, at the same place below the current folder or one above the
    translator, or in the hub that its path names.

    Args:
        weights: digests of the parts that have to be the same; none if they were not there when it was trained.
        ckpt: the translator.
        max_tokens: of its prompts.
        additions: those that `remembered` has. What is nowhere is left out, if the weights of the parts are the same without.

    Raises:
        UserError: naming where it looked.
    """
    looked: list[str] = []
    found, missing = find_additions(additions, ckpt)
    without = f", without {' and '.join(missing)}" if missing else ""
    for place in _places(teacher, ckpt, known=bool(weights)):
        try:
            checkpoint = DiffusionCheckpoint(place, max_tokens=max_tokens, additions=found)
            other = [part for part, digest in weights.items() if checkpoint.digest(part, up_to_half=True) != digest]
            if not other:
                return checkpoint
            looked.append(f"{place} (has other weights{without}: {', '.join(other)})")
        except UserError as error:
            looked.append(str(error).removeprefix("teacher.path="))
    raise UserError(
        f"ckpt={ckpt}: its teacher is not found; looked for {teacher}, in {Path.cwd()} and above {ckpt.absolute()} too"
        f"{': ' if looked else ''}{'; '.join(looked)}; give its folder or hub id as teacher.path=..."
    )


def find_additions(additions: Mapping[str, Any], ckpt: Path) -> tuple[Additions, list[str]]:
    """What `remembered` says was loaded with a teacher, where it is now, as for the teacher; and the paths that are nowhere."""
    missing: list[str] = []

    def place(path: str) -> str | None:
        if not os.path.isabs(path):
            return path  # a hub id
        found = next(_existing(Path(path), ckpt), None)
        if found is None:
            missing.append(path)
        return str(found) if found else None

    return Additions.of(additions).replaced(place), missing


def _places(teacher: str, ckpt: Path, known: bool) -> Iterator[str]:
    """Where to look, in order, each once: folders that exist, names of bundled teachers and hub ids.

    Args:
        known: whether weights tell the teacher from another one in a folder of its name.
    """
    if teacher in BUNDLED:
        yield teacher
        return
    path = Path(teacher).expanduser()
    found = [str(one) for one in _existing(path, ckpt, known) if _is_checkpoint(one)]
    yield from dict.fromkeys(found)
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)", teacher):
        yield f"{cached[1]}/{cached[2]}"
    elif HUB_ID.fullmatch(teacher) and not found:
        yield teacher


def _existing(path: Path, ckpt: Path, ends: bool = True) -> Iterator[Path]:
    """Where a path is, in order; or, below the current folder or one above the translator, one of its ends."""
    tails = [path, *(Path(*path.parts[start:]) for start in range(1, len(path.parts) if ends else 1))]
    roots = [Path.cwd(), *ckpt.absolute().parents]
    return (root / tail for tail in tails for root in roots if (root / tail).exists())


def _is_checkpoint(path: Path) -> bool:
    try:
        return path.is_file() or local_folder(str(path)) is not None
    except UserError:
        return False
