"""Configuration of every command: types, ranges, choices and cross-field checks.

Defaults are in conf/, whose comments are the documentation. Imports neither torch nor diffusers: it is checked before they are.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    create_model,
    model_validator,
)

from dds_train.cli.conf import CONF
from dds_train.critters.world import Critter, critter
from dds_train.data.paths import PROMPT_FILES, find_shards, find_urls, is_url
from dds_train.errors import UserError
from dds_train.images.edit_list import is_edit_list, read_edit_list
from dds_train.images.find import check_images
from dds_train.runs.files import atomic_write

# ---------------------------------------------------------------- kinds of values


class SubkeyError(ValueError):
    """A problem of one key of a group."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class FreeText:
    """Marks text that users type as it is: `cli.overrides` quotes it for Hydra.

    Args:
        is_path: ${...} in it is Hydra's; in other texts it means itself.
    """

    def __init__(self, is_path: bool = False) -> None:
        self.is_path = is_path


class Short:
    """Marks a group of keys that has a short form: `guidance=7.5` for `guidance.end=7.5`."""

    def __init__(self, key: str) -> None:
        self.key = key


def number_between(lowest: float | None, highest: float | None = None, above: float | None = None) -> AfterValidator:
    """Both bounds inclusive; `above` is exclusive."""

    def check(value: Any) -> Any:
        if above is not None and value <= above:
            raise ValueError(f"must be greater than {above}")
        if (lowest is not None and value < lowest) or (highest is not None and value > highest):
            raise ValueError(f"must be at least {lowest}" if highest is None else f"must be between {lowest} and {highest}")
        return value

    return AfterValidator(check)


def as_text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected text; quote it in the YAML file, where yes, no, on and off stand for true and false")
    return str(value) if isinstance(value, (int, float)) else value


def one_or_several(value: Any) -> Any:
    texts = [as_text(one) for one in (value if isinstance(value, list) else [value])]
    if not texts or not all(isinstance(one, str) for one in texts):
        raise ValueError("expected text, or a list of texts")
    return texts if isinstance(value, list) else texts[0]


def several(value: Any) -> Any:
    """A list, of one text too."""
    texts = one_or_several(value)
    return texts if isinstance(texts, list) else [texts]


def is_unicode(value: Any) -> Any:
    """`value`, one text or several, unless it has bytes that the locale's encoding does not explain."""
    for one in value if isinstance(value, list) else [value]:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise ValueError("is not text in this locale's encoding; set PYTHONUTF8=1") from error
    return value


def absolute(value: Any) -> Any:
    """A path, or each of a list, as an absolute one: the only place where ~ and the working directory are looked up."""
    if isinstance(value, list):
        return [absolute(one) for one in value]
    if value == "":
        raise ValueError("is empty; give a path")
    if value.startswith("pipe:") or is_url(value):
        raise ValueError("not a local path; give one on this disk")
    path = os.path.expanduser(value)
    if path.startswith("~") and not os.path.exists(path):
        raise ValueError(f"no home folder {path.split(os.sep)[0]} here; give the whole path")
    return str(Path(path).absolute())


def path_or(*words: str) -> AfterValidator:
    """A path, or one of `words`."""
    return AfterValidator(lambda value: value if value in words else absolute(value))


def folder_or_hub_id(value: str) -> str:
    is_local = value.startswith((".", "~", os.sep)) or os.path.exists(value)
    return str(absolute(value)) if is_local or not value else value


def file_or_hub_id(value: str) -> str:
    """A file or folder that exists, or owner/name, or owner/name/FILE."""
    path = folder_or_hub_id(value)
    is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/.+)?", path) and not os.path.exists(path.split("/")[0])
    if os.path.exists(path) or (is_repository and not (path.count("/") == 1 and path.endswith(WEIGHT_FILES))):
        return path
    raise ValueError("no such file or folder; give one, or owner/name of a hub")


def split_weight(value: str) -> tuple[str, float]:
    """Path and weight of FILE or FILE:WEIGHT; a Windows drive's colon is none of these."""
    path, _, weight = value.rpartition(":")
    if not path or os.path.exists(value):
        return value, 1.0
    try:
        return path, float(weight)
    except ValueError:
        return value, 1.0


def split_token(value: str) -> tuple[str | None, str]:
    """Token, if it is given, and path of FILE or TOKEN=FILE."""
    token, equals, path = value.partition("=")
    return (token, path) if equals and not os.path.exists(value) else (None, value)


def each(check: Callable[[str], str], value: Any) -> list[str]:
    """A list, of one text too, whose every path is checked and made absolute; errors name it."""
    checked = []
    for one in several(value) if value != [] else []:
        try:
            checked.append(check(one))
        except ValueError as error:
            raise ValueError(f"{one}: {error}") from error
    return checked


def lora_file(value: str) -> str:
    path, weight = split_weight(value)
    if not math.isfinite(weight):
        raise ValueError("give FILE:WEIGHT, such as style.safetensors:0.8")
    path = file_or_hub_id(path)
    return path if weight == 1 else f"{path}:{weight:g}"


def embedding_file(value: str) -> str:
    token, path = split_token(value)
    if token is not None and (not token or token.split() != [token]):
        raise ValueError("give TOKEN=FILE, such as <sks>=sks.safetensors; a token is one word")
    return file_or_hub_id(path) if token is None else f"{token}={file_or_hub_id(path)}"


def archive_free(value: str) -> str:
    if re.search("::|://", value):  # fsspec, which Lightning reads checkpoints with, would look for an archive
        raise ValueError("has :: or :// in its path, which Lightning takes for an archive or a URL; take another name")
    return value


def alternatives(known: Sequence[Any]) -> str:
    *first, last = [str(one).lower() if isinstance(one, bool) else str(one) for one in known]
    return f"{', '.join(first)} or {last}" if first else last


Whole = Annotated[int, number_between(0)]
Positive = Annotated[int, number_between(1)]
Seed = Annotated[int, number_between(0, 2**32 - 1)]
Share = Annotated[float, number_between(0, 1)]
AtLeastZero = Annotated[float, number_between(0)]
Rate = Annotated[float, number_between(None, above=0)]
Text = Annotated[str, FreeText(), BeforeValidator(as_text), AfterValidator(is_unicode)]
Texts = Annotated[str | list[str], FreeText(), PlainValidator(one_or_several), AfterValidator(is_unicode)]
AnyPath = Annotated[str, FreeText(is_path=True), BeforeValidator(as_text)]
PathText = Annotated[AnyPath, AfterValidator(absolute)]
PathTexts = Annotated[str | list[str], FreeText(is_path=True), PlainValidator(one_or_several), AfterValidator(absolute)]
ModelPath = Annotated[AnyPath, AfterValidator(folder_or_hub_id)]
WeightsPath = Annotated[AnyPath, AfterValidator(file_or_hub_id)]
LoRAFiles = Annotated[list[str], FreeText(is_path=True), PlainValidator(partial(each, lora_file))]
EmbeddingFiles = Annotated[list[str], FreeText(is_path=True), PlainValidator(partial(each, embedding_file))]

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".ckpt")
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Quantization = Literal["int8", "fp8", "nf4"]
OnError = Literal["auto", "skip", "stop"]
Weight = Literal["one", "sigma2", "velocity"]


def exists(remedy: str, *otherwise: str) -> AfterValidator:
    """A path that exists, or one of the words `otherwise`."""

    def check(value: Any) -> Any:
        for one in value if isinstance(value, list) else [value]:
            if one not in otherwise and not os.path.exists(one):
                missing = "no such file or folder" if one == value else f"{one}: no such file or folder"
                raise ValueError(f"{missing}; {remedy}")
        return value

    return AfterValidator(check)


def found_by(find: Callable[[str, str], object], value: Any) -> Any:
    """`value`, for whose every path `find` has something."""
    for one in value if isinstance(value, list) else [value]:
        try:
            find(one, "")
        except UserError as error:
            reason = str(error).removeprefix(f"={one}: ")
            raise ValueError(reason if one == value else f"{one}: {reason}") from error
    return value


def shard_paths(value: Any) -> Any:
    """Paths as absolute ones, with shards there, and URLs as they are: whether these exist is seen when they are read."""
    if isinstance(value, list):
        paths = [one if is_url(one) else absolute(one) for one in value]
    else:
        paths = value if is_url(value) else absolute(value)
    return found_by(lambda one, key: find_urls(one, key) if is_url(one) else find_shards(one, key), paths)


def images_or_edit_list(value: Any) -> Any:
    if not is_edit_list(value):
        return found_by(check_images, value)
    try:
        read_edit_list(value)
    except UserError as error:
        raise ValueError(str(error).removeprefix(f"{value}: ")) from error
    return value


def folder_is_possible(value: str) -> str:
    blocked = next((path for path in (Path(value), *Path(value).parents) if path.exists() and not path.is_dir()), None)
    if blocked:
        raise ValueError(f"{blocked} is a file; give another folder")
    return value


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """null undoes a default."""
    return {name: one for name, one in value.items() if one is not None}


def critter_attributes(value: dict[str, Any]) -> dict[str, Any]:
    known = {field.name: type(getattr(critter(0), field.name)) for field in fields(Critter)}
    for name, one in value.items():
        if name not in known:
            raise SubkeyError(name, f"critters have {alternatives(list(known))}{nearest(name, known)}")
        if type(one) is not known[name] and not (known[name] is float and type(one) is int):
            raise SubkeyError(name, f"expected {KIND_NAMES[known[name]]}")
        try:
            critter(0, **{name: one})
        except ValueError as error:
            raise SubkeyError(name, str(error).removeprefix(f"{name} ").rpartition(", got")[0]) from error
    return value


KIND_NAMES = {bool: "true or false", float: "a number", str: "text"}


def prompt_file(value: Any) -> Any:
    """Prompts, or the path of a file of them."""
    if not (isinstance(value, str) and value.endswith(PROMPT_FILES)):
        return value
    if not Path(absolute(value)).is_file():
        raise ValueError("no such file; give prompts, or a YAML or text file of them")
    return absolute(value)


def device_name(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError("take auto, cpu, cuda, cuda:1 or mps")
    return value


def auto_or_flag(value: Any) -> Any:
    if value not in ("auto", True, False) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        raise ValueError("take auto, true or false")
    return value


def device_count(value: Any) -> Any:
    """As Lightning takes it: a number of devices, -1 or "auto" for all, or their indices."""
    whole = [isinstance(one, int) and not isinstance(one, bool) for one in (value if isinstance(value, list) else [value])]
    if value == "auto" or (whole and all(whole) and (min(value) >= 0 if isinstance(value, list) else value > 0 or value == -1)):
        return value
    raise ValueError("give a number of devices, a list of their indices, or auto")


def bounds(value: list[float]) -> list[float]:
    if len(value) != 2 or value[0] > value[1]:
        raise ValueError("give [LOW,HIGH], or null for none")
    return value


def timestep_range(value: list[int]) -> list[int]:
    if len(value) != 2 or not 0 <= value[0] < value[1]:
        raise ValueError("give [FIRST,LAST] with 0 <= FIRST < LAST, such as [50,950]")
    return value


def hub_repository(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        raise ValueError("give owner/name")
    return value


AutoOrFlag = Annotated[Literal["auto"] | bool, PlainValidator(auto_or_flag)]
ImagePaths = Annotated[PathTexts, AfterValidator(lambda value: found_by(check_images, value))]
EditPaths = Annotated[PathTexts, AfterValidator(images_or_edit_list)]
OutputFolder = Annotated[PathText, AfterValidator(folder_is_possible)]
Checkpoint = Annotated[PathText, exists("give a .ckpt of fit, or the folder of a run or a translator")]
Checkpoints = Annotated[PathTexts, exists("give a .ckpt of fit, or the folder of a run or a translator")]
Mask = Annotated[AnyPath, path_or("auto"), exists("give an image, a folder of them, or auto", "auto")]
RESUME = ("auto", "never")
Resume = Annotated[AnyPath, path_or(*RESUME), exists("take auto, never, or a .ckpt file of fit", *RESUME)]
ExistingFile = Annotated[PathText, exists("give a file")]
CritterAttributes = Annotated[dict[str, Any], AfterValidator(without_nulls), AfterValidator(critter_attributes)]
Words = dict[str, Annotated[list[str], FreeText(), PlainValidator(several), AfterValidator(is_unicode)]]
Prompts = Annotated[Texts, AfterValidator(prompt_file)]
Device = Annotated[str, AfterValidator(device_name)]
TimestepRange = Annotated[list[int], AfterValidator(timestep_range)]
MaxTokens = Annotated[int, number_between(1, 1024)]


class Section(BaseModel):
    """A group of keys. Unknown ones are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """As plain data, with the names that are in the YAML files."""
        return super().model_dump(**{"by_alias": True, "exclude_unset": True, **how})

    def save(self, folder: str | Path) -> None:
        """Write config.yaml, beside the results."""
        with atomic_write(Path(folder) / "config.yaml") as partial:
            partial.write_text(yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")


class TargetSection(Section):
    """A class (`_target_`) and its arguments, for Hydra's `instantiate`. Never read from a downloaded file."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_")
    partial: bool = Field(default=False, alias="_partial_")


# ---------------------------------------------------------------- groups


class Editing(Section):
    """Settings that suit a teacher; commands take them as their defaults."""

    guidance: AtLeastZero
    lr: Rate
    t_range: TimestepRange
    mask_timestep: Whole
    mask_threshold: Share
    lr_of: dict[str, Rate] = {}  # of losses for which lr is another


class TeacherFiles(Section):
    """What is loaded with a teacher; null is as the translator was trained, where there is one."""

    path: ModelPath | None
    config: WeightsPath | None = None
    lora: LoRAFiles | None = None
    embeddings: EmbeddingFiles | None = None
    vae: WeightsPath | None = None

    @property
    def additions(self) -> dict[str, Any]:
        """Values of `diffusion.Additions`, of what is given."""
        known: dict[str, Any] = {"config": self.config, "vae": self.vae}
        known |= {"lora": None if self.lora is None else [split_weight(one) for one in self.lora]}
        known |= {"embeddings": None if self.embeddings is None else [split_token(one) for one in self.embeddings]}
        return {key: value for key, value in known.items() if value is not None}


class TeacherConfig(TeacherFiles):
    path: ModelPath
    pipeline: Text | None = None  # the class of checkpoints that these settings suit, for teacher=FOLDER
    dtype: Dtype
    max_tokens: MaxTokens | None = None
    shift: Rate | None = None
    quantization: Quantization | None = None
    offload: Literal["blocks"] | None = None
    editing: Editing


class CheckpointTeacher(TeacherFiles):
    """The teacher that a translator was trained with, if path is null."""

    pipeline: Text | None = None
    dtype: Dtype
    max_tokens: MaxTokens | None = None  # of conf/teacher: translators have their own
    quantization: Quantization | None = None
    editing: Editing | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Arguments of `Translator.from_pretrained`."""
        return {"teacher": self.path, "additions": self.additions}


# Options of losses whose default says too little about what they may be.
LOSS_OPTIONS: dict[str, Any] = {
    "weight": Weight,
    "negative": Text,
    "stride": Positive,
    "patches": Positive,
    "pools": Annotated[list[Positive], Field(min_length=1)],
    "rank": Positive,
    "temperature": Rate,
    "lr": Rate,
    "contrast": AtLeastZero,
    "rate": AtLeastZero,
    "identity": AtLeastZero,
    "source_guidance": AtLeastZero | None,
    "shift": AtLeastZero,
    "align": AtLeastZero,
    "redraw_below": AtLeastZero,
    "redraw_range": TimestepRange,
}


def loss_models() -> Iterator[type[Section]]:
    """A model for each file of conf/loss: a new loss needs no line here."""
    for path in sorted((CONF / "loss").glob("*.yaml")):
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        name = options.pop("name")
        kinds = {key: LOSS_OPTIONS.get(key, Whole if type(value) is int else type(value)) for key, value in options.items()}
        fields = {"name": Literal[name], **kinds}
        yield create_model(f"{name}Loss", __base__=Section, **{key: (kind, ...) for key, kind in fields.items()})  # type: ignore[call-overload]


if TYPE_CHECKING:
    LossConfig: TypeAlias = Any
else:
    LossConfig = Annotated[reduce(or_, loss_models()), Discriminator("name")]


class OptimizerConfig(TargetSection):
    lr: Rate = 0.0
    weight_decay: AtLeastZero = 0.0
    momentum: Share = 0.0


class SchedulerConfig(TargetSection):
    factor: AtLeastZero = 0.0
    gamma: Rate = 0.0
    step_size: Positive = 0
    num_warmup_steps: Whole = 0
    num_training_steps: Positive = 0


class UNetTranslator(Section):
    kind: Literal["unet"]
    channels: Annotated[list[Positive], Field(min_length=1)]
    attention: list[bool]
    depth: Positive
    heads: Positive
    groups: Positive


class LoRATranslator(Section):
    kind: Literal["lora"]
    rank: Positive
    targets: Annotated[list[Text], Field(min_length=1)] | None


class TeacherInitTranslator(Section):
    kind: Literal["teacher_init"]


TranslatorNetworkConfig = Annotated[UNetTranslator | LoRATranslator | TeacherInitTranslator, Discriminator("kind")]


class SyntheticData(TargetSection):
    model_config = ConfigDict(extra="forbid")

    prompts: Prompts | None
    words: Words
    count: Positive
    guidance: AtLeastZero
    steps: Positive
    batch_size: Positive
    seed: Seed
    cache: PathText | None


class FolderData(TargetSection):
    model_config = ConfigDict(extra="forbid")

    path: Annotated[PathText, AfterValidator(lambda value: found_by(check_images, value))]
    size: Positive | None
    captioner: Text | None
    buckets: bool


class ShardData(TargetSection):
    model_config = ConfigDict(extra="forbid")

    path: Annotated[str | list[str], FreeText(is_path=True), PlainValidator(one_or_several), AfterValidator(shard_paths)]
    latents: bool
    size: Positive | None
    cache_dir: PathText | None
    cache_gb: Rate
    buckets: bool


class CritterData(TargetSection):
    """Attributes that all critters have in common may be added."""

    count: Positive
    first: Whole
    size: Positive

    @model_validator(mode="after")
    def check_attributes(self) -> "CritterData":
        critter_attributes(self.model_extra or {})
        return self


class OwnData(TargetSection):
    """A data source of the user's own."""


SOURCES = {
    "dds_train.data.synthetic.SyntheticSource": "synthetic",
    "dds_train.data.folder.FolderSource": "folder",
    "dds_train.data.shards.ShardSource": "shards",
    "dds_train.critters.dataset.CritterSource": "critters",
}


def data_kind(value: Any) -> str:
    target = value.get("_target_") if isinstance(value, dict) else getattr(value, "target", None)
    return SOURCES.get(str(target), "own")


DataConfig = Annotated[
    Annotated[SyntheticData, Tag("synthetic")]
    | Annotated[FolderData, Tag("folder")]
    | Annotated[ShardData, Tag("shards")]
    | Annotated[CritterData, Tag("critters")]
    | Annotated[OwnData, Tag("own")],
    Discriminator(data_kind),
]

# Arguments of Lightning's Trainer that can be added; the others are set by `training`.
TRAINER_ARGUMENTS = frozenset(
    [
        "num_nodes",
        "fast_dev_run",
        "min_steps",
        "max_time",
        "limit_train_batches",
        "limit_val_batches",
        "overfit_batches",
        "enable_progress_bar",
        "gradient_clip_algorithm",
        "deterministic",
        "benchmark",
        "profiler",
        "detect_anomaly",
        "sync_batchnorm",
        "enable_autolog_hparams",
    ]
)


class TrainerConfig(Section):
    model_config = ConfigDict(extra="allow")

    max_steps: Positive
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Annotated[int | str | list[int], PlainValidator(device_count)]
    strategy: Text
    precision: Literal["32-true", "16-mixed", "bf16-mixed"]
    accumulate_grad_batches: Positive
    gradient_clip_val: AtLeastZero | None

    @model_validator(mode="after")
    def check_extra(self) -> "TrainerConfig":
        for name in set(self.model_extra or {}) - TRAINER_ARGUMENTS:
            if name == "max_epochs":
                raise SubkeyError(name, "training is counted in steps; give trainer.max_steps")
            raise SubkeyError(name, f"take {alternatives(sorted(TRAINER_ARGUMENTS))}{nearest(name, TRAINER_ARGUMENTS)}")
        return self


class LoggerTarget(TargetSection):
    save_dir: PathText = ""


class LoggerConfig(Section):
    extra: LoggerTarget | None


class TaskConfig(Section):
    """One edit; what it leaves out it takes from the command's own source, target and instruction."""

    source: Text | None = None
    target: Text | None = None
    instruction: Text | None = None
    swap: dict[str, Text] = {}
    truth: CritterAttributes = {}


class Ramp(Section):
    start: AtLeastZero
    end: AtLeastZero
    fraction: Share


class Augment(Section):
    flip: bool
    zoom: Annotated[float, number_between(0.1, 1)]


class Validation(Section):
    count: Whole
    source: CritterAttributes


class Best(Section):
    metric: Text | None
    mode: Literal["max", "min"]


class SentinelsConfig(Section):
    action: Literal["warn", "stop"]
    every: Positive
    after: Share
    ranges: dict[Literal["diversity", "copy", "contrast", "drift"], Annotated[list[float], AfterValidator(bounds)] | None]


class EarlyStop(Section):
    window: Positive
    tolerance: Share


class AutoMask(Section):
    timestep: Whole
    maps: Positive
    threshold: Share


class ClipFilter(Section):
    model: ModelPath | None
    least: Annotated[float, number_between(-1, 1)]
    tries: Positive


class Network(Section):
    """A model's folder or hub id; null = not used."""

    model: ModelPath | None


class LPIPS(Section):
    nets: list[Literal["squeeze", "alex", "vgg"]]
    hub_dir: PathText | None


class CrittersConfig(Section):
    count: Positive
    split: Literal["evaluation", "validation"]
    source: CritterAttributes
    edit: Annotated[CritterAttributes, Field(min_length=1)]


class MethodConfig(Section):
    """An editing method; `methods.registry` checks what its kind takes."""

    model_config = ConfigDict(extra="allow")

    negative: Text | None = None
    ckpt: PathText | None = None


# ---------------------------------------------------------------- commands


class FitConfig(Section):
    source: Text | None
    target: Text | None
    instruction: Text | None
    tasks: dict[str, TaskConfig]
    tasks_per_image: Positive
    guidance: Annotated[Ramp, Short("end")]
    identity: Ramp
    t_range: TimestepRange
    batch_size: Positive
    lr: Rate
    ema: Annotated[float, number_between(0, 1)]
    gradient_checkpointing: bool
    workers: Whole
    held_out: Positive
    augment: Annotated[Augment, Short("flip")]
    log_every: Positive
    preview_every: Positive
    validate_every: Positive
    checkpoint_every: Positive
    preview: Literal["auto", "vae", "linear"]
    validation: Annotated[Validation, Short("count")]
    best: Annotated[Best, Short("metric")]
    max_bad_fraction: Share
    sentinels: Annotated[SentinelsConfig, Short("action")]
    keep_checkpoints: Positive
    resume: Annotated[Resume, AfterValidator(archive_free)]
    seed: Seed
    device: Device
    output_dir: Annotated[OutputFolder, AfterValidator(archive_free)]
    teacher: TeacherConfig
    translator: TranslatorNetworkConfig
    loss: LossConfig
    data: DataConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    logger: LoggerConfig


class PredictConfig(Section):
    ckpt: Checkpoint
    image: EditPaths
    task: Text | None
    prompt: Text | None
    strength: Share
    batch_size: Positive
    mask: Mask | None
    auto_mask: AutoMask
    exact_background: AutoOrFlag
    feather: Whole
    max_side: Positive | None
    tile: Annotated[int, number_between(8)]
    overlap: Whole
    format: Literal["png", "same"]
    on_error: OnError
    seed: Seed
    device: Device
    output_dir: OutputFolder
    teacher: CheckpointTeacher


class OptimizeConfig(Section):
    image: EditPaths
    source: Text | None
    target: Texts | None
    swap: dict[str, Text]
    batch_size: Positive
    steps: Positive
    guidance: AtLeastZero
    lr: Rate
    t_range: TimestepRange
    t_order: Literal["random", "descending"]
    early_stop: Annotated[EarlyStop, Short("tolerance")]
    mask: Mask | None
    auto_mask: AutoMask
    exact_background: AutoOrFlag
    feather: Whole
    snapshots: Whole
    trajectory: list[Literal["strip", "gif", "mp4"]]
    max_side: Positive | None
    cache: Annotated[AnyPath, path_or("memory")] | None
    gradient_checkpointing: bool
    on_error: OnError
    seed: Seed
    device: Device
    output_dir: OutputFolder
    teacher: TeacherConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig


class EvaluateConfig(Section):
    image: EditPaths | None
    critters: CrittersConfig
    source: Text
    target: Text
    swap: dict[str, Text]
    task: Text | None
    methods: list[Text] | None
    ckpt: Checkpoints | None
    strengths: Annotated[list[Share], Field(min_length=1)]
    steps: Positive
    guidance: AtLeastZero
    lr: Rate
    t_range: TimestepRange
    batch_size: Positive
    max_side: Positive | None
    seed: Seed
    device: Device
    output_dir: OutputFolder
    teacher: TeacherConfig
    method: dict[str, MethodConfig]
    rows: Positive
    step_counts: list[Positive]
    lpips: Annotated[LPIPS, Short("nets")]
    clip: Annotated[Network, Short("model")]
    structure: Annotated[Network, Short("model")]
    targets: ImagePaths | None
    fid: ExistingFile | None


class SynthesizeConfig(Section):
    output_dir: OutputFolder
    prompts: Prompts | None
    words: Words
    count: Positive
    seed: Seed
    guidance: AtLeastZero
    steps: Positive
    batch_size: Positive
    per_shard: Positive
    clip: Annotated[ClipFilter, Short("model")]
    source: Text | None
    target: Text | None
    instruction: Text | None
    tasks: dict[str, TaskConfig]
    device: Device
    teacher: TeacherConfig


class ExportConfig(Section):
    ckpt: Checkpoint
    format: Literal["safetensors", "diffusers", "onnx", "lora"]
    examples: ImagePaths | None
    max_side: Positive | None
    metrics: ExistingFile | None
    push: Annotated[Text, AfterValidator(hub_repository)] | None
    output_dir: OutputFolder
    teacher: CheckpointTeacher


class DemoConfig(Section):
    ckpt: Checkpoint
    examples: ImagePaths | None
    host: Text
    port: Annotated[int, number_between(1, 65535)] | None
    max_side: Positive | None
    tile: Annotated[int, number_between(8)]
    overlap: Whole
    device: Device
    teacher: CheckpointTeacher


MODELS: dict[str, type[Section]] = {
    "fit": FitConfig,
    "predict": PredictConfig,
    "optimize": OptimizeConfig,
    "evaluate": EvaluateConfig,
    "demo": DemoConfig,
    "export": ExportConfig,
    "synthesize": SynthesizeConfig,
}
# An experiment is a configuration of fit; synthesize takes what it has keys for, and leaves these.
EXPERIMENT_KEYS = {"synthesize": frozenset(FitConfig.model_fields) - frozenset(SynthesizeConfig.model_fields)}


# ---------------------------------------------------------------- checks of several keys
# Arguments are the keys that a check needs: it runs where a command has them all and each is valid. Yields (key, problem).

Problems = Iterator[tuple[str, str]]


def check_tasks_per_image(tasks: Mapping[str, TaskConfig], tasks_per_image: int) -> Problems:
    count = len(tasks) or 1
    if tasks_per_image > count:
        yield "tasks_per_image", f"there are {count} tasks; take at most that many"


def check_caption_instruction(tasks: Mapping[str, TaskConfig], instruction: str | None) -> Problems:
    texts = {"instruction": instruction, **{f"tasks.{name}.instruction": task.instruction for name, task in tasks.items()}}
    for key, text in texts.items():
        if text is not None and "{caption}" in text:
            yield key, "is one for all images, so it cannot have {caption}"


def check_first_timestep(loss: Any, t_range: Sequence[int]) -> Problems:
    stride = getattr(loss, "stride", 0)
    if t_range[0] < stride:
        yield "t_range", f"loss={loss.name} looks back loss.stride={stride} timesteps; give FIRST of at least that"


def check_stateful_loss(loss: Any, held_out: int) -> Problems:  # of fit, which alone has held_out
    if loss.name == "vsd":
        yield (
            "loss",
            "fits a second model, whose state would be in no checkpoint; take loss=dds, or optimize",
        )


def check_channels(translator: Section) -> Problems:
    if isinstance(translator, UNetTranslator):
        levels = len(translator.channels)
        if len(translator.attention) != levels:
            yield "translator.attention", f"give true or false for each of the {levels} translator.channels"
        for key, divisor in (("groups", translator.groups), ("heads", translator.heads)):
            if any(width % divisor for width in translator.channels):
                yield f"translator.{key}", f"must divide each of translator.channels, {translator.channels}"


def check_offload(teacher: Section) -> Problems:
    if isinstance(teacher, TeacherConfig) and teacher.offload and teacher.quantization not in (None, "fp8"):
        yield "teacher.offload", f"is not for teacher.quantization={teacher.quantization}; take fp8, or one of both"


def check_teacher_as_translator(teacher: TeacherConfig, translator: Section) -> Problems:
    """What a translator can do with the teacher's own weights."""
    if isinstance(translator, LoRATranslator) and teacher.offload:
        yield "teacher.offload", "the adapters of translator=lora would move with its blocks; take teacher.quantization=nf4"
    if isinstance(translator, TeacherInitTranslator) and teacher.quantization:
        yield (
            "teacher.quantization",
            "translator=teacher_init begins as a copy in full precision; take null or translator=lora",
        )


def check_best_metric(best: Best, validation: Validation, tasks: Mapping[str, TaskConfig]) -> Problems:
    scored = [name for name, task in tasks.items() if task.truth]
    exact = ["gap_closed", "edit_accuracy"]
    known = ["val/grad_rms", "val/shift_rms"]
    with_critters = [f"val/{score}" for score in exact]
    with_critters += [f"val/{name}/{score}" for name in scored for score in exact] if len(scored) > 1 else []
    metric = best.metric
    if metric in with_critters and not validation.count:
        yield "best.metric", "needs validation on critters, such as validation.count=32"
    elif metric is not None and metric not in [*known, *with_critters]:
        yield "best.metric", f"take {alternatives([*known, *with_critters])}{nearest(metric, [*known, *with_critters])}"


def check_validation_truth(validation: Validation, tasks: Mapping[str, TaskConfig]) -> Problems:
    if validation.count and not any(task.truth for task in tasks.values()):
        yield "validation.count", "no task has a ground truth, such as tasks.NAME.truth.species=lion"


def check_preview(preview: str, data: Section) -> Problems:
    if preview == "linear" and not (isinstance(data, ShardData) and data.latents):
        yield "preview", "needs latents that synthesize made (data=shards); take preview=vae"


def check_tiles(tile: int, overlap: int) -> Problems:
    if overlap >= tile:
        yield "overlap", f"must be less than tile={tile}"


def check_prompts_of_tasks(tasks: Mapping[str, TaskConfig], source: str | None, target: str | None, per_shard: int) -> Problems:
    for name, task in tasks.items():
        for key, text in (("source", task.source or source), ("target", task.target or target)):
            if not text:
                yield key, f"tasks.{name} has none of its own; give tasks.{name}.{key}=..."
    if target and not tasks and not source:
        yield "source", "give it with target=..., or neither"


def check_prompts(prompts: Any, source: str | None, tasks: Mapping[str, TaskConfig], per_shard: int) -> Problems:
    if not (prompts or source or any(task.source for task in tasks.values())):
        yield "prompts", 'give a template such as prompts="a photo of a cat", or an experiment'


CROSS_CHECKS: tuple[Callable[..., Problems], ...] = (
    check_tasks_per_image,
    check_caption_instruction,
    check_first_timestep,
    check_stateful_loss,
    check_channels,
    check_offload,
    check_teacher_as_translator,
    check_best_metric,
    check_validation_truth,
    check_preview,
    check_tiles,
    check_prompts_of_tasks,
    check_prompts,
)


def nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    matches = [one for one in known if re.search(rf"[._]{re.escape(word)}$", one)][:4]
    matches = matches or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {alternatives([repr(one) for one in matches])}?" if matches else ""
