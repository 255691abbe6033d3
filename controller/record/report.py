"""Writes `report.html`: one self-contained page that says what was planned, what was delivered and how the fraction went.

No network, no scripts: inline SVG and one style sheet that serves screen (light and dark) and paper. Call it in a worker; it
takes tens of milliseconds per thousand spots. Not responsible for the numbers (`figures`) or the drawings (`charts`,
`timeline`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.record import charts
from controller.record.figures import BEAM_METERSET_LIMIT, SIGNED, SPOT_P95_LIMIT, BeamFigures, Check, beam_figures, checks
from controller.record.outcome import FractionOutcome, Status
from controller.record.spots import Table
from controller.record.svg import signed
from controller.record.timeline import irradiation_timeline, timeline
from controller.record.whole_file import whole_file
from controller.report_page import render_page
from drivers.hal.clock import NS_PER_S

TEMPLATE = "report_template.html"

_WORDS = {
    Status.COMPLETE: ("✓", "Delivered as prescribed"),
    Status.PARTIAL: ("◐", "Delivered in part"),
    Status.REFUSED: ("⊘", "Refused"),
    Status.FAULT: ("✗", "Ended by a fault"),
}


@dataclass(frozen=True, slots=True)
class LayerTile:
    """One small multiple of the spot maps."""

    number: int
    energy: str
    spots: str
    meterset: str
    error: str
    beyond: bool
    chart: str


@dataclass(frozen=True, slots=True)
class BeamPage:
    """What the page shows of one beam."""

    figures: BeamFigures
    facts: tuple[tuple[str, str], ...]
    tiles: tuple[LayerTile, ...]
    scale_mm: int
    course: str
    charts: tuple[tuple[str, str], ...]


def write_report(fraction: FractionOutcome, table: Table, path: Path) -> None:
    """Render and write the page, UTF-8. Raises OSError."""
    page = render_report(fraction, table)
    with whole_file(path) as draft:
        draft.write_text(page, encoding="utf-8")


def render_report(fraction: FractionOutcome, table: Table) -> str:
    """The page as text."""
    figures = [beam_figures(b, table) for b in fraction.beams]
    lines = checks(fraction, figures)
    mark, words = verdict(fraction, lines)
    return render_page(
        "controller.record",
        TEMPLATE,
        fraction=fraction,
        plan=fraction.plan,
        machine=fraction.machine,
        mark=mark,
        words=words,
        good=fraction.status is Status.COMPLETE and all(line.good for line in lines),
        checks=lines,
        summary=_summary(fraction, figures),
        timeline=timeline(fraction),
        holds=_holds(fraction),
        beams=[_beam_page(fraction, f) for f in figures],
        seconds=lambda t_ns: f"{(t_ns - fraction.t_origin_ns) / NS_PER_S:.3f}",
        limit=100 * SPOT_P95_LIMIT,
        inner=100 * charts.INNER_LIMIT,
    )


def verdict(fraction: FractionOutcome, lines: Sequence[Check]) -> tuple[str, str]:
    """Mark and words for the top of the page: complete only when every line of the verdict is good."""
    mark, words = _WORDS[fraction.status]
    if not all(interval.exact for interval in fraction.intervals):
        mark, words = "!", f"{words}; known only within a signed interval"
    elif fraction.intervals:
        mark, words = "!", f"{words}; accepted by a signature"
    beyond = [line.what.lower() for line in lines[1:] if not line.good and line.what != SIGNED]
    if beyond:
        mark = "!" if fraction.status is Status.COMPLETE else mark
        words += ("; beyond its limit: " if len(beyond) == 1 else "; beyond their limits: ") + ", ".join(beyond)
    return mark, words


def _summary(fraction: FractionOutcome, figures: Sequence[BeamFigures]) -> str:
    begun = [f for f in figures if f.spots_delivered]
    if not begun:
        return "No dose was delivered."
    spots = sum(f.spots_delivered for f in begun)
    planned = sum(f.spots_planned for f in figures)
    per_unit = []
    for unit in dict.fromkeys(f.outcome.beam.meterset_unit for f in begun):
        mine = [f for f in figures if f.outcome.beam.meterset_unit == unit]
        delivered, wanted = sum(f.meterset_primary for f in mine), sum(f.meterset_planned for f in mine)
        per_unit.append(f"{_meterset(delivered)} of {_meterset(wanted)} {unit} ({100 * delivered / max(wanted, 1e-12):.2f} %)")
    ions = " and ".join(dict.fromkeys(f.outcome.beam.ion.name for f in begun))
    beams = "1 beam" if len(begun) == 1 else f"{len(begun)} beams"
    return f"{beams} of {ions}, {', '.join(per_unit)}, {_count(spots)} of {_count(planned)} spots."


def _meterset(value: float) -> str:
    return f"{value:.4g}" if value >= 1e6 else f"{value:,.2f}".replace(",", "\u202f")


def _count(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _holds(fraction: FractionOutcome) -> list[tuple[str, int, str]]:
    """Cause, number and total time of the holds."""
    causes = dict.fromkeys(h.label for h in fraction.holds)
    found = []
    for cause in causes:
        mine = [h for h in fraction.holds if h.label == cause]
        found.append((cause, len(mine), f"{sum(h.duration_s for h in mine):.2f} s"))
    return found


def _beam_page(fraction: FractionOutcome, figures: BeamFigures) -> BeamPage:
    outcome, beam = figures.outcome, figures.outcome.beam
    bias, monitors = figures.position_bias_mm, signed(100 * figures.monitors_difference)
    energies = [layer.energy_mev_u for layer in beam.layers]
    facts = [
        ("Status", outcome.status.value + (f" ({outcome.termination.value})" if outcome.status is not Status.COMPLETE else "")),
        ("Ion and energy", f"{beam.ion.name}, {max(energies):g} to {min(energies):g} MeV/u" if energies else beam.ion.name),
        ("Gantry", f"{outcome.gantry_angle_deg:.2f}° measured, {beam.gantry_angle_deg:g}° planned"),
        ("Meterset planned", f"{_meterset(figures.meterset_planned)} {beam.meterset_unit}"),
        (
            "Monitor 1",
            f"{_meterset(figures.meterset_primary)} {beam.meterset_unit} ({signed(100 * figures.meterset_error, 3)} %)",
        ),
        ("Monitor 2", f"{_meterset(figures.meterset_secondary)} {beam.meterset_unit} ({monitors} % against 1)"),
        (
            "Layers, spots",
            f"{len(beam.layers)} layers, {_count(figures.spots_delivered)} of {_count(figures.spots_planned)} spots",
        ),
        ("Spot meterset, 95 %", f"within {100 * figures.spot_error_p95:.2f} %"),
        ("Spot position", f"{figures.position_rms_mm:.2f} mm rms, mean {signed(bias[0])}, {signed(bias[1])} mm"),
        ("Beam on", f"{outcome.beam_on_s:.2f} s of {outcome.irradiation_s:.2f} s irradiation"),
    ]
    if outcome.machine_limited_s is not None:
        facts.append(("Machine limited", f"{outcome.machine_limited_s:.2f} s"))
    if outcome.reason:
        facts.append(("Ended because", outcome.reason))
    if (interval := fraction.interval_of(beam.number)) is not None:
        facts.append((SIGNED, str(interval)))
    drawn = (
        ("Meterset error per layer", charts.layer_meterset(figures)),
        ("Meterset error of the spots", charts.spot_error_histogram(figures)),
        ("Position error of the spots", charts.radial_histogram(figures)),
        ("Position error in the plane", charts.position_scatter(figures)),
        ("Monitor 2 against monitor 1", charts.monitors(figures)),
    )
    tiles = tuple(_tile(figures, i) for i in range(len(beam.layers)))
    begun = figures.spots_delivered > 0
    return BeamPage(
        figures,
        tuple(facts),
        tiles if begun else (),
        charts.map_scale_mm(figures),
        irradiation_timeline(fraction, outcome),
        drawn if begun else (),
    )


def _tile(figures: BeamFigures, index: int) -> LayerTile:
    layer = figures.outcome.beam.layers[index]
    here = slice(*figures.outcome.layer_offsets[index : index + 2])
    planned, primary = float(figures.layer_planned[index]), float(figures.layer_primary[index])
    begun = primary > 0 and planned > 0
    return LayerTile(
        number=index + 1,
        energy=f"{layer.energy_mev_u:g}",
        spots=f"{int(figures.sums.delivered[here].sum())}/{int((figures.planned[here] > 0).sum())}",
        meterset=_meterset(primary),
        error=f"{signed(100 * (primary / planned - 1))} %" if begun else "not delivered",
        beyond=not begun or abs(primary / planned - 1) > BEAM_METERSET_LIMIT,
        chart=charts.spot_map(figures, index),
    )
