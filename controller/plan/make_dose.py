"""A small depth-dose model for making plans: range, Bragg curve and spot weights of a spread-out peak in water.

Ranges are interpolated log-log in a table (Bethe, I = 78 eV, CSDA; within 0.6 % of PSTAR-scaled values at 200-430 MeV/u).
The curve is that of a power law between range and energy (Bortfeld 1997 for protons), averaged over a Gaussian of ranges,
with exponential loss of primaries and, for ions, a tail of fragments. A 3 mm class ripple filter is part of the Gaussian for
ions. Good for plausible, flat test fields: not a dose engine, and no plan made with it is for a patient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.hal.ions import Ion

Floats = NDArray[np.float64]

GY_MM3_PER_MEV = 1.602176634e-7  # MeV/mm3 of water to Gy
RIPPLE_SIGMA_MM = 1.2  # assumed: 3 mm class ridge filter
ATTENUATION_MM = 235.0  # computed from 30 % loss at 200 and 70 % at 400 MeV/u before the peak (Haettner, Schardt; recalled)
PROTON_LOSS_PER_MM = 1.2e-3  # Bortfeld 1997: 0.012 per cm
FRAGMENT_SHARE = 0.45  # assumed: energy loss of the fragments of one lost primary over that of the primary
FRAGMENT_RANGE_MM = 80.0  # assumed: fragments die out over some 10 cm (recalled)
# A sharp peak needs nodes closer than the millimetre it is averaged over; Gauss-Hermite nodes are too far apart.
_NODES = np.linspace(-4.0, 4.0, 49)
_NODE_WEIGHTS = np.exp(-0.5 * _NODES**2) / np.exp(-0.5 * _NODES**2).sum()

_TABLE_MEV_U = np.array([20.0, 55.6, 100.0, 150.0, 200.0, 230.0, 290.0, 350.0, 400.0, 430.0])
# Range in water, mm, by ion; first column scaled from 55.6 MeV/u with E^1.77, only to keep the interpolation going below.
_TABLE_RANGE_MM = {
    "p": np.array([4.26, 27.1, 77.5, 158.5, 260.8, 331.0, 489.0, 666.0, 826.0, 927.0]),
    "He": np.array([4.28, 27.2, 77.9, 159.3, 262.1, 332.6, 491.0, 669.0, 830.0, 931.0]),
    "C": np.array([1.43, 9.1, 26.0, 53.1, 87.4, 110.9, 163.7, 223.0, 276.7, 310.5]),
    "O": np.array([1.07, 6.8, 19.5, 39.9, 65.6, 83.2, 122.8, 167.3, 207.6, 232.9]),
    "Ne": np.array([0.86, 5.5, 15.7, 31.9, 52.5, 66.6, 98.3, 133.9, 166.1, 186.4]),
}


def range_mm(ion: Ion, energy_mev_u: float | Floats) -> Floats:
    """Range in water, mm."""
    table = np.log(_TABLE_RANGE_MM[ion.symbol])
    return np.asarray(np.exp(np.interp(np.log(energy_mev_u), np.log(_TABLE_MEV_U), table)))


def energy_mev_u(ion: Ion, depth_mm: float | Floats) -> Floats:
    """Energy whose range in water is `depth_mm`."""
    table = np.log(_TABLE_RANGE_MM[ion.symbol])
    return np.asarray(np.exp(np.interp(np.log(np.maximum(depth_mm, 1e-3)), table, np.log(_TABLE_MEV_U))))


def straggling_mm(ion: Ion, depth_mm: float) -> float:
    """Sigma of the range: Bortfeld's for protons over sqrt(A), with the ripple filter for ions."""
    sigma = 10.0 * 0.012 * (depth_mm / 10.0) ** 0.935 / np.sqrt(ion.mass_number)
    return float(np.hypot(sigma, RIPPLE_SIGMA_MM if ion.mass_number > 1 else 0.01 * depth_mm))


@dataclass(frozen=True, slots=True)
class BraggCurve:
    """Depth-dose of one energy in water: total energy loss per ion and mm, laterally integrated."""

    ion: Ion
    energy_mev_u: float
    wet_mm: float = 0.0  # in front of the water: range shifter

    @property
    def range_mm(self) -> float:
        """Depth of the mean range in the water, mm."""
        return float(range_mm(self.ion, self.energy_mev_u)) - self.wet_mm

    def at(self, depth_mm: Floats) -> Floats:
        """Energy loss in MeV per mm and incident ion, averaged over the 1 mm around each depth, shape of `depth_mm`."""
        path = np.asarray(depth_mm, dtype=np.float64) + self.wet_mm
        full = float(range_mm(self.ion, self.energy_mev_u))
        ranges = full + straggling_mm(self.ion, full) * _NODES
        near = self._left(ranges[:, None] - (path - 0.5))
        far = self._left(ranges[:, None] - (path + 0.5))
        loss = _NODE_WEIGHTS @ (near - far)
        if self.ion.mass_number == 1:
            return np.asarray(np.clip(1.0 - PROTON_LOSS_PER_MM * path, 0.0, 1.0) * loss)
        survive = np.exp(-np.minimum(path, full) / ATTENUATION_MM)
        plateau = float(self._left(np.array(full)) - self._left(np.array(full - 1.0)))
        tail = np.exp(-np.maximum(path - full, 0.0) / FRAGMENT_RANGE_MM)
        return np.asarray(survive * loss + FRAGMENT_SHARE * (1.0 - survive) * plateau * tail)

    def _left(self, residual_mm: Floats) -> Floats:
        """Energy of the whole ion, MeV, with this much range left."""
        energy = energy_mev_u(self.ion, np.maximum(residual_mm, 1e-3)) * self.ion.mass_number
        return np.where(residual_mm > 1e-3, energy, 0.0)


def spread_out(inside: NDArray[np.bool_], allowed: NDArray[np.bool_], basis: Floats, dose: float, rounds: int = 80) -> Floats:
    """Non-negative weights that make the dose flat within each column of a target.

    Args:
        inside: (columns, depths) where the target is.
        allowed: (columns, layers) which layers may serve a column.
        basis: (depths, layers) dose at a depth per unit weight of a layer.
        dose: wanted everywhere inside.
        rounds: of multiplicative updates (Lucy-Richardson), which keep weights non-negative.

    Returns:
        Weights, shape (columns, layers). Columns are taken on their own: neighbours are assumed to be alike.
    """
    mask = inside.astype(np.float64)
    sensitivity = mask @ basis
    weights = np.where(allowed, dose / np.maximum(basis.max(axis=0), 1e-300) / 3.0, 0.0)
    for _ in range(rounds):
        reached = weights @ basis.T
        ratio = np.where(inside, dose / np.maximum(reached, 1e-300), 0.0)
        weights *= (ratio @ basis) / np.maximum(sensitivity, 1e-300)
    reached = (weights @ basis.T)[inside]
    return weights * (dose / float(reached.mean()))
