"""Where a translator is, and where the teacher is that it was trained with."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.checkpoint import BUNDLED
from dds_train.diffusion.location import HUB_ID, local_folder
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
    """What finds a teacher again: `teacher`, its hub id or absolute path, and `teacher_weights`, digests of its parts; and the
    `max_tokens` of its prompts."""
    weights = {}
    for part in ("vae", "text", "denoiser"):
        with contextlib.suppress(UserError):  # not there, and not needed to train on latents
            weights[part] = checkpoint.digest(part, up_to_half=True)
    return {"teacher": checkpoint.origin, "teacher_weights": weights, "max_tokens": checkpoint.max_tokens}


def find_teacher(teacher: str, weights: Mapping[str, str], ckpt: Path, max_tokens: int | None = None) -> str:
    """Path or hub id of a teacher that `remembered` describes: where it was, at the same place below the current folder or one
    above the translator, or in the hub that its path names.

    Args:
        weights: digests of the parts that have to be the same; none if they were not there when it was trained.
        ckpt: the translator.
        max_tokens: of its prompts.

    Raises:
        UserError: naming where it looked.
    """
    looked: list[str] = []
    for place in _places(teacher, ckpt, known=bool(weights)):
        try:
            checkpoint = DiffusionCheckpoint(place, max_tokens=max_tokens)
            other = [part for part, digest in weights.items() if checkpoint.digest(part, up_to_half=True) != digest]
            if not other:
                return place
            looked.append(f"{place} (has other weights: {', '.join(other)})")
        except UserError as error:
            looked.append(str(error).removeprefix("teacher.path="))
    raise UserError(
        f"ckpt={ckpt}: its teacher is not found; looked for {teacher}, in {Path.cwd()} and above {ckpt.absolute()} too"
        f"{': ' if looked else ''}{'; '.join(looked)}; give its folder or hub id as teacher.path=..."
    )


def _places(teacher: str, ckpt: Path, known: bool) -> Iterator[str]:
    """Where to look, in order, each once: folders that exist, names of bundled teachers and hub ids.

    Args:
        known: whether weights tell the teacher from another one in a folder of its name.
    """
    if teacher in BUNDLED:
        yield teacher
        return
    path = Path(teacher).expanduser()
    tails = [path, *(Path(*path.parts[start:]) for start in range(1, len(path.parts) if known else 1))]
    roots = [Path.cwd(), *ckpt.absolute().parents]
    found = [root / tail for tail in tails for root in roots if _is_checkpoint(root / tail)]
    yield from dict.fromkeys(str(one) for one in found)
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)", teacher):
        yield f"{cached[1]}/{cached[2]}"
    elif HUB_ID.fullmatch(teacher) and not found:
        yield teacher


def _is_checkpoint(folder: Path) -> bool:
    try:
        return folder.is_dir() and local_folder(str(folder)) is not None
    except UserError:
        return False
