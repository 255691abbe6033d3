"""`summary.json`: the fraction in one small, checked document for programs.

The model is the contract; its JSON schema is printed by `iongantry schema`. Not responsible for spots (`spots`) or pictures
(`report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from controller.record.figures import BeamFigures, beam_figures
from controller.record.outcome import FractionOutcome
from controller.record.spots import Table
from controller.record.whole_file import whole_file

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanSummary(_Model):
    """Which plan. `species` is the symbol, several joined by `+`."""

    uid: str
    label: str
    species: str


class BeamSummary(_Model):
    """One beam. Metersets in `unit`; `machine_limited_s` is null where nobody measured it."""

    number: int
    name: str
    gantry_angle_deg: Finite
    meterset_planned: NotNegative
    meterset_delivered_primary: NotNegative
    meterset_delivered_secondary: NotNegative
    unit: Literal["MU", "NP"]
    layers: Count
    spots: Count
    spots_delivered: Count
    beam_on_s: NotNegative
    irradiation_s: NotNegative
    machine_limited_s: NotNegative | None


class IntervalSummary(_Model):
    """A beam whose dose over all sessions had to be accepted by a signature; counts of monitor 1."""

    beam_number: int
    counts1_planned: Count
    counts1_lower: Count
    counts1_upper: Count
    doubt: str
    signed_by: str
    reason: str


class InterlockSummary(_Model):
    """One trip; first-out first."""

    t_ns: int
    name: str
    description: str
    device: str
    first_out: bool


class LoopLagSummary(_Model):
    """How late the loop was, ms."""

    p50: NotNegative
    p99: NotNegative
    max: NotNegative


class Summary(_Model):
    """The whole of `summary.json`."""

    status: Literal["complete", "partial", "refused", "fault"]
    termination: Literal["NORMAL", "OPERATOR", "MACHINE", "UNKNOWN"]
    reason: str = ""
    simulated: bool
    research: bool = False
    facility: str
    room: str
    seed: int | None
    fraction: int
    plan: PlanSummary
    beams: tuple[BeamSummary, ...]
    interlocks: tuple[InterlockSummary, ...]
    overrides: tuple[str, ...] = ()
    intervals: tuple[IntervalSummary, ...] = ()
    loop_lag_ms: LoopLagSummary
    wall_s: NotNegative


def build_summary(fraction: FractionOutcome, table: Table) -> Summary:
    """Summary of a fraction; metersets are sums of the spot table."""
    return summary_of(fraction, [beam_figures(b, table) for b in fraction.beams])


def summary_of(fraction: FractionOutcome, figures: Sequence[BeamFigures]) -> Summary:
    """Summary from figures that are there already."""
    trips = sorted(fraction.interlocks, key=lambda trip: (not trip.first_out, trip.t_ns))
    lag = fraction.loop_lag
    return Summary(
        status=fraction.status.value,
        termination=fraction.termination.value,
        reason=fraction.reason,
        simulated=fraction.machine.simulated,
        research=fraction.research,
        facility=fraction.machine.facility,
        room=fraction.machine.room,
        seed=fraction.seed,
        fraction=fraction.fraction,
        plan=PlanSummary(
            uid=fraction.plan.uid,
            label=fraction.plan.label,
            species="+".join(ion.symbol for ion in fraction.plan.ions),
        ),
        beams=tuple(_beam(f) for f in figures),
        interlocks=tuple(
            InterlockSummary(t_ns=i.t_ns, name=i.name, description=i.description, device=i.device, first_out=i.first_out)
            for i in trips
        ),
        overrides=tuple(o.name for o in fraction.overrides),
        intervals=tuple(IntervalSummary(**asdict(interval)) for interval in fraction.intervals),
        loop_lag_ms=LoopLagSummary(p50=lag.p50_ms, p99=lag.p99_ms, max=lag.max_ms),
        wall_s=fraction.wall_s,
    )


def _beam(figures: BeamFigures) -> BeamSummary:
    outcome, beam = figures.outcome, figures.outcome.beam
    return BeamSummary(
        number=beam.number,
        name=beam.name,
        gantry_angle_deg=outcome.gantry_angle_deg,
        meterset_planned=beam.meterset,
        meterset_delivered_primary=figures.meterset_primary,
        meterset_delivered_secondary=figures.meterset_secondary,
        unit=beam.meterset_unit,
        layers=len(beam.layers),
        spots=beam.spots,
        spots_delivered=figures.spots_delivered,
        beam_on_s=outcome.beam_on_s,
        irradiation_s=outcome.irradiation_s,
        machine_limited_s=outcome.machine_limited_s,
    )


def write_summary(summary: Summary, path: Path) -> None:
    """Write the JSON, indented for people. Raises OSError."""
    with whole_file(path) as draft:
        draft.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
