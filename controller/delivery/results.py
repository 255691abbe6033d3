"""Judges what came back from the unit for one pass: is it complete, in place, of the right size, and do both monitors agree?

Pure. The unit stops on its own limits within microseconds; this looks at a whole slice afterwards and sees what no single
spot shows: a bias, a scale, a swapped pair, a wrong calibration. A finding ends the beam before the next grant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.hal.capabilities import Grant, PieceFlag, ScanMode

SHAPE_SPOTS_MIN = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on a slice. Values start from the design's table; the statistical ones are assumed."""

    position_mean_mm: float = 0.5  # a bias this large is not noise (assumed)
    position_rms_mm: float = 1.0
    position_max_mm: float = 2.0
    linear_fraction: float = 0.02  # scale or shear of a slice; 2 mm at the edge of the field (assumed)
    monitors_fraction: float = 0.05
    monitors_counts: int = 20
    sigma_fraction: float = 0.25
    carried_margin_counts: int = 2  # rounding of counts
    signal_fraction: float = 0.15


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a slice: what, where, value, limit, what to do."""

    code: str
    message: str
    value: float
    limit: float
    hint: str


@dataclass(frozen=True, slots=True, eq=False)
class RowResult:
    """Pieces folded into rows of the grant; arrays of shape (rows,). Positions and sizes are count-weighted means, mm."""

    counts1: NDArray[np.int64]
    counts2: NDArray[np.int64]
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    sigma_x_mm: NDArray[np.float64]
    sigma_y_mm: NDArray[np.float64]
    ended: NDArray[np.bool_]

    @property
    def rows_finished(self) -> int:
        """Rows that ran to their end."""
        return int(self.ended.sum())


def fold(pieces: NDArray[np.void], rows: int) -> RowResult:
    """Sum the pieces (PIECE_DTYPE) of a grant into its `rows` rows."""
    row = pieces["row"]
    counts1 = np.bincount(row, weights=pieces["counts1"], minlength=rows)
    counts2 = np.bincount(row, weights=pieces["counts2"], minlength=rows)
    weight = np.maximum(pieces["counts1"], 1).astype(np.float64)
    total = np.maximum(np.bincount(row, weights=weight, minlength=rows), 1.0)

    def mean_mm(field: str) -> NDArray[np.float64]:
        return np.bincount(row, weights=weight * pieces[field], minlength=rows) / total / 1000.0

    ended = np.zeros(rows, dtype=np.bool_)
    ended[row[(pieces["flags"] & int(PieceFlag.ROW_ENDED)) != 0]] = True
    return RowResult(
        np.rint(counts1).astype(np.int64),
        np.rint(counts2).astype(np.int64),
        mean_mm("x_um"),
        mean_mm("y_um"),
        mean_mm("sigma_x_um"),
        mean_mm("sigma_y_um"),
        ended,
    )


def judge(
    grant: Grant,
    result: RowResult,
    *,
    counts2_per_count1: float,
    sigma_x_mm: float,
    sigma_y_mm: float,
    limits: Limits,
) -> list[Finding]:
    """Every finding of a slice; empty when it is as planned.

    Args:
        grant: what was permitted.
        result: what came back, folded into rows.
        counts2_per_count1: monitor 2 counts expected per count of monitor 1, from the library.
        sigma_x_mm, sigma_y_mm: spot sizes expected from the library; 0 skips the check.
        limits: see `Limits`.
    """
    done = result.ended
    if not done.any():
        return []
    findings: list[Finding] = []
    where = f"beam {grant.beam_number} layer {grant.layer_index} painting {grant.painting}"
    for axis, measured, planned_um in (("x", result.x_mm, grant.x_um), ("y", result.y_mm, grant.y_um)):
        findings += _judge_positions(where, axis, measured[done] - planned_um[done] / 1000.0, limits)
    findings += _judge_shape(where, grant, result, limits)
    findings += _judge_counts(where, grant, result, counts2_per_count1, limits)
    weight = result.counts1[done].astype(np.float64)
    for axis, sigma, expected in (("x", result.sigma_x_mm, sigma_x_mm), ("y", result.sigma_y_mm, sigma_y_mm)):
        if expected > 0 and weight.sum() > 0:
            ratio = float(np.average(sigma[done], weights=weight)) / expected
            if abs(ratio - 1.0) > limits.sigma_fraction:
                findings.append(
                    Finding(
                        f"size.{axis}",
                        f"{where}: spot size in {axis} is {ratio:.2f} of the library's {expected:.2f} mm",
                        ratio,
                        1.0 + limits.sigma_fraction,
                        "check focus and gantry quadrupoles; repeat the spot-size QA",
                    )
                )
    return findings


def _judge_positions(where: str, axis: str, error_mm: NDArray[np.float64], limits: Limits) -> list[Finding]:
    checks = (
        ("mean", abs(float(error_mm.mean())), limits.position_mean_mm + 2.0 * float(error_mm.std()) / np.sqrt(error_mm.size)),
        ("rms", float(np.sqrt(np.mean(error_mm**2))), limits.position_rms_mm),
        ("max", float(np.abs(error_mm).max()), limits.position_max_mm),
    )
    return [
        Finding(
            f"position.{name}.{axis}",
            f"{where}: spot position error in {axis}, {name} {value:.2f} mm above {limit:.2f} mm",
            value,
            float(limit),
            "do not resume; check scanner polarity, calibration row and gantry magnets, then repeat the QA grid",
        )
        for name, value, limit in checks
        if value > limit
    ]


def _judge_shape(where: str, grant: Grant, result: RowResult, limits: Limits) -> list[Finding]:
    """Fit measured places as a linear map of the planned ones: a scale, shear or mirror stays small near the axis.

    A deviation counts when it is beyond the limit and beyond three standard errors of the fit.
    """
    done = result.ended
    planned = np.stack([grant.x_um[done], grant.y_um[done], np.full(int(done.sum()), 1000.0)], axis=1) / 1000.0
    measured = np.stack([result.x_mm[done], result.y_mm[done]], axis=1)
    n = planned.shape[0]
    if n < SHAPE_SPOTS_MIN or np.linalg.matrix_rank(planned) < planned.shape[1]:
        return []
    inverse = np.linalg.inv(planned.T @ planned)
    fit = inverse @ planned.T @ measured
    noise_mm = np.sqrt(((measured - planned @ fit) ** 2).sum(axis=0) / (n - 3))
    deviation = fit[:2] - np.eye(2)
    error = np.sqrt(np.diag(inverse)[:2, None]) * noise_mm
    found = np.argwhere(np.abs(deviation) > np.maximum(limits.linear_fraction, 3.0 * error))
    return [
        Finding(
            f"shape.{'xy'[i]}{'xy'[j]}",
            f"{where}: measured {'xy'[j]} follows planned {'xy'[i]} with {fit[i, j]:.3f} instead of {float(i == j):.0f} "
            f"(limit {limits.linear_fraction:g})",
            float(deviation[i, j]),
            limits.linear_fraction,
            "do not resume; check scanner scale and polarity against the calibration row, then repeat the QA grid",
        )
        for i, j in found
    ]


def _judge_counts(where: str, grant: Grant, result: RowResult, counts2_per_count1: float, limits: Limits) -> list[Finding]:
    findings: list[Finding] = []
    last = int(np.flatnonzero(result.ended)[-1]) + 1
    difference = result.counts1[:last] - grant.counts1_max[:last]
    if grant.scan_mode is ScanMode.RASTER:
        difference = np.cumsum(difference)
    worst = int(np.argmax(np.abs(difference)))
    allowed = grant.quantum_counts + limits.carried_margin_counts
    if abs(int(difference[worst])) > allowed:
        findings.append(
            Finding(
                "dose.carried",
                f"{where}: counts carried at row {worst} are {int(difference[worst])}, beyond the reaction quantum {allowed}",
                float(difference[worst]),
                float(allowed),
                "a spot received too much or too little; a physicist must reconcile this beam",
            )
        )
    sum1, sum2 = int(result.counts1.sum()), float(result.counts2.sum()) / counts2_per_count1
    allowed_sum = max(limits.monitors_counts, limits.monitors_fraction * sum1)
    if abs(sum1 - sum2) > allowed_sum:
        findings.append(
            Finding(
                "dose.monitors",
                f"{where}: monitor 1 counted {sum1}, monitor 2 the like of {sum2:.0f}; they may differ by {allowed_sum:.0f}",
                abs(sum1 - sum2),
                allowed_sum,
                "one monitor is wrong; check high voltage and the calibration row before any beam",
            )
        )
    return findings
