"""One page that says at once which editor to use: a verdict, a table, what is kept against what is changed, and pictures."""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dds_train.evaluation.metrics.scores import MEANINGS, meaning
from dds_train.evaluation.plot import Point, scatter
from dds_train.evaluation.recommendation import REFERENCES, SECONDS, Recommendation, Summary, recommend

SIDE = 112  # pixels of a thumbnail
ARROWS = {1: " ↑", -1: " ↓", 0: ""}


@dataclass(frozen=True)
class GalleryRow:
    """A row of the gallery."""

    name: str
    words: str  # the sentences, where they differ from picture to picture
    load: Callable[[], tuple[Tensor, Tensor | None]]  # input and, if known, truth, each [3,H,W] in [-1,1]
    scores: Mapping[str, Mapping[str, float]]  # by editor


@dataclass(frozen=True)
class Report:
    title: str
    what: str  # pictures and teacher, in a line
    summary: Summary
    curves: Sequence[Sequence[str]]  # editors that are one with its dial turned, in that order
    rows: Sequence[GalleryRow]
    picture: Callable[[str, str], Path]  # where an editor's result for a picture lies
    left_out: Sequence[str] = ()  # scores that could not be had


def write_report(folder: Path, report: Report, most: int = 48) -> None:
    """report.html in `folder`, with everything inside it; the gallery has at most so many rows."""
    per_image = {method: [row.scores[method] for row in report.rows] for method in report.summary}
    recommendation = recommend(report.summary, per_image)
    title = html.escape(report.title)
    body = f"""<h1>{title}</h1>
<p class=note>{html.escape(report.what)}</p>
{recommendation_box(recommendation)}
{table(report.summary, [recommendation.changed, recommendation.kept, SECONDS])}
{left_out(report.left_out)}
{trade_off(report, recommendation)}
{gallery(report, recommendation, most)}
{legend(report.summary)}"""
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>{STYLE}<body>{body}</body></html>"
    (folder / "report.html").write_text(page, encoding="utf-8")


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
tr.chosen td:first-child { font-weight: bold }
.scroll { overflow-x: auto }
.best { font-weight: bold; background: #e3f3e3 }
.error { color: #999; font-size: .8em }
.verdict { border-left: 5px solid #2a7a2a; background: #f2f8f2; padding: .6em 1em; margin: 1em 0 }
.verdict p { margin: .2em 0 }
.verdict .use { font-size: 1.4em }
.note { color: #777; font-size: .85em; margin: .3em 0 }
.gallery td, .gallery th { text-align: center; font-size: .8em; vertical-align: top; padding: .25em }
.gallery td:first-child { max-width: 14em; white-space: normal }
dt { font-weight: 600 }
dd { margin: 0 0 .4em 1.5em }
</style>"""


def recommendation_box(recommendation: Recommendation) -> str:
    if recommendation.best is None:
        return f"<div class=verdict><p>{html.escape(recommendation.why)}</p></div>"
    lines = [f"<p class=use>Use <b>{html.escape(recommendation.best)}</b>.</p>", f"<p>{html.escape(recommendation.why)}</p>"]
    others = [name for name in recommendation.front if name != recommendation.best]
    if others and recommendation.kept:
        line = f"Also worth a look, since none both edits better and keeps more ({recommendation.kept}): {', '.join(others)}."
        lines.append(f"<p>{html.escape(line)}</p>")
    return f"<div class=verdict>{''.join(lines)}</div>"


def best_values(summary: Summary, names: Sequence[str]) -> dict[str, float]:
    """Of each score; not of the references: doing nothing is best at keeping, and the truth at everything."""
    best = {}
    for name in names:
        means = [scores[name]["mean"] for method, scores in summary.items() if method not in REFERENCES and name in scores]
        good = [mean for mean in means if not math.isnan(mean)]
        if good and meaning(name).better:
            best[name] = max(good, key=lambda mean: meaning(name).better * mean)
    return best


def table(summary: Summary, foremost: Sequence[str | None] = ()) -> str:
    """`foremost`: scores that come first."""
    names = sorted(score_names(summary), key=lambda name: foremost.index(name) if name in foremost else len(foremost))
    best = best_values(summary, names)
    heads = (
        f"<th title='{html.escape(meaning(name).text, quote=True)}'>{html.escape(name)}{ARROWS[meaning(name).better]}</th>"
        for name in names
    )
    lines = []
    for method, scores in summary.items():
        reference = method in REFERENCES
        cells = []
        for name in names:
            if name not in scores:
                cells.append("<td></td>")
                continue
            mean, error, nan = scores[name]["mean"], scores[name].get("error", math.nan), int(scores[name]["nan"])
            mark = " class=best" if not reference and mean == best.get(name) else ""
            spread = f" <span class=error>±{number(error)}</span>" if math.isfinite(error) and error > 0 else ""
            cells.append(f"<td{mark}>{number(mean)}{spread}{f' ({nan} NaN)' if nan else ''}</td>")
        lines.append(f"<tr{' class=reference' if reference else ''}><td>{html.escape(method)}</td>{''.join(cells)}</tr>")
    return f"""<div class=scroll><table><tr><th>editor</th>{"".join(heads)}</tr>{"".join(lines)}</table></div>
<p class=note>Means over the pictures, ± one standard error. ↑ more is better, ↓ less is better; the best editor of each column
is marked. In italics: doing nothing, and what the codec alone costs (of the true edit, where it is known).</p>"""


def score_names(summary: Summary) -> list[str]:
    """What edits cost comes last, as it does among the meanings."""
    found = dict.fromkeys(name for scores in summary.values() for name in scores)
    return sorted(found, key=lambda name: list(MEANINGS.values()).index(meaning(name)))


def left_out(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    summary = f"<summary>{len(lines)} left out for want of their networks: how to get them</summary>"
    return f"<details class=note>{summary}<ul>{items}</ul></details>"


def number(value: float) -> str:
    """Three digits that count."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, "NaN")
    if abs(value) < 1e-9:
        return "0"
    digits = max(0, min(5, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def trade_off(report: Report, recommendation: Recommendation) -> str:
    """How much is kept (to the right) against how well the edit was made (upwards)."""
    if recommendation.changed is None or recommendation.kept is None:
        return ""
    points = []
    for method, scores in report.summary.items():
        if method == "vae_reconstruction" or recommendation.kept not in scores:
            continue
        # Doing nothing is in no direction.
        nothing = method == "identity"
        changed = 0.0 if nothing else scores[recommendation.changed]["mean"]
        points.append(Point(method, scores[recommendation.kept]["mean"], changed, nothing))
    flip = meaning(recommendation.kept).better < 0
    across, up = f"{recommendation.kept} ({'less' if flip else 'more'} is kept better) →", f"{recommendation.changed} →"
    return f"<h2>Keeping against changing</h2>{scatter(points, report.curves, across, up, flip)}"


def gallery(report: Report, recommendation: Recommendation, most: int) -> str:
    """Rows from best to worst."""

    def key(row: GalleryRow) -> float:
        found = row.scores.get(recommendation.best or "", {}).get(recommendation.changed or "", math.nan)
        return math.inf if math.isnan(found) else -found

    ordered = sorted(report.rows, key=key) if recommendation.best else list(report.rows)
    if len(ordered) > most:  # from best to worst, evenly
        ordered = [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]
    loaded = [row.load() for row in ordered]
    truths = any(truth is not None for _, truth in loaded)
    columns = ["", "input", *(["truth"] if truths else []), *report.summary]
    lines = []
    for row, (image, truth) in zip(ordered, loaded, strict=True):
        cells = [thumbnail(as_pil(image))]
        if truths:
            cells.append("" if truth is None else thumbnail(as_pil(truth)))
        for method in report.summary:
            found = row.scores[method].get(recommendation.changed or "", math.nan)
            with Image.open(report.picture(method, row.name)) as file:
                cells.append(thumbnail(file) + ("" if math.isnan(found) else f"<br>{found:.2f}"))
        words = f"<br><span class=note>{html.escape(row.words)}</span>" if row.words else ""
        lines.append(f"<tr><td>{html.escape(row.name)}{words}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    order = f", from best to worst by {recommendation.best}" if recommendation.best else ""
    under = f" Under each picture: {recommendation.changed}." if recommendation.changed else ""
    some = f" {len(ordered)} of {len(report.rows)} are shown." if len(ordered) < len(report.rows) else ""
    return f"""<h2>Pictures{html.escape(order)}</h2><p class=note>{html.escape(under + some)}</p>
<div class=scroll><table class=gallery><tr>{head}</tr>{"".join(lines)}</table></div>"""


def legend(summary: Summary) -> str:
    words = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(meaning(name).text)}</dd>" for name in score_names(summary))
    return f"<h2>What the scores say</h2><dl>{words}</dl>"


def as_pil(image: Tensor) -> Image.Image:
    return to_pil_image((image.clamp(-1, 1) + 1) / 2)


def thumbnail(image: Image.Image) -> str:
    buffer = io.BytesIO()
    small = ImageOps.contain(image.convert("RGB"), (SIDE, SIDE))
    small.save(buffer, "JPEG", quality=88)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width={small.width} height={small.height} src="data:image/jpeg;base64,{content}">'
