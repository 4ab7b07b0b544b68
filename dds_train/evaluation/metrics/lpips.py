"""Learned perceptual image patch similarity."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from dds_train.errors import UserError
from dds_train.evaluation.metrics.full_reference import outside_mask, to_input
from dds_train.evaluation.metrics.metric import LOWER, Metric, Network

TORCHVISION = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}


class Lpips:
    """LPIPS (arXiv 1801.03924), 0 for equal images.

    Args:
        net: the backbone: squeeze (PIE-Bench), alex or vgg.
        hub_dir: torch hub's folder, whose checkpoints/ holds torchvision's weights; by default ~/.cache/torch/hub.

    Raises:
        UserError: if the backbone's weights are neither on this disk nor downloadable.
    """

    def __init__(self, net: str = "squeeze", device: str = "cpu", hub_dir: str | None = None) -> None:
        if net not in TORCHVISION:
            raise UserError(f"lpips.nets={net}: no such backbone; take {', '.join(TORCHVISION)}")
        previous = torch.hub.get_dir()
        try:
            torch.hub.set_dir(hub_dir or previous)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's, about its own arguments
                metric = LearnedPerceptualImagePatchSimilarity(net_type=net)  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(
                f"lpips.nets={net}: torchvision's weights not found and not downloadable; where there is a network, run "
                f"python -c \"import torchvision; torchvision.models.{TORCHVISION[net]}(weights='DEFAULT')\" and copy "
                "~/.cache/torch/hub here, or give lpips.hub_dir=FOLDER"
            ) from error
        finally:
            torch.hub.set_dir(previous)
        self.net, self.device = metric.net.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1], twice -> [B]. NaN below 31 pixels, of which too little reaches the last layer."""
        if min(a.shape[-2:]) < 31:
            return torch.full((len(a),), torch.nan, dtype=torch.float64)
        output: Tensor = self.net(a.float().to(self.device), b.float().to(self.device)).view(len(a)).double().cpu()
        return output


def lpips_metrics(nets: Sequence[str], device: str, hub_dir: str | None) -> list[Metric]:
    return [metric for net in nets for metric in _of_backbone(net, device, hub_dir)]


def _of_backbone(net: str, device: str, hub_dir: str | None) -> list[Metric]:
    network = Network(f"LPIPS {net}", TORCHVISION.get(net, net), lambda: Lpips(net, device, hub_dir))

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network.model(a, b)

    meaning = f"perceptual distance (LPIPS, {net}), 0 for equal images"
    return [make(f"LPIPS {net}", distance, LOWER, meaning, network=network, decimals=3) for make in (to_input, outside_mask)]
