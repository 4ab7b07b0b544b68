"""Structure distance, by the self-similarity of a ViT's keys."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTModel

from dds_train import hub
from dds_train.errors import UserError, first_line
from dds_train.evaluation.metrics.full_reference import to_input
from dds_train.evaluation.metrics.metric import LOWER, Metric, Network

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Structure:
    """Structure distance (Splice, arXiv 2201.00424, equation 4): the mean squared difference of the
    cosine self-similarities of a ViT's keys, in its last layer. 0 for equal images.

    Args:
        path: a folder or hub id of a ViT; "facebook/dino-vitb8" for numbers to compare with others'.

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, path: str = "facebook/dino-vitb8", device: str = "cpu") -> None:
        try:
            model = ViTModel.from_pretrained(path, add_pooling_layer=False, local_files_only=not hub.reachable())
            self.model = model.eval().requires_grad_(False).to(device)
        except (OSError, ValueError) as error:
            raise UserError(
                f"structure.model={path}: weights not found and not downloadable; download them where there is a network and "
                f"give structure.model=FOLDER ({first_line(error)})"
            ) from error
        self.size: int = self.model.config.image_size
        # The name of the layer differs between releases of transformers.
        self.keys = [module for name, module in self.model.named_modules() if name.endswith(("k_proj", ".key"))][-1]

    def similarity(self, images: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> cosines between all pairs of T tokens, [B,T,T]."""
        side = [self.size, self.size]
        return self._similarity(F.interpolate((images.float().cpu() + 1) / 2, side, mode="bicubic", antialias=True).clamp(0, 1))

    def similarity_pie_bench(self, images: Tensor) -> Tensor:
        """As `similarity`, by the steps of PIE-Bench's code: pixels in [0,255] are taken for pixels in [0,1], and the shorter
        side becomes the model's size, without antialiasing (torchvision 0.13)."""
        pixels = ((images.float().cpu() + 1) / 2 * 255).round()
        shorter, longest = min(images.shape[-2:]), self.size * 480 // 224
        size = [int(self.size * side / shorter) for side in images.shape[-2:]]
        if max(size) > longest:
            size = [int(longest * side / max(size)) if side < max(size) else longest for side in size]
        return self._similarity(F.interpolate(pixels, size, mode="bilinear"))

    @torch.no_grad()
    def _similarity(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
        seen: list[Tensor] = []
        handle = self.keys.register_forward_hook(lambda _, inputs, output: seen.append(output))
        try:
            self.model(((pixels - mean) / std).to(self.model.device), interpolate_pos_encoding=True)
        finally:
            handle.remove()
        keys = F.normalize(seen[0].float(), dim=-1)  # [B,T,D], all heads together
        return keys @ keys.transpose(1, 2)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1], twice -> [B]."""
        return (self.similarity(a) - self.similarity(b)).square().mean(dim=(1, 2)).double().cpu()

    def pie_bench(self, a: Tensor, b: Tensor) -> Tensor:
        """PIE-Bench's number, for comparisons with published tables: [B,3,H,W] in [-1,1], twice -> [B]."""
        return (self.similarity_pie_bench(a) - self.similarity_pie_bench(b)).square().mean(dim=(1, 2)).double().cpu()


def structure_metrics(path: str | None, device: str) -> list[Metric]:
    """None for `path`: no such metric."""
    if path is None:
        return []
    network = Network("structure", path, lambda: Structure(path, device))

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network.model(a, b)

    def pie_bench(a: Tensor, b: Tensor) -> Tensor:
        return network.model.pie_bench(a, b)

    meaning = "structure distance, squared difference of the self-similarities of a ViT's keys"
    published = "as PIE-Bench's code computes it, for its tables, which print it times 1000"
    options = {"network": network, "decimals": 4}
    return [
        to_input("structure", distance, LOWER, meaning, **options),
        to_input("structure (PIE-Bench)", pie_bench, LOWER, f"structure distance {published}", **options),
    ]
