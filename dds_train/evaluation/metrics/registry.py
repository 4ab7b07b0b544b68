"""All metrics, in the order of tables."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dds_train.errors import UserError
from dds_train.evaluation.metrics.attributes_kept import ACCESSORIES, BACKDROP, FUR, SPECIES
from dds_train.evaluation.metrics.background_psnr import BACKGROUND_PSNR
from dds_train.evaluation.metrics.clip import clip_metrics
from dds_train.evaluation.metrics.cost import DIVERGED, PEAK_MIB, SECONDS
from dds_train.evaluation.metrics.diversity import DIVERSITY
from dds_train.evaluation.metrics.edit_accuracy import EDIT_ACCURACY
from dds_train.evaluation.metrics.fid import fid_metric
from dds_train.evaluation.metrics.gap_closed import GAP_CLOSED
from dds_train.evaluation.metrics.inception import InceptionNetwork
from dds_train.evaluation.metrics.kid import kid_metric
from dds_train.evaluation.metrics.lpips import lpips_metrics
from dds_train.evaluation.metrics.metric import Metric, Network
from dds_train.evaluation.metrics.mse import MSE_OUTSIDE
from dds_train.evaluation.metrics.psnr import PSNR, PSNR_OUTSIDE, PSNR_TO_TRUTH
from dds_train.evaluation.metrics.ssim import SSIM, SSIM_OUTSIDE
from dds_train.evaluation.metrics.structure import structure_metrics


@dataclass(frozen=True)
class MetricOptions:
    """Where metrics find their networks and reference images; metrics whose model or images are None or empty are left out."""

    device: str = "cpu"
    lpips_nets: Sequence[str] = ()
    lpips_hub_dir: str | None = None  # torch hub's folder
    clip: str | None = None  # folder or hub id
    structure: str | None = None  # folder or hub id
    references: Sequence[Path] = ()  # images of the target, for FID and KID
    inception: str | None = None  # file; by default in torch hub's folder
    seed: int = 0  # of KID's subsets


def distribution_metrics(options: MetricOptions) -> list[Metric]:
    if not options.references:
        return []
    inception = InceptionNetwork(options.references, options.inception, options.device)
    return [fid_metric(inception), kid_metric(inception, options.seed)]


METRICS: tuple[Metric | Callable[[MetricOptions], list[Metric]], ...] = (
    GAP_CLOSED,
    EDIT_ACCURACY,
    SPECIES,
    FUR,
    BACKDROP,
    ACCESSORIES,
    BACKGROUND_PSNR,
    PSNR_TO_TRUTH,
    PSNR,
    PSNR_OUTSIDE,
    SSIM,
    SSIM_OUTSIDE,
    MSE_OUTSIDE,
    lambda options: lpips_metrics(options.lpips_nets, options.device, options.lpips_hub_dir),
    lambda options: structure_metrics(options.structure, options.device),
    lambda options: clip_metrics(options.clip, options.device),
    distribution_metrics,
    DIVERSITY,
    SECONDS,
    PEAK_MIB,
    DIVERGED,
)


def build_metrics(options: MetricOptions) -> list[Metric]:
    """All metrics; their networks are not loaded yet."""
    return [metric for entry in METRICS for metric in ([entry] if isinstance(entry, Metric) else entry(options))]


@dataclass(frozen=True)
class Unavailable:
    """Metrics whose model weights are not found."""

    metrics: Sequence[str]
    remedy: str


def load_networks(metrics: Iterable[Metric]) -> tuple[list[Metric], list[Unavailable]]:
    """Metrics whose networks load, or that need none; and the others, by network."""
    failed: dict[Network[Any], str] = {}
    missing: dict[Network[Any], list[str]] = {}
    available = []
    for metric in metrics:
        if metric.network and metric.network not in failed:
            try:
                metric.network.model  # noqa: B018 (loads it)
            except UserError as error:
                failed[metric.network] = str(error)
        if metric.network in failed:
            missing.setdefault(metric.network, []).append(metric.name)
        else:
            available.append(metric)
    return available, [Unavailable(names, failed[network]) for network, names in missing.items()]
