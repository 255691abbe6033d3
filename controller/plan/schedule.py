"""Planned intensity and order of delivery: a beam's layers as passes, grouped into synchrotron cycles.

A pass is what one grant will hold: spots of one layer and one painting, at most 4,000. Layers are delivered from the highest
energy down whatever the plan's order, all paintings of a layer one after another. A cycle is one filling of the synchrotron:
energies only step down within it, and it ends before its ions or its flattop do. Each painting gets the intensity at which
the reaction quantum is 2 % of its smallest spot (`counting.rate_for`). Planned counts are rounded cumulatively over the
beam, so that the counts of a beam are right to half a count and every spot's paintings sum to the spot.

Pure and vectorised per layer. Not responsible for what can be delivered (`deliverability`), nor for grants themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from controller.plan.counting import Conversion, LibraryView, Rate, rate_for
from controller.plan.errors import PlanError, Why
from controller.plan.model import Beam, Layer
from controller.plan.raster import delivery_order, steps
from drivers.hal.capabilities import ScanMode
from drivers.hal.facility import Accelerator, Facility, Room, SpeciesOffer
from drivers.hal.ions import Ion

ROWS_MAX = 4000  # of a grant, docs/wires.md
CYCLE_FILL = 0.9  # assumed: share of a cycle's ions and flattop that is planned for; spills vary
SPLIT_WORTH = 0.2  # assumed: less than this share of a cycle is not worth a split pass


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Spots to deliver in one grant, in the order of delivery.

    Arrays have shape (n,): `spot_index` (int32, the plan's order within the layer), `x_um`, `y_um` (int32, isocentre plane,
    IEC gantry axes), `counts1`, `counts2` (int64, planned counts of the two monitors), `meterset` (float64, this painting's
    share in the beam's unit). `layer_index` is the plan's. `energy_mev_u` is the offered energy nearest to the plan's.
    """

    beam_number: int
    layer_index: int
    painting: int
    slice_index: int
    cycle_index: int
    ion: Ion
    energy_mev_u: float
    intensity_per_s: int
    quantum_counts: int
    scan_mode: ScanMode
    spot_index: NDArray[np.int32]
    x_um: NDArray[np.int32]
    y_um: NDArray[np.int32]
    counts1: NDArray[np.int64]
    counts2: NDArray[np.int64]
    meterset: NDArray[np.float64]
    ions: float  # estimated
    duration_s: float  # estimated, beam on and steps with the beam off

    @property
    def rows(self) -> int:
        """Number of spots."""
        return int(self.spot_index.size)

    @property
    def energy_kev_u(self) -> int:
        """Energy token on the wires."""
        return round(self.energy_mev_u * 1000.0)


@dataclass(frozen=True, eq=False)
class BeamSchedule:
    """All passes of a beam, in the order of delivery."""

    beam_number: int
    passes: tuple[Pass, ...]
    cycles: int
    duration_s: float  # estimated: passes, energy steps and refills

    @cached_property
    def counts1(self) -> int:
        """Planned counts of monitor 1, whole beam."""
        return sum(int(p.counts1.sum()) for p in self.passes)

    @cached_property
    def counts2(self) -> int:
        """Planned counts of monitor 2, whole beam."""
        return sum(int(p.counts2.sum()) for p in self.passes)

    @cached_property
    def ions(self) -> float:
        """Estimated number of ions, whole beam."""
        return sum(p.ions for p in self.passes)


@dataclass(slots=True)
class _Cycle:
    """What is left of the present synchrotron cycle."""

    index: int
    ions: float
    seconds: float
    energy_mev_u: float


@dataclass(frozen=True, slots=True)
class _Painting:
    """One painting of a layer before it is cut: rows in the order of delivery."""

    layer: Layer
    painting: int
    energy_mev_u: float
    rate: Rate
    scan_mode: ScanMode
    rows: NDArray[np.int64]
    counts1: NDArray[np.int64]
    counts2: NDArray[np.int64]
    ions: NDArray[np.float64]
    seconds: NDArray[np.float64]


def schedule(beam: Beam, facility: Facility, room: Room, library: LibraryView, gate_s: float | None = None) -> BeamSchedule:
    """Passes and cycles of one beam.

    Args:
        beam: a beam that `deliverability.check` accepted.
        facility: for species, cycles, cut-off time.
        room: for the nozzle's scan speeds.
        library: the beam library.
        gate_s: length of a breathing gate: the paintings of a layer together then take at least this long, if intensity allows
            (phase-controlled rescanning).

    Raises:
        PlanError: the beam cannot be scheduled (code 6301); `check` gives the reasons.
        CommandRejected: the library has no released row.
    """
    offer = facility.accelerator.offer(beam.ion.symbol)
    if offer is None:
        raise PlanError(
            f"beam {beam.number}: species {beam.ion.symbol} is not offered", code=Why.SCHEDULE, hint="check the plan"
        )
    paintings = _paintings(beam, facility, room, library, offer, gate_s)
    passes: list[Pass] = []
    cycle: _Cycle | None = None
    overhead_s = 0.0
    for painting in paintings:
        cycle, spent_s = _cut(beam, painting, facility.accelerator, offer, cycle, passes)
        overhead_s += spent_s
    duration_s = overhead_s + sum(p.duration_s for p in passes)
    return BeamSchedule(beam.number, tuple(passes), cycle.index + 1 if cycle is not None else 0, duration_s)


def planned_counts(
    beam: Beam, facility: Facility, room: Room, library: LibraryView
) -> list[tuple[NDArray[np.int64], Conversion]]:
    """Counts of monitor 1 per spot, over all paintings, and the conversion, for each layer in the plan's order.

    Rounded cumulatively over the whole beam: each partial sum is right to half a count.
    """
    conversions = []
    for layer in beam.layers:
        energy = _offered(facility, beam.ion, layer.energy_mev_u)
        conversions.append(Conversion.of(library, beam.ion, energy, beam.meterset_unit, room.name))
    exact = np.concatenate(
        [la.meterset * c.counts1_per_unit for la, c in zip(beam.layers, conversions, strict=True)] or [np.empty(0)]
    )
    whole = np.rint(np.cumsum(exact)).astype(np.int64)
    counts = np.diff(whole, prepend=np.int64(0))
    counts[exact == 0.0] = 0
    ends = np.cumsum([layer.spots for layer in beam.layers])
    return list(zip(np.split(counts, ends[:-1]), conversions, strict=True))


def share(counts: NDArray[np.int64], painting: int, paintings: int) -> NDArray[np.int64]:
    """Counts of one painting of each spot: differ by at most one between paintings, and sum to the spot exactly.

    Remainders are dealt out to the paintings in turn, from spot to spot: their totals differ by at most one as well.
    """
    if paintings == 1:
        return counts
    remainder = counts % paintings
    first = (np.cumsum(remainder) - remainder) % paintings
    extra = (painting - first) % paintings < remainder
    return counts // paintings + extra


def _offered(facility: Facility, ion: Ion, energy_mev_u: float) -> float:
    offer = facility.accelerator.offer(ion.symbol)
    return offer.nearest_energy_mev_u(energy_mev_u) if offer is not None else energy_mev_u


def _paintings(
    beam: Beam, facility: Facility, room: Room, library: LibraryView, offer: SpeciesOffer, gate_s: float | None
) -> list[_Painting]:
    """All paintings in the order of delivery, with intensity and scan mode."""
    planned = planned_counts(beam, facility, room, library)
    result: list[_Painting] = []
    for index in np.argsort(-beam.energies_mev_u, kind="stable"):
        layer, (counts, conversion) = beam.layers[index], planned[index]
        rows = np.flatnonzero(counts)
        if rows.size == 0:
            continue
        rows = rows[delivery_order(layer.x_mm[rows], layer.y_mm[rows], room.nozzle, free=layer.reordering_allowed)]
        shares = [share(counts, k, layer.paintings)[rows] for k in range(layer.paintings)]
        smallest = min(int(s.min()) for s in shares)
        slowest = float(counts.sum()) / conversion.counts1_per_ion / gate_s if gate_s else np.inf
        rate = rate_for(smallest, conversion, offer, facility.accelerator, slowest)
        if rate is None:
            raise PlanError(
                f"beam {beam.number}, layer {layer.index}: the smallest spot of {smallest} counts cannot be cut off within 2 %",
                code=Why.SCHEDULE,
                hint="check the plan",
            )
        energy = offer.nearest_energy_mev_u(layer.energy_mev_u)
        for k, counts1 in enumerate(shares):
            # Another painting of a free layer runs back the way it came.
            turn = slice(None, None, -1) if layer.reordering_allowed and k % 2 else slice(None)
            here, counts_here = rows[turn], counts1[turn]
            off_s, mode = steps(layer.x_mm[here], layer.y_mm[here], room.nozzle, facility.accelerator.cutoff_us * 1e-6)
            ions = counts_here / conversion.counts1_per_ion
            counts2 = np.diff(
                np.rint(np.cumsum(counts_here * conversion.counts2_per_count1)).astype(np.int64), prepend=np.int64(0)
            )
            result.append(
                _Painting(layer, k, energy, rate, mode, here, counts_here, counts2, ions, ions / rate.intensity_per_s + off_s)
            )
    return result


def _cut(
    beam: Beam, painting: _Painting, accelerator: Accelerator, offer: SpeciesOffer, cycle: _Cycle | None, passes: list[Pass]
) -> tuple[_Cycle, float]:
    """Cut a painting into passes that fit grants and cycles; returns its last cycle and the seconds of steps and refills."""
    ions_full, seconds_full = CYCLE_FILL * offer.ions_per_cycle, CYCLE_FILL * accelerator.flattop_max_s
    ions_sum, seconds_sum = np.cumsum(painting.ions), np.cumsum(painting.seconds)
    start, slice_index, n = 0, 0, painting.rows.size
    overhead_s = 0.0
    while start < n:
        ions_before = float(ions_sum[start - 1]) if start else 0.0
        seconds_before = float(seconds_sum[start - 1]) if start else 0.0
        if cycle is not None:
            down = cycle.energy_mev_u - painting.energy_mev_u
            step_s = accelerator.energy_step_s + accelerator.energy_step_per_mev_u_s * down if down > 0.0 else 0.0
            cycle.seconds -= step_s
            if _worth(cycle, ions_full, seconds_full, ions_sum[-1] - ions_before, seconds_sum[-1] - seconds_before):
                cycle.energy_mev_u = painting.energy_mev_u
                overhead_s += step_s
            else:
                cycle = _Cycle(cycle.index + 1, ions_full, seconds_full, painting.energy_mev_u)
                overhead_s += accelerator.cycle_s
        else:
            cycle = _Cycle(0, ions_full, seconds_full, painting.energy_mev_u)
            overhead_s += accelerator.cycle_s
        fits = min(
            int(np.searchsorted(ions_sum, ions_before + cycle.ions, side="right")),
            int(np.searchsorted(seconds_sum, seconds_before + cycle.seconds, side="right")),
        )
        # A single spot larger than a cycle still goes: the unit holds through refills.
        stop = min(max(fits, start + 1), start + ROWS_MAX, n)
        made = _pass(beam, painting, slice(start, stop), slice_index, cycle.index)
        passes.append(made)
        cycle.ions -= made.ions
        cycle.seconds -= made.duration_s
        start, slice_index = stop, slice_index + 1
    if cycle is None:  # a painting has at least one row
        raise PlanError(f"beam {beam.number}: an empty painting was scheduled", code=Why.SCHEDULE)
    return cycle, overhead_s


def _worth(cycle: _Cycle, ions_full: float, seconds_full: float, ions_wanted: float, seconds_wanted: float) -> bool:
    """Whether to go on in this cycle: all of the rest fits, or a good part of the cycle is left to fill."""
    ions_share, seconds_share = cycle.ions / ions_full, cycle.seconds / seconds_full
    return (ions_wanted <= cycle.ions and seconds_wanted <= cycle.seconds) or min(ions_share, seconds_share) > SPLIT_WORTH


def _pass(beam: Beam, painting: _Painting, part: slice, slice_index: int, cycle_index: int) -> Pass:
    layer, rows = painting.layer, painting.rows[part]
    return Pass(
        beam_number=beam.number,
        layer_index=layer.index,
        painting=painting.painting,
        slice_index=slice_index,
        cycle_index=cycle_index,
        ion=beam.ion,
        energy_mev_u=painting.energy_mev_u,
        intensity_per_s=painting.rate.intensity_per_s,
        quantum_counts=painting.rate.quantum_counts,
        scan_mode=painting.scan_mode,
        spot_index=rows.astype(np.int32),
        x_um=np.rint(layer.x_mm[rows] * 1000.0).astype(np.int32),
        y_um=np.rint(layer.y_mm[rows] * 1000.0).astype(np.int32),
        counts1=painting.counts1[part],
        counts2=painting.counts2[part],
        meterset=layer.meterset[rows] / layer.paintings,
        ions=float(painting.ions[part].sum()),
        duration_s=float(painting.seconds[part].sum()),
    )
