"""One page that says at once which editor to use: a table, the trade-off between keeping and changing, and pictures."""

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

from dds_train.metrics.scores import BETTER

Summary = Mapping[str, Mapping[str, Mapping[str, float]]]  # editor -> score -> {"mean", "count", "nan"}
SIDE = 112  # pixels of a thumbnail


@dataclass(frozen=True)
class Shown:
    """A row of the gallery."""

    name: str
    image: Tensor  # [1,3,H,W] in [-1,1]
    truth: Tensor | None
    scores: Mapping[str, Mapping[str, float]]  # by editor


def write_report(
    folder: Path,
    summary: Summary,
    rows: Sequence[Shown],
    picture: Callable[[str, str], Path],
    left_out: Sequence[str],
    title: str,
    most: int = 48,
) -> None:
    """report.html in `folder`, with everything inside it. `picture` says where an editor's result for an image lies."""
    judged = next(
        (name for name in ("gap closed", "CLIP direction", "CLIP target") if any(name in s for s in summary.values())), None
    )
    first = ranked(summary, judged)
    best = first[0] if first else None
    ordered = sorted(rows, key=lambda row: -score_of(row, best, judged)) if best and judged else list(rows)
    if len(ordered) > most:  # from best to worst, evenly
        ordered = [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]
    verdict = "Nothing here measures the change itself; give a CLIP model to rank editors."
    if best and judged:
        mean = summary[best][judged]["mean"]
        verdict = f"Use <b>{html.escape(best)}</b>: the highest {judged} ({mean:.3f}) of all editors."
    notes = "".join(f"<p class=note>Left out: {html.escape(line)}</p>" for line in left_out)
    order = f", from best to worst by {html.escape(best)}" if best else ""
    body = f"""<h1>{html.escape(title)}</h1><p class=verdict>{verdict}</p>{table(summary)}{notes}
{trade_off(summary, judged) if judged else ""}
<h2>Pictures{order}</h2>{gallery(ordered, list(summary), picture, judged)}"""
    (folder / "report.html").write_text(f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>{STYLE}{body}")


STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse }
td, th { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
.scroll { overflow-x: auto }
.best { font-weight: bold; background: #e8f4e8 }
.verdict { font-size: 1.2em }
.note { color: #777; font-size: .85em }
.gallery td { text-align: center; font-size: .8em }
</style>"""


def ranked(summary: Summary, judged: str | None) -> list[str]:
    """Editors, best first; not those that are there to compare with."""
    named = [name for name, scores in summary.items() if judged in scores and name not in ("nothing", "codec")]
    return sorted(named, key=lambda name: -summary[name][judged]["mean"]) if judged else []


def score_of(row: Shown, editor: str | None, judged: str | None) -> float:
    value = row.scores.get(editor or "", {}).get(judged or "", math.nan)
    return -math.inf if math.isnan(value) else value


def table(summary: Summary) -> str:
    names = list(dict.fromkeys(name for scores in summary.values() for name in scores))
    best = {}
    for name in names:
        # Doing nothing is best at keeping, and the truth at everything: neither is an editor.
        means = {e: s[name]["mean"] for e, s in summary.items() if name in s and e not in ("nothing", "codec")}
        good = {e: v for e, v in means.items() if not math.isnan(v)}
        if good and name in BETTER:
            best[name] = max(good.values(), key=lambda value: BETTER[name] * value)
    head = "".join(f"<th>{html.escape(name)}{ {1: ' ↑', -1: ' ↓'}.get(BETTER.get(name, 0), '') }</th>" for name in names)
    lines = []
    for editor, scores in summary.items():
        cells = []
        for name in names:
            if name not in scores:
                cells.append("<td></td>")
                continue
            mean, nan = scores[name]["mean"], int(scores[name]["nan"])
            mark = " class=best" if editor not in ("nothing", "codec") and mean == best.get(name) else ""
            cells.append(f"<td{mark}>{mean:.3f}{f' ({nan} NaN)' if nan else ''}</td>")
        lines.append(f"<tr><td>{html.escape(editor)}</td>{''.join(cells)}</tr>")
    return f"<div class=scroll><table><tr><th>editor</th>{head}</tr>{''.join(lines)}</table></div>"


def trade_off(summary: Summary, judged: str) -> str:
    """A plot of how much is kept (to the right) against how well the edit was made (upwards)."""
    kept = next((name for name in ("background PSNR", "PSNR outside", "PSNR") if any(name in s for s in summary.values())), "")
    both = {editor: s for editor, s in summary.items() if kept in s and judged in s}
    points = {editor: (s[kept]["mean"], s[judged]["mean"]) for editor, s in both.items()}
    points = {editor: point for editor, point in points.items() if all(map(math.isfinite, point))}
    if len(points) < 2:
        return ""
    width, height, pad = 640, 360, 50
    xs, ys = zip(*points.values(), strict=True)

    def place(value: float, values: Sequence[float], length: int) -> float:
        low, high = min(values), max(values)
        return pad + (value - low) / ((high - low) or 1) * (length - 2 * pad)

    dots = []
    for editor, (x, y) in points.items():
        across, down = place(x, xs, width), height - place(y, ys, height)
        dots.append(f"<circle cx={across:.1f} cy={down:.1f} r=5 fill='#369'/>")
        dots.append(f"<text x={across + 8:.1f} y={down + 4:.1f}>{html.escape(editor)}</text>")
    right = f"{kept} ({min(xs):.1f} to {max(xs):.1f}): more is kept →"
    up = f"{judged} ({min(ys):.2f} to {max(ys):.2f}): a better edit →"
    return f"""<h2>Keeping against changing</h2><svg width={width + 120} height={height} font-family=system-ui font-size=12>
<path d="M{pad - 15} 10 V{height - pad + 15} H{width}" fill=none stroke="#999"/>{"".join(dots)}
<text x={width / 2} y={height - 8} text-anchor=middle>{right}</text>
<text transform="translate(14 {height / 2}) rotate(-90)" text-anchor=middle>{up}</text>
</svg>"""


def gallery(rows: Sequence[Shown], editors: Sequence[str], picture: Callable[[str, str], Path], judged: str | None) -> str:
    truth = any(row.truth is not None for row in rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", "input", *(["truth"] if truth else []), *editors))
    lines = []
    for row in rows:
        cells = [thumbnail(to_pil_image((row.image[0].clamp(-1, 1) + 1) / 2))]
        if truth:
            cells.append("" if row.truth is None else thumbnail(to_pil_image((row.truth[0].clamp(-1, 1) + 1) / 2)))
        for editor in editors:
            value = row.scores.get(editor, {}).get(judged or "", math.nan)
            with Image.open(picture(editor, row.name)) as image:
                cells.append(thumbnail(image) + ("" if math.isnan(value) else f"<br>{value:.2f}"))
        lines.append(f"<tr><td>{html.escape(row.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<div class=scroll><table class=gallery><tr>{head}</tr>{''.join(lines)}</table></div>"


def thumbnail(image: Image.Image) -> str:
    buffer = io.BytesIO()
    ImageOps.contain(image.convert("RGB"), (SIDE, SIDE)).save(buffer, "JPEG", quality=88)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
