"""Ions of the simulated plant: rest energies, momentum, magnetic rigidity, speed.

The plant's own constants and formulas; nothing is shared with the controller's idea of an ion, so a wrong constant on either
side shows up as a wrong beam. Energies are kinetic, in MeV per nucleon (T = E A), the clinical convention.
Not responsible for ranges or stopping (see `ranges`, `dose`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TESLA_METRE_PER_GEV_C = 3.3356409519815204  # 1e9 / c[m/s]


@dataclass(frozen=True, slots=True)
class Nucleus:
    """A bare nucleus.

    Attributes:
        symbol: chemical symbol; ``"p"`` for the proton.
        charge: atomic number Z.
        nucleons: mass number A.
        rest_gev: rest energy of the nucleus in GeV (AME2020 atomic masses less the electrons).
    """

    symbol: str
    charge: int
    nucleons: int
    rest_gev: float

    @property
    def token(self) -> int:
        """Integer identity on the wires, 1000 Z + A."""
        return 1000 * self.charge + self.nucleons

    def gamma(self, energy_mev_u: float) -> float:
        """Lorentz factor at a kinetic energy per nucleon."""
        return 1.0 + energy_mev_u * self.nucleons * 1e-3 / self.rest_gev

    def beta(self, energy_mev_u: float) -> float:
        """Speed over the speed of light; carbon at 430 MeV/u: 0.729 (computed)."""
        return math.sqrt(1.0 - self.gamma(energy_mev_u) ** -2)

    def momentum_gev_c(self, energy_mev_u: float) -> float:
        """Momentum of the whole nucleus in GeV/c."""
        return self.rest_gev * self.gamma(energy_mev_u) * self.beta(energy_mev_u)

    def rigidity_tm(self, energy_mev_u: float) -> float:
        """Magnetic rigidity p / (Z e) in T m; carbon at 430 MeV/u: 6.62 T m (computed)."""
        return TESLA_METRE_PER_GEV_C * self.momentum_gev_c(energy_mev_u) / self.charge


NUCLEI: dict[int, Nucleus] = {
    n.token: n
    for n in (
        Nucleus("p", 1, 1, 0.93827209),
        Nucleus("He", 2, 4, 3.72737941),
        Nucleus("C", 6, 12, 11.17486290),
        Nucleus("O", 8, 16, 14.89508060),
        Nucleus("Ne", 10, 20, 18.61772900),
    )
}


def nucleus(token: int) -> Nucleus:
    """The nucleus of a token; KeyError when the plant knows no such ion."""
    return NUCLEI[token]
