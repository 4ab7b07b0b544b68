"""What is wrong with a configuration can be said before torch is imported, in one line and within a second."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dds_train.data.paths import find_shards
from dds_train.errors import UserError
from dds_train.images.edit_list import is_edit_list, read_edit_list
from dds_train.images.find import find_images

# key: (lowest, highest), both allowed; None = no bound.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "steps": (1, None),
    "lr": (0, None),
    "snapshots": (0, None),
    "max_side": (1, None),
    "strength": (0, 1),
    "batch_size": (1, None),
    "held_out": (1, None),
    "workers": (0, None),
    "keep": (1, None),
    "ema": (0, 1),
    "log_every": (1, None),
    "preview_every": (1, None),
    "checkpoint_every": (1, None),
    "guidance.fraction": (0, 1),
    "identity.fraction": (0, 1),
    "data.count": (1, None),
    "data.steps": (1, None),
    "data.batch_size": (1, None),
    "data.size": (1, None),
    "count": (1, None),
    "batch": (1, None),
    "per_shard": (1, None),
    "clip.tries": (1, None),
    "clip.least": (-1, 1),
    "tasks_per_image": (1, None),
    "augment.zoom": (0.1, 1),
    "max_bad_fraction": (0, 1),
    "validate_every": (1, None),
    "validation.count": (0, None),
    "sentinels.every": (1, None),
    "sentinels.after": (0, 1),
    "translator.rank": (1, None),
    "feather": (0, None),
    "tile": (8, None),
    "overlap": (0, None),
    "critters": (1, None),
    "rows": (1, None),
    "port": (1, 65535),
    "early_stop.window": (1, None),
    "early_stop.tolerance": (0, 1),
    "auto_mask.timestep": (0, None),
    "auto_mask.maps": (1, None),
    "auto_mask.threshold": (0, 1),
    "trainer.max_steps": (1, None),
    "trainer.accumulate_grad_batches": (1, None),
}


def check_missing(command: str, values: Mapping[str, Any]) -> None:
    said = [key for key in ("source", "target") if tasks_say(values, key) or manifest_says(values, key)]
    missing = sorted(key for key, value in values.items() if value == "???" and key not in said)
    if missing:
        wanted = " ".join(f"{key}=..." for key in missing)
        raise UserError(f"{command} needs {wanted}; see: python -m dds_train {command} --help")


def tasks_say(values: Mapping[str, Any], key: str) -> bool:
    """Whether every task brings its own source, or target."""
    tasks = task_names(values)
    return bool(tasks) and all(values.get(f"tasks.{task}.{key}") for task in tasks)


def manifest_says(values: Mapping[str, Any], key: str) -> bool:
    """Whether every line of the list of edits brings its own source, or target."""
    spec = values.get("image")
    return is_edit_list(spec) and all(getattr(entry, key) for entry in read_edit_list(spec))


def task_names(values: Mapping[str, Any]) -> set[str]:
    return {name.split(".")[1] for name in values if name.startswith("tasks.")}


def check_tasks(values: Mapping[str, Any]) -> None:
    known = ("source", "target", "instruction", "swap", "truth")
    for name in values:
        parts = name.split(".")
        if parts[0] == "tasks" and len(parts) > 2 and parts[2] not in known:
            raise UserError(f"{name}: a task has {', '.join(known)}")
        if parts[0] == "tasks" and len(parts) == 2 and values[name] is not None:
            raise UserError(f"{name}={values[name]}: a task is several keys, such as {name}.target=...")
    count = len(task_names(values)) or 1
    each = values.get("tasks_per_image")
    if isinstance(each, int) and each > count:
        raise UserError(f"tasks_per_image={each}: there are {count} tasks; take at most that many")


def check_kinds(usual: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Where the usual value is a number or a flag, the given one must be too."""
    for key, default in usual.items():
        value = values.get(key)
        if value is None or default is None or value == default or str(value).startswith("${"):
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(default, bool):
            fits, wanted = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            # Lightning takes lists and "auto" for its devices.
            fits, wanted = (number and isinstance(value, int)) or key == "trainer.devices", "a whole number"
        elif isinstance(default, float):
            fits, wanted = number, "a number"
        elif isinstance(default, list):
            fits, wanted = isinstance(value, list), "a list"
        else:
            continue
        if not fits:
            example = f"[{','.join(map(str, default))}]" if isinstance(default, list) else default
            raise UserError(f"{key}={value}: expected {wanted}, such as {example}")


def check_ranges(values: Mapping[str, Any]) -> None:
    for key, (lowest, highest) in RANGES.items():
        value = values.get(key)
        if not isinstance(value, (int, float)):
            continue
        if (lowest is not None and value < lowest) or (highest is not None and value > highest):
            wanted = f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
            raise UserError(f"{key}={value}: must be {wanted}")
    t_range = values.get("t_range")
    if t_range is not None and (len(t_range) != 2 or not 0 <= t_range[0] < t_range[1]):
        raise UserError(f"t_range={t_range}: give [FIRST,LAST] with 0 <= FIRST < LAST, such as [50,950]")


def check_paths(values: Mapping[str, Any]) -> None:
    """That there are files where files are asked for; the results' folder is not made yet, but must be possible."""
    shards = "data.latents" in values  # then data.path means tar files
    for key, find in (
        ("image", find_images),
        ("examples", find_images),
        ("targets", find_images),
        ("data.path", find_shards if shards else find_images),
    ):
        specs = values.get(key) or []
        for spec in [specs] if isinstance(specs, (str, int)) else specs:
            if key == "image" and is_edit_list(spec):
                read_edit_list(spec)
            else:
                find(str(spec), key)
    mask = values.get("mask")
    if mask not in (None, "auto") and not Path(str(mask)).exists():
        raise UserError(f"mask={mask}: no such file or folder; give a picture, a folder of them, or auto")
    given = values.get("ckpt")
    for ckpt in given if isinstance(given, list) else [given]:
        if ckpt is not None and not Path(str(ckpt)).exists():
            raise UserError(f"ckpt={ckpt}: no such file or folder; give a .ckpt of fit or its translator/ folder")
    resume = values.get("resume")
    if resume is not None and resume not in ("auto", "never") and not Path(str(resume)).is_file():
        raise UserError(f"resume={resume}: no such checkpoint; take auto, never, or a .ckpt file of fit")
    for key in ("output_dir", "output"):
        folder = Path(str(values.get(key, "")))
        blocked = next((p for p in [folder, *folder.parents] if p.exists() and not p.is_dir()), None)
        if blocked:
            raise UserError(f"{key}={folder}: {blocked} is a file; give another folder")
