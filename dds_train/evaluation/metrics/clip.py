"""How well images match prompts, by CLIP (arXiv 2103.00020)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from dds_train import hub
from dds_train.errors import UserError, first_line
from dds_train.evaluation.metrics.full_reference import outside
from dds_train.evaluation.metrics.metric import HIGHER, Batch, Metric, Network, has_mask


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
                f"clip.model={path}: weights not found and not downloadable; download them where there is a network and give "
                f"clip.model=FOLDER ({first_line(error)})"
            ) from error
        self.size: int = self.model.config.vision_config.image_size
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> unit vectors [B,D]: shorter side scaled to CLIP's size, middle cut out."""
        shorter = min(images.shape[-2:])
        size = [int(self.size * side / shorter) for side in images.shape[-2:]]  # rounded as CLIPImageProcessor does
        scaled = F.interpolate(images.float().cpu(), size, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = ((side - self.size) // 2 for side in size)
        pixels = (scaled[..., top : top + self.size, left : left + self.size] + 1) / 2
        output = self.model.get_image_features(pixel_values=((pixels - self.mean) / self.std).to(self.model.device))
        return F.normalize(output.pooler_output, dim=-1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B prompts -> unit vectors [B,D]."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1).cpu()

    def similarity(self, images: Tensor, texts: Sequence[str]) -> list[float]:
        """Cosine of each image with its prompt, in [-1,1]."""
        return (self.images(images) * self.texts(texts)).sum(-1).tolist()

    def direction(self, before: Tensor, after: Tensor, source: Sequence[str], target: Sequence[str]) -> Tensor:
        """Directional similarity (StyleGAN-NADA, arXiv 2108.00946, equation 3): the cosine between the changes of the
        images' [B,3,H,W] and of the prompts' embeddings, [B] in [-1,1]. NaN where either does not change."""
        image_change = self.images(after) - self.images(before)
        text_change = self.texts(target) - self.texts(source)
        lengths = image_change.norm(dim=-1) * text_change.norm(dim=-1)
        return torch.where(lengths > 1e-9, (image_change * text_change).sum(-1) / lengths, torch.nan).double()


def clip_metrics(path: str | None, device: str) -> list[Metric]:
    """None for `path`: no such metrics."""
    if path is None:
        return []
    network = Network("CLIP", path, lambda: Clip(path, device))

    def outputs(batch: Batch) -> Tensor:
        return network.model.images(batch.outputs)

    def to_target(batch: Batch) -> Tensor:
        return (batch.shared(outputs) * network.model.texts(batch.targets)).sum(-1).double()

    def to_source(batch: Batch) -> Tensor:
        return (batch.shared(outputs) * network.model.texts(batch.sources)).sum(-1).double()

    def direction(batch: Batch) -> Tensor:
        return network.model.direction(batch.inputs, batch.outputs, batch.sources, batch.targets)

    def inside(batch: Batch) -> Tensor:
        edited = outside(batch.outputs, 1 - batch.masks)
        return torch.tensor(network.model.similarity(edited, batch.targets), dtype=torch.float64)

    def metric(name: str, meaning: str, measure: Callable[[Batch], Tensor], **more: Any) -> Metric:
        return Metric(f"CLIP {name}", HIGHER, meaning, per_image=measure, network=network, decimals=3, **more)

    return [
        metric("target", "cosine of output and target prompt (PIE-Bench prints it times 100)", to_target),
        metric("direction", "cosine between the change of the image and the change of the prompt", direction),
        metric(
            "target - source", "CLIP target minus the cosine of output and source prompt", lambda b: to_target(b) - to_source(b)
        ),
        metric("target inside", "CLIP target of the part inside the mask (PIE-Bench)", inside, applies=has_mask),
    ]
