"""The arithmetic of commissioning: first guesses from design, and fits of what was measured. Pure.

Not responsible for shooting (`commission`) or for keeping (`library`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drivers.hal.capabilities import ScannerMap
from drivers.hal.facility import Meterset, Nozzle, SpeciesOffer
from drivers.hal.ions import Ion

Floats = NDArray[np.float64]

SCANNER_TM_PER_A = 1.66e-4  # 0.083 T m for 100 mm at 8 m, computed; 500 A for that, assumed
AIR_GAP_MEV = 0.307075 * 0.49919 * 1.205e-3 * 0.5  # Bethe's constant, Z/A and density of air, 5 mm: C 430 MeV/u 56 keV
AIR_EXCITATION_EV = 85.7  # ICRU 37
AIR_PAIR_EV = 34.7  # ICRU 90, as recalled
ELECTRON_EV = 510_998.95
ELEMENTARY_PC = 1.602176634e-7


def bethe_scale(ion: Ion, energy_mev_u: float) -> float:
    """Z^2 / beta^2 (ln(2 m c^2 beta^2 gamma^2 / I) - beta^2): stopping in air without its constant."""
    beta = ion.beta(energy_mev_u)
    gamma2 = 1.0 / (1.0 - beta * beta)
    logarithm = math.log(2.0 * ELECTRON_EV * beta * beta * gamma2 / AIR_EXCITATION_EV) - beta * beta
    return ion.atomic_number**2 / beta**2 * logarithm


def guess_counts_per_ion(ion: Ion, energy_mev_u: float, meterset: Meterset) -> float:
    """Counts of a monitor per ion before anything was measured.

    Protons of a facility with a table: what the table says. Else the ionisation of 5 mm of air by Bethe's formula, over
    the charge of one count.
    """
    if ion.symbol == "p" and meterset.protons_per_mu:
        energies, protons = zip(*meterset.protons_per_mu, strict=True)
        return meterset.counts_per_mu / float(np.interp(energy_mev_u, energies, protons))
    pairs = bethe_scale(ion, energy_mev_u) * AIR_GAP_MEV * 1e6 / AIR_PAIR_EV
    return pairs * ELEMENTARY_PC / (meterset.charge_pc_per_mu / meterset.counts_per_mu)


def guess_map(ion: Ion, energy_mev_u: float, nozzle: Nozzle, meterset: Meterset) -> ScannerMap:
    """A scanner and monitor map from geometry and design alone."""
    rigidity = ion.rigidity_tm(energy_mev_u)
    counts = guess_counts_per_ion(ion, energy_mev_u, meterset)
    return ScannerMap(
        energy_kev_u=round(energy_mev_u * 1000.0),
        x0_a=0.0,
        xx_a_mm=rigidity / (SCANNER_TM_PER_A * nozzle.sad_x_mm),
        xy_a_mm=0.0,
        y0_a=0.0,
        yx_a_mm=0.0,
        yy_a_mm=rigidity / (SCANNER_TM_PER_A * nozzle.sad_y_mm),
        monitor_x0_mm=0.0,
        monitor_xgain=nozzle.sad_x_mm / (nozzle.sad_x_mm - nozzle.monitor_distance_mm),
        monitor_y0_mm=0.0,
        monitor_ygain=nozzle.sad_y_mm / (nozzle.sad_y_mm - nozzle.monitor_distance_mm),
        counts1_per_ion=counts,
        counts2_per_ion=counts,
        focus_id=1,
        library_version=0,
    )


def carried_over(known: ScannerMap, ion_from: Ion, ion_to: Ion, energy_mev_u: float, meterset: Meterset) -> ScannerMap:
    """A map that was measured, scaled to another beam: currents by rigidity, counts as the first guesses go."""
    before = known.energy_kev_u / 1000.0
    current = ion_to.rigidity_tm(energy_mev_u) / ion_from.rigidity_tm(before)
    counts = guess_counts_per_ion(ion_to, energy_mev_u, meterset) / guess_counts_per_ion(ion_from, before, meterset)
    return replace(
        known,
        energy_kev_u=round(energy_mev_u * 1000.0),
        x0_a=known.x0_a * current,
        xx_a_mm=known.xx_a_mm * current,
        xy_a_mm=known.xy_a_mm * current,
        y0_a=known.y0_a * current,
        yx_a_mm=known.yx_a_mm * current,
        yy_a_mm=known.yy_a_mm * current,
        counts1_per_ion=known.counts1_per_ion * counts,
        counts2_per_ion=known.counts2_per_ion * counts,
    )


def pattern_mm(half_x_mm: float, half_y_mm: float, points: int) -> tuple[Floats, Floats]:
    """A grid of points x points over a rectangle, in meander order, shapes (points^2,)."""
    xs, ys = np.linspace(-half_x_mm, half_x_mm, points), np.linspace(-half_y_mm, half_y_mm, points)
    x = np.concatenate([xs if i % 2 == 0 else xs[::-1] for i in range(points)])
    return x, np.repeat(ys, points)


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """What one pattern gave, arrays of shape (n,): planned, where the reference saw it, what the strips read, counts.

    Attributes:
        loaded: the map in force.
        planned_x_mm, planned_y_mm: asked for.
        x_mm, y_mm: measured by the reference at the isocentre plane.
        strip_x_mm, strip_y_mm: the position monitor's own reading.
        sigma_x_mm, sigma_y_mm: mean spot size by the reference.
        counts1, counts2: totals of the pattern.
        ions: how many the ring lost for it.
    """

    loaded: ScannerMap
    planned_x_mm: Floats
    planned_y_mm: Floats
    x_mm: Floats
    y_mm: Floats
    strip_x_mm: Floats
    strip_y_mm: Floats
    sigma_x_mm: float
    sigma_y_mm: float
    counts1: int
    counts2: int
    ions: float

    @property
    def error_mm(self) -> tuple[Floats, Floats]:
        """Measured less planned, x and y."""
        return self.x_mm - self.planned_x_mm, self.y_mm - self.planned_y_mm


def with_counts(known: ScannerMap, shot: Shot) -> ScannerMap:
    """The map with the counts per ion of a shot."""
    return replace(known, counts1_per_ion=shot.counts1 / shot.ions, counts2_per_ion=shot.counts2 / shot.ions)


def with_offset(known: ScannerMap, shot: Shot) -> ScannerMap:
    """The map with its offsets corrected by the mean error of a shot; gains stay."""
    dx, dy = (float(np.mean(e)) for e in shot.error_mm)
    centred = replace(
        known,
        x0_a=known.x0_a - known.xx_a_mm * dx - known.xy_a_mm * dy,
        y0_a=known.y0_a - known.yx_a_mm * dx - known.yy_a_mm * dy,
    )
    return replace(
        centred,
        monitor_x0_mm=float(np.mean(shot.x_mm - known.monitor_xgain * shot.strip_x_mm)),
        monitor_y0_mm=float(np.mean(shot.y_mm - known.monitor_ygain * shot.strip_y_mm)),
    )


def fitted(shot: Shot) -> tuple[ScannerMap, float]:
    """The map that puts the beam where it was measured: affine fit of currents to positions, linear fit of the strips.

    Returns:
        The map, and the largest distance in mm of a measured point from the fit.
    """
    m = shot.loaded
    current_x = m.x0_a + m.xx_a_mm * shot.planned_x_mm + m.xy_a_mm * shot.planned_y_mm
    current_y = m.y0_a + m.yx_a_mm * shot.planned_x_mm + m.yy_a_mm * shot.planned_y_mm
    basis = np.column_stack([np.ones_like(shot.x_mm), shot.x_mm, shot.y_mm])
    (x0, xx, xy), *_ = np.linalg.lstsq(basis, current_x, rcond=None)
    (y0, yx, yy), *_ = np.linalg.lstsq(basis, current_y, rcond=None)
    rest_x = (current_x - basis @ np.array([x0, xx, xy])) / xx
    rest_y = (current_y - basis @ np.array([y0, yx, yy])) / yy
    gain_x, offset_x = np.polyfit(shot.strip_x_mm, shot.x_mm, 1)
    gain_y, offset_y = np.polyfit(shot.strip_y_mm, shot.y_mm, 1)
    fit = replace(
        with_counts(m, shot),
        x0_a=float(x0),
        xx_a_mm=float(xx),
        xy_a_mm=float(xy),
        y0_a=float(y0),
        yx_a_mm=float(yx),
        yy_a_mm=float(yy),
        monitor_x0_mm=float(offset_x),
        monitor_xgain=float(gain_x),
        monitor_y0_mm=float(offset_y),
        monitor_ygain=float(gain_y),
    )
    return fit, float(np.max(np.hypot(rest_x, rest_y)))


def node_energies_mev_u(offer: SpeciesOffer, count: int) -> list[float]:
    """Energies of the nodes of one species, descending: ends included, evenly spaced in the logarithm, on the offered steps."""
    raw = np.geomspace(offer.energy_max_mev_u, offer.energy_min_mev_u, count)
    step = offer.energy_step_mev_u or 0.5
    inner = [round(float(e) / step) * step for e in raw[1:-1]]
    return sorted({offer.energy_max_mev_u, *inner, offer.energy_min_mev_u}, reverse=True)
