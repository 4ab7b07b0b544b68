"""A scatter plot as SVG: a page shows it without scripts."""

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 150, 20, 50
COLOURS = ("#2a6fb0", "#c2571a", "#2a7a2a", "#8a4fa8", "#a8353a", "#5a6b1f")  # of curves
LINE, LETTER = 13, 6.4  # pixels, of a label's height and of one of its letters


@dataclass(frozen=True)
class Point:
    name: str
    x: float  # infinite: at the edge where x is best
    y: float
    pale: bool = False  # a reference


def scatter(points: Sequence[Point], curves: Sequence[Sequence[str]], across: str, up: str, flip: bool = False) -> str:
    """Points with their names, those of a curve joined in its order.

    Args:
        across, up: labels of the axes.
        flip: small x to the right.

    Returns:
        SVG; "" for fewer than two points with a finite y.
    """
    points = [point for point in points if math.isfinite(point.y) and not math.isnan(point.x)]
    inside = [point.x for point in points if math.isfinite(point.x)]
    if len(points) < 2 or not inside:
        return ""
    x_ticks, y_ticks = ticks(min(inside), max(inside)), ticks(min(p.y for p in points), max(p.y for p in points))
    left, right = (x_ticks[-1], x_ticks[0]) if flip else (x_ticks[0], x_ticks[-1])

    def at(point: Point) -> tuple[float, float]:
        share = (point.x - left) / (right - left) if math.isfinite(point.x) else 1.08
        return LEFT + share * (WIDTH - LEFT - RIGHT), vertical(point.y)

    def vertical(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in x_ticks:
        x, _ = at(Point("", tick, y_ticks[0]))
        parts.append(f'<path d="M{x:.1f} {TOP} V{HEIGHT - BOTTOM}" stroke="#eee" />')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" fill="#777">{tick:g}</text>')
    for tick in y_ticks:
        y = vertical(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f} H{WIDTH - RIGHT}" stroke="#eee" />')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#777">{tick:g}</text>')
    places = {point.name: at(point) for point in points}
    colours: dict[str, str] = {}
    short: dict[str, str] = {}
    for curve, colour in zip(curves, cycle(COLOURS), strict=False):
        known = [name for name in curve if name in places]
        colours |= dict.fromkeys(known, colour)
        short |= shortened(known)
        line = " L".join(f"{x:.1f} {y:.1f}" for x, y in map(places.__getitem__, known))
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2" opacity="0.45" />' if line else "")
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places.values()]
    for point in points:
        x, y = places[point.name]
        name = short.get(point.name, point.name) + ("" if math.isfinite(point.x) else " (∞)")
        boxes = [box for box in around(x, y, name) if box[0] > LEFT and box[2] < WIDTH] or around(x, y, name)
        box = next((box for box in boxes if not any(overlap(box, other) for other in taken)), boxes[0])
        taken.append(box)
        colour = "#999" if point.pale else colours.get(point.name, "#444")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" />')
        parts.append(
            f'<text x="{box[0]:.1f}" y="{box[3] - 3:.1f}" fill="{"#777" if point.pale else "#222"}">{html.escape(name)}</text>'
        )
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    return f"""<svg width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12">
{"".join(parts)}
<path d="M{LEFT} {TOP} V{HEIGHT - BOTTOM} H{WIDTH - RIGHT}" fill="none" stroke="#999" />
<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(across)}</text>
<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{html.escape(up)}</text>
</svg>"""


def shortened(curve: Sequence[str]) -> dict[str, str]:
    """Labels along a curve: the last name in full, of the others what differs: "dds, 25 steps" before "dds" is "25 steps"."""
    common = os.path.commonprefix(list(curve))  # noqa: RUF071 (of letters, not of paths)
    return {name: name[len(common) :].lstrip(", ") or name for name in curve[:-1]}


Box = tuple[float, float, float, float]  # left, top, right, bottom


def around(x: float, y: float, name: str) -> list[Box]:
    """Places for the label of a point: right, left, above, below, and further away."""
    width = LETTER * len(name)
    corners = [(x + 8, y - LINE / 2), (x - 8 - width, y - LINE / 2), (x - width / 2, y - 8 - LINE), (x - width / 2, y + 8)]
    corners += [(x + 8, y + shift) for shift in (5, -5 - LINE, 5 + LINE, -5 - 2 * LINE)]
    return [(left, top, left + width, top + LINE) for left, top in corners]


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def ticks(low: float, high: float, limit: int = 7) -> list[float]:
    """Round numbers, evenly spaced, that enclose both ends."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    power = 10 ** math.floor(math.log10((high - low) / (limit - 1)))
    step = next(step * power for step in (1, 2, 5, 10) if (high - low) / (step * power) <= limit - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]
