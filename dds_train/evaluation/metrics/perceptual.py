"""How much two pictures differ to a network: LPIPS, and the structure distance of PIE-Bench."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from transformers import ViTModel

from dds_train import hub
from dds_train.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Lpips:
    """LPIPS (arXiv 1801.03924), 0 for equal pictures.

    Args:
        net: the backbone: squeeze (PIE-Bench), alex or vgg.
        hub_dir: torch hub's folder, whose checkpoints/ holds torchvision's weights; by default ~/.cache/torch/hub.

    Raises:
        UserError: if the backbone's weights are neither on this disk nor delivered.
    """

    def __init__(self, net: str = "squeeze", device: str = "cpu", hub_dir: str | None = None) -> None:
        if net not in TORCHVISION:
            raise UserError(f"LPIPS ({net}): there are {', '.join(TORCHVISION)}")
        usual = torch.hub.get_dir()
        try:
            torch.hub.set_dir(hub_dir or usual)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's, of how it is called
                metric = LearnedPerceptualImagePatchSimilarity(net_type=net)  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(
                f"LPIPS ({net}): torchvision's weights are not on this disk and were not delivered; where there is a network, "
                f"run python -c \"import torchvision; torchvision.models.{TORCHVISION[net]}(weights='DEFAULT')\" and copy "
                "~/.cache/torch/hub here, or give lpips.hub_dir=FOLDER"
            ) from error
        finally:
            torch.hub.set_dir(usual)
        self.net, self.device = metric.net.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1], twice -> [B]. NaN below 31 pixels, of which too little reaches the last layer."""
        if min(a.shape[-2:]) < 31:
            return torch.full((len(a),), torch.nan, dtype=torch.float64)
        return self.net(a.float().to(self.device), b.float().to(self.device)).view(len(a)).double().cpu()


TORCHVISION = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}


class Structure:
    """Structure distance (Splice, arXiv 2201.00424, equation 4; as in PIE-Bench): the mean squared difference of the
    cosine self-similarities of a ViT's keys, in its last layer. 0 for equal pictures.

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
                f"structure distance: {path} is not on this disk, and no hub delivered it; download it where there is a "
                f"network and give its folder ({str(error).strip().splitlines()[0]})"
            ) from error
        self.size: int = self.model.config.image_size
        # The name of the layer differs between releases of transformers.
        self.keys = [module for name, module in self.model.named_modules() if name.endswith(("k_proj", ".key"))][-1]

    @torch.no_grad()
    def similarity(self, images: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] -> cosines between all pairs of T tokens, [B,T,T]."""
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
        side = [self.size, self.size]
        pixels = F.interpolate((images.float().cpu() + 1) / 2, side, mode="bicubic", antialias=True).clamp(0, 1)
        seen: list[Tensor] = []
        handle = self.keys.register_forward_hook(lambda _, inputs, output: seen.append(output))
        try:
            self.model(((pixels - mean) / std).to(self.model.device))
        finally:
            handle.remove()
        keys = F.normalize(seen[0].float(), dim=-1)  # [B,T,D], all heads together
        return keys @ keys.transpose(1, 2)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1], twice -> [B]."""
        return (self.similarity(a) - self.similarity(b)).square().mean(dim=(1, 2)).double().cpu()
