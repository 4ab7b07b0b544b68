"""Configuration -> objects. The only place that instantiates; past it, everything takes plain typed arguments."""

import inspect
import os
from collections.abc import Iterable, MutableMapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor

from dds_train.cli.main import CONF
from dds_train.data.source import Source
from dds_train.data.synthetic import SyntheticSource
from dds_train.diffusion import DiffusionCheckpoint, Teacher
from dds_train.diffusion.device import find_device
from dds_train.distillation.cache import SourceCache
from dds_train.distillation.losses import STATEFUL, Loss, make_loss
from dds_train.distillation.noise import ScoreModel
from dds_train.errors import UserError
from dds_train.methods.store import TensorStore
from dds_train.methods.student import LoRAStudent
from dds_train.training.schedules import Ramp
from dds_train.translator import Task, make_translator
from dds_train.translator.task import CAPTION

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def build_rank_device(name: str) -> str:
    """`find_device` for one of several processes: not every rank's teacher on the first card."""
    device = find_device(name)
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def build_checkpoint(cfg: DictConfig, device: str) -> DiffusionCheckpoint:
    """`cfg` is the group teacher."""
    # Their notes on every load say nothing that a user of this command line could act on.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if cfg.dtype != "auto" and cfg.dtype not in DTYPES:
        raise UserError(f"teacher.dtype={cfg.dtype}: take auto, {', '.join(DTYPES)}")
    auto = torch.float16 if device.startswith("cuda") else torch.float32
    return DiffusionCheckpoint(str(cfg.path), device, auto if cfg.dtype == "auto" else DTYPES[cfg.dtype])


def load_loss(name: str, options: dict[str, Any]) -> DictConfig:
    """The group loss as conf/loss/`name`.yaml has it, with some of its options changed."""
    path = CONF / "loss" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"loss {name}: there are {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}")
    usual = OmegaConf.load(path)
    unknown = [key for key in options if key not in usual]
    if unknown:
        raise UserError(f"loss {name} has no option {unknown[0]}; there are {', '.join(str(key) for key in usual)}")
    return OmegaConf.merge(usual, options)  # type: ignore[return-value]


def build_loss(cfg: DictConfig, checkpoint: DiffusionCheckpoint | None = None) -> Loss:
    """`cfg` is the group loss; `negative` is a prompt, which goes into the conditions. Stateful losses need `checkpoint`."""
    options: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    name = options.pop("name")
    if not options.pop("negative", "unused"):
        raise UserError(f"loss {name} needs a negative prompt: loss.negative='blurry, low quality'")
    if name in STATEFUL and checkpoint is None:
        raise UserError(
            f"loss={name} fits a second model to the edits as they are made; its state would be in no checkpoint and on no "
            "other rank, so fit cannot use it: take loss=dds, or optimize"
        )
    try:
        return make_loss(name, student=None if checkpoint is None else partial(LoRAStudent, checkpoint), **options)
    except ValueError as error:
        raise UserError(f"loss.{error}" if str(error).startswith("weight") else str(error)) from error


def with_source_cache(spec: str | None, teacher: Teacher, checkpoint: DiffusionCheckpoint) -> ScoreModel:
    """The teacher, or one that remembers what it said about inputs: in "memory" or in the file `spec`."""
    if spec is None:
        return teacher
    store: MutableMapping[str, Tensor] = {} if spec == "memory" else TensorStore(spec)
    where = teacher.device.type  # other devices round differently
    return SourceCache(teacher, store, f"{checkpoint.digest('denoiser', 'scheduler')}/{teacher.dtype}/{where}")


def build_translator(cfg: DictConfig, teacher: Teacher) -> Any:
    """`cfg` is the group translator; kind lora works on the teacher's own UNet."""
    options: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    try:
        return make_translator(options, lambda: teacher.network, teacher.family)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_tasks(cfg: DictConfig) -> dict[str, Task]:
    """`cfg` is that of fit: its `tasks`, or the one that source, target and instruction make."""
    given: dict[str, Any] = OmegaConf.to_container(cfg.tasks, resolve=True) if cfg.tasks else {}  # type: ignore[assignment]
    given = given or {"edit": {}}
    tasks = {}
    for name, fields in given.items():
        source, target = fields.pop("source", None) or cfg.source, fields.pop("target", None) or cfg.target
        instruction = fields.pop("instruction", None) or (cfg.instruction if len(given) == 1 else None)
        # A target that differs from image to image is no instruction; the task's name is one.
        instruction = instruction or (name if CAPTION in str(target) else target)
        try:
            tasks[name] = Task(str(source), str(target), str(instruction), **fields)
        except (TypeError, ValueError) as error:
            raise UserError(f"tasks.{name}: {error}") from error
    each = cfg.get("tasks_per_image", 1)
    if not 1 <= each <= len(tasks):
        raise UserError(f"tasks_per_image={each}: there are {len(tasks)} tasks; take 1 to {len(tasks)}")
    return tasks


def build_ramp(key: str, cfg: DictConfig) -> Ramp:
    try:
        return Ramp(start=float(cfg.start), end=float(cfg.end), fraction=float(cfg.fraction))
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def build_t_range(t_range: Sequence[int], steps: int, loss: DictConfig | None = None) -> tuple[int, int]:
    """Of a teacher with so many steps; `loss` is the group, whose loss may look back a few."""
    least = loss.get("stride", 0) if loss is not None else 0
    if len(t_range) != 2 or not least <= t_range[0] < t_range[1] <= steps:
        raise UserError(f"t_range={list(t_range)}: give [FIRST,LAST] within [{least},{steps}] of the teacher, such as [50,950]")
    return t_range[0], t_range[1]


def build_source(cfg: DictConfig, tasks: Iterable[Task], checkpoint: DiffusionCheckpoint) -> Source:
    """`cfg` is the group data. Sources get the teacher and, if they draw and no prompts are given, the tasks' captions."""
    # Partial, because Hydra turns a dataclass among the arguments of a call into a dict.
    make = build_partial(cfg)
    wants = inspect.signature(make.func).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wants.values())
    drawing = inspect.signature(SyntheticSource).parameters
    # An experiment says how its images are drawn; with another source that is beside the point.
    given = {k: v for k, v in make.keywords.items() if k in wants or (anything and k not in drawing)}
    if "checkpoint" in wants:
        given["checkpoint"] = checkpoint
    if "prompts" in wants and not given["prompts"]:
        given["prompts"] = list(dict.fromkeys(task.source for task in tasks))
    try:
        return make.func(**given)
    except TypeError as error:
        raise UserError(f"data: {error}") from error


def build_loggers(cfg: DictConfig, output_dir: Path) -> list[Logger]:
    """`cfg` is the group logger. metrics.csv is always written."""
    loggers: list[Logger] = [CSVLogger(output_dir, name="", version="")]
    if cfg.extra is not None:
        loggers.append(_extra_logger(cfg.extra))
    return loggers


def keep_earlier_metrics(output_dir: Path) -> None:
    """Lightning's CSV logger deletes what an earlier part of the run has logged: it becomes metrics-1.csv and so on."""
    path = output_dir / "metrics.csv"
    if path.exists():
        path.rename(next(p for n in count(1) if not (p := path.with_stem(f"{path.stem}-{n}")).exists()))


def _extra_logger(cfg: DictConfig) -> Logger:
    if not cfg["_target_"].endswith(WandbLogger.__name__):
        return instantiate(cfg, _convert_="all")
    offline = cfg.offline if cfg.offline != "auto" else not _has_wandb_key()
    if offline and cfg.offline == "auto":
        print("wandb: no API key found, so it runs offline; upload later with: wandb sync", flush=True)
    return instantiate(cfg, offline=offline, _convert_="all")


def _has_wandb_key() -> bool:
    netrc = Path("~/.netrc").expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.exists() and "api.wandb.ai" in netrc.read_text())


def build_partial(cfg: DictConfig) -> Any:
    """Of a group with `_partial_`: the constructor with all its arguments but those that only the caller knows."""
    try:
        return instantiate(cfg, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{cfg.get('_target_')}: {reason(error)}") from error


def reason(error: InstantiationException) -> str:
    """What the constructor itself said, without Hydra's wrapping."""
    return str(error.__cause__ or error).splitlines()[0]


def save_config(cfg: DictConfig, output_dir: Path, unused: Sequence[str] = ()) -> None:
    """The configuration, resolved, beside the results; without the groups that the command does not use."""
    output_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(plain(cfg, unused)), output_dir / "config.yaml")


def plain(cfg: DictConfig, unused: Sequence[str] = ()) -> dict[str, Any]:
    used = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in unused])
    return OmegaConf.to_container(used, resolve=True)  # type: ignore[return-value]
