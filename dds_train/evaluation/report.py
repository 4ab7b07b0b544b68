"""report.html: a recommendation, a table, preservation against edit, and the images of all methods."""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from dds_train.evaluation.configured import REFERENCES
from dds_train.evaluation.metrics.cost import DIVERGED, SECONDS
from dds_train.evaluation.metrics.metric import HIGHER, LOWER, NEITHER, Metric
from dds_train.evaluation.metrics.registry import Unavailable
from dds_train.evaluation.plot import Point, scatter
from dds_train.evaluation.recommendation import Recommendation, count_diverged, recommend
from dds_train.evaluation.summary import Summary
from dds_train.evaluation.tables import measured, three_digits
from dds_train.images.files import to_pil
from dds_train.images.grids import with_both_sides

SIDE = 112  # pixels of a thumbnail
ARROWS = {HIGHER: " ↑", LOWER: " ↓", NEITHER: ""}


@dataclass(frozen=True)
class GalleryRow:
    """An item of the gallery."""

    name: str
    prompts: str  # where they differ from item to item
    load: Callable[[], tuple[Tensor, Tensor | None]]  # input and, where there is one, ground truth, each [3,H,W] in [-1,1]
    values: Mapping[str, Mapping[str, float]]  # by method and metric
    paths: Mapping[str, Path]  # results by method; there is no file for those that diverged


@dataclass(frozen=True)
class Report:
    title: str
    description: str  # of items and teacher, in a line
    summary: Summary
    metrics: Sequence[Metric]
    curves: Sequence[Sequence[str]]  # methods that differ in strength or steps alone, in that order
    rows: Sequence[GalleryRow]
    unavailable: Sequence[Unavailable] = ()


def write_report(path: Path, report: Report, limit: int = 48) -> None:
    """A page with everything inside it; the gallery has at most `limit` rows."""
    per_image = {method: [row.values[method] for row in report.rows] for method in report.summary}
    recommendation = recommend(report.summary, per_image, report.metrics)
    title = html.escape(report.title)
    first = (recommendation.edit, recommendation.keep, SECONDS.name)
    body = f"""<h1>{title}</h1>
<p class=note>{html.escape(report.description)}</p>
{recommendation_box(recommendation)}
{table(report.summary, report.metrics, first)}
{unavailable_metrics(report.unavailable)}
{trade_off(report, recommendation)}
{gallery(report, recommendation, limit)}
{legend(report.summary, report.metrics)}"""
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>{STYLE}<body>{body}</body></html>"
    path.write_text(page, encoding="utf-8")


STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; color: #222; background: #fff }
h1 { margin-bottom: 0 }
h2 { margin-top: 1.6em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th { vertical-align: bottom; white-space: normal; font-weight: 600 }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: inherit }
tr { background: #fff }
tr.reference { color: #777; font-style: italic }
.scroll { overflow-x: auto }
.best { font-weight: bold; background: #e3f3e3 }
.error { color: #999; font-size: .8em }
.recommendation { border-left: 5px solid #2a7a2a; background: #f2f8f2; padding: .6em 1em; margin: 1em 0 }
.recommendation p { margin: .2em 0 }
.recommendation .use { font-size: 1.4em }
.note { color: #777; font-size: .85em; margin: .3em 0 }
.gallery td, .gallery th { text-align: center; font-size: .8em; vertical-align: top; padding: .25em }
td.diverged { color: #a8353a }
.gallery td:first-child { max-width: 14em; white-space: normal }
dt { font-weight: 600 }
dd { margin: 0 0 .4em 1.5em }
</style>"""


def recommendation_box(recommendation: Recommendation) -> str:
    lines = [f"<p class=use>Use <b>{html.escape(recommendation.best)}</b>.</p>"] if recommendation.best else []
    lines.append(f"<p>{html.escape(recommendation.reason)}</p>")
    others = [name for name in recommendation.front if name != recommendation.best]
    if others:
        line = f"Other trade-offs between {recommendation.edit} and {recommendation.keep} (Pareto front): {', '.join(others)}."
        lines.append(f"<p>{html.escape(line)}</p>")
    return f"<div class=recommendation>{''.join(lines)}</div>"


def best_values(summary: Summary, metrics: Sequence[Metric]) -> dict[str, float]:
    """By metric; without the references: identity is best at preserving, and the ground truth at everything."""
    best = {}
    for metric in metrics:
        means = [
            values[metric.name].mean for method, values in summary.items() if method not in REFERENCES and metric.name in values
        ]
        known = [mean for mean in means if not math.isnan(mean)]
        if known and metric.direction:
            best[metric.name] = max(known, key=lambda mean: metric.direction * mean)
    return best


def table(summary: Summary, metrics: Sequence[Metric], first: Sequence[str | None] = ()) -> str:
    """`first`: metrics whose columns come first. Failures have a column where there are any."""
    failures = any(count_diverged(summary, method) for method in summary)
    columns = [metric for metric in measured(summary, metrics) if metric != DIVERGED]
    columns.sort(key=lambda metric: first.index(metric.name) if metric.name in first else len(first))
    best = best_values(summary, columns)
    heads = [
        f"<th title='{html.escape(metric.meaning, quote=True)}'>{html.escape(metric.name)}{ARROWS[metric.direction]}</th>"
        for metric in columns
    ]
    lines = []
    for method, values in summary.items():
        reference = method in REFERENCES
        cells = [f"<td class=diverged>{count_diverged(summary, method)}</td>"] if failures else []
        for metric in columns:
            if metric.name not in values:
                cells.append("<td></td>")
                continue
            value = values[metric.name]
            mark = " class=best" if not reference and value.mean == best.get(metric.name) else ""
            error = f" <span class=error>±{three_digits(value.error)}</span>" if value.error > 0 else ""
            cells.append(f"<td{mark}>{three_digits(value.mean)}{error}{f' ({value.nan} NaN)' if value.nan else ''}</td>")
        lines.append(f"<tr{' class=reference' if reference else ''}><td>{html.escape(method)}</td>{''.join(cells)}</tr>")
    failed = "<th title='results with NaN or Inf'>failures</th>" if failures else ""
    return f"""<div class=scroll><table><tr><th>method</th>{failed}{"".join(heads)}</tr>{"".join(lines)}</table></div>
<p class=note>Means over images ± one standard error. ↑ higher is better, ↓ lower is better; the best method of each column is
highlighted. References in italics: identity is the unchanged input; vae_reconstruction is the ground truth (the input, where
there is none) after a VAE round trip, the upper bound for latent-space methods.</p>"""


def unavailable_metrics(unavailable: Sequence[Unavailable]) -> str:
    if not unavailable:
        return ""
    count = sum(len(one.metrics) for one in unavailable)
    items = "".join(f"<li>{html.escape(', '.join(one.metrics))}: {html.escape(one.remedy)}</li>" for one in unavailable)
    title = f"{count} metric{'s' if count > 1 else ''} unavailable: model weights not found"
    return f"<details class=note><summary>{title}</summary><ul>{items}</ul></details>"


def trade_off(report: Report, recommendation: Recommendation) -> str:
    """Preservation (to the right) against edit (upwards)."""
    edit, keep = recommendation.edit, recommendation.keep
    if edit is None or keep is None:
        return ""
    points = []
    for method, values in report.summary.items():
        if method == "vae_reconstruction" or keep not in values:
            continue
        identity = method == "identity"  # its edit is 0 by definition; its CLIP direction is not defined
        height = 0.0 if identity else values[edit].mean if edit in values else math.nan
        points.append(Point(method, values[keep].mean, height, identity))
    direction = next(metric.direction for metric in report.metrics if metric.name == keep)
    across = f"{keep} ({'lower' if direction == LOWER else 'higher'}: more preserved) →"
    return f"<h2>Preservation against edit</h2>{scatter(points, report.curves, across, f'{edit} →', direction == LOWER)}"


def gallery(report: Report, recommendation: Recommendation, limit: int) -> str:
    """Rows from best to worst."""
    edit, best = recommendation.edit or "", recommendation.best or ""

    def key(row: GalleryRow) -> float:
        value = row.values.get(best, {}).get(edit, math.nan)
        return math.inf if math.isnan(value) else -value

    ordered = sorted(report.rows, key=key)
    if len(ordered) > limit:  # from best to worst, evenly
        ordered = [ordered[round(i * (len(ordered) - 1) / max(1, limit - 1))] for i in range(limit)]
    loaded = [row.load() for row in ordered]
    truths = any(truth is not None for _, truth in loaded)
    columns = ["", "input", *(["ground truth"] if truths else []), *report.summary]
    lines = []
    for row, (image, truth) in zip(ordered, loaded, strict=True):
        cells = [thumbnail(to_pil(image))]
        if truths:
            cells.append("" if truth is None else thumbnail(to_pil(truth)))
        for method in report.summary:
            value = row.values[method].get(edit, math.nan)
            image_cell = file_thumbnail(row.paths[method]) if row.paths[method].is_file() else "diverged"
            cells.append(image_cell + ("" if math.isnan(value) else f"<br>{value:.2f}"))
        prompts = f"<br><span class=note>{html.escape(row.prompts)}</span>" if row.prompts else ""
        lines.append(f"<tr><td>{html.escape(row.name)}{prompts}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    order = f", from best to worst by {best}" if best else ""
    note = f"Below each image: {edit}." if edit else ""
    shown = f" {len(ordered)} of {len(report.rows)} images." if len(ordered) < len(report.rows) else ""
    return f"""<h2>Images{html.escape(order)}</h2><p class=note>{html.escape(note + shown)}</p>
<div class=scroll><table class=gallery><tr>{head}</tr>{"".join(lines)}</table></div>"""


def legend(summary: Summary, metrics: Sequence[Metric]) -> str:
    def entry(metric: Metric) -> str:
        unit = f" ({metric.unit})" if metric.unit and metric.unit not in metric.name.split() else ""
        return f"<dt>{html.escape(metric.name)}{unit}</dt><dd>{html.escape(metric.meaning)}</dd>"

    return f"<h2>Metrics</h2><dl>{''.join(map(entry, measured(summary, metrics)))}</dl>"


def file_thumbnail(path: Path) -> str:
    with Image.open(path) as file:
        return thumbnail(file)


def thumbnail(image: Image.Image) -> str:
    buffer = io.BytesIO()
    small = ImageOps.contain(with_both_sides(image.convert("RGB"), SIDE), (SIDE, SIDE))
    small.save(buffer, "JPEG", quality=88)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width={small.width} height={small.height} src="data:image/jpeg;base64,{content}">'
