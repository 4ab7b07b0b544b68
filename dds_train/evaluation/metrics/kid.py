"""Kernel inception distance."""

import warnings

import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from dds_train.evaluation.metrics.inception import Features, InceptionNetwork
from dds_train.evaluation.metrics.metric import Metric


def kernel_distance(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """KID (arXiv 1801.01401, section 4): the mean of 100 unbiased estimates, each from at most 1000 rows of features [N,D] and
    [M,D], with the kernel ``(x y / D + 1)^3``. The same for the same seed."""
    size = min(len(a), len(b), 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about features being kept in memory
        metric = KernelInceptionDistance(feature=Features(a.shape[1]), subset_size=size).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    value: float = mean.item()
    return value


def kid_metric(inception: InceptionNetwork, seed: int) -> Metric:
    meaning = "clean-KID: kernel distance between all outputs and the images of targets=, unbiased for few images"
    return inception.metric("KID", meaning, lambda a, b: kernel_distance(a, b, seed))
