"""Frechet inception distance."""

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from dds_train.evaluation.metrics.inception import Features, InceptionNetwork
from dds_train.evaluation.metrics.metric import Metric


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID (arXiv 1706.08500, equation 6) of features [N,D] and [M,D], both with at least two rows."""
    metric = FrechetInceptionDistance(feature=Features(a.shape[1])).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    value: float = metric.compute().item()
    return value


def fid_metric(inception: InceptionNetwork) -> Metric:
    meaning = "clean-FID: Frechet distance between all outputs and the images of targets=; needs thousands of both"
    return inception.metric("FID", meaning, frechet_distance)
