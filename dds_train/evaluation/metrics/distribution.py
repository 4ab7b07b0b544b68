"""How far the pictures that an editor makes are, as a whole, from pictures of what was wanted."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from dds_train.errors import UserError

WEIGHTS = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{WEIGHTS}"
SIDE = 299  # pixels, of what the network sees


class Inception:
    """The features that FID is defined by, behind clean-FID's scaling (arXiv 2104.11222), which does not alias.

    Args:
        path: the network's file or its folder; by default where torch hub keeps its downloads.

    Raises:
        UserError: if it is neither there nor delivered.
    """

    def __init__(self, path: str | None = None, device: str = "cpu") -> None:
        file = Path(path or Path(torch.hub.get_dir()) / "checkpoints").expanduser()
        file = file if file.is_file() else file / WEIGHTS
        try:
            if not file.is_file() and path is None:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(URL, str(file), progress=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript, in which these weights are handed out, is of yesterday
                self.network = torch.jit.load(str(file), map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"FID and KID: {file} is not there or cannot be read; download {URL} where there is a network and give fid=FILE"
            ) from error
        self.device = device

    @torch.no_grad()
    def features(self, images: Iterable[Tensor], batch_size: int = 32) -> Tensor:
        """Pictures [3,H,W] in [-1,1] of any size -> [N,D], float64."""
        rows, waiting = [], []
        for image in images:
            waiting.append(clean_resize(image))
            if len(waiting) == batch_size:
                rows.append(self._run(waiting))
                waiting = []
        return torch.cat([*rows, *([self._run(waiting)] if waiting else [])])

    def _run(self, images: list[Tensor]) -> Tensor:
        x = (torch.stack(images).to(self.device) - 128) / 128
        return self.network.layers.forward(x).flatten(1).double().cpu()


def clean_resize(image: Tensor) -> Tensor:
    """[3,H,W] in [-1,1] -> [3,299,299] in [0,255]: Pillow's bicubic filter on each channel in floating point."""
    levels = ((image.float().cpu().clamp(-1, 1) + 1) * 127.5).round().numpy()
    scaled = [Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for channel in levels]
    return torch.from_numpy(np.stack([np.asarray(one) for one in scaled])).clamp(0, 255)


class _Features(nn.Module):
    """Lets torchmetrics take features for pictures."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID (arXiv 1706.08500, equation 6) of features [N,D] and [M,D], both with at least two rows."""
    metric = FrechetInceptionDistance(feature=_Features(a.shape[1])).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return metric.compute().item()


def kernel_distance(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """KID (arXiv 1801.01401, section 4): the mean of 100 unbiased estimates, each from at most 1000 rows of features [N,D] and
    [M,D], with the kernel ``(x y / D + 1)^3``. The same for the same seed."""
    size = min(len(a), len(b), 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that features are kept in memory
        metric = KernelInceptionDistance(feature=_Features(a.shape[1]), subset_size=size).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return mean.item()
