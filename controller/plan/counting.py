"""From a spot's meterset to monitor counts and ions, and how slowly a spot must be delivered to be cut off in time.

The reaction quantum is what still arrives between the decision to stop and the last ion: intensity x cut-off time. It may be
2 % of the smallest spot (design rule; decision on planned intensity), and a count of the monitor must not be more than 2 %
of it either. `deliverability` and `schedule` share these rules, so that what is accepted can be scheduled. Not responsible
for calibration: the numbers come from the beam library through `LibraryView`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from controller.plan.model import MetersetUnit
from drivers.hal.facility import Accelerator, SpeciesOffer
from drivers.hal.ions import Ion

QUANTUM_FRACTION = 0.02  # of the smallest spot of a painting; design rule
COUNTS_MIN = math.ceil(1.0 / QUANTUM_FRACTION)  # a spot below 50 counts cannot be measured to 2 %
ENERGY_TOLERANCE_MEV_U = 0.01  # assumed: decimals of a plan, far below any energy step


class LibraryView(Protocol):
    """What plans ask of the beam library. `room` "" means the first room that has the species.

    Every method may raise `drivers.hal.errors.CommandRejected` when a row is not released.
    """

    def counts_per_ion(self, species: Ion, energy_mev_u: float, room: str = "", /) -> float:
        """Counts of monitor 1 per ion."""
        ...

    def counts2_per_ion(self, species: Ion, energy_mev_u: float, room: str = "", /) -> float:
        """Counts of monitor 2 per ion."""
        ...

    def counts_per_mu(self, species: Ion, energy_mev_u: float, room: str = "", /) -> float:
        """Counts of monitor 1 in one monitor unit."""
        ...

    def lookup(self, species: Ion, energy_mev_u: float, room: str, angle_deg: float, /) -> object:
        """The row of one beam, if it is released."""
        ...


@dataclass(frozen=True, slots=True)
class Conversion:
    """How one layer's meterset becomes counts and ions."""

    counts1_per_unit: float  # per MU or per particle of the plan
    counts1_per_ion: float
    counts2_per_count1: float

    @classmethod
    def of(cls, library: LibraryView, ion: Ion, energy_mev_u: float, unit: MetersetUnit, room: str) -> Conversion:
        """The library's numbers for a layer. Raises CommandRejected when the library has no released row."""
        per_ion = library.counts_per_ion(ion, energy_mev_u, room)
        per_unit = per_ion if unit == "NP" else library.counts_per_mu(ion, energy_mev_u, room)
        return cls(per_unit, per_ion, library.counts2_per_ion(ion, energy_mev_u, room) / per_ion)

    @property
    def ions_per_unit(self) -> float:
        """Ions per MU (or 1 where the plan counts particles)."""
        return self.counts1_per_unit / self.counts1_per_ion


@dataclass(frozen=True, slots=True)
class Rate:
    """A planned intensity and the quantum it implies."""

    intensity_per_s: int
    quantum_counts: int


def rate_for(
    smallest_counts1: int,
    conversion: Conversion,
    offer: SpeciesOffer,
    accelerator: Accelerator,
    slowest_per_s: float = math.inf,
) -> Rate | None:
    """The highest offered intensity whose quantum is within 2 % of the smallest spot of a painting.

    Args:
        smallest_counts1: smallest granted spot of the painting, counts of monitor 1.
        conversion: of the layer.
        offer: of the species; bounds the intensity.
        accelerator: for the cut-off time.
        slowest_per_s: an upper bound from elsewhere, for example a gate that the layer should fill; ions/s.

    Returns:
        The rate, or None where even the lowest offered intensity overruns.
    """
    quantum = math.floor(QUANTUM_FRACTION * smallest_counts1 * (1.0 + 1e-12))
    if quantum < 1:
        return None
    counts_per_intensity = conversion.counts1_per_ion * accelerator.cutoff_us * 1e-6
    ceiling = min(quantum / counts_per_intensity, offer.intensity_max_per_s)
    if ceiling < offer.intensity_min_per_s:
        return None
    intensity = math.floor(max(min(ceiling, slowest_per_s), offer.intensity_min_per_s))
    return Rate(intensity, max(1, min(quantum, math.ceil(intensity * counts_per_intensity))))


def smallest_ions(offer: SpeciesOffer, accelerator: Accelerator, conversion: Conversion) -> float:
    """The fewest ions a spot of one painting must have to be cut off and measured within the rules."""
    for_cutoff = offer.intensity_min_per_s * accelerator.cutoff_us * 1e-6 / QUANTUM_FRACTION
    # The quantum is a whole number of counts, so the next whole one decides where counts are coarse.
    counts = max(
        COUNTS_MIN, math.ceil(math.ceil(QUANTUM_FRACTION * for_cutoff * conversion.counts1_per_ion) / QUANTUM_FRACTION)
    )
    return max(for_cutoff, counts / conversion.counts1_per_ion)
