"""Energies and spots of a beam against the machine: species, energy list, beam library, field, minimum, cut-off, counts.

One refusal per kind of fault and beam, with the worst case in numbers and how many others share it. Vectorised per layer. Not
responsible for geometry and accessories (`deliverability`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from controller.plan.counting import (
    COUNTS_MIN,
    ENERGY_TOLERANCE_MEV_U,
    QUANTUM_FRACTION,
    Conversion,
    LibraryView,
    rate_for,
    smallest_ions,
)
from controller.plan.errors import Refusal, Why
from controller.plan.model import Beam, Layer
from drivers.hal.errors import CommandRejected
from drivers.hal.facility import Facility, Room, SpeciesOffer

INT32_MAX = 2**31 - 1
_FIELD_TOLERANCE_MM = 1e-3  # float32 coordinates
_METERSET_TOLERANCE = 1e-5  # as for sums: a minimum of exactly 2 MU must pass after float32 weights


@dataclass(slots=True)
class _Worst:
    """The worst case of one kind, and how many there are."""

    measure: float = 0.0
    refusal: Refusal | None = None
    count: int = 0
    layers: set[int] = field(default_factory=set)

    def add(self, measure: float, layer: int, count: int, refusal: Refusal) -> None:
        self.count += count
        self.layers.add(layer)
        if self.refusal is None or measure > self.measure:
            self.measure, self.refusal = measure, refusal


def spot_refusals(
    beam: Beam, facility: Facility, room: Room, library: LibraryView, angle_deg: float | None
) -> Iterator[Refusal]:
    """Reasons that lie in the beam's energies and spots.

    Args:
        beam: the beam.
        facility: for species, cut-off time and monitor resolution.
        room: for field and minimum.
        library: the beam library.
        angle_deg: the angle the room goes to; None where it cannot (a reason was given elsewhere).
    """
    where = f"beam {beam.number}"
    offer = facility.accelerator.offer(beam.ion.symbol)
    if not beam.layers:
        if beam.scan_mode == "MODULATED":
            yield Refusal(Why.COUNTS, "the beam has no layers", where)
        return
    if offer is None:
        have = ", ".join(s.symbol for s in facility.accelerator.species)
        yield Refusal(Why.SPECIES, "the machine does not offer this species", where, beam.ion.symbol, have)
    worst: dict[Why, _Worst] = {}
    for layer in beam.layers:
        place = f"{where}, control point {layer.control_point_index}"
        _field(layer, room, place, worst)
        if offer is None:
            continue
        if _energy(layer, beam, offer, place, worst):
            _library_and_counts(layer, beam, facility, room, library, offer, angle_deg, place, worst)
    for why, found in worst.items():
        if found.refusal is not None:
            yield _with_count(found.refusal, found, why)


def _with_count(refusal: Refusal, found: _Worst, why: Why) -> Refusal:
    """The worst case, saying how many share it."""
    by_layer = why in (Why.ENERGY, Why.LIBRARY)
    others = len(found.layers) - 1 if by_layer else found.count - 1
    if others <= 0:
        return refusal
    more = f"{others} more layer{'s' if others > 1 else ''}" if by_layer else f"{others} more in {len(found.layers)} layer(s)"
    return Refusal(
        refusal.why, refusal.what, refusal.where, f"{refusal.value}, {more}", refusal.limit, refusal.hint, refusal.override
    )


def _field(layer: Layer, room: Room, place: str, worst: dict[Why, _Worst]) -> None:
    half_x, half_y = room.nozzle.field_x_mm / 2.0, room.nozzle.field_y_mm / 2.0
    beyond = np.maximum(np.abs(layer.x_mm) - half_x, np.abs(layer.y_mm) - half_y)
    outside = beyond > _FIELD_TOLERANCE_MM
    if outside.any():
        row = int(np.argmax(beyond))
        worst.setdefault(Why.FIELD, _Worst()).add(
            float(beyond[row]),
            layer.index,
            int(outside.sum()),
            Refusal(
                Why.FIELD,
                "a spot lies outside the field",
                f"{place}, spot {row}",
                f"({layer.x_mm[row]:g}, {layer.y_mm[row]:g}) mm",
                f"+-{half_x:g} x +-{half_y:g} mm",
            ),
        )


def _energy(layer: Layer, beam: Beam, offer: SpeciesOffer, place: str, worst: dict[Why, _Worst]) -> bool:
    """Whether the energy is on the list."""
    energy = layer.energy_mev_u
    nearest = offer.nearest_energy_mev_u(energy)
    off = abs(nearest - energy)
    if off <= ENERGY_TOLERANCE_MEV_U:
        return True
    per_nucleon = energy / beam.ion.mass_number
    hint = f"nearest {nearest:g} MeV/u"
    if beam.ion.mass_number > 1 and offer.energy_min_mev_u <= per_nucleon <= offer.energy_max_mev_u < energy:
        hint = (
            f"NominalBeamEnergy is expected per nucleon; {energy:g} MeV in all would be {per_nucleon:g} MeV/u for "
            f"{beam.ion.symbol}-{beam.ion.mass_number}"
        )
    step = f" in steps of {offer.energy_step_mev_u:g}" if offer.energy_step_mev_u else ""
    worst.setdefault(Why.ENERGY, _Worst()).add(
        off,
        layer.index,
        1,
        Refusal(
            Why.ENERGY,
            "the machine does not offer this energy",
            place,
            f"{energy:g} MeV/u",
            f"{offer.energy_min_mev_u:g} to {offer.energy_max_mev_u:g} MeV/u{step} for {beam.ion.symbol}",
            hint,
        ),
    )
    return False


def _library_and_counts(
    layer: Layer,
    beam: Beam,
    facility: Facility,
    room: Room,
    library: LibraryView,
    offer: SpeciesOffer,
    angle_deg: float | None,
    place: str,
    worst: dict[Why, _Worst],
) -> None:
    energy = offer.nearest_energy_mev_u(layer.energy_mev_u)
    try:
        if angle_deg is not None:
            library.lookup(beam.ion, energy, room.name, angle_deg)
        conversion = Conversion.of(library, beam.ion, energy, beam.meterset_unit, room.name)
        per_mu = library.counts_per_mu(beam.ion, energy, room.name)
    except CommandRejected as error:
        refusal = Refusal(
            Why.LIBRARY, "the beam library has no released row", place, error.message, f"{energy:g} MeV/u", error.hint
        )
        worst.setdefault(Why.LIBRARY, _Worst()).add(0.0, layer.index, 1, refusal)
        return
    given = layer.meterset > 0.0
    if not given.any():
        return
    pieces = np.where(given, layer.meterset / layer.paintings, np.inf)
    row = int(np.argmin(pieces))
    smallest = float(pieces[row])
    paintings = f" in each of {layer.paintings} paintings" if layer.paintings > 1 else ""
    spot = f"{place}, spot {row}"
    minimum = room.nozzle.spot_min_mu * per_mu / conversion.counts1_per_unit
    low = pieces < minimum * (1.0 - _METERSET_TOLERANCE)
    if low.any():
        worst.setdefault(Why.SPOT_MINIMUM, _Worst()).add(
            -smallest,
            layer.index,
            int(low.sum()),
            Refusal(
                Why.SPOT_MINIMUM,
                "a spot is below the machine's minimum",
                spot,
                f"{smallest:.6g} {beam.meterset_unit}{paintings}",
                f"{minimum:.6g} {beam.meterset_unit}",
                "replan with a higher minimum" + (" or fewer paintings" if layer.paintings > 1 else ""),
            ),
        )
    _cut_off(smallest, spot + paintings, beam, layer, facility, offer, conversion, worst)
    largest = float(layer.meterset.max()) * conversion.counts1_per_unit * max(1.0, conversion.counts2_per_count1)
    if largest >= INT32_MAX:
        worst.setdefault(Why.COUNTS, _Worst()).add(
            largest,
            layer.index,
            1,
            Refusal(Why.COUNTS, "a spot has more counts than a grant can hold", place, f"{largest:.6g} counts", str(INT32_MAX)),
        )


def _cut_off(
    smallest: float,
    place: str,
    beam: Beam,
    layer: Layer,
    facility: Facility,
    offer: SpeciesOffer,
    conversion: Conversion,
    worst: dict[Why, _Worst],
) -> None:
    """The smallest spot of a painting must be measurable, and cut off within 2 % at the lowest intensity."""
    accelerator = facility.accelerator
    # Cumulative rounding may take a count from a spot.
    counts = int(np.floor(smallest * conversion.counts1_per_unit))
    ions = smallest * conversion.ions_per_unit
    least = smallest_ions(offer, accelerator, conversion)
    needed = f"smallest possible spot {least / conversion.ions_per_unit:.4g} {beam.meterset_unit} ({least:.4g} ions)"
    if counts < COUNTS_MIN:
        worst.setdefault(Why.RESOLUTION, _Worst()).add(
            1.0 / (counts + 1),
            layer.index,
            1,
            Refusal(
                Why.RESOLUTION,
                "a spot is too small for the dose monitor",
                place,
                f"{smallest:.4g} {beam.meterset_unit}, {counts} counts",
                f"{COUNTS_MIN} counts",
                needed,
            ),
        )
    elif rate_for(counts, conversion, offer, accelerator) is None:
        overrun = offer.intensity_min_per_s * accelerator.cutoff_us * 1e-6
        worst.setdefault(Why.CUT_OFF, _Worst()).add(
            overrun / ions,
            layer.index,
            1,
            Refusal(
                Why.CUT_OFF,
                "a spot is too small to be cut off within tolerance",
                place,
                f"{smallest:.4g} {beam.meterset_unit} ({ions:.4g} ions); at the lowest intensity of "
                f"{offer.intensity_min_per_s:.3g} ions/s the {accelerator.cutoff_us:g} us cut-off lets {overrun:.4g} ions "
                f"through, {overrun / ions:.2%}",
                f"{QUANTUM_FRACTION:.0%}",
                needed,
            ),
        )
