"""Diffusion checkpoints: a bundled teacher, a folder in diffusers' layout, a repository of a model hub, or a single file."""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from diffusers.configuration_utils import FrozenDict
from torch import nn

from dds_train.diffusion.additions import Additions, vae_folder
from dds_train.diffusion.autoencoder import Autoencoder
from dds_train.diffusion.embeddings import add_embeddings
from dds_train.diffusion.families import Family, find_family
from dds_train.diffusion.families.base import VAES
from dds_train.diffusion.frozen import Frozen
from dds_train.diffusion.location import INDEX, fetched_folder, local_folder, origin
from dds_train.diffusion.lora import fuse, lora_parts, settings_file
from dds_train.diffusion.part_files import (
    TOKENIZER_CONFIG,
    find_weights,
    has_vocabulary,
    read_json,
    refuse_pointers,
    tensor_digests,
    weights_digests,
)
from dds_train.diffusion.prompt_file import PromptFile
from dds_train.diffusion.prompt_table import PromptTable
from dds_train.diffusion.quantization import check_quantization, loading_options, store_as_float8
from dds_train.diffusion.schedule import make_scheduler
from dds_train.diffusion.single_file import SingleFile
from dds_train.diffusion.step_distilled import check_steps
from dds_train.diffusion.teacher import Teacher
from dds_train.diffusion.text_encoder import TextEncoder
from dds_train.distillation.losses import needs_null
from dds_train.distillation.noise import LEAST_SIGNAL, NoiseSchedule
from dds_train.errors import UserError, first_line
from dds_train.runs.digest import cache_folder, cached_by_file, digest, file_digest

CRITTERS = Path(__file__).parents[1] / "critters"
BUNDLED = {"bundled": CRITTERS / "teacher", "bundled_flow": CRITTERS / "flow_teacher"}
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
TEXT = ("tokenizer", "text_encoder")  # the folders that begin so
EMBEDDING = 1  # version of what families make of a prompt; a change makes cached embeddings old
UNIMPORTANT = ("dtype", "torch_dtype", "transformers_version", "architectures")  # of configurations: differ between copies

T = TypeVar("T")


@dataclass(frozen=True)
class DiffusionCheckpoint:
    """A text-to-image diffusion checkpoint. Each part is loaded on first use.

    Attributes:
        path: a name in `BUNDLED` (teachers of the critters), a folder that holds model_index.json, a hub id ("owner/name"), or
            a single file.
        device: where the parts go.
        dtype: precision of denoiser and text encoders; the VAE stays in float32, where no checkpoint overflows.
        max_tokens: of a prompt; None is the default of the family's pipeline.
        shift: of a rectified flow towards noise, for images of any size; None is what its configuration says.
        additions: LoRA and the like, loaded with it.
        quantization: of the linear layers of denoiser and text encoders, CLIP excepted: "int8", "fp8" or "nf4".
        offload: "blocks": the teacher's denoiser waits on the CPU, and its blocks are on the device while they run.

    Raises:
        UserError: for the `shift` of what is no flow; if it cannot be quantized or offloaded here; from whatever needs a part,
            if it is not there, cannot be read, or is of a family that is not supported.
    """

    path: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    max_tokens: int | None = None
    shift: float | None = None
    additions: Additions = field(default_factory=Additions)
    quantization: str | None = None
    offload: str | None = None

    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shift is not None and not self.family.is_flow:
            raise UserError(f"teacher.shift={self.shift:g}: {self.family.name} is no rectified flow; take null")
        if self.quantization:
            check_quantization(self.quantization, self.device)
            one_file = self.quantization != "fp8" and self._file
            if self.additions.lora or one_file:
                kind = f"teacher.quantization={self.quantization}"
                raise UserError(f"{kind}: not with {'a single file' if one_file else 'teacher.lora'}; take null")
        if self.offload and not self.device.startswith("cuda"):
            raise UserError(f"teacher.offload={self.offload}: needs a GPU, got device={self.device}; take teacher.offload=null")

    @property
    def precision(self) -> str:
        """What results depend on besides the weights."""
        return f"{self.dtype}, {self.quantization}" if self.quantization else str(self.dtype)

    @property
    def family(self) -> Family:
        return self._once("family", self._find_family)

    def check_guidance(self, loss: str, guidance: float, key: str = "guidance") -> None:
        """Raises UserError, naming the configuration's `key`, if a loss needs the empty prompt, and guidance was distilled into
        the model. Sampling needs what "dds" does."""
        if self.family.has_null or not needs_null(loss, guidance):
            return
        reason = f"{self.family.name} has guidance as an input and was trained on no empty prompt"
        if guidance != 1:
            raise UserError(f"{key}={guidance:g}: {reason}; take {key}=1")
        raise UserError(f"loss={loss}: {reason}, which this loss needs; take loss=dds")

    @property
    def origin(self) -> str:
        """What finds it again, from any folder, with `additions`: a name in `BUNDLED`, a hub id, or an absolute path."""
        return self.path if self.path in BUNDLED else origin(self.path)

    def teacher(self) -> Teacher:
        return self._once("teacher", self._load_teacher)

    def autoencoder(self) -> Autoencoder:
        return self._once("autoencoder", self._load_autoencoder)

    def text_encoder(self) -> TextEncoder:
        return self._once("text_encoder", self._load_text_encoder)

    def embedded(self, prompts: Iterable[str]) -> PromptTable:
        """A table with these prompts and all earlier ones. The text encoder is loaded for new ones and, unless it was there
        before, freed: it can be larger than the denoiser."""
        known, keep = self._once("prompts", lambda: PromptTable({}, self.device)), "text_encoder" in self._loaded
        table = known.completed(prompts, lambda missing: PromptTable.of(self.text_encoder(), missing))
        self._loaded["prompts"] = table
        if not keep:
            self.release("text_encoder")
        return table

    def embed_into(self, file: PromptFile, prompts: Iterable[str]) -> None:
        """Complete a file with these prompts and the empty one; the text encoder is loaded and freed as by `embedded`."""
        keep = "text_encoder" in self._loaded
        file.complete(["", *prompts], self.text_encoder)
        if not keep:
            self.release("text_encoder")

    def embedded_in_cache(self, prompts: Iterable[str]) -> PromptFile:
        """The file in the cache folder of all that was ever embedded by this text encoder, in this precision and on this kind
        of device, with these prompts in it: for more of them than the memory holds."""
        device = torch.device(self.device).type  # others round differently
        identity = digest([EMBEDDING, self.family.name, self.digest("text"), self.precision, device])
        file = PromptFile(cache_folder() / "prompts" / f"{identity[:16]}.sqlite")
        self.embed_into(file, prompts)
        return file

    def release(self, *parts: str) -> None:
        """Forget "teacher", "autoencoder" or "text_encoder": its memory is free once nothing else holds it."""
        for part in parts:
            self._loaded.pop(part, None)

    def load_denoiser(self) -> nn.Module:
        """A frozen denoising network of the caller's own, not the one that `teacher` returns."""
        result: nn.Module = Frozen(self._load_denoiser(), self.device, self.dtype).network
        return result

    def sampler(self) -> SchedulerMixin:
        """DPM-Solver++ (arXiv 2211.01095) on the teacher's noise schedule, for noise predictions; Euler's method for a flow."""
        scheduler = self._scheduler()
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return scheduler
        return DPMSolverMultistepScheduler.from_config(scheduler.config, prediction_type="epsilon", timestep_spacing="trailing")

    def ddim(self) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
        """DDIM (arXiv 2010.02502) on the teacher's noise schedule, for noise predictions; Euler's method for a flow."""
        scheduler = self._scheduler()
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return scheduler
        return _with_signal(DDIMScheduler.from_config(scheduler.config, prediction_type="epsilon", clip_sample=False))

    def ddim_inverse(self) -> DDIMInverseScheduler | FlowMatchEulerDiscreteScheduler:
        """`ddim` in reverse, from images to noise."""
        forward = self.ddim()
        if isinstance(forward, FlowMatchEulerDiscreteScheduler):  # unshifted: it gets the times of `ddim`
            return FlowMatchEulerDiscreteScheduler(forward.config.num_train_timesteps, invert_sigmas=True)
        return _with_signal(DDIMInverseScheduler.from_config(forward.config))

    def image_size(self) -> tuple[int, int]:
        """The side in pixels of the images it was trained on, and the VAE's pixels per latent. Loads no weights."""
        self._check()
        factor = self.family.vae_factor(self._config("vae"))
        return max(self.family.shape(self._config(self.family.denoiser)).size) * factor, factor

    def image_unit(self) -> int:
        """The pixels of which the sides of images should be multiples. Loads no weights."""
        return self.image_size()[1] * self.family.shape(self._config(self.family.denoiser)).stride

    def digest(self, *parts: str, up_to_half: bool = False) -> str:
        """The identity of what is loaded as `parts`: a digest of their weights, configurations and vocabularies, of "text" also
        of `max_tokens`, of "scheduler" of `shift`.

        It does not depend on the files' format, names and number, nor on files beside them.

        Args:
            parts: "denoiser", "text" (tokenizers and text encoders), "vae", "scheduler"; all of them by default.
            up_to_half: a copy in half precision has the same identity.

        Raises:
            UserError: if they are not there, or cannot be read.
        """
        folders: list[str] = []
        parts = parts or ("denoiser", "vae", "text", "scheduler")
        for part in parts:
            folders += [self.family.denoiser] if part == "denoiser" else self._text_parts if part == "text" else [part]
        kind = "half" if up_to_half else "exact"
        elsewhere = {name: self._elsewhere(name) for name in folders}
        root = self._folder(*(name for name in folders if elsewhere[name] is None))
        identity = {name: self._identity(*(elsewhere[name] or (root / name, None)), name, kind) for name in folders}
        identity |= self._identity_of_additions(folders)
        if self.max_tokens is not None and "text" in parts:
            identity["max_tokens"] = self.max_tokens
        if self.shift is not None and "scheduler" in parts:
            identity["shift"] = self.shift
        return digest(identity)

    def _find_family(self) -> Family:
        try:
            family = find_family(str(self._index.get("_class_name")))
        except ValueError as error:
            raise self._refusal(error) from error
        self.additions.check(self._pipeline, self._file is not None)
        return family

    def _once(self, name: str, load: Callable[[], T]) -> T:
        if name not in self._loaded:
            self._loaded[name] = load()
        loaded: T = self._loaded[name]
        return loaded

    def _load_teacher(self) -> Teacher:
        network, scheduler = self._load_denoiser(), self._scheduler()
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            schedule, kind = NoiseSchedule.flow(scheduler.config.num_train_timesteps, scheduler.shift), "flow"
        else:
            schedule, kind = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod), scheduler.config.prediction_type
        return Teacher(network, self.family, schedule, kind, self.device, self.dtype, self.offload == "blocks")

    def _load_denoiser(self) -> nn.Module:
        self._check()
        family = self.family
        network: nn.Module = self._load(family.denoiser, family.network)
        if self.additions.lora:
            fuse(self._pipeline_of({family.denoiser: network}), [family.denoiser], self.additions.lora_files())
        return network

    def _load_autoencoder(self) -> Autoencoder:
        self._check_vae()
        return Autoencoder(self._load("vae"), self.family, self.device)

    def _load_text_encoder(self) -> TextEncoder:
        family = self.family
        parts = {name: self._load(name) for name in self._text_parts}
        for name in parts:
            if name.startswith("tokenizer"):
                self._check_tokenizer(name, parts[name], parts[name.replace("tokenizer", "text_encoder")])
        pipeline = self._pipeline_of(parts)
        if self.additions.embeddings:
            add_embeddings(pipeline, self.additions.embedding_files())
        if self.additions.lora:
            with init_empty_weights():  # diffusers' loaders look at it
                network = family.network.from_config(family.network.load_config(self._source(family.denoiser)[0]))
            fuse(self._pipeline_of({**parts, family.denoiser: network}), list(parts), self.additions.lora_files())
        if self._config_folder(family.denoiser).is_dir():  # Stable Diffusion 3 without T5 asks it for the width of prompts
            setattr(pipeline, family.denoiser, SimpleNamespace(config=FrozenDict(self._config(family.denoiser))))
        return TextEncoder(pipeline, family, self.device, self.dtype, self.max_tokens)

    def _pipeline_of(self, parts: Mapping[str, Any]) -> Any:
        """Diffusers' pipeline of these parts alone."""
        parameters = inspect.signature(self._pipeline).parameters
        options = {name: value for name, value in self._index.items() if name in parameters and not isinstance(value, list)}
        components = {name: None for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
        return self._pipeline(**{**components, **parts, **options, **self.family.pipeline_options})

    def _scheduler(self) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
        """The noise schedule and prediction type, whatever sampler the checkpoint comes with."""
        config = read_json(self._folder("scheduler") / "scheduler" / "scheduler_config.json")
        if self._file and self._file.predicts_v and config.get("prediction_type") != "v_prediction":
            raise self._refusal("its weights predict v, and the scheduler of teacher.config= is for another prediction_type")
        names = {one for one in (config.get("_class_name"), *(self._index.get("scheduler") or ())[1:]) if one}
        tokens = None
        if self.family.is_flow:
            shape = self.family.shape(self._config(self.family.denoiser))
            tokens = math.prod(shape.size) // shape.stride**2
        try:
            return make_scheduler(config, names, tokens, self.family.mu, self.shift)
        except ValueError as error:
            raise self._refusal(error) from error

    def _check(self) -> None:
        """Refuse what the configurations alone show not to work, before any weights are read."""
        family = self.family

        def config(part: str) -> Mapping[str, Any]:
            # Training on latents and embedded prompts needs neither VAE nor text encoder.
            return self._index if part == "model_index" else self._config(part) if self._config_folder(part).is_dir() else {}

        scheduler, places = self._folder() / "scheduler" / "scheduler_config.json", [Path(self.path)]
        places += [Path(str(one.get("_name_or_path", ""))) for one in (self._index, config(family.denoiser))]
        names = [part for place in places for part in place.parts if part == place.name or part.startswith("models--")]
        try:
            check_steps(self._index["_class_name"], read_json(scheduler) if scheduler.exists() else {}, names)
        except ValueError as error:
            raise self._refusal(error) from error
        self._check_vae()
        try:
            family.check(config)
        except UserError:
            raise
        except KeyError as error:
            raise self._refusal(f"a config.json has no {error}") from error
        except ValueError as error:
            raise self._refusal(f"{error}; supported: {family.name}") from error

    def _check_vae(self) -> None:
        """Refuse another VAE whose latents are not those of the checkpoint's own."""
        folder = self._folder() / "vae"
        if not self.additions.vae or not folder.is_dir():
            return
        own, other = (self._config("vae", folder=one) for one in (folder, self._config_folder("vae")))
        names = {str(config.get("_class_name")) for config in (own, other)}
        if len(names) > 1 and not names <= set(VAES):
            raise self._refusal(f"a {other['_class_name']}, where the teacher's own is a {own['_class_name']}", "vae")
        for count, what in ((self.family.vae_channels, "channels"), (self.family.vae_factor, "pixels per latent")):
            if count(own) != count(other):
                raise self._refusal(f"has {count(other)} {what}, the teacher's own VAE {count(own)}", "vae")

    def _check_tokenizer(self, name: str, tokenizer: Any, text_encoder: Any) -> None:
        rows, last = text_encoder.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values())
        if last >= rows:
            raise self._refusal(
                f"its {name} has tokens up to number {last}, its text encoder embeddings for {rows}; take the {name} that it "
                "was trained with, or resize the embeddings (textual inversion)"
            )
        # Of CLIP, whose positions are a table; pipelines of other encoders pad to a length of their own.
        positions = text_encoder.config.max_position_embeddings if text_encoder.config.model_type.startswith("clip") else None
        if positions is not None and tokenizer.model_max_length > positions:
            raise self._refusal(
                f"its {name} has model_max_length {tokenizer.model_max_length}, its text encoder {positions} positions; "
                f'write "model_max_length": {positions} into {name}/{TOKENIZER_CONFIG}'
            )

    def _load(self, part: str, of: Any = None) -> Any:
        """A part as the class that model_index.json names for it, or as another."""
        family, (folder, file) = self.family, self._source(part)
        if not folder.is_dir():
            raise self._refusal(f"no folder {part} there; a {family.name} checkpoint has one")
        names = {path.name for path in folder.iterdir()}
        if part.startswith("tokenizer") and not (TOKENIZER_CONFIG in names and has_vocabulary(names)):
            raise self._refusal(f"{part} has no {TOKENIZER_CONFIG}, or no vocabulary such as tokenizer.json; copy it whole")
        of = of or self._class(part)
        try:
            if not issubclass(of, nn.Module):
                return of.from_pretrained(folder)
            # CLIP is small and sensitive; the head of a LoRA translator begins as a copy of the last layer.
            kind = None if part == "vae" or of.__name__.startswith("CLIP") else self.quantization
            dtype = torch.float32 if part == "vae" else self.dtype
            kept = [family.last_layer] if part == family.denoiser else []
            if file:
                network, info = file.load(part, of, folder, dtype)
            else:
                weights, variant = find_weights(names)
                if weights is None:
                    raise OSError("no weights there")
                options: dict[str, Any] = {
                    "variant": variant,
                    "use_safetensors": ".safetensors" in weights,
                    "output_loading_info": True,
                }
                options |= {"torch_dtype": dtype, **loading_options(kind, of, self.device, dtype, kept)}
                if issubclass(of, transformers.PreTrainedModel):  # reports sizes that do not fit; diffusers' message names them
                    options |= {"ignore_mismatched_sizes": True, "dtype": options.pop("torch_dtype")}
                network, info = of.from_pretrained(folder, **options)
        except UserError:
            raise
        except Exception as error:  # whatever the two libraries raise for files that they cannot read
            reason = first_line(error)
            raise self._refusal(f"{part} does not load: {reason}", part) from error
        for wrong, problem in (
            ("missing_keys", "lacks"),
            ("mismatched_keys", "has in other sizes"),
            ("unexpected_keys", "has besides"),
        ):
            keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[wrong])
            if keys:
                mismatch = f"is not of class {of.__name__}: it {problem} {len(keys)} weights, such as {keys[0]}"
                raise self._refusal(f"{part} {mismatch}", part)
        if kind == "fp8":
            store_as_float8(network, dtype, kept)
        return network

    def _refusal(self, problem: str | ValueError, part: str = "") -> UserError:
        """`part` has the problem, if it is one of a single part. What is one line for the user already stays as it is."""
        if isinstance(problem, UserError):
            return problem
        key, place = ("vae", self.additions.vae) if part == "vae" and self.additions.vae else ("path", self.path)
        return UserError(f"teacher.{key}={place}: {problem}")

    @property
    def _index(self) -> dict[str, Any]:
        return self._once("index", lambda: read_json(self._folder() / INDEX))

    @property
    def _pipeline(self) -> Any:
        return getattr(diffusers, self._index["_class_name"])

    @property
    def _text_parts(self) -> list[str]:
        known = [name for name, value in self._index.items() if isinstance(value, list) and value[:1] not in ([], [None])]
        return [name for name in known if name.startswith(TEXT)]

    def _class(self, part: str, folder: Path | None = None) -> Any:
        """The class of a part; of diffusers' networks the one that their own configuration names."""
        try:
            library, name = self._index[part]
            config = (folder or self._config_folder(part)) / "config.json"
            own = read_json(config).get("_class_name") if library == "diffusers" else None
            return getattr(LIBRARIES[library], own or name)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            known = " or ".join(LIBRARIES)
            raise self._refusal(f"model_index.json names no class of {known} for {part}: {self._index.get(part)}") from error

    def _config(self, part: str, of: Any = None, folder: Path | None = None) -> dict[str, Any]:
        """The configuration of a network or scheduler, with the defaults of what it does not say."""
        of = of or self._class(part, folder)
        config = read_json((folder or self._config_folder(part)) / getattr(of, "config_name", "config.json"))
        if issubclass(of, transformers.PreTrainedModel):
            try:
                return {**of.config_class.from_dict(config).to_dict(), **config}
            except Exception as error:  # of the library's own kinds
                raise self._refusal(f"{part}/config.json: {' '.join(str(error).split())}") from error
        parameters = inspect.signature(of).parameters.values()
        return {**{one.name: one.default for one in parameters if one.default is not one.empty}, **config}

    def _identity(self, folder: Path, file: SingleFile | None, part: str, kind: str) -> Any:
        """Plain data that tells one part from others, and not from copies of itself."""
        if not folder.is_dir():
            raise UserError(f"teacher: no folder {folder}; give a whole folder in diffusers' layout")
        if part.startswith("tokenizer"):
            tokenizer = self._once(part, lambda: self._load(part))
            backend = json.loads(tokenizer.backend_tokenizer.to_str())
            return [{**backend, "truncation": None, "padding": None}, tokenizer.special_tokens_map, tokenizer.model_max_length]
        of = DDIMScheduler if part == "scheduler" else self._class(part)
        config = self._config(part, of)
        plain = _important(config)
        if part == "scheduler":
            return plain

        def weights() -> Any:
            if file is None:
                return weights_digests(folder)
            return cached_by_file(file.path, f"weights of {part}", lambda _: tensor_digests(file.tensors(part, of, folder)))

        return [plain, self._once(f"weights of {part}", weights)[kind]]

    def _identity_of_additions(self, parts: Sequence[str]) -> dict[str, Any]:
        """Of those that change one of `parts`; empty if none does, so that copies with them inside are not told apart."""
        known: dict[str, Any] = {}
        for path, weight in self.additions.lora_files():
            if self._once(f"parts of {path}", partial(lora_parts, self._pipeline, path)) & set(parts):
                settings = settings_file(path)
                files = [path, settings] if settings else [path]
                known.setdefault("lora", []).append([*map(file_digest, files), weight])
        if "text_encoder" in parts and self.additions.embeddings:
            known["embeddings"] = [[token, file_digest(path)] for token, path in self.additions.embedding_files()]
        return known

    def _source(self, part: str) -> tuple[Path, SingleFile | None]:
        """The folder of a part's configuration, and of its weights, unless they are in a file."""
        return self._elsewhere(part) or (self._folder(part) / part, None)

    def _elsewhere(self, part: str) -> tuple[Path, SingleFile | None] | None:
        """`_source` of a part that is not in the checkpoint's own folder."""
        if part == "vae" and self.additions.vae:
            is_file = Path(self.additions.vae).expanduser().is_file()
            return self._config_folder(part), SingleFile(Path(self.additions.vae), "teacher.vae") if is_file else None
        if self._file and not part.startswith(("tokenizer", "scheduler")):
            of = self.family.network if part == self.family.denoiser else self._class(part)
            if self._file.has(part, of):
                return self._folder() / part, self._file
            if part == self.family.denoiser:
                raise self._refusal(f"diffusers reads no {self.family.name} from single files; give a folder in its layout")
        return None

    def _config_folder(self, part: str) -> Path:
        vae = self.additions.vae if part == "vae" else None
        return (vae and self._once("vae folder", lambda: vae_folder(vae))) or self._folder() / part

    @property
    def _file(self) -> SingleFile | None:
        path = Path(self.path).expanduser()
        return self._once("file", lambda: SingleFile(path, "teacher.path") if path.is_file() else None)

    def _folder(self, *parts: str) -> Path:
        """The local folder that holds `parts` and all configurations; of a hub's repository nothing else is fetched."""
        if self.path in BUNDLED:
            return BUNDLED[self.path]
        key, place = self._once("place", self._place)
        local = self._once("folder", lambda: self._local_folder(key, place))
        return local or self._once(f"folder of {parts}", lambda: fetched_folder(place, parts, key))

    def _place(self) -> tuple[str, str]:
        """The folder or hub id in diffusers' layout, and its key: of a single file its configurations."""
        if self._file is None:
            return "teacher.path", self.path
        return "teacher.config", self.additions.config or self._file.repository()

    def _local_folder(self, key: str, place: str) -> Path | None:
        folder = local_folder(place, key)
        if folder:
            parts = [name for name, value in read_json(folder / INDEX).items() if isinstance(value, list)]
            refuse_pointers(
                folder, [name for name in parts if not self._file or name.startswith("tokenizer")], f"{key}={place}"
            )
        return folder


def _important(config: Mapping[str, Any]) -> dict[str, Any]:
    """What copies of a part have in common, at every level: language models have configurations in theirs."""
    kept = {str(key): value for key, value in config.items() if str(key)[0] != "_" and key not in UNIMPORTANT}
    return {key: _important(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _with_signal(scheduler: T) -> T:
    """A DDIM scheduler on the noise schedule that the teacher has (`NoiseSchedule`)."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.clamp(min=LEAST_SIGNAL)  # type: ignore[attr-defined]
    return scheduler
