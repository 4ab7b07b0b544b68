"""Rendering of critters at any size.

Shapes are signed distances in head coordinates (the head is the unit circle, y points down), painted in order with one pixel of
analytic anti-aliasing. Only + - * / and sqrt touch the pixels, in float64, all exactly rounded by IEEE 754, so that every
machine renders the same bytes.
"""

import colorsys
import math

import numpy as np
from numpy.typing import NDArray

from dds_train.critters.world import Critter

Array = NDArray[np.float64]
Colour = tuple[float, float, float]

FUR_HSV = {
    "orange": (0.065, 0.78, 0.96),
    "gray": (0.60, 0.07, 0.60),
    "brown": (0.06, 0.62, 0.48),
    "white": (0.11, 0.06, 0.95),
    "black": (0.70, 0.15, 0.20),
    "golden": (0.135, 0.62, 0.94),
    "blue": (0.58, 0.62, 0.84),
    "pink": (0.93, 0.42, 0.95),
}
BACKDROP_HSV = {
    "green": (0.35, 0.50, 0.78),
    "blue": (0.60, 0.55, 0.85),
    "yellow": (0.15, 0.52, 0.97),
    "purple": (0.78, 0.45, 0.82),
    "red": (0.0, 0.62, 0.85),
    "teal": (0.49, 0.55, 0.72),
    "white": (0.10, 0.03, 0.97),
    "gray": (0.60, 0.05, 0.48),
}
PINK: Colour = (0.94, 0.59, 0.63)
DARK: Colour = (0.12, 0.10, 0.12)
WHITE: Colour = (0.98, 0.98, 0.98)
MANE: Colour = (0.52, 0.22, 0.09)
NAVY: Colour = (0.15, 0.17, 0.45)
BAND: Colour = (0.88, 0.24, 0.24)
SIDES = (-1, 1)


def hsv(h: float, s: float, v: float) -> Colour:
    return colorsys.hsv_to_rgb(h % 1, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0))


class Canvas:
    """An image being painted, and the head coordinates (u, v) of the centres of its pixels."""

    def __init__(self, size: int, critter: Critter) -> None:
        centres = (np.arange(size) + 0.5) / size
        dx = (centres[None, :] - critter.x) / critter.radius
        dy = (centres[:, None] - critter.y) / critter.radius
        # Rounded, because the last bit of a sine differs between mathematical libraries.
        cos, sin = (round(f(math.radians(critter.tilt)), 12) for f in (math.cos, math.sin))
        self.u: Array = cos * dx + sin * dy
        self.v: Array = cos * dy - sin * dx
        self.pixel = 1 / (size * critter.radius)
        self.rows: Array = centres[:, None]
        self.image: Array = np.zeros((size, size, 3))

    def paint(self, distance: Array, colour: Colour) -> None:
        """Cover where `distance` [size, size] (head units, negative inside) is below zero."""
        alpha = np.clip(0.5 - distance / self.pixel, 0, 1)[..., None]
        self.image += alpha * (np.array(colour) - self.image)

    def quantised(self) -> NDArray[np.uint8]:
        return np.floor(self.image * 255 + 0.5).astype(np.uint8)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Array:
        """First-order distance to an ellipse: f / |grad f|, exact on its border."""
        p, q = (self.u - x) / rx, (self.v - y) / ry
        k = np.sqrt(p * p + q * q)
        slope = np.sqrt((p / rx) ** 2 + (q / ry) ** 2)
        result: Array = k * (k - 1) / np.maximum(slope, 1e-9)
        return result

    def polygon(self, *points: tuple[float, float]) -> Array:
        """Distance to a convex polygon, points in clockwise order as seen on the screen."""
        distance = np.full_like(self.u, -np.inf)
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            dx, dy = x1 - x0, y1 - y0
            edge = ((self.u - x0) * dy - (self.v - y0) * dx) / math.sqrt(dx * dx + dy * dy)
            distance = np.maximum(distance, edge)
        return distance

    def box(self, x: float, y: float, half_width: float, half_height: float) -> Array:
        return np.maximum(np.abs(self.u - x) - half_width, np.abs(self.v - y) - half_height)

    def parabola(self, y: float, half_width: float, bend: float, thickness: float) -> Array:
        """A stroke through (0, y) whose ends lie `bend` higher."""
        curve = y - bend * (self.u / half_width) ** 2
        slope = 2 * bend * self.u / half_width**2
        stroke = np.abs(self.v - curve) / np.sqrt(1 + slope * slope) - thickness / 2
        return np.maximum(stroke, np.abs(self.u) - half_width)

    def mirrored(self, side: int, *points: tuple[float, float]) -> Array:
        """A convex polygon of the right side (1), or its mirror image on the left side (-1)."""
        flipped = tuple((side * x, y) for x, y in points)
        return self.polygon(*(flipped if side > 0 else flipped[::-1]))


def render(critter: Critter, size: int = 64) -> NDArray[np.uint8]:
    """RGB image of a critter, uint8 [size, size, 3]; identical bytes on every machine."""
    c = Canvas(size, critter)
    _paint_backdrop(c, critter)
    hue, saturation, value = FUR_HSV[critter.fur]
    hue, saturation, value = hue + critter.hue, saturation + critter.saturation, value + critter.value
    fur = hsv(hue, saturation, value)
    dark = hsv(hue, saturation + 0.1, value * 0.55)
    light = hsv(hue, saturation * 0.35, value * 1.25 + 0.15)
    _behind_the_head(c, critter.species, fur, dark, light)
    c.paint(c.ellipse(0, 0, 1, 1), fur)
    _face(c, critter, dark, light)
    if critter.glasses:
        _glasses(c)
    if critter.hat:
        _hat(c)
    return c.quantised()


def render_backdrop(critter: Critter, size: int = 64) -> NDArray[np.uint8]:
    """The backdrop alone, uint8 [size, size, 3]."""
    c = Canvas(size, critter)
    _paint_backdrop(c, critter)
    return c.quantised()


def _paint_backdrop(c: Canvas, critter: Critter) -> None:
    hue, saturation, value = BACKDROP_HSV[critter.backdrop]
    top, bottom = (np.array(hsv(hue, saturation, value * (1 + k * critter.shade))) for k in SIDES[::-1])
    c.image[:] = (top + (bottom - top) * c.rows)[:, None, :]


def _behind_the_head(c: Canvas, species: str, fur: Colour, dark: Colour, light: Colour) -> None:
    """Manes and ears."""
    if species == "lion":
        mane = c.ellipse(0, 0, 1.25, 1.25)
        for k in range(14):
            angle = 2 * math.pi * k / 14
            x, y = (round(1.14 * f(angle), 12) for f in (math.cos, math.sin))
            mane = np.minimum(mane, c.ellipse(x, y, 0.34, 0.34))
        c.paint(mane, MANE)
    round_ears = {
        "lion": (0.72, 0.30, fur, dark),
        "tiger": (0.72, 0.34, fur, DARK),
        "bear": (0.75, 0.40, fur, light),
        "panda": (0.75, 0.40, DARK, DARK),
    }
    for side in SIDES:
        if species in round_ears:
            offset, radius, outer, inner = round_ears[species]
            c.paint(c.ellipse(side * offset, -0.78, radius, radius), outer)
            c.paint(c.ellipse(side * offset, -0.78, 0.55 * radius, 0.55 * radius), inner)
        elif species == "cat":
            c.paint(c.mirrored(side, (0.15, -0.85), (0.90, -1.42), (0.97, -0.20)), fur)
            c.paint(c.mirrored(side, (0.38, -0.82), (0.82, -1.15), (0.85, -0.45)), PINK)
        elif species == "rabbit":
            c.paint(c.ellipse(side * 0.42, -1.20, 0.27, 0.66), fur)
            c.paint(c.ellipse(side * 0.42, -1.20, 0.14, 0.48), PINK)
        elif species == "pig":
            c.paint(c.mirrored(side, (0.28, -0.85), (0.98, -1.20), (0.97, -0.45)), dark)


def _face(c: Canvas, critter: Critter, dark: Colour, light: Colour) -> None:
    species = critter.species
    if species == "tiger":
        for y, half in ((-0.86, 0.16), (-0.60, 0.32)):
            c.paint(c.polygon((-half, y), (half, y), (0, y + 0.19)), DARK)
        for side in SIDES:
            for y in (0.05, 0.38):
                c.paint(c.mirrored(side, (0.50, y), (0.97, y - 0.12), (0.97, y + 0.12)), DARK)
    for side in SIDES:
        if species == "dog":
            c.paint(c.ellipse(side * 1.0, -0.05, 0.29, 0.72), dark)
        elif species == "panda":
            c.paint(c.ellipse(side * 0.42, -0.14, 0.31, 0.36), DARK)

    if species in ("lion", "dog", "bear", "tiger"):
        c.paint(c.ellipse(0, 0.42, 0.48, 0.40), light)
    elif species in ("cat", "rabbit", "panda"):
        c.paint(c.ellipse(0, 0.46, 0.38, 0.30), light)

    size = critter.eyes
    for side in SIDES:
        c.paint(c.ellipse(side * 0.4, -0.15, 0.18 * size, 0.21 * size), WHITE)
        pupil = side * 0.4 + 0.06 * critter.gaze_x, -0.15 + 0.07 * critter.gaze_y
        c.paint(c.ellipse(*pupil, 0.10 * size, 0.13 * size), DARK)

    if species == "pig":
        c.paint(c.ellipse(0, 0.33, 0.42, 0.29), PINK)
        for side in SIDES:
            c.paint(c.ellipse(side * 0.15, 0.33, 0.08, 0.12), (0.59, 0.27, 0.31))
    elif species in ("cat", "rabbit"):
        c.paint(c.polygon((-0.14, 0.26), (0.14, 0.26), (0, 0.42)), PINK)
    else:
        c.paint(c.ellipse(0, 0.27, 0.20, 0.14), DARK)
    c.paint(c.parabola(0.66, 0.22, 0.13 * critter.mouth, 0.08), (0.24, 0.12, 0.12))


def _glasses(c: Canvas) -> None:
    for side in SIDES:
        c.paint(np.abs(c.ellipse(side * 0.4, -0.15, 0.33, 0.31)) - 0.055, (0.08, 0.08, 0.08))
    c.paint(c.box(0, -0.15, 0.09, 0.045), (0.08, 0.08, 0.08))


def _hat(c: Canvas) -> None:
    c.paint(c.box(0, -1.18, 0.55, 0.32), NAVY)
    c.paint(c.box(0, -1.02, 0.55, 0.09), BAND)
    c.paint(c.box(0, -0.86, 0.90, 0.09), NAVY)
