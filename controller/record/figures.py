"""The figures by which a delivered beam is judged: meterset, spots, positions, monitors; and the verdict on the fraction.

Pure numpy on the sums of the spot table. Limits are those of the design's acceptance (0.5 % per beam, spots p95 within 3 %,
positions within 1 mm rms, monitors within 5 %). Not responsible for stopping anything: interlocks and delivery have done so
before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.record.outcome import BeamOutcome, Floats, FractionOutcome, Status
from controller.record.spots import SpotSums, Table, sum_spots
from controller.record.svg import signed

BEAM_METERSET_LIMIT = 0.005
SPOT_P95_LIMIT = 0.03
POSITION_RMS_LIMIT_MM = 1.0
POSITION_BIAS_LIMIT_MM = 0.5
MONITORS_LIMIT = 0.05
SIGNED = "Dose over all sessions"


@dataclass(frozen=True, slots=True, eq=False)
class BeamFigures:
    """Figures of one beam. Fractions are of the planned value; arrays per spot are flat in the plan's order.

    Attributes:
        outcome, sums: what they were computed from.
        planned: meterset planned for this session per spot: the plan less what earlier sessions gave.
        spot_error: (delivered - planned) / planned of spots that received anything and were planned, NaN elsewhere.
        dx_mm, dy_mm: measured less planned position, NaN where nothing was delivered.
        layer_planned, layer_primary, layer_secondary: sums per layer, shape (layers,).
    """

    outcome: BeamOutcome
    sums: SpotSums
    planned: Floats
    spot_error: Floats
    dx_mm: Floats
    dy_mm: Floats
    layer_planned: Floats
    layer_primary: Floats
    layer_secondary: Floats

    @property
    def meterset_planned(self) -> float:
        """Planned for this session, in the beam's unit."""
        return float(self.planned.sum())

    @property
    def meterset_primary(self) -> float:
        """Monitor 1, in the beam's unit."""
        return float(self.sums.primary.sum())

    @property
    def meterset_secondary(self) -> float:
        """Monitor 2, in the beam's unit."""
        return float(self.sums.secondary.sum())

    @property
    def meterset_error(self) -> float:
        """Of the whole beam, as a fraction; 0 when nothing was planned."""
        return self.meterset_primary / self.meterset_planned - 1.0 if self.meterset_planned > 0 else 0.0

    @property
    def spots_planned(self) -> int:
        """Spots with a planned meterset."""
        return int((self.planned > 0).sum())

    @property
    def spots_delivered(self) -> int:
        """Spots that received anything."""
        return int(self.sums.delivered.sum())

    @property
    def spot_error_p95(self) -> float:
        """95th percentile of the absolute spot error; 0 without spots."""
        known = np.abs(self.spot_error[np.isfinite(self.spot_error)])
        return float(np.quantile(known, 0.95)) if known.size else 0.0

    @property
    def position_rms_mm(self) -> float:
        """Root mean square of the distance from plan; 0 without spots."""
        r2 = self.radial_mm**2
        return float(np.sqrt(r2.mean())) if r2.size else 0.0

    @property
    def position_bias_mm(self) -> tuple[float, float]:
        """Mean error in x and y; 0 without spots."""
        known = np.isfinite(self.dx_mm)
        return (float(self.dx_mm[known].mean()), float(self.dy_mm[known].mean())) if known.any() else (0.0, 0.0)

    @property
    def radial_mm(self) -> Floats:
        """Distance from plan of the spots that were delivered."""
        known = np.isfinite(self.dx_mm)
        distance: Floats = np.hypot(self.dx_mm[known], self.dy_mm[known])
        return distance

    @property
    def monitors_difference(self) -> float:
        """Monitor 2 over monitor 1, less 1; 0 when nothing was delivered."""
        return self.meterset_secondary / self.meterset_primary - 1.0 if self.meterset_primary > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict."""

    what: str
    value: str
    limit: str
    good: bool


def beam_figures(outcome: BeamOutcome, table: Table) -> BeamFigures:
    """Figures of a beam from the spot table of its fraction."""
    sums = sum_spots(outcome, table)
    planned = sums.planned
    if outcome.received_before is not None:
        owed = planned * outcome.counts1_per_meterset[sums.layer] - outcome.received_before
        carried = max((p.grant.quantum_counts for p in outcome.passes), default=1)  # a rest this small is never granted again
        planned = np.where(owed > max(carried, 1), owed, 0.0) / outcome.counts1_per_meterset[sums.layer]
    known = sums.delivered & (planned > 0)
    error = np.divide(sums.primary - planned, planned, out=np.full(planned.shape, np.nan), where=known)
    n = len(outcome.beam.layers)
    weights = (planned, sums.primary, sums.secondary)
    per_layer = [np.bincount(sums.layer, weights=w, minlength=n).astype(np.float64) for w in weights]
    return BeamFigures(outcome, sums, planned, error, sums.x_mm - sums.x_planned_mm, sums.y_mm - sums.y_planned_mm, *per_layer)


def checks(fraction: FractionOutcome, figures: Sequence[BeamFigures]) -> list[Check]:
    """The verdict, line by line: the first says how the fraction ended, the others are the worst of its beams."""
    good = fraction.status is Status.COMPLETE
    found = [Check("Delivery", fraction.status.value + (f": {fraction.reason}" if fraction.reason else ""), "complete", good)]
    for interval in fraction.intervals:
        found.append(Check(SIGNED, str(interval), "known without a signature", good=False))
    begun = [f for f in figures if f.spots_delivered]
    if not begun:
        return found
    whole = [f for f in begun if f.outcome.status is Status.COMPLETE]
    if whole:
        worst = max(whole, key=lambda f: abs(f.meterset_error))
        found.append(_check("Meterset per beam", worst.meterset_error, BEAM_METERSET_LIMIT))
        spot = max(f.spot_error_p95 for f in whole)
        found.append(Check("Spot meterset, 95 %", f"{100 * spot:.2f} %", f"{100 * SPOT_P95_LIMIT:g} %", spot <= SPOT_P95_LIMIT))
    rms = max(f.position_rms_mm for f in begun)
    found.append(Check("Spot position, rms", f"{rms:.2f} mm", f"{POSITION_RMS_LIMIT_MM:g} mm", rms <= POSITION_RMS_LIMIT_MM))
    bias = max(float(np.hypot(*f.position_bias_mm)) for f in begun)
    found.append(
        Check("Spot position, mean", f"{bias:.2f} mm", f"{POSITION_BIAS_LIMIT_MM:g} mm", bias <= POSITION_BIAS_LIMIT_MM)
    )
    monitors = max((f.monitors_difference for f in begun), key=abs)
    found.append(_check("Monitor 2 against 1", monitors, MONITORS_LIMIT))
    return found


def _check(what: str, value: float, limit: float) -> Check:
    return Check(what, f"{signed(100 * value)} %", f"{100 * limit:g} %", abs(value) <= limit)


def layer_quantiles(figures: BeamFigures, values: Floats, quantiles: Sequence[float]) -> NDArray[np.float64]:
    """Quantiles per layer of a value per spot, ignoring NaN; shape (layers, quantiles), NaN for layers without a value."""
    result = np.full((figures.layer_planned.size, len(quantiles)), np.nan)
    edges = figures.outcome.layer_offsets
    for i in range(result.shape[0]):
        part = values[edges[i] : edges[i + 1]]
        part = part[np.isfinite(part)]
        if part.size:
            result[i] = np.quantile(part, quantiles)
    return result
