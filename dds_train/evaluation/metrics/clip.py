"""How well pictures show what a sentence says, by CLIP (arXiv 2103.00020)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from dds_train import hub
from dds_train.errors import UserError


class Clip:
    """A CLIPModel from a hub id or a folder.

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        offline = not hub.reachable()
        try:
            self.model = CLIPModel.from_pretrained(path, local_files_only=offline).eval().requires_grad_(False).to(device)
            self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=offline)
            processor = CLIPImageProcessor.from_pretrained(path, local_files_only=offline)
        except (OSError, ValueError) as error:
            raise UserError(
                f"CLIP model {path}: not on this disk, and no hub delivered it; download it where there is a network "
                f"and give its folder ({str(error).strip().splitlines()[0]})"
            ) from error
        self.size: int = self.model.config.vision_config.image_size
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> unit vectors [B,D]: shorter side scaled to CLIP's size, middle cut out."""
        scale = self.size / min(images.shape[-2:])
        size = [max(self.size, round(side * scale)) for side in images.shape[-2:]]
        scaled = F.interpolate(images.float().cpu(), size, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = ((side - self.size) // 2 for side in size)
        pixels = (scaled[..., top : top + self.size, left : left + self.size] + 1) / 2
        output = self.model.get_image_features(pixel_values=((pixels - self.mean) / self.std).to(self.model.device))
        return F.normalize(_pooled(output), dim=-1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> unit vectors [B,D]."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return F.normalize(_pooled(self.model.get_text_features(**tokens)), dim=-1).cpu()

    def similarity(self, images: Tensor, texts: Sequence[str]) -> list[float]:
        """Cosine of each image with its sentence, in [-1,1]."""
        return (self.images(images) * self.texts(texts)).sum(-1).tolist()

    def direction(self, before: Tensor, after: Tensor, source: Sequence[str], target: Sequence[str]) -> Tensor:
        """Directional similarity (StyleGAN-NADA, arXiv 2108.00946, equation 3): the cosine between how the pictures [B,3,H,W]
        moved and how the sentences moved, [B] in [-1,1]. NaN where either did not move."""
        moved = self.images(after) - self.images(before)
        said = self.texts(target) - self.texts(source)
        lengths = moved.norm(dim=-1) * said.norm(dim=-1)
        return torch.where(lengths > 1e-9, (moved * said).sum(-1) / lengths, torch.nan).double()


def _pooled(output: object) -> Tensor:
    # transformers 5 returns an output object, earlier versions the tensor.
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
