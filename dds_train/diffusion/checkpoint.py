"""Diffusion checkpoints: the bundled teacher, a folder in diffusers' layout, or a repository of a model hub."""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import nn

from dds_train import hub
from dds_train.diffusion.autoencoder import Autoencoder
from dds_train.diffusion.families import Family, find_family
from dds_train.diffusion.frozen import Frozen
from dds_train.diffusion.schedule import make_scheduler
from dds_train.diffusion.teacher import Teacher
from dds_train.diffusion.text_encoder import TextEncoder
from dds_train.distillation.losses import needs_null
from dds_train.distillation.noise import NoiseSchedule
from dds_train.errors import UserError
from dds_train.runs.digest import digest, file_digest

BUNDLED = Path(__file__).parents[1] / "critters" / "teacher"
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
TEXT = ("tokenizer", "text_encoder")  # the folders that begin so
# The files that from_pretrained reads. Of weights the first one that exists: safetensors before pickles.
CONFIGS = ("config.json", "scheduler_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model",
)  # fmt: skip
WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class DiffusionCheckpoint:
    """A text-to-image diffusion checkpoint. Each part is loaded on first use.

    Attributes:
        path: "bundled" (the critters teacher), a folder that holds model_index.json, or a hub id ("owner/name").
        device: where the parts go.
        dtype: precision of denoiser and text encoders; the VAE stays in float32, where no checkpoint overflows.

    Raises:
        UserError: from whatever needs a part, if it is not there, cannot be read, or is of a family that is not supported.
    """

    path: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def family(self) -> Family:
        try:
            return find_family(str(self._index.get("_class_name")))
        except ValueError as error:
            raise UserError(f"teacher.path={self.path}: {error}") from error

    def check_guidance(self, loss: str, guidance: float, key: str = "guidance", **options: Any) -> None:
        """Raises UserError, naming the configuration's `key`, if a loss needs the empty prompt, and guidance was distilled into
        the model. Sampling needs what "dds" does."""
        if self.family.has_null or not needs_null(loss, guidance, **options):
            return
        reason = f"{self.family.name} has guidance as an input and was trained on no empty prompt"
        if guidance != 1:
            raise UserError(f"{key}={guidance:g}: {reason}; take {key}=1")
        raise UserError(f"loss={loss}: {reason}, which this loss needs; take loss=dds")

    def teacher(self) -> Teacher:
        return self._once("teacher", self._load_teacher)

    def autoencoder(self) -> Autoencoder:
        return self._once("autoencoder", lambda: Autoencoder(self._load("vae"), self.family, self.device))

    def text_encoder(self) -> TextEncoder:
        return self._once("text_encoder", self._load_text_encoder)

    def release(self, *parts: str) -> None:
        """Forget "teacher", "autoencoder" or "text_encoder": its memory is free once nothing else holds it."""
        for part in parts:
            self._loaded.pop(part, None)

    def load_denoiser(self) -> nn.Module:
        """A frozen denoising network of the caller's own, not the one that `teacher` returns."""
        family = self.family

        def config(part: str) -> Mapping[str, Any]:
            # Training on latents and embedded prompts needs neither VAE nor text encoder.
            return self._index if part == "model_index" else self._config(part) if (self._folder() / part).is_dir() else {}

        try:
            family.check(config)
        except ValueError as error:
            raise UserError(f"teacher.path={self.path}: {error}; supported: {family.name}") from error
        result: nn.Module = Frozen(self._load(family.denoiser, family.network), self.device, self.dtype).network
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
        return DDIMScheduler.from_config(scheduler.config, prediction_type="epsilon", clip_sample=False)

    def ddim_inverse(self) -> DDIMInverseScheduler | FlowMatchEulerDiscreteScheduler:
        """`ddim` in reverse, from images to noise."""
        forward = self.ddim()
        if isinstance(forward, FlowMatchEulerDiscreteScheduler):  # unshifted: it gets the times of `ddim`
            return FlowMatchEulerDiscreteScheduler(forward.config.num_train_timesteps, invert_sigmas=True)
        return DDIMInverseScheduler.from_config(forward.config)

    def _scheduler(self) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
        shape = self.family.shape(self._config(self.family.denoiser))
        try:
            config = _read_json(self._folder("scheduler") / "scheduler" / "scheduler_config.json")
            return make_scheduler(config, math.prod(shape.size) // shape.stride**2, self.family.mu)
        except ValueError as error:
            raise UserError(f"teacher.path={self.path}: {error}") from error

    def image_size(self) -> tuple[int, int]:
        """The side in pixels of the images it was trained on, and the VAE's pixels per latent. Loads no weights."""
        factor = self.family.vae_factor(self._config("vae"))
        return max(self.family.shape(self._config(self.family.denoiser)).size) * factor, factor

    def digest(self, *parts: str) -> str:
        """The identity of what is loaded as `parts`: a digest of all bytes of the weights and of the configurations.

        Args:
            parts: "denoiser", "text" (tokenizers and text encoders), "vae", "scheduler"; all of them by default.
        """
        folders: list[str] = []
        for part in parts or ("denoiser", "vae", "text", "scheduler"):
            folders += [self.family.denoiser] if part == "denoiser" else self._text_parts if part == "text" else [part]
        root = self._folder(*folders)
        return digest({name: _part_digests(root / name) for name in folders})

    def _once(self, name: str, load: Callable[[], T]) -> T:
        if name not in self._loaded:
            self._loaded[name] = load()
        loaded: T = self._loaded[name]
        return loaded

    def _load_teacher(self) -> Teacher:
        network, scheduler = self.load_denoiser(), self._scheduler()
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            schedule, kind = NoiseSchedule.flow(scheduler.config.num_train_timesteps, scheduler.shift), "flow"
        else:
            schedule, kind = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod), scheduler.config.prediction_type
        return Teacher(network, self.family, schedule, kind, self.device, self.dtype)

    def _load_text_encoder(self) -> TextEncoder:
        family, pipeline = self.family, getattr(diffusers, self._index["_class_name"])
        parameters = inspect.signature(pipeline).parameters
        options = {name: value for name, value in self._index.items() if name in parameters and not isinstance(value, list)}
        components = {name: None for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
        components |= {name: self._load(name) for name in self._text_parts}
        return TextEncoder(pipeline(**components, **{**options, **family.pipeline_options}), family, self.device, self.dtype)

    def _load(self, part: str, of: Any = None) -> Any:
        """A part as the class that model_index.json names for it, or as another."""
        family, folder = self.family, self._folder(part) / part
        if not folder.is_dir():
            raise UserError(f"teacher.path={self.path}: no folder {part} there; a {family.name} checkpoint has one")
        try:
            library, name = self._index[part]
            of = of or getattr(LIBRARIES[library], name)
            if not issubclass(of, nn.Module):
                return of.from_pretrained(folder)
            # transformers reports sizes that do not fit; diffusers raises a message that names them.
            options = {"ignore_mismatched_sizes": True} if library == "transformers" else {}
            network, info = of.from_pretrained(folder, output_loading_info=True, **options)
        except Exception as error:  # whatever the two libraries raise for files that they cannot read
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"teacher.path={self.path}: {part} does not load: {reason}") from error
        wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind])
        if wrong:
            raise UserError(f"teacher.path={self.path}: {part} lacks {len(wrong)} of its weights, such as {wrong[0]}")
        return network

    @property
    def _index(self) -> dict[str, Any]:
        return self._once("index", lambda: _read_json(self._folder() / "model_index.json"))

    @property
    def _text_parts(self) -> list[str]:
        return [name for name, value in self._index.items() if name.startswith(TEXT) and value[0] is not None]

    def _config(self, part: str) -> dict[str, Any]:
        return _read_json(self._folder() / part / "config.json")

    def _folder(self, *parts: str) -> Path:
        """The local folder that holds `parts` and all configurations; of a hub's repository nothing else is fetched."""
        if self.path == "bundled":
            return BUNDLED
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            if not (folder / "model_index.json").exists():
                raise UserError(f"teacher.path={self.path}: no model_index.json there; give a folder in diffusers' layout")
            return folder
        if self.path.count("/") != 1 or self.path[0] in "./~":
            raise UserError(f"teacher.path={self.path}: no such folder, and not a hub id such as owner/name")
        return self._once(f"folder of {parts}", lambda: self._fetch(parts))

    def _fetch(self, parts: Iterable[str]) -> Path:
        from huggingface_hub import snapshot_download

        allow = ["model_index.json", "*/config.json", *(f"{part}/*" for part in parts)]
        ignore = ["*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.fp16.*", "*.non_ema.*"]
        try:
            offline = not hub.reachable()
            return Path(snapshot_download(self.path, allow_patterns=allow, ignore_patterns=ignore, local_files_only=offline))
        except Exception as error:  # whatever the hub's client raises when it cannot deliver
            raise UserError(
                f"teacher.path={self.path} is not on this disk and the hub did not deliver it ({type(error).__name__}); "
                f"download it where there is a network (hf download {self.path} --local-dir DIR) and give teacher.path=DIR"
            ) from error


def _part_digests(folder: Path) -> dict[str, Any]:
    """File -> digest, of what from_pretrained reads in `folder`."""
    if not folder.is_dir():
        raise UserError(f"teacher: no folder {folder}; give a whole folder in diffusers' layout")
    weights = [name for name in WEIGHTS if (folder / name).is_file()][:1]
    if weights and weights[0].endswith(".index.json"):
        weights += sorted(set(_read_json(folder / weights[0])["weight_map"].values()))
    files = [name for name in (*TOKENIZER_FILES, *weights) if (folder / name).is_file()]
    # Without "_diffusers_version" and the like, which differ between copies of one checkpoint.
    configs = {
        name: {
            key: value for key, value in _read_json(folder / name).items() if key[0] != "_" and key != "transformers_version"
        }
        for name in CONFIGS
        if (folder / name).is_file()
    }
    return {**configs, **{name: file_digest(folder / name) for name in files}}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        return result
    except (OSError, ValueError) as error:
        raise UserError(f"teacher: {path} cannot be read as JSON: {error}") from error
