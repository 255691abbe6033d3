"""The course of a fraction, or of one beam's irradiation, on an axis of time: gantry, states, layers, spills, holds, trips.

Not responsible for charts of a single beam's figures (`charts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from controller.record.outcome import BeamOutcome, FractionOutcome, PassOutcome, Span
from controller.record.svg import Scale, Svg, ticks
from drivers.hal.clock import NS_PER_S

_WIDTH, _LEFT, _RIGHT, _TOP = 1000.0, 92.0, 990.0, 20.0
_GAP = 10.0
_HEIGHTS = {"gantry": 58.0, "beam": 16.0, "state": 16.0, "layers": 70.0, "spills": 14.0, "holds": 14.0}


def timeline(fraction: FractionOutcome) -> str:
    """The whole fraction."""
    passes = [p for b in fraction.beams for p in b.passes]
    start_ns, end_ns = _time_range(fraction, passes)
    drawing = _Timeline("Course of the fraction", ("gantry", "beam", "state", "layers", "spills", "holds"), start_ns, end_ns)
    drawing.motion(fraction.motion)
    drawing.blocks("beam", ((Span(b.t_begin_ns, b.t_end_ns), f"beam {b.beam.number}") for b in fraction.beams), "beam-span")
    _common(drawing, fraction, passes)
    return str(drawing.svg)


def irradiation_timeline(fraction: FractionOutcome, outcome: BeamOutcome) -> str:
    """One beam from its first to its last ion; empty text when it gave none."""
    if outcome.pieces.size == 0:
        return ""
    first, last = int(outcome.pieces["t_start_ns"].min()), int(outcome.pieces["t_end_ns"].max())
    margin = max((last - first) // 50, NS_PER_S // 100)
    drawing = _Timeline("Course of the irradiation", ("state", "layers", "spills", "holds"), first - margin, last + margin)
    _common(drawing, fraction, outcome.passes)
    return str(drawing.svg)


def _common(drawing: _Timeline, fraction: FractionOutcome, passes: Sequence[PassOutcome]) -> None:
    for span in fraction.states:
        drawing.blocks("state", [(span, span.label)], f"state-{span.label.split('.', 1)[0]}")
    drawing.layers(passes)
    for k, span in enumerate(fraction.spills):
        drawing.blocks("spills", [(span, f"spill {span.label}")], "spill-a" if k % 2 else "spill-b")
    drawing.blocks("holds", ((h, f"hold: {h.label}, {h.duration_s:.2f} s") for h in fraction.holds), "hold")
    drawing.trips(fraction)


def _time_range(fraction: FractionOutcome, passes: Sequence[PassOutcome]) -> tuple[int, int]:
    spans = [*fraction.states, *fraction.spills, *(Span(b.t_begin_ns, b.t_end_ns) for b in fraction.beams)]
    spans += [Span(p.t_started_ns, p.t_ended_ns) for p in passes]
    times = [t for t, _ in fraction.motion] + [t for s in spans for t in (s.t_start_ns, s.t_end_ns)]
    start, end = (min(times), max(times)) if times else (0, NS_PER_S)
    return start, max(end, start + NS_PER_S)


class _Timeline:
    """Lanes below each other over [start_ns, end_ns]; what lies outside is left out, what sticks out is cut."""

    def __init__(self, label: str, lanes: Sequence[str], start_ns: int, end_ns: int):
        self._start_ns, self._end_ns = start_ns, end_ns
        self._x = Scale(start_ns / NS_PER_S, end_ns / NS_PER_S, _LEFT, _RIGHT)
        self._lanes: dict[str, tuple[float, float]] = {}
        top = _TOP + 6
        for name in lanes:
            self._lanes[name] = (top, top + _HEIGHTS[name])
            top += _HEIGHTS[name] + _GAP
        self._foot = top - _GAP + 4
        self.svg = Svg(_WIDTH, self._foot + 34, label)
        for value in ticks(self._x.low, self._x.high, 10):
            self.svg.line(self._x(value), _TOP, self._x(value), self._foot, "grid")
            self.svg.text(self._x(value), self._foot + 14, f"{value:.8g}")
        self.svg.text((_LEFT + _RIGHT) / 2, self._foot + 30, "loop time / s", "title")
        for name, (upper, lower) in self._lanes.items():
            self.svg.text(2, (upper + lower) / 2 + 4, name, "lane", "start")

    def _at(self, t_ns: int) -> float:
        return min(max(self._x(t_ns / NS_PER_S), _LEFT), _RIGHT)

    def blocks(self, lane: str, spans: Iterable[tuple[Span, str]], css: str) -> None:
        """Rectangles; the words go inside where there is room, and on hover."""
        upper, lower = self._lanes[lane]
        for span, words in spans:
            if span.t_end_ns < self._start_ns or span.t_start_ns > self._end_ns:
                continue
            x0, x1 = self._at(span.t_start_ns), self._at(span.t_end_ns)
            self.svg.rect(x0, upper, max(x1 - x0, 0.8), lower - upper, css, words)
            if lower - upper >= 16 and x1 - x0 > 6.5 * len(words):
                self.svg.text((x0 + x1) / 2, lower - 4.5, words, "in-block")

    def motion(self, track: Sequence[tuple[int, float]]) -> None:
        """The measured angle as a line."""
        if not track:
            return
        upper, lower = self._lanes["gantry"]
        low, high = min(a for _, a in track), max(a for _, a in track)
        scale = Scale(low - 1, high + 1, lower, upper)
        self.svg.polyline(((self._at(t_ns), scale(angle)) for t_ns, angle in track), "motion")
        shown = {f"{low:.1f}": low, f"{high:.1f}": high}
        for words, angle in shown.items():
            self.svg.text(88, scale(angle) + 4, words.replace("-", "−") + "°", "tick", "end")

    def layers(self, passes: Sequence[PassOutcome]) -> None:
        """Each pass at the height of its energy."""
        upper, lower = self._lanes["layers"]
        mine = [p for p in passes if p.t_ended_ns >= self._start_ns and p.t_started_ns <= self._end_ns]
        if not mine:
            return
        energies = [p.grant.energy_kev_u / 1000 for p in mine]
        low, high = min(energies), max(energies)
        scale = Scale(low, high, lower - 7, upper) if high > low else Scale(low - 1, high + 1, lower - 7, upper)
        for p, energy in zip(mine, energies, strict=True):
            x0, x1 = self._at(p.t_started_ns), self._at(p.t_ended_ns)
            grant = p.grant
            words = f"beam {grant.beam_number}, layer {grant.layer_index + 1}, painting {grant.painting + 1}, {energy:g} MeV/u"
            self.svg.rect(x0, scale(energy), max(x1 - x0, 1.2), 6, "layer-cut" if p.interlock else "layer", words)
        for energy in sorted({low, high}):
            self.svg.text(88, scale(energy) + 7, f"{energy:g}", "tick", "end")

    def trips(self, fraction: FractionOutcome) -> None:
        """First-out trips as lines through all lanes, with their names."""
        for trip in fraction.interlocks:
            if trip.first_out and self._start_ns <= trip.t_ns <= self._end_ns:
                x = self._at(trip.t_ns)
                self.svg.line(x, _TOP, x, self._foot, "trip")
                self.svg.text(x, _TOP - 6, f"⚡ {trip.name}", "trip-text", "end" if x > 800 else "start")
