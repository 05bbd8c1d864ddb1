"""Lines over a logarithmic axis as SVG, which is text: no plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 20, 50  # around the drawing; the names are at the right
COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#8e5ea2", "#b08900")
MARKS = (1, 2, 5)  # on the axes, of every power of ten


# From a point to its place in the drawing.
Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line by its name and its points (x, y), x rising and above 0."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines with what their axes say; both are logarithmic."""

    across: str
    up: str
    lines: Sequence[Line]

    def svg(self) -> str:
        """The drawing."""
        xs, ys = zip(*(point for line in self.lines for point in line.points), strict=True)
        low, high = (min(*xs), min(*ys)), (max(*xs), max(*ys))

        def place(x: float, y: float) -> tuple[float, float]:
            right, down = (
                math.log(value / start) / (math.log(end / start) or 1)
                for value, start, end in zip((x, y), low, high, strict=True)
            )
            across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
            return round(LEFT + right * across, 1), round(HEIGHT - BOTTOM - down * up, 1)

        parts = [*self._axes(low, high, place), *self._drawn(place)]
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12">'
        )
        back = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        return "\n".join([head, back, *parts, "</svg>\n"])

    def _axes(self, low: tuple[float, float], high: tuple[float, float], place: Place) -> list[str]:
        parts = []
        for x in marks(low[0], high[0]):
            at, _ = place(x, low[1])
            parts += [_stroke((at, TOP), (at, HEIGHT - BOTTOM)), _text(at, HEIGHT - 32, f"{x:g}")]
        for y in marks(low[1], high[1]):
            _, at = place(low[0], y)
            parts += [_stroke((LEFT, at), (WIDTH - RIGHT, at)), _text(LEFT - 18, at + 4, f"{y:g}")]
        middle = (LEFT + WIDTH - RIGHT) / 2
        turned = f'transform="rotate(-90 16 {HEIGHT / 2})"'
        return [
            *parts,
            _text(middle, HEIGHT - 10, self.across),
            _text(16, HEIGHT / 2, self.up, turned),
        ]

    def _drawn(self, place: Place) -> list[str]:
        parts = []
        for number, line in enumerate(self.lines):
            colour = COLOURS[number % len(COLOURS)]
            points = " ".join(f"{x},{y}" for x, y in (place(*point) for point in line.points))
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            at = f'x="{WIDTH - RIGHT + 12}" y="{TOP + 20 * (number + 1)}"'
            parts.append(f'<text {at} fill="{colour}">{escape(line.name)}</text>')
        return parts


def marks(low: float, high: float) -> list[float]:
    """Numbers from `low` to `high` that an axis shows."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [mark * 10.0**power for power in powers for mark in MARKS]
    return [mark for mark in found if low <= mark <= high]


def _stroke(a: tuple[float, float], b: tuple[float, float]) -> str:
    return f'<line x1="{a[0]}" y1="{a[1]}" x2="{b[0]}" y2="{b[1]}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle" {more}>{escape(text)}</text>'
