"""Ranges of ions in water: log-log interpolation of a table.

The table is CSDA range by the Bethe formula with I = 78 eV and no shell term; libamtrack (PSTAR scaled) agrees within
0.6 % at 200 to 430 MeV/u and 2 % below, protons within 0.2 % throughout (computed). Both are of
Bethe type: allow 1.5 mm at 31 cm for the choice of I. Not responsible for straggling or fragments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_ENERGY_MEV_U = np.array([55.6, 100.0, 150.0, 200.0, 230.0, 290.0, 350.0, 400.0, 430.0])
_RANGE_MM: dict[int, Floats] = {
    1001: np.array([27.1, 77.5, 158.5, 260.8, 331.0, 489.0, 666.0, 826.0, 927.0]),
    2004: np.array([27.2, 77.9, 159.3, 262.1, 332.6, 491.0, 669.0, 830.0, 931.0]),
    6012: np.array([9.1, 26.0, 53.1, 87.4, 110.9, 163.7, 223.0, 276.7, 310.5]),
    8016: np.array([6.8, 19.5, 39.9, 65.6, 83.2, 122.8, 167.3, 207.6, 232.9]),
    10020: np.array([5.5, 15.7, 31.9, 52.5, 66.6, 98.3, 133.9, 166.1, 186.4]),
}


def range_mm(token: int, energy_mev_u: ArrayLike) -> Floats:
    """Range in water in mm; same shape as the energies (MeV/u). Outside the table the end slopes are continued.

    Raises:
        KeyError: no table for this species token.
    """
    return _loglog(np.asarray(energy_mev_u, dtype=np.float64), _ENERGY_MEV_U, _RANGE_MM[token])


def energy_mev_u(token: int, depth_mm: ArrayLike) -> Floats:
    """Energy per nucleon whose range in water is `depth_mm`: the inverse of `range_mm`."""
    return _loglog(np.asarray(depth_mm, dtype=np.float64), _RANGE_MM[token], _ENERGY_MEV_U)


def _loglog(at: Floats, x: Floats, y: Floats) -> Floats:
    lx, ly, la = np.log(x), np.log(y), np.log(at)
    i = np.clip(np.searchsorted(lx, la) - 1, 0, lx.size - 2)
    slope = (ly[i + 1] - ly[i]) / (lx[i + 1] - lx[i])
    return np.asarray(np.exp(ly[i] + slope * (la - lx[i])))
