"""Configuration -> objects. The only place that instantiates; past it, everything takes plain typed arguments."""

import inspect
import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor

from dds_train.cli.conf import CONF
from dds_train.cli.schema import FitConfig, LoggerConfig, Section, SynthesizeConfig, TargetSection
from dds_train.cli.schema import Ramp as RampConfig
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


def build_checkpoint(cfg: Any, device: str) -> DiffusionCheckpoint:
    """`cfg` is the group teacher."""
    # Their notes on every load say nothing that a user of this command line could act on.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    auto = torch.float16 if device.startswith("cuda") else torch.float32
    return DiffusionCheckpoint(str(cfg.path), device, auto if cfg.dtype == "auto" else DTYPES[cfg.dtype])


def load_loss(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The group loss as conf/loss/`name`.yaml has it, with some of its options changed."""
    path = CONF / "loss" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"loss {name}: there are {', '.join(sorted(p.stem for p in path.parent.glob('*.yaml')))}")
    usual: Any = OmegaConf.to_container(OmegaConf.load(path))
    unknown = [key for key in options if key not in usual]
    if unknown:
        raise UserError(f"loss {name} has no option {unknown[0]}; there are {', '.join(str(key) for key in usual)}")
    return {**usual, **options}


def build_loss(loss: Mapping[str, Any], checkpoint: DiffusionCheckpoint | None = None) -> Loss:
    """`loss` is the group loss; `negative` is a prompt, which goes into the conditions. Stateful losses need `checkpoint`."""
    options = dict(loss)
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


def build_translator(cfg: Section, teacher: Teacher) -> Any:
    """`cfg` is the group translator; kind lora works on the teacher's own UNet."""
    try:
        return make_translator(cfg.model_dump(), lambda: teacher.network, teacher.family)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_tasks(cfg: "FitConfig | SynthesizeConfig") -> dict[str, Task]:
    """`cfg` is that of fit: its `tasks`, or the one that source, target and instruction make."""
    given = {name: task.model_dump() for name, task in cfg.tasks.items()} or {"edit": {}}
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
    return tasks


def build_ramp(cfg: RampConfig) -> Ramp:
    return Ramp(start=cfg.start, end=cfg.end, fraction=cfg.fraction)


def build_t_range(t_range: Sequence[int], steps: int, loss: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Of a teacher with so many steps; `loss` is the group, whose loss may look back a few."""
    least = loss.get("stride", 0) if loss is not None else 0
    if len(t_range) != 2 or not least <= t_range[0] < t_range[1] <= steps:
        raise UserError(f"t_range={list(t_range)}: give [FIRST,LAST] within [{least},{steps}] of the teacher, such as [50,950]")
    return t_range[0], t_range[1]


def build_source(cfg: TargetSection, tasks: Iterable[Task], checkpoint: DiffusionCheckpoint) -> Source:
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


def build_loggers(cfg: LoggerConfig, output_dir: Path) -> list[Logger]:
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


def _extra_logger(cfg: TargetSection) -> Logger:
    options = cfg.model_dump()
    if cfg.target.endswith(WandbLogger.__name__) and options.get("offline") == "auto":
        options["offline"] = not _has_wandb_key()
        if options["offline"]:
            print("wandb: no API key found, so it runs offline; upload later with: wandb sync", flush=True)
    return instantiate(options, _convert_="all")


def _has_wandb_key() -> bool:
    netrc = Path("~/.netrc").expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.exists() and "api.wandb.ai" in netrc.read_text())


def build_partial(cfg: TargetSection) -> Any:
    """Of a group with `_partial_`: the constructor with all its arguments but those that only the caller knows."""
    try:
        return instantiate(cfg.model_dump(), _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{cfg.target}: {reason(error)}") from error


def reason(error: InstantiationException) -> str:
    """What the constructor itself said, without Hydra's wrapping."""
    return str(error.__cause__ or error).splitlines()[0]


def save_config(cfg: Section, output_dir: Path) -> None:
    """The configuration, resolved, beside the results."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(), sort_keys=False, allow_unicode=True))
