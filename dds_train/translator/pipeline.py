"""Inference with a trained translator: images in, images out.

from dds_train import Translator

translator = Translator.from_pretrained("outputs/cat2lion/translator")
lion = translator("cat.jpg", strength=0.8)
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.device import find_device, find_dtype
from dds_train.errors import UserError
from dds_train.images.files import from_pil, read_image, to_pil
from dds_train.images.tiles import tiled
from dds_train.translator.files import TranslatorConfig, load_translator, read_config
from dds_train.translator.kinds import translate_latents
from dds_train.translator.location import find_translator

Input: TypeAlias = Image.Image | str | Path | np.ndarray | Tensor


class Translator:
    """A translator network with the VAE and the text encoder of its teacher.

    Args:
        network: maps latents, prompt embeddings and strengths to latents; see `kinds.TranslatorNetwork`.
        config: its tasks, among others.
        checkpoint: the teacher; its denoiser is not loaded here.
        tile: larger images are edited in overlapping squares of this many pixels, which bounds the memory.
        overlap: pixels over which neighbouring squares are blended.

    Raises:
        UserError: if the teacher is not the one that the translator was trained with, or the tiles do not fit the VAE.
    """

    def __init__(
        self,
        network: Any,
        config: TranslatorConfig,
        checkpoint: DiffusionCheckpoint,
        tile: int = 1024,
        overlap: int = 128,
    ) -> None:
        self.network, self.config, self.checkpoint = network.to(checkpoint.device).eval(), config, checkpoint
        self.autoencoder = checkpoint.autoencoder()
        width = checkpoint.embedded(task.instruction for task in config.tasks.values()).rows[""]["text"].shape[-1]
        self.tile, self.overlap = tile, overlap
        self.multiple = self.autoencoder.factor * network.stride  # pixels, of the sides that the networks see
        if (network.latent_channels, network.text_dim) != (self.autoencoder.channels, width):
            raise UserError(f"teacher.path={checkpoint.path} is not the teacher that this was trained with ({config.teacher})")
        if tile % self.autoencoder.factor or not 0 <= overlap < tile:
            raise UserError(f"tile={tile}: give a multiple of {self.autoencoder.factor}, larger than overlap={overlap}")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        teacher: str | None = None,
        additions: Mapping[str, Any] = MappingProxyType({}),
        tile: int = 1024,
        overlap: int = 128,
    ) -> "Translator":
        """Load an exported folder, a checkpoint of fit, or what a run's folder has of these.

        Args:
            device: auto takes a GPU if there is one.
            dtype: auto, float32, float16 or bfloat16; auto takes half precision on a GPU.
            quantization: of the teacher's linear layers, None, "int8", "fp8" or "nf4"; see conf/teacher_options.yaml.
            teacher: path or hub id of its VAE and text encoder, if not the one that it was trained with.
            additions: values of `diffusion.Additions` (lora, embeddings, vae, config), if not those that it was trained with.
            tile, overlap: see the class.

        Raises:
            UserError: for what is not there, is not a translator, or does not fit the teacher.
        """
        device = find_device(device)
        path = find_translator(Path(path))
        config, precision = read_config(path), find_dtype(dtype, device)
        found = config.find_teacher(path, teacher, additions)
        checkpoint = replace(found, device=device, dtype=precision, quantization=quantization)
        checkpoint.embedded(task.instruction for task in config.tasks.values())  # before the denoiser takes the memory
        return cls(*load_translator(path, checkpoint), checkpoint, tile, overlap)

    def __call__(
        self,
        image: Input | Sequence[Input],
        prompt: str | None = None,
        strength: float = 1.0,
        task: str | None = None,
    ) -> Image.Image | Tensor | list[Image.Image | Tensor]:
        """Edit an image, or each of a list: a file, a PIL image or an array [H,W,3] of uint8 to a PIL image, pixels [3,H,W] in
        [-1,1] to pixels. EXIF orientation is applied.

        Args:
            prompt: an instruction; by default that of `task`.
            strength: 0 leaves the image as it is (up to the VAE), 1 is the full edit.
            task: a name in `config.tasks`; not needed if there is only one.

        Raises:
            UserError: if the image cannot be read, or is none, the task is unknown, or the output is NaN or Inf.
        """
        if isinstance(image, Sequence) and not isinstance(image, str):
            return [self(one, prompt, strength, task) for one in image]  # type: ignore[misc]
        pixels = pixels_of(image)
        edited = self.translate(pixels[None], prompt or self.config.choose(task).instruction, strength)[0]
        if not edited.isfinite().all():
            raise UserError("the translator's output is NaN or Inf; try another checkpoint, or float32")
        return edited if isinstance(image, Tensor) else to_pil(edited)

    def translate(self, images: Tensor, instruction: str, strength: float = 1.0) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1], of any size, to the same, on the CPU; NaN where the network's output is not finite."""
        text = self.checkpoint.embedded([instruction]).embed([instruction])

        def edit(tile: Tensor) -> Tensor:
            z = translate_latents(self.network, self.autoencoder.encode(tile, self.multiple), text, strength)
            pixels = self.autoencoder.decode(z, (tile.shape[-2], tile.shape[-1]))
            finite = z.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)  # decoding clamps infinities
            return pixels.where(finite, torch.nan).cpu()

        return tiled(edit, images, self.tile, self.overlap)


def pixels_of(image: Input) -> Tensor:
    """Pixels [3,H,W] in [-1,1] of an image in any form.

    Raises:
        UserError: if it is in another form, or cannot be read.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        with contextlib.suppress(TypeError, ValueError):  # of shapes that are none of an image
            image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        return from_pil(ImageOps.exif_transpose(image))
    if isinstance(image, Tensor) and image.ndim == 3 and len(image) == 3 and image.is_floating_point():
        return image
    form = f"{image.dtype} {[*image.shape]}" if isinstance(image, (np.ndarray, Tensor)) else type(image).__name__
    raise UserError(f"{form} is no image: give a path, a PIL image, an array [H,W,3] of uint8, or a tensor [3,H,W] in [-1,1]")
