"""Ionisation: what an ion leaves in the air of a chamber and in water.

Bethe's mass stopping power without shell and density terms (below 1 % in this range), with Barkas' effective charge.
Air gap 5 mm at 20 degC and 101.3 kPa: carbon at 430 MeV/u leaves about 55 keV, 1,600 pairs (design figures,
computed), so 20 pC take about 8e4 ions. Not responsible for gains of electronics (see `simulators.plant.chambers`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulators.physics.rigidity import nucleus

ELECTRON_GEV = 0.51099895e-3
BETHE_CONSTANT_MEV_CM2_G = 0.307075
CHARGE_PC_PER_PAIR = 1.602176634e-7


@dataclass(frozen=True, slots=True)
class Medium:
    """A stopping medium.

    Attributes:
        z_over_a: electrons per nucleon.
        mean_excitation_ev: I value; air 85.7 eV (ICRU 37), water 78 eV (ICRU 90).
        density_g_cm3: density.
    """

    z_over_a: float
    mean_excitation_ev: float
    density_g_cm3: float


AIR = Medium(z_over_a=0.49919, mean_excitation_ev=85.7, density_g_cm3=1.205e-3)
WATER = Medium(z_over_a=0.55508, mean_excitation_ev=78.0, density_g_cm3=1.0)

# Energy per ion pair in air in eV: ICRU 90 as recalled (p 34.44, C 34.71); the other ions as carbon, assumed.
W_AIR_EV: dict[int, float] = {1001: 34.44, 2004: 34.60, 6012: 34.71, 8016: 34.71, 10020: 34.71}


def mass_stopping_mev_cm2_g(token: int, energy_mev_u: float, medium: Medium) -> float:
    """Electronic mass stopping power in MeV cm2/g."""
    ion = nucleus(token)
    gamma, beta = ion.gamma(energy_mev_u), ion.beta(energy_mev_u)
    effective = ion.charge * (1.0 - math.exp(-125.0 * beta * ion.charge ** (-2.0 / 3.0)))
    ratio = ELECTRON_GEV / ion.rest_gev
    momentum = 2.0 * ELECTRON_GEV * 1e9 * (beta * gamma) ** 2
    transfer_ev = momentum / (1.0 + 2.0 * gamma * ratio + ratio * ratio)
    logarithm = 0.5 * math.log(momentum * transfer_ev / medium.mean_excitation_ev**2) - beta * beta
    return BETHE_CONSTANT_MEV_CM2_G * medium.z_over_a * (effective / beta) ** 2 * logarithm


def let_water_kev_um(token: int, energy_mev_u: float) -> float:
    """Unrestricted LET in water in keV/um; carbon at 290 MeV/u: 12.8 (computed)."""
    return mass_stopping_mev_cm2_g(token, energy_mev_u, WATER) * WATER.density_g_cm3 * 0.1


def entrance_dose_gy_per_ion_mm2(token: int, energy_mev_u: float) -> float:
    """Entrance dose to water of one ion per mm2, in Gy: 0.1602 LET[keV/um] nGy mm2; 6.0e5 C ions/mm2 at 430 MeV/u give 1 Gy."""
    return 1.602176634e-7 * let_water_kev_um(token, energy_mev_u)


def chamber_charge_pc(token: int, energy_mev_u: float, gap_mm: float) -> float:
    """Charge one ion sets free in an air gap, in pC, all of it collected."""
    lost_mev = mass_stopping_mev_cm2_g(token, energy_mev_u, AIR) * AIR.density_g_cm3 * gap_mm * 0.1
    return lost_mev * 1e6 / W_AIR_EV[token] * CHARGE_PC_PER_PAIR
