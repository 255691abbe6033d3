"""Counts per ion from textbook numbers, for making plans and for checking them where no beam library has been measured.

A monitor chamber has a 5 mm air gap (design figure, computed 55 keV and 1,600 ion pairs per carbon ion of 430 MeV/u); energy
loss in air by the Bethe formula with I = 85.7 eV (ICRU 49), W = 34.5 eV (TRS-398: C 34.50, p 34.23). Good to a few percent:
never used for delivery, where the measured library decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drivers.hal.facility import Meterset
from drivers.hal.ions import Ion

AIR_GAP_CM = 0.5
AIR_DENSITY_G_CM3 = 1.205e-3  # 20 C, 101.3 kPa
AIR_I_EV = 85.7
AIR_Z_OVER_A = 0.49919
W_AIR_EV = 34.5
_K = 0.307075  # MeV cm2/mol; PDG
_ELECTRON_MEV = 0.51099895
_PROTON_CHARGE_PC = 1.602176634e-7  # pC per elementary charge


def stopping_power_mev_cm2_g(ion: Ion, energy_mev_u: float, i_ev: float = AIR_I_EV, z_over_a: float = AIR_Z_OVER_A) -> float:
    """Mass stopping power by Bethe without shell and density terms, MeV cm2/g, of the whole ion."""
    beta = ion.beta(energy_mev_u)
    gamma2 = 1.0 / (1.0 - beta * beta)
    argument = 2.0 * _ELECTRON_MEV * beta * beta * gamma2 / (i_ev * 1e-6)
    return _K * z_over_a * (ion.atomic_number / beta) ** 2 * (math.log(argument) - beta * beta)


@dataclass(frozen=True, slots=True)
class NominalLibrary:
    """A `LibraryView` of textbook numbers: everything is released, both monitors are alike."""

    meterset: Meterset

    def counts_per_ion(self, species: Ion, energy_mev_u: float, room: str = "", /) -> float:
        """Counts of monitor 1 per ion."""
        lost_ev = stopping_power_mev_cm2_g(species, energy_mev_u) * AIR_DENSITY_G_CM3 * AIR_GAP_CM * 1e6
        charge_pc = lost_ev / W_AIR_EV * _PROTON_CHARGE_PC
        return charge_pc / self.meterset.charge_pc_per_mu * self.meterset.counts_per_mu

    def counts2_per_ion(self, species: Ion, energy_mev_u: float, room: str = "", /) -> float:
        """Counts of monitor 2 per ion: a second chamber of the same make."""
        return self.counts_per_ion(species, energy_mev_u)

    def counts_per_mu(self, species: Ion, energy_mev_u: float, room: str = "", /) -> float:
        """Counts of monitor 1 in one monitor unit: a fixed charge, or the facility's protons-per-MU table."""
        table = self.meterset.protons_per_mu
        if species.mass_number != 1 or not table:
            return self.meterset.counts_per_mu
        energies, protons = zip(*table, strict=True)
        return float(np.interp(energy_mev_u, energies, protons)) * self.counts_per_ion(species, energy_mev_u)

    def lookup(self, species: Ion, energy_mev_u: float, room: str, angle_deg: float, /) -> object:
        """Always there."""
        return self

    def ions_per_mu(self, species: Ion, energy_mev_u: float) -> float:
        """Ions in one monitor unit."""
        return self.counts_per_mu(species, energy_mev_u) / self.counts_per_ion(species, energy_mev_u)
