"""The charts of a rig report: position and target over time, following error, speed of a stop, answer times; each an SVG text.

In the style of the treatment report: colours are left to the page. Not responsible for verdicts or the page (`report`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from controller.hil.drive_parts import Episode
from controller.hil.trace import Sample
from controller.record.svg import Scale, Svg, ticks

_WIDTH, _HEIGHT = 520.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 16.0, 34.0
_POINTS_MAX = 700  # of a line; more cannot be seen
_BINS = 40


class _Frame:
    """Two axes, a grid, and lines on it."""

    def __init__(self, label: str, x: tuple[float, float], y: tuple[float, float], x_title: str, y_title: str) -> None:
        self.svg = Svg(_WIDTH, _HEIGHT, label)
        self.left, self.right, self.top, self.bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
        self.x = Scale(*x, self.left, self.right)
        self.y = Scale(*y, self.bottom, self.top)
        for value in ticks(*y, 5):
            self.svg.line(self.left, self.y(value), self.right, self.y(value), "grid")
            self.svg.text(self.left - 6, self.y(value) + 3.5, f"{value:.6g}".replace("-", "−"), anchor="end")
        for value in ticks(*x, 8):
            self.svg.text(self.x(value), self.bottom + 14, f"{value:.6g}".replace("-", "−"))
        self.svg.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.svg.text((self.left + self.right) / 2, _HEIGHT - 4, x_title, "title")
        self.svg.text(self.left - 50, self.top - 5, y_title, "title", "start")

    def curve(self, x: Sequence[float], y: Sequence[float], css: str) -> None:
        """A line through points, thinned to what can be seen."""
        step = max(1, len(x) // _POINTS_MAX)
        points = [(self.x(a), self.y(b)) for a, b in zip(x[::step], y[::step], strict=True)]
        self.svg.polyline(points, css)

    def upright(self, x: float, words: str) -> None:
        """A vertical limit with its name."""
        self.svg.line(self.x(x), self.top, self.x(x), self.bottom, "limit")
        self.svg.text(self.x(x) + 4, self.top + 10, words, "limit-text", "start")

    def level(self, y: float, words: str) -> None:
        """A horizontal limit with its name."""
        self.svg.line(self.left, self.y(y), self.right, self.y(y), "limit")
        self.svg.text(self.right, self.y(y) - 3, words, "limit-text", "end")


def _span(values: Sequence[float], *also: float) -> tuple[float, float]:
    low, high = min([*values, *also]), max([*values, *also])
    margin = 0.1 * (high - low) or 0.1
    return low - margin, high + margin


def position(samples: Sequence[Sample], episode: Episode) -> str:
    """Position over time; the commanded profile dashed where there is one, the stop word as a line where there is one."""
    t = [sample.t_s - episode.from_s for sample in samples]
    seen = [sample.position_deg for sample in samples]
    profile, asked = episode.profile, []
    if profile is not None:
        asked = profile.positions_deg(np.array(t) + episode.from_s - episode.start_s).tolist()
    frame = _Frame(f"{episode.name}: position", (0.0, max(t[-1], 0.01)), _span(seen, *asked), "t / s", "position / deg")
    if profile is not None:
        frame.curve(t, asked, "asked")
    frame.curve(t, seen, "motion")
    if episode.command_s is not None:
        at = episode.command_s - episode.from_s
        stopped_at = min(samples, key=lambda sample: abs(sample.t_s - (episode.command_s or 0.0))).position_deg
        distance = max((abs(s.position_deg - stopped_at) for s in samples if s.t_s >= episode.command_s), default=0.0)
        frame.upright(at, f"{distance:.3f} deg from here")
    return str(frame.svg)


def following(samples: Sequence[Sample], episode: Episode, allowed_deg: float) -> str:
    """Actual minus commanded position over time, with the limit; empty without a profile."""
    profile = episode.profile
    if profile is None:
        return ""
    t = np.array([sample.t_s for sample in samples])
    error = np.array([sample.position_deg for sample in samples]) - profile.positions_deg(t - episode.start_s)
    shown = (t - episode.from_s).tolist()
    span = _span(error.tolist(), allowed_deg, -allowed_deg)
    frame = _Frame(f"{episode.name}: following error", (0.0, max(shown[-1], 0.01)), span, "t / s", "error / deg")
    frame.level(allowed_deg, f"+{allowed_deg:g} deg")
    frame.level(-allowed_deg, f"−{allowed_deg:g} deg")
    frame.curve(shown, error.tolist(), "motion")
    return str(frame.svg)


def speed(samples: Sequence[Sample], episode: Episode) -> str:
    """Speed over time."""
    t = [sample.t_s - episode.from_s for sample in samples]
    seen = [sample.speed_deg_s for sample in samples]
    frame = _Frame(f"{episode.name}: speed", (0.0, max(t[-1], 0.01)), _span(seen, 0.0), "t / s", "speed / (deg/s)")
    frame.curve(t, seen, "motion")
    if episode.command_s is not None:
        frame.upright(episode.command_s - episode.from_s, "command")
    return str(frame.svg)


def answers(answers_s: Sequence[float], median_limit_ms: float) -> str:
    """Histogram of answer times; what took longer than the last bin is counted in it."""
    times = 1000.0 * np.asarray(answers_s)
    high = max(1.5 * median_limit_ms, float(np.percentile(times, 99.5)) * 1.1)
    edges = np.linspace(0.0, high, _BINS + 1)
    counts = np.histogram(np.clip(times, 0.0, np.nextafter(high, 0.0)), edges)[0]
    frame = _Frame("Answer times", (0.0, high), (0.0, 1.08 * float(max(1, counts.max()))), "answer time / ms", "status reads")
    for i, count in enumerate(counts.tolist()):
        if count:
            x0, x1 = frame.x(float(edges[i])), frame.x(float(edges[i + 1]))
            title = f"{edges[i]:.2f} to {edges[i + 1]:.2f} ms: {count}"
            frame.svg.rect(x0 + 0.5, frame.bottom, x1 - x0 - 1, frame.y(float(count)) - frame.bottom, "bar", title)
    frame.upright(median_limit_ms, "limit of the median")
    return str(frame.svg)


def series(points: Sequence[tuple[float, float]], name: str) -> str:
    """A measured value over time."""
    t, values = [p[0] for p in points], [p[1] for p in points]
    frame = _Frame(name, (0.0, max(t[-1], 0.01)), _span(values), "t / s", name)
    frame.curve(t, values, "motion")
    return str(frame.svg)
