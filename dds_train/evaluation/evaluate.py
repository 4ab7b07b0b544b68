"""Editing and measuring: every method on every item, recorded, so that a run that was stopped goes on.

Metrics without a network are measured while editing, on the outputs as they are; those with one afterwards, on the files: then
weights that are missing today can be added without editing again.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor
from tqdm import tqdm

from dds_train.evaluation.configured import ConfiguredMethod
from dds_train.evaluation.items import EvaluationItem, ItemImages
from dds_train.evaluation.metrics.cost import DIVERGED, cost
from dds_train.evaluation.metrics.metric import Batch, Metric, ResultSet
from dds_train.evaluation.metrics.registry import Unavailable, load_networks
from dds_train.evaluation.summary import Statistic, Summary, statistic
from dds_train.images.files import read_image, save_image
from dds_train.images.streaming import batches, within_memory
from dds_train.methods import MethodContext
from dds_train.runs.digest import digest
from dds_train.runs.files import relative_name
from dds_train.runs.record import Record


@dataclass(frozen=True)
class Results:
    """Results in a folder: images/METHOD/ITEM.png, and their values in its record."""

    record: Record

    def name(self, method: str, item: EvaluationItem) -> str:
        return relative_name(f"images/{quote(method, safe=' ,')}/{item.name}.png")

    def path(self, method: str, item: EvaluationItem) -> Path:
        return self.record.folder / self.name(method, item)

    def values(self, method: str, item: EvaluationItem) -> dict[str, float]:
        """By metric; {} if there is no result."""
        return self.record.values(self.name(method, item))

    def missing(self, method: str, items: Iterable[EvaluationItem]) -> list[EvaluationItem]:
        return [item for item in items if not self.record.is_done(self.name(method, item), digest(item.identity))]

    def add(self, method: str, item: EvaluationItem, output: Tensor, values: Mapping[str, float]) -> None:
        """Results that diverged have values, and no image."""
        files = [] if values[DIVERGED.name] else [self.name(method, item)]
        if files:
            save_image(output, self.path(method, item))
        self.record.add(self.name(method, item), digest(item.identity), files, values)

    def output(self, method: str, item: EvaluationItem) -> Tensor:
        """[3,H,W] in [-1,1]; NaN if it diverged."""
        diverged = self.values(method, item)[DIVERGED.name]
        return torch.full((3, *item.size), math.nan) if diverged else read_image(self.path(method, item))


@dataclass(frozen=True)
class Evaluation:
    """All results of all methods."""

    items: Sequence[EvaluationItem]
    methods: Mapping[str, ConfiguredMethod]
    metrics: Sequence[Metric]  # those that are available
    unavailable: Sequence[Unavailable]
    results: Results
    summary: Summary


def evaluate(
    items: Sequence[EvaluationItem],
    methods: Mapping[str, ConfiguredMethod],
    context: Callable[[], MethodContext],
    metrics: Sequence[Metric],
    record: Record,
    batch_size: int = 32,
) -> Evaluation | None:
    """Edit `items` with `methods` and measure the results, as far as `record` does not have them. Ranks share the items; the
    first one waits for the others, and measures by networks; None on others.

    Args:
        context: makes one for each method, with models of its own, given back before the next: its memory is its own.
        metrics: see `build_metrics`.

    Raises:
        UserError: if the record holds values by other networks.
    """
    results = Results(record)
    metrics = [metric for metric in metrics if any(map(metric.applies, items))]
    edit_items(methods, context, record.ranks.share(items), metrics, results, batch_size)
    if record.gather(None) is None:
        return None
    available, unavailable = load_networks(metrics)
    networks = {metric.network.name: metric.network.weights for metric in available if metric.network}
    record.claim({"networks": networks}, growing=["networks"])
    measure_files(list(methods), items, available, results, batch_size)
    summary = {method: statistics(method, items, available, results) for method in methods}
    return Evaluation(items, methods, available, unavailable, results, summary)


# ---------------------------------------------------------------- edit


def edit_items(
    methods: Mapping[str, ConfiguredMethod],
    context: Callable[[], MethodContext],
    items: Sequence[EvaluationItem],
    metrics: Sequence[Metric],
    results: Results,
    batch_size: int,
) -> None:
    """Make the results that are missing, and measure them by the metrics without a network."""
    immediate = [metric for metric in metrics if metric.network is None]

    def edit_with(name: str, configured: ConfiguredMethod, missing: Sequence[EvaluationItem]) -> Iterator[int]:
        shared = context()  # freed before the next method's: this one's memory is its own
        method = configured.build(shared)
        # The VAE gets the ground truth, where there is one: the best possible result of any method behind it.
        of_truth = configured.kind == "vae_reconstruction"

        def edit(some: Sequence[tuple[EvaluationItem, ItemImages]]) -> Tensor:
            images = [one.truth if of_truth and one.truth is not None else one.image for _, one in some]
            return method(torch.cat(images), [item.source for item, _ in some], [item.target for item, _ in some])

        for group in batches(missing, attrgetter("size"), lambda size: batch_size):
            images = [item.load() for item in group]
            run = partial(within_memory, edit, list(zip(group, images, strict=True)), "give max_side=")
            outputs, seconds, peak = cost(run, shared.checkpoint.device)
            rows = measure(immediate, Batch(group, images, torch.stack(outputs), seconds / len(group), peak))
            for item, output, values in zip(group, outputs, rows, strict=True):
                results.add(name, item, output, values)
            yield len(group)

    with tqdm(total=len(items) * len(methods), desc="edit", unit="edit") as bar:
        for name, configured in methods.items():
            missing = results.missing(name, items)
            bar.update(len(items) - len(missing))
            results.record.strike(*(results.name(name, item) for item in missing))
            for done in edit_with(name, configured, missing) if missing else ():
                bar.update(done)


# ---------------------------------------------------------------- measure


def measure(metrics: Iterable[Metric], batch: Batch) -> list[dict[str, float]]:
    """Values of each item by metric, for the metrics that apply to it; NaN for outputs that diverged."""
    rows: list[dict[str, float]] = [{} for _ in batch.items]
    finite = batch.outputs.isfinite().flatten(1).all(dim=1).tolist()
    parts: dict[tuple[int, ...], Batch] = {}  # metrics of the same items share intermediate results
    for metric in metrics:
        if metric.per_image is None:
            continue
        applicable = [i for i, item in enumerate(batch.items) if metric.applies(item)]
        for i in applicable:
            rows[i][metric.name] = math.nan
        chosen = tuple(i for i in applicable if finite[i] or metric.of_diverged)
        if chosen:
            part = parts.setdefault(chosen, batch.part(chosen))
            for i, value in zip(chosen, metric.per_image(part).tolist(), strict=True):
                rows[i][metric.name] = value
    return rows


def measure_files(
    methods: Sequence[str], items: Sequence[EvaluationItem], metrics: Sequence[Metric], results: Results, batch_size: int
) -> None:
    """Measure what results lack, on their files."""
    with tqdm(total=len(items) * len(methods), desc="measure", unit="edit") as bar:
        for group in batches(items, attrgetter("size"), lambda size: batch_size):
            for method in methods:
                by_lacking: dict[tuple[Metric, ...], list[EvaluationItem]] = {}
                for item in group:
                    known = results.values(method, item)
                    applicable = (metric for metric in metrics if metric.per_image and metric.applies(item))
                    if lacking := tuple(metric for metric in applicable if metric.name not in known):
                        by_lacking.setdefault(lacking, []).append(item)
                for lacking, some in by_lacking.items():
                    outputs = torch.stack([results.output(method, item) for item in some])
                    rows = measure(lacking, Batch(some, [item.load() for item in some], outputs))
                    for item, values in zip(some, rows, strict=True):
                        results.record.add_values(results.name(method, item), values)
                bar.update(len(group))


# ---------------------------------------------------------------- summarise


def statistics(
    method: str, items: Sequence[EvaluationItem], metrics: Sequence[Metric], results: Results
) -> dict[str, Statistic]:
    """Over all items, by metric; without metrics that apply to none."""
    rows = [results.values(method, item) for item in items]
    finite = [(item, row) for item, row in zip(items, rows, strict=True) if not row[DIVERGED.name]]
    result_set = ResultSet(
        items=[item for item, _ in finite],
        outputs=lambda: (results.output(method, item) for item, _ in finite),
        values={metric.name: [row.get(metric.name, math.nan) for _, row in finite] for metric in metrics},
    )
    found = {}
    for metric in metrics:
        values = [row[metric.name] for row in rows if metric.name in row]
        if metric.per_set is None:
            if values:
                found[metric.name] = statistic(values)
        elif values or metric.per_image is None:
            value = metric.per_set(result_set)
            if values or not math.isnan(value):
                found[metric.name] = Statistic(value, math.nan, len(finite), len(items) - len(finite))
    return found
