"""Inception features, which FID and KID compare."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dds_train.errors import UserError
from dds_train.evaluation.metrics.metric import LOWER, Metric, Network, ResultSet
from dds_train.images.files import read_image

WEIGHTS = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{WEIGHTS}"
SIDE = 299  # pixels, of what the network sees


class Inception:
    """The features that FID is defined by, behind clean-FID's scaling (arXiv 2104.11222), which does not alias.

    Args:
        path: the network's file or its folder; by default torch hub's folder of downloads.

    Raises:
        UserError: if it is neither there nor downloadable.
    """

    def __init__(self, path: str | None = None, device: str = "cpu") -> None:
        file = Path(path or Path(torch.hub.get_dir()) / "checkpoints").expanduser()
        file = file if file.is_file() else file / WEIGHTS
        try:
            if not file.is_file() and path is None:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(URL, str(file), progress=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript, the format of these weights, is deprecated
                self.network = torch.jit.load(str(file), map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"fid={file}: not found or unreadable; download {URL} where there is a network and give fid=FILE"
            ) from error
        self.device = device

    @torch.no_grad()
    def features(self, images: Iterable[Tensor], batch_size: int = 32) -> Tensor:
        """Images [3,H,W] in [-1,1] of any size -> [N,D], float64."""
        rows, waiting = [], []
        for image in images:
            waiting.append(clean_resize(image))
            if len(waiting) == batch_size:
                rows.append(self._run(waiting))
                waiting = []
        return torch.cat([*rows, *([self._run(waiting)] if waiting else [])])

    def _run(self, images: list[Tensor]) -> Tensor:
        x = (torch.stack(images).to(self.device) - 128) / 128
        output: Tensor = self.network.layers.forward(x).flatten(1).double().cpu()
        return output


def clean_resize(image: Tensor) -> Tensor:
    """[3,H,W] in [-1,1] -> [3,299,299] in [0,255]: Pillow's bicubic filter on each channel in floating point."""
    levels = ((image.float().cpu().clamp(-1, 1) + 1) * 127.5).round().numpy()
    scaled = [Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for channel in levels]
    return torch.from_numpy(np.stack([np.asarray(one) for one in scaled])).clamp(0, 255)


class Features(nn.Module):
    """Lets torchmetrics take features in place of images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


class InceptionNetwork(Network[Inception]):
    """Inception, and its features of reference images.

    Args:
        references: files that show the target.
        path: see `Inception`.
    """

    def __init__(self, references: Sequence[Path], path: str | None, device: str) -> None:
        super().__init__("Inception", WEIGHTS, lambda: Inception(path, device))
        self.references = references

    @cached_property
    def reference_features(self) -> Tensor:
        return self.model.features(read_image(path) for path in self.references)

    def result_features(self, results: ResultSet) -> Tensor:
        return self.model.features(results.outputs())

    def metric(self, name: str, meaning: str, distance: Callable[[Tensor, Tensor], float]) -> Metric:
        """Distance between the features of the reference images and of all results; NaN for fewer than two results."""

        def measure(results: ResultSet) -> float:
            enough = len(results.items) > 1
            return distance(self.reference_features, results.shared(self.result_features)) if enough else float("nan")

        return Metric(name, LOWER, meaning, per_set=measure, network=self)
