"""A few words of SVG: enough for the report's charts, with colours left to the page's style sheet.

Coordinates are user units of the viewBox, y downward. Classes name roles (`axis`, `grid`, `within`, `over`, ...), so that one
drawing serves light, dark and paper. Not responsible for what is drawn: see `charts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from values to user units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start if span == 0 else self.start + (value - self.low) / span * (self.end - self.start)


def number(value: float) -> str:
    """Shortest text to 1/100 of a user unit."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def signed(value: float, decimals: int = 2) -> str:
    """A number with its sign, a true minus, and no sign at all for what rounds to zero."""
    shown = f"{abs(value):.{decimals}f}"
    if float(shown) == 0.0:
        return shown
    return ("+" if value > 0 else "−") + shown


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class Svg:
    """One drawing."""

    def __init__(self, width: float, height: float, label: str, *, left: float = 0.0, top: float = 0.0, css: str = "chart"):
        box = " ".join(number(v) for v in (left, top, width, height))
        self._parts = [f'<svg class="{css}" viewBox="{box}" role="img" aria-label="{escape(label, quote=True)}">']

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self._parts.append(f'<path class="{css}" d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"/>')

    def polyline(self, points: Iterable[tuple[float, float]], css: str) -> None:
        """A line through points."""
        steps = "L".join(f"{number(x)} {number(y)}" for x, y in points)
        if steps:
            self._parts.append(f'<path class="{css}" d="M{steps}"/>')

    def path(self, data: str, css: str, extra: str = "") -> None:
        """A ready path."""
        if data:
            self._parts.append(f'<path class="{css}" {extra} d="{data}"/>')

    def rect(self, x: float, y: float, width: float, height: float, css: str, title: str = "") -> None:
        """A rectangle; negative sizes are turned round. `title` is shown on hover."""
        x, width = (x + width, -width) if width < 0 else (x, width)
        y, height = (y + height, -height) if height < 0 else (y, height)
        tag = f'<rect class="{css}" x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        self._parts.append(f"{tag}><title>{escape(title)}</title></rect>" if title else f"{tag}/>")

    def circle(self, x: float, y: float, radius: float, css: str) -> None:
        """A circle."""
        self._parts.append(f'<circle class="{css}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"/>')

    def text(self, x: float, y: float, words: str, css: str = "tick", anchor: str = "middle") -> None:
        """A line of text; `anchor` start, middle or end."""
        self._parts.append(f'<text class="{css}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(words)}</text>')

    def __str__(self) -> str:
        return "".join(self._parts) + "</svg>"
