"""Beam transport by linear optics: from supply currents to where the beam crosses the isocentre plane and how wide it
is.

Gantry: combined-function magnets whose dipole field relative to the beam's rigidity steers (linear transfer
coefficients, achromatic as a whole), whose quadrupole strength relative to the design focuses. Scanners: current to
kick to displacement over the source-axis distance. Axes are IEC gantry axes at the isocentre plane; the gantry bends
in the plane of y. Coefficients are the caller's (`simulators/plants/*.toml`). Not responsible for time (see
`simulators.plant.magnets`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulators.physics.rigidity import nucleus

Floats = NDArray[np.float64]


def magnet_field_t(current_a: Floats, field_per_a_t: Floats, gain: Floats, saturation: float, current_full_a: Floats) -> Floats:
    """Field (or gradient) of magnets in series with their supplies, shape (n,).

    B = b I (1 + gain) (1 - saturation (I / I_full)^2): iron and persistent currents take `saturation` off at full current.
    """
    relative = current_a / current_full_a
    return np.asarray(field_per_a_t * current_a * (1.0 + gain) * (1.0 - saturation * relative * relative))


def orbit_mm(field_t: Floats, radius_m: Floats, rigidity_tm: float, coefficient_mm: Floats) -> float:
    """Displacement at the isocentre: coefficients (mm per unit of relative field error) times (B rho_design / Brho - 1)."""
    return float(np.dot(coefficient_mm, field_t * radius_m / rigidity_tm - 1.0))


def scattered_sigma_mm(token: int, energy_mev_u: float, thickness_x0: float, drift_mm: float) -> float:
    """Width from multiple scattering in nozzle and air: Highland's angle (13.6 MeV form) times an effective drift."""
    ion = nucleus(token)
    momentum_mev = ion.momentum_gev_c(energy_mev_u) * 1e3
    angle = 13.6 * ion.charge / (ion.beta(energy_mev_u) * momentum_mev) * math.sqrt(thickness_x0)
    return angle * (1.0 + 0.038 * math.log(thickness_x0)) * drift_mm


def spot_sigma_mm(
    optical_mm: float, rigidity_tm: float, reference_tm: float, detuning: Floats, response: Floats, scattered_mm: float
) -> float:
    """Spot sigma in one plane: adiabatically damped optical size, changed by quadrupole detuning, and scattering in quadrature.

    Args:
        optical_mm: optical size at the reference rigidity with design gradients.
        detuning: relative gradient errors k/k_design - 1, shape (n,).
        response: d ln(sigma) / d(detuning), shape (n,).
    """
    size = optical_mm * math.sqrt(reference_tm / rigidity_tm) * math.exp(float(np.clip(np.dot(response, detuning), -3.0, 3.0)))
    return math.hypot(size, scattered_mm)


def scanner_displacement_mm(
    current_x_a: Floats,
    current_y_a: Floats,
    kick_tm_per_a: tuple[float, float],
    rigidity_tm: float,
    sad_mm: tuple[float, float],
) -> tuple[Floats, Floats]:
    """Displacement at the isocentre plane by two scanner currents: SAD tan(kick), kick = integral B dl / Brho."""
    x = sad_mm[0] * np.tan(current_x_a * (kick_tm_per_a[0] / rigidity_tm))
    y = sad_mm[1] * np.tan(current_y_a * (kick_tm_per_a[1] / rigidity_tm))
    return x, y
