"""Ion species and the relations of momentum, rigidity and speed that every part of the controller shares.

The simulators have formulas of their own (`simulators.physics`): a wrong constant here must show up as a wrong beam there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ATOMIC_MASS_MEV = 931.494  # MeV per u; CODATA 2018, 931.49410242
SPEED_OF_LIGHT = 299.792458  # Brho[T m] = p[MeV/c] / (299.792458 q)


@dataclass(frozen=True, slots=True)
class Ion:
    """A fully stripped ion as delivered to the patient."""

    symbol: str
    name: str
    atomic_number: int
    mass_number: int
    mass_u: float

    @property
    def token(self) -> int:
        """Integer identity on the wires: 1000 Z + A."""
        return 1000 * self.atomic_number + self.mass_number

    def momentum_mev_c(self, energy_mev_u: float) -> float:
        """Total momentum in MeV/c at a kinetic energy per nucleon.

        The clinical convention divides the kinetic energy by A, not by the mass in u.
        """
        kinetic = energy_mev_u * self.mass_number
        rest = self.mass_u * ATOMIC_MASS_MEV
        return math.sqrt(kinetic * kinetic + 2.0 * kinetic * rest)

    def rigidity_tm(self, energy_mev_u: float) -> float:
        """Magnetic rigidity B rho in T m of the bare nucleus (C 430 MeV/u: 6.62 T m, computed)."""
        return self.momentum_mev_c(energy_mev_u) / (SPEED_OF_LIGHT * self.atomic_number)

    def beta(self, energy_mev_u: float) -> float:
        """Speed over the speed of light."""
        rest = self.mass_u * ATOMIC_MASS_MEV
        p = self.momentum_mev_c(energy_mev_u)
        return p / math.hypot(p, rest)


# Nuclear masses in u: atomic mass (AME2020) less Z electron masses of 5.486e-4 u.
PROTON = Ion("p", "proton", 1, 1, 1.007276)
HELIUM = Ion("He", "helium", 2, 4, 4.001506)
CARBON = Ion("C", "carbon", 6, 12, 11.996709)
OXYGEN = Ion("O", "oxygen", 8, 16, 15.990526)
NEON = Ion("Ne", "neon", 10, 20, 19.986955)

IONS: dict[str, Ion] = {ion.symbol: ion for ion in (PROTON, HELIUM, CARBON, OXYGEN, NEON)}


def ion_by_numbers(atomic_number: int, mass_number: int) -> Ion | None:
    """The known ion with these numbers, or None."""
    for ion in IONS.values():
        if (ion.atomic_number, ion.mass_number) == (atomic_number, mass_number):
            return ion
    return None


def ion_by_token(token: int) -> Ion | None:
    """The ion of a wire token, or None."""
    return ion_by_numbers(token // 1000, token % 1000)
