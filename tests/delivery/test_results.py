"""A slice as a whole shows what no single spot does: bias, scale, mirror, wrong size, carried counts, a lying monitor."""

from __future__ import annotations

import numpy as np
import pytest

from controller.delivery.results import Limits, RowResult, judge
from drivers.hal.capabilities import Grant, ScanMode

X_MM, Y_MM = (a.ravel() for a in np.meshgrid(np.arange(-12.0, 13.0, 3.0), np.arange(-9.0, 10.0, 3.0)))
N = X_MM.size
COUNTS = np.full(N, 1000, np.int64)


def grant() -> Grant:
    um = 1000.0
    return Grant(
        unit_boot_id=1, grant_id=1, plan_hash=1, fraction=1, beam_number=1, layer_index=0, painting=0,
        species_token=6012, energy_kev_u=300_000, scan_mode=ScanMode.RASTER, intensity_per_s=10**7, quantum_counts=20,
        spot_index=np.arange(N, dtype=np.int32), x_um=(X_MM * um).astype(np.int32), y_um=(Y_MM * um).astype(np.int32),
        counts1_max=COUNTS.astype(np.int32), counts2_max=(COUNTS * 1.1).astype(np.int32),
    )  # fmt: skip


def found(x_mm=X_MM, y_mm=Y_MM, counts1=COUNTS, counts2=COUNTS, sigma_mm: float = 3.0) -> set[str]:
    noise = np.random.default_rng(4).normal(0.0, 0.1, (2, N))
    size = np.full(N, sigma_mm)
    result = RowResult(counts1, counts2, x_mm + noise[0], y_mm + noise[1], size, size, np.ones(N, np.bool_))
    findings = judge(grant(), result, counts2_per_count1=1.0, sigma_x_mm=3.0, sigma_y_mm=3.0, limits=Limits())
    return {finding.code for finding in findings}


def test_a_slice_with_nothing_but_noise_passes() -> None:
    assert found() == set()


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ({"x_mm": X_MM + 0.8}, "position.mean.x"),
        ({"y_mm": Y_MM * 1.05}, "shape.yy"),
        ({"x_mm": X_MM * 0.96}, "shape.xx"),
        ({"x_mm": -X_MM}, "shape.xx"),
        ({"x_mm": Y_MM, "y_mm": X_MM}, "shape.yx"),
        ({"x_mm": X_MM + 0.05 * Y_MM}, "shape.yx"),
        ({"sigma_mm": 4.0}, "size.x"),
        ({"counts1": np.where(np.arange(N) < N // 2, COUNTS + 3, COUNTS - 3)}, "dose.carried"),
        ({"counts2": (COUNTS * 0.9).astype(np.int64)}, "dose.monitors"),
    ],
)
def test_a_systematic_error_is_found(where: dict, code: str) -> None:
    assert code in found(**where)


def test_a_single_far_spot_is_found() -> None:
    x_mm = X_MM.copy()
    x_mm[7] += 2.5
    assert "position.max.x" in found(x_mm=x_mm)


def test_counts_within_the_reaction_quantum_pass() -> None:
    counts1 = COUNTS.copy()
    counts1[3] += 18
    counts1[4] -= 18
    assert found(counts1=counts1) == set()
