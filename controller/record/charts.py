"""The charts of one beam, each a function from figures to an SVG text.

Colour never speaks alone: a spot beyond the limit is drawn with a plus or a minus, an undelivered one as a ring,
limits are lines with their value beside them. Tens of thousands of spots stay small because a spot is a zero-length stroke
of one path. Not responsible for numbers (`figures`), for the course of the fraction (`timeline`) nor for the page (`report`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controller.record.figures import (
    BEAM_METERSET_LIMIT,
    MONITORS_LIMIT,
    POSITION_RMS_LIMIT_MM,
    SPOT_P95_LIMIT,
    BeamFigures,
    layer_quantiles,
)
from controller.record.svg import Scale, Svg, number, signed, ticks

INNER_LIMIT = 0.01  # of a spot's meterset: drawn neutral (assumed: what the eye should not be drawn to)
_WIDTH = 460.0
_HEIGHT = 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 14.0, 34.0


# --- spot maps ----------------------------------------------------------------------------------------------------


def spot_pitch_mm(figures: BeamFigures) -> float:
    """Typical distance between neighbouring spots of a beam, mm, from the area they cover."""
    x, y = figures.sums.x_planned_mm, figures.sums.y_planned_mm
    per_layer = max(1.0, x.size / max(1, figures.layer_planned.size))
    area = max(float(np.ptp(x)), 1.0) * max(float(np.ptp(y)), 1.0)
    return float(np.clip(np.sqrt(area / per_layer), 0.8, 12.0))


def spot_map(figures: BeamFigures, layer: int) -> str:
    """Planned against delivered spots of one layer, as seen by the beam's eye: x to the right, y upward, one scale per beam."""
    sums = figures.sums
    pitch = spot_pitch_mm(figures)
    x0, x1 = float(sums.x_planned_mm.min()) - pitch, float(sums.x_planned_mm.max()) + pitch
    y0, y1 = float(sums.y_planned_mm.min()) - pitch, float(sums.y_planned_mm.max()) + pitch
    side = max(x1 - x0, y1 - y0)
    left, top = 5 * (x0 + x1 - side), 5 * (-y0 - y1 - side)  # drawn in 0.1 mm so that coordinates are whole numbers
    svg = Svg(10 * side, 10.7 * side, f"Spots of layer {layer + 1}", left=left, top=top, css="map")
    here = slice(*figures.outcome.layer_offsets[layer : layer + 2])
    planned = figures.planned[here] > 0
    x, y = _tenths(sums.x_planned_mm[here]), _tenths(-sums.y_planned_mm[here])
    error = figures.spot_error[here]
    delivered = sums.delivered[here]
    unit = 10 * pitch
    svg.path(_dots(x, y, planned), "planned", f'stroke-width="{number(0.86 * unit)}"')
    mx, my = _tenths(np.where(delivered, sums.x_mm[here], 0.0)), _tenths(np.where(delivered, -sums.y_mm[here], 0.0))
    dot = f'stroke-width="{number(0.6 * unit)}"'
    for css, chosen in (
        ("within", np.abs(error) <= INNER_LIMIT),
        ("low", (error < -INNER_LIMIT) & (error >= -SPOT_P95_LIMIT)),
        ("high", (error > INNER_LIMIT) & (error <= SPOT_P95_LIMIT)),
        ("under", error < -SPOT_P95_LIMIT),
        ("over", error > SPOT_P95_LIMIT),
        ("unplanned", delivered & ~planned),
    ):
        svg.path(_dots(mx, my, chosen & delivered), css, dot)
    arm = round(0.22 * unit)
    mark = f'stroke-width="{number(0.12 * unit)}"'
    svg.path(_strokes(mx, my, error < -SPOT_P95_LIMIT, f"m{-arm} 0h{2 * arm}"), "mark", mark)
    svg.path(_strokes(mx, my, error > SPOT_P95_LIMIT, f"m{-arm} 0h{2 * arm}m{-arm} {-arm}v{2 * arm}"), "mark", mark)
    svg.path(_dots(x, y, planned & ~delivered), "missing-ring", f'stroke-width="{number(0.8 * unit)}"')
    svg.path(_dots(x, y, planned & ~delivered), "missing", f'stroke-width="{number(0.56 * unit)}"')
    bar = 10.0 if side < 60 else 50.0
    svg.path(f"M{number(left + 0.03 * 10 * side)} {number(top + 10.4 * side)}h{number(10 * bar)}", "scalebar", mark)
    return str(svg)


def map_scale_mm(figures: BeamFigures) -> int:
    """Length of the bar at the foot of the spot maps."""
    pitch = spot_pitch_mm(figures)
    side = max(float(np.ptp(figures.sums.x_planned_mm)), float(np.ptp(figures.sums.y_planned_mm))) + 2 * pitch
    return 10 if side < 60 else 50


def _tenths(values_mm: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(10.0 * values_mm).astype(np.int64)


def _dots(x: NDArray[np.int64], y: NDArray[np.int64], chosen: NDArray[np.bool_]) -> str:
    return _strokes(x, y, chosen, "h0")


def _strokes(x: NDArray[np.int64], y: NDArray[np.int64], chosen: NDArray[np.bool_], stroke: str) -> str:
    return "".join([f"M{a} {b}{stroke}" for a, b in zip(x[chosen].tolist(), y[chosen].tolist(), strict=True)])


# --- frames -------------------------------------------------------------------------------------------------------


class _Frame:
    """A chart with two axes and a grid."""

    def __init__(
        self,
        label: str,
        x: tuple[float, float],
        y: tuple[float, float],
        x_title: str,
        y_title: str,
        *,
        width: float = _WIDTH,
        height: float = _HEIGHT,
        whole_x: bool = False,
    ):
        self.svg = Svg(width, height, label)
        self.left, self.right, self.top, self.bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM
        self.x = Scale(*x, self.left, self.right)
        self.y = Scale(*y, self.bottom, self.top)
        for value in ticks(*y, 5):
            self.svg.line(self.left, self.y(value), self.right, self.y(value), "grid")
            self.svg.text(self.left - 6, self.y(value) + 3.5, f"{value:.6g}".replace("-", "−"), anchor="end")
        for value in ticks(*x, 8):
            if not whole_x or value == int(value):
                self.svg.text(self.x(value), self.bottom + 14, f"{value:.6g}".replace("-", "−"))
        self.svg.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.svg.text((self.left + self.right) / 2, height - 4, x_title, "title")
        self.svg.text(self.left - 44, self.top - 4, y_title, "title", "start")

    def limit(self, value: float, words: str) -> None:
        """A horizontal limit with its value."""
        self.svg.line(self.left, self.y(value), self.right, self.y(value), "limit")
        self.svg.text(self.right, self.y(value) - 3, words, "limit-text", "end")


def _span(values: NDArray[np.float64], *limits: float) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low = min([*limits, *([float(known.min())] if known.size else [])])
    high = max([*limits, *([float(known.max())] if known.size else [])])
    margin = 0.12 * (high - low) or 1.0
    return low - margin, high + margin


# --- per beam -----------------------------------------------------------------------------------------------------


def layer_meterset(figures: BeamFigures) -> str:
    """Meterset error of each layer, %."""
    planned = figures.layer_planned
    error = 100 * np.divide(
        figures.layer_primary - planned,
        planned,
        out=np.full(planned.shape, np.nan),
        where=(planned > 0) & (figures.layer_primary > 0),
    )
    n, limit = planned.size, 100 * BEAM_METERSET_LIMIT
    frame = _Frame(
        "Meterset error per layer", (0.4, n + 0.6), _span(error, -1.2 * limit, 1.2 * limit), "layer", "error / %", whole_x=True
    )
    frame.limit(limit, f"+{limit:g} %")
    frame.limit(-limit, f"−{limit:g} %")
    zero = frame.y(0.0)
    half = max(0.5, min(10.0, 0.4 * (frame.right - frame.left) / (n + 0.2)))
    for i, value in enumerate(error):
        if np.isfinite(value):
            css = "bar" if abs(value) <= limit else "bar-out"
            frame.svg.rect(
                frame.x(i + 1) - half, zero, 2 * half, frame.y(value) - zero, css, f"layer {i + 1}: {signed(value, 3)} %"
            )
        else:
            frame.svg.text(frame.x(i + 1), zero + 4, "×", "absent")
    frame.svg.line(frame.left, zero, frame.right, zero, "axis")
    return str(frame.svg)


def histogram(
    values: NDArray[np.float64], label: str, x_title: str, low: float, high: float, limits: Sequence[float], unit: str
) -> str:
    """Histogram of values; those outside [low, high] are counted in the outer bins. Limits are vertical lines."""
    known = values[np.isfinite(values)]
    bins = 48
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram(np.clip(known, low, np.nextafter(high, low)), edges)[0]
    frame = _Frame(label, (low, high), (0.0, 1.08 * max(1, int(counts.max(initial=1)))), x_title, "spots")
    outermost = max((abs(v) for v in limits), default=np.inf)
    for i, count in enumerate(counts):
        if count:
            x0, x1 = frame.x(float(edges[i])), frame.x(float(edges[i + 1]))
            out = abs((edges[i] + edges[i + 1]) / 2) > outermost
            title = f"{edges[i]:.3g} to {edges[i + 1]:.3g} {unit}: {count} spots"
            frame.svg.rect(
                x0 + 0.5, frame.bottom, x1 - x0 - 1, frame.y(float(count)) - frame.bottom, "bar-out" if out else "bar", title
            )
    for value in limits:
        frame.svg.line(frame.x(value), frame.top, frame.x(value), frame.bottom, "limit")
        frame.svg.text(frame.x(value), frame.top - 3, f"{value:g} {unit}".replace("-", "−"), "limit-text")
    return str(frame.svg)


def spot_error_histogram(figures: BeamFigures) -> str:
    """Meterset error of the spots, %."""
    limit = 100 * SPOT_P95_LIMIT
    reach = float(np.clip(np.nanmax(np.abs(100 * figures.spot_error), initial=0.0) * 1.05, 1.2 * limit, 10 * limit))
    return histogram(
        100 * figures.spot_error, "Spot meterset error", "meterset error of a spot / %", -reach, reach, (-limit, limit), "%"
    )


def radial_histogram(figures: BeamFigures) -> str:
    """Distance of the spots from plan, mm."""
    limit = POSITION_RMS_LIMIT_MM
    reach = float(np.clip(figures.radial_mm.max(initial=0.0) * 1.05, 1.2 * limit, 6 * limit))
    return histogram(figures.radial_mm, "Spot position error", "distance from plan / mm", 0.0, reach, (limit,), "mm")


def position_scatter(figures: BeamFigures) -> str:
    """Position errors in the plane as a density of dots, with circles of 0.5, 1 and 2 mm and the mean as a cross."""
    known = np.isfinite(figures.dx_mm)
    dx, dy = figures.dx_mm[known], figures.dy_mm[known]
    reach = float(np.clip(1.1 * max(np.abs(dx).max(initial=0.0), np.abs(dy).max(initial=0.0)), 1.15, 6.0))
    size, centre = _HEIGHT, _HEIGHT / 2
    svg = Svg(_WIDTH, size, "Position errors in the isocentre plane")
    scale = Scale(-reach, reach, 6, size - 6)
    for radius in (0.5, 1.0, 2.0, 5.0):
        if radius <= reach:
            svg.circle(centre, centre, scale(radius) - centre, "limit" if radius == POSITION_RMS_LIMIT_MM else "ring")
            svg.text(
                centre + (scale(radius) - centre) * 0.72 + 3,
                centre - (scale(radius) - centre) * 0.72,
                f"{radius:g}",
                "tick",
                "start",
            )
    svg.line(6, centre, size - 6, centre, "grid")
    svg.line(centre, 6, centre, size - 6, "grid")
    bins = 61
    edges = np.linspace(-reach, reach, bins + 1)
    cx, cy = (np.clip(v, -reach, np.nextafter(reach, 0.0)) for v in (dx, dy))
    density = np.histogram2d(cx, cy, bins=[edges, edges])[0]
    step = (size - 12) / bins
    levels = np.quantile(density[density > 0], (0.5, 0.85)) if (density > 0).any() else (0.0, 0.0)
    middles = (edges[:-1] + edges[1:]) / 2
    for css, radius, low, high in (
        ("dot1", 0.5, 0.0, levels[0]),
        ("dot2", 0.75, levels[0], levels[1]),
        ("dot3", 1.0, levels[1], np.inf),
    ):
        i, j = np.nonzero((density > low) & (density <= high))
        data = "".join(
            f"M{number(scale(float(middles[a])))} {number(scale(-float(middles[b])))}h0" for a, b in zip(i, j, strict=True)
        )
        svg.path(data, css, f'stroke-width="{number(radius * step)}"')
    bias = figures.position_bias_mm
    bx, by = scale(bias[0]), scale(-bias[1])
    svg.path(f"M{number(bx - 6)} {number(by)}h12m-6 -6v12", "cross")
    for line, words in enumerate(
        (
            "x to the right, y up, mm",
            f"cross: mean {signed(bias[0])}, {signed(bias[1])} mm",
            f"rms {figures.position_rms_mm:.2f} mm, limit {POSITION_RMS_LIMIT_MM:g} mm (dashed)",
            f"largest {figures.radial_mm.max(initial=0.0):.2f} mm",
        )
    ):
        svg.text(size + 14, 20 + 17 * line, words, "title", "start")
    return str(svg)


def monitors(figures: BeamFigures) -> str:
    """Monitor 2 against monitor 1 per layer, %: mean, and the middle 90 % of the spots."""
    sums = figures.sums
    ratio = 100 * (np.divide(sums.secondary, sums.primary, out=np.full(sums.primary.shape, np.nan), where=sums.primary > 0) - 1)
    low_high = layer_quantiles(figures, ratio, (0.05, 0.95))
    mean = 100 * (
        np.divide(
            figures.layer_secondary,
            figures.layer_primary,
            out=np.full(figures.layer_primary.shape, np.nan),
            where=figures.layer_primary > 0,
        )
        - 1
    )
    n, limit = mean.size, 100 * MONITORS_LIMIT
    spread = np.concatenate([low_high.ravel(), [-1.2 * limit, 1.2 * limit]])
    frame = _Frame(
        "Monitor 2 against monitor 1 per layer", (0.4, n + 0.6), _span(spread), "layer", "difference / %", whole_x=True
    )
    frame.limit(limit, f"+{limit:g} %")
    frame.limit(-limit, f"−{limit:g} %")
    frame.svg.line(frame.left, frame.y(0.0), frame.right, frame.y(0.0), "axis")
    for i, value in enumerate(mean):
        if np.isfinite(value):
            x = frame.x(i + 1)
            frame.svg.line(x, frame.y(low_high[i, 0]), x, frame.y(low_high[i, 1]), "whisker")
            frame.svg.circle(x, frame.y(value), 2.6, "bar" if abs(value) <= limit else "bar-out")
    return str(frame.svg)
