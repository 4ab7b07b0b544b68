"""A trained translator as people use it: pictures in, pictures out.

from dds_train import Translator

translator = Translator.from_pretrained("outputs/cat2lion/translator")
lion = translator("cat.jpg", strength=0.8)
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.diffusion.device import find_device
from dds_train.errors import UserError
from dds_train.images.files import from_pil, read_image, to_pil
from dds_train.images.tiles import tiled
from dds_train.translator import TranslatorConfig, load_translator, read_config, translate_latents


class Translator:
    """A translator with the codec and the text encoder that it works with.

    Args:
        network: takes latents, prompt embeddings and strengths; see `translator.TranslatorNetwork`.
        card: what it was trained to do.
        parts: the teacher whose latents it works on; of its UNet nothing is loaded here.
        tile: larger pictures are edited in overlapping squares of this many pixels, which bounds the memory.
        overlap: pixels over which one square fades into the next.

    Raises:
        UserError: if the teacher is not the one that the translator was trained with, or the squares do not fit the codec.
    """

    def __init__(
        self, network: Any, card: TranslatorConfig, parts: DiffusionCheckpoint, tile: int = 1024, overlap: int = 128
    ) -> None:
        self.network, self.card, self.parts = network.to(parts.device).eval(), card, parts
        self.autoencoder, self.text = parts.autoencoder(), parts.text_encoder()
        self.tile, self.overlap = tile, overlap
        self.multiple = self.autoencoder.factor * network.stride  # pixels, of the sides that the networks see
        if (network.latent_channels, network.text_dim) != (self.autoencoder.channels, self.text.embed("").shape[-1]):
            raise UserError(f"teacher.path={parts.path} is not the teacher that this was trained with ({card.teacher})")
        if tile % self.autoencoder.factor or not 0 <= overlap < tile:
            raise UserError(f"tile={tile}: give a multiple of {self.autoencoder.factor}, larger than overlap={overlap}")

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "auto", teacher: str | None = None) -> "Translator":
        """From an exported folder or a checkpoint of fit.

        Args:
            device: auto takes a GPU if there is one, and works in half precision there.
            teacher: where its codec and text encoder are now, if not where they were in training.

        Raises:
            UserError: for what is not there, is not a translator, or does not fit the teacher.
        """
        where = find_device(device)
        dtype = torch.float16 if where.startswith("cuda") else torch.float32
        parts = DiffusionCheckpoint(teacher or read_config(Path(path)).teacher, where, dtype)
        return cls(*load_translator(Path(path), parts), parts)

    def __call__(
        self,
        image: Image.Image | str | Path | Tensor,
        prompt: str | None = None,
        strength: float = 1.0,
        task: str | None = None,
    ) -> Image.Image | Tensor:
        """One picture edited: a file or a PIL image to a PIL image, pixels [3,H,W] in [-1,1] to the same.

        Args:
            prompt: an instruction in your own words; without one, that of `task`.
            strength: 0 leaves the picture as it is (but for the codec), 1 is the full edit.
            task: a name in `card.tasks`; not needed if there is one alone.

        Raises:
            UserError: if the picture cannot be read, or the task is not known.
        """
        if isinstance(image, Tensor):
            pixels = image
        else:
            pixels = from_pil(image) if isinstance(image, Image.Image) else read_image(image)
        edited = self.translate(pixels[None], prompt or self.card.choose(task).instruction, strength)[0]
        return edited if isinstance(image, Tensor) else to_pil(edited)

    def translate(self, images: Tensor, instruction: str, strength: float = 1.0) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1], of any size, to the same, on the CPU."""
        text = self.text.embed(instruction)

        def edit(part: Tensor) -> Tensor:
            z = translate_latents(self.network, self.autoencoder.encode(part, self.multiple), text, strength)
            return self.autoencoder.decode(z, (part.shape[-2], part.shape[-1])).cpu()

        return tiled(edit, images, self.tile, self.overlap)
