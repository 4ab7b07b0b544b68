"""Where the frozen parts come from: the bundled teacher, a folder in diffusers' layout, or a model hub."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from dds_train import hub
from dds_train.diffusion.autoencoder import Autoencoder
from dds_train.diffusion.frozen import Frozen
from dds_train.diffusion.teacher import Teacher
from dds_train.diffusion.text_encoder import TextEncoder
from dds_train.distillation.noise import NoiseSchedule
from dds_train.errors import UserError

BUNDLED = Path(__file__).parents[1] / "critters" / "teacher"


@dataclass(frozen=True)
class DiffusionCheckpoint:
    """A text-to-image diffusion checkpoint, whose parts load one at a time, each when it is first asked for.

    Attributes:
        path: "bundled" (the critters teacher), a folder that holds model_index.json, or a hub id ("owner/name").
        device: where the parts go.
        dtype: precision of UNet and text encoder; the codec stays in float32, where no checkpoint overflows.
    """

    path: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    _loaded: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def teacher(self) -> Teacher:
        return self._once("teacher", self._load_teacher)

    def autoencoder(self) -> Autoencoder:
        return self._once("autoencoder", lambda: Autoencoder(_load(AutoencoderKL, self._folder("vae"), "vae"), self.device))

    def text_encoder(self) -> TextEncoder:
        return self._once("text_encoder", self._load_text_encoder)

    def release(self, *parts: str) -> None:
        """Forget "teacher", "autoencoder" or "text_encoder": its memory is free once nobody else holds it."""
        for part in parts:
            self._loaded.pop(part, None)

    def load_unet(self) -> UNet2DConditionModel:
        """A frozen UNet of the caller's own, not the one that `teacher` returns."""
        unet = _load(UNet2DConditionModel, self._folder("unet"), "unet")
        return Frozen(unet, self.device, self.dtype).network

    def _once(self, name: str, load: Callable[[], Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]

    def _load_teacher(self) -> Teacher:
        folder = self._folder("unet", "scheduler")
        unet = _load(UNet2DConditionModel, folder, "unet")
        scheduler = _load(DDIMScheduler, folder, "scheduler")
        schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
        return Teacher(unet, schedule, scheduler.config.prediction_type, self.device, self.dtype)

    def _load_text_encoder(self) -> TextEncoder:
        folder = self._folder("tokenizer", "text_encoder")
        tokenizer, model = _load(CLIPTokenizer, folder, "tokenizer"), _load(CLIPTextModel, folder, "text_encoder")
        return TextEncoder(tokenizer, model, self.device, self.dtype)

    def sampler(self) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ (arXiv 2211.01095) on the teacher's noise schedule, for noise predictions."""
        scheduler = _load(DDIMScheduler, self._folder("scheduler"), "scheduler")
        return DPMSolverMultistepScheduler.from_config(scheduler.config, prediction_type="epsilon", timestep_spacing="trailing")

    def ddim(self) -> DDIMScheduler:
        """DDIM (arXiv 2010.02502) on the teacher's noise schedule, for noise predictions."""
        scheduler = _load(DDIMScheduler, self._folder("scheduler"), "scheduler")
        return DDIMScheduler.from_config(scheduler.config, prediction_type="epsilon", clip_sample=False)

    def ddim_inverse(self) -> DDIMInverseScheduler:
        """`ddim`, walked the other way."""
        return DDIMInverseScheduler.from_config(self.ddim().config)

    def image_size(self) -> tuple[int, int]:
        """The side in pixels of the teacher's own pictures, and the codec's pixels per latent. Loads no weights."""
        folder = self._folder("unet", "vae")
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
        latents, factor = unet["sample_size"], 2 ** (len(vae["block_out_channels"]) - 1)
        return (latents if isinstance(latents, int) else max(latents)) * factor, factor

    def fingerprint(self, *parts: str) -> str:
        """Changes with the weights of `parts` ("unet", "vae", "text_encoder", "tokenizer", "scheduler"): a hash over their
        configurations and the start of each weight file."""
        folder, digest = self._folder(*parts), hashlib.sha256()
        for part in parts:
            if not (folder / part).is_dir():
                raise UserError(f"teacher.path={self.path}: no folder {part} there; give a whole folder in diffusers' layout")
            for file in sorted((folder / part).iterdir()):
                digest.update(f"{part}/{file.name}:{file.stat().st_size}".encode())
                with file.open("rb") as content:
                    digest.update(content.read(2**24))
        return digest.hexdigest()

    def _folder(self, *parts: str) -> Path:
        """The local folder that holds `parts`, fetched from the hub if `path` is an id; nothing else is fetched."""
        if self.path == "bundled":
            return BUNDLED
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            if not (folder / "model_index.json").exists():
                raise UserError(f"teacher.path={self.path}: no model_index.json there; give a folder in diffusers' layout")
            return folder
        if self.path.count("/") != 1 or self.path[0] in "./~":
            raise UserError(f"teacher.path={self.path}: no such folder, and not a hub id such as owner/name")
        return self._fetch(*parts)

    def _fetch(self, *parts: str) -> Path:
        from huggingface_hub import snapshot_download

        wanted = ["model_index.json", *(f"{part}/*" for part in parts)]
        unwanted = ["*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.fp16.*", "*.non_ema.*"]
        try:
            offline = not hub.reachable()
            found = snapshot_download(self.path, allow_patterns=wanted, ignore_patterns=unwanted, local_files_only=offline)
            return Path(found)
        except Exception as error:  # whatever the hub's client raises when it cannot deliver
            raise UserError(
                f"teacher.path={self.path} is not on this disk and the hub did not deliver it ({type(error).__name__}); "
                f"download it where there is a network (huggingface-cli download {self.path} --local-dir DIR) "
                "and give teacher.path=DIR"
            ) from error


def _load(part: Any, folder: Path, name: str) -> Any:
    try:
        return part.from_pretrained(folder / name)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"teacher: {folder / name} does not load as a {part.__name__}: {reason}") from error
