"""The course of a fraction on one axis of time: gantry, room states, layers by energy, spills, holds and trips.

Not responsible for charts of a single beam (`charts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controller.record.outcome import FractionOutcome, PassOutcome, Span
from controller.record.svg import Scale, Svg, ticks
from drivers.hal.clock import NS_PER_S

Place = Callable[[int], float]  # of a loop time in ns, in user units


def timeline(fraction: FractionOutcome) -> str:
    """Gantry angle, room states, layers by energy, spills, holds and trips on one axis of time, s."""
    passes = [p for b in fraction.beams for p in b.passes]
    start, end = _time_range(fraction, passes)
    width, left, right = 1000.0, 92.0, 990.0
    x = Scale(start / NS_PER_S, end / NS_PER_S, left, right)

    def at(t_ns: int) -> float:
        return min(max(x(t_ns / NS_PER_S), left), right)

    lanes = {
        "gantry": (26.0, 84.0),
        "beam": (94.0, 110.0),
        "state": (114.0, 130.0),
        "layers": (142.0, 212.0),
        "spills": (222.0, 236.0),
        "holds": (244.0, 258.0),
    }
    height = 298.0
    svg = Svg(width, height, "Timeline of the fraction")
    for value in ticks(start / NS_PER_S, end / NS_PER_S, 10):
        svg.line(x(value), 18, x(value), 264, "grid")
        svg.text(x(value), 278, f"{value - start / NS_PER_S:.6g}" if start == 0 else f"{value:.6g}")
    svg.text((left + right) / 2, 293, "loop time / s", "title")
    for name, (top, bottom) in lanes.items():
        svg.text(left - 10, (top + bottom) / 2 + 4, name, "lane", "end")
    _motion_lane(svg, fraction, at, lanes["gantry"])
    for b in fraction.beams:
        _block(svg, at, Span(b.t_begin_ns, b.t_end_ns), lanes["beam"], "beam-span", f"beam {b.beam.number}")
    for span in fraction.states:
        _block(svg, at, span, lanes["state"], f"state-{span.label.split('.', 1)[0]}", span.label)
    _layer_lane(svg, passes, at, lanes["layers"])
    for k, span in enumerate(fraction.spills):
        _block(svg, at, span, lanes["spills"], "spill-a" if k % 2 else "spill-b", f"spill {span.label}")
    for span in fraction.holds:
        _block(svg, at, span, lanes["holds"], "hold", f"hold: {span.label}, {span.duration_s:.2f} s")
    for trip in fraction.interlocks:
        if trip.first_out:
            svg.line(at(trip.t_ns), 18, at(trip.t_ns), 264, "trip")
            svg.text(at(trip.t_ns), 13, f"⚡ {trip.name}", "trip-text", "end" if at(trip.t_ns) > 800 else "start")
    return str(svg)


def _time_range(fraction: FractionOutcome, passes: Sequence[PassOutcome]) -> tuple[int, int]:
    times = [t for t, _ in fraction.motion] + [
        t for s in (*fraction.states, *fraction.spills) for t in (s.t_start_ns, s.t_end_ns)
    ]
    times += [t for p in passes for t in (p.t_started_ns, p.t_ended_ns)] + [
        t for b in fraction.beams for t in (b.t_begin_ns, b.t_end_ns)
    ]
    start, end = (min(times), max(times)) if times else (0, NS_PER_S)
    return start, max(end, start + NS_PER_S)


def _motion_lane(svg: Svg, fraction: FractionOutcome, at: Place, lane: tuple[float, float]) -> None:
    if not fraction.motion:
        return
    angles = [a for _, a in fraction.motion]
    low, high = min(angles), max(angles)
    scale = Scale(low - 1, high + 1, lane[1], lane[0])
    svg.polyline(((at(t), scale(a)) for t, a in fraction.motion), "motion")
    for value in {round(low, 1), round(high, 1)}:
        svg.text(88, scale(value) + (-2 if value == low else 8), f"{value:g}°".replace("-", "−"), "tick", "end")


def _layer_lane(svg: Svg, passes: Sequence[PassOutcome], at: Place, lane: tuple[float, float]) -> None:
    if not passes:
        return
    energies = [p.grant.energy_kev_u / 1000 for p in passes]
    low, high = min(energies), max(energies)
    scale = Scale(low, high, lane[1] - 7, lane[0]) if high > low else Scale(low - 1, high + 1, lane[1] - 7, lane[0])
    for p, energy in zip(passes, energies, strict=True):
        x0, x1 = at(p.t_started_ns), at(p.t_ended_ns)
        words = (
            f"beam {p.grant.beam_number}, layer {p.grant.layer_index + 1}, painting {p.grant.painting + 1}, {energy:g} MeV/u"
        )
        svg.rect(x0, scale(energy), max(x1 - x0, 1.2), 6, "layer-cut" if p.interlock else "layer", words)
    svg.text(88, lane[0] + 6, f"{high:g}", "tick", "end")
    svg.text(88, lane[1], f"{low:g}", "tick", "end")


def _block(svg: Svg, at: Place, span: Span, lane: tuple[float, float], css: str, title: str) -> None:
    x0, x1 = at(span.t_start_ns), at(span.t_end_ns)
    svg.rect(x0, lane[0], max(x1 - x0, 0.8), lane[1] - lane[0], css, title)
    if x1 - x0 > 7.0 * len(title) and css.startswith(("state", "beam")):
        svg.text((x0 + x1) / 2, lane[1] - 4.5, title, "in-block")
