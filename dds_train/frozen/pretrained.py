"""Where the frozen parts come from: the bundled teacher, a folder in diffusers' layout, or a model hub."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from dds_train.distillation.noise import NoiseSchedule
from dds_train.errors import UserError
from dds_train.frozen.latents import Codec
from dds_train.frozen.teacher import Teacher
from dds_train.frozen.text import TextEncoder

BUNDLED = Path(__file__).parents[1] / "critters" / "teacher"


@dataclass(frozen=True)
class Pretrained:
    """A text-to-image diffusion checkpoint, whose parts load one at a time.

    Attributes:
        path: "bundled" (the critters teacher), a folder that holds model_index.json, or a hub id ("owner/name").
        device: where the parts go.
        dtype: precision of UNet and text encoder; the codec stays in float32, where no checkpoint overflows.
    """

    path: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def teacher(self) -> Teacher:
        folder = self._folder("unet", "scheduler")
        unet = _load(UNet2DConditionModel, folder, "unet")
        scheduler = _load(DDIMScheduler, folder, "scheduler")
        schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
        return Teacher(unet, schedule, scheduler.config.prediction_type, self.device, self.dtype)

    def codec(self) -> Codec:
        return Codec(_load(AutoencoderKL, self._folder("vae"), "vae"), self.device)

    def text_encoder(self) -> TextEncoder:
        folder = self._folder("tokenizer", "text_encoder")
        tokenizer, model = _load(CLIPTokenizer, folder, "tokenizer"), _load(CLIPTextModel, folder, "text_encoder")
        return TextEncoder(tokenizer, model, self.device, self.dtype)

    def sampler(self) -> DPMSolverMultistepScheduler:
        """DPM-Solver++ (arXiv 2211.01095) on the teacher's noise schedule, for noise predictions."""
        scheduler = _load(DDIMScheduler, self._folder("scheduler"), "scheduler")
        return DPMSolverMultistepScheduler.from_config(scheduler.config, prediction_type="epsilon", timestep_spacing="trailing")

    def fingerprint(self) -> str:
        """Changes with the weights that draw images: a hash over configurations and the start of each weight file."""
        folder, digest = self._folder("unet", "vae", "text_encoder", "scheduler"), hashlib.sha256()
        for part in ("unet", "vae", "text_encoder", "scheduler"):
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
            return Path(snapshot_download(self.path, allow_patterns=wanted, ignore_patterns=unwanted))
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
