"""Source, linac and synchrotron with extended flattop and RF-KO extraction.

A cycle dumps the ring, injects, accelerates to a flattop and holds it; energies only step down within a cycle. A fill
has a finite, drawn number of ions; when it is used up while a unit wants beam the ring refills by itself to the same
energy (new spill number). Times and numbers come from the plant's truth. The unit in a room does the extracting; this
object knows what is stored and what is measured.

Not responsible for where the beam goes (`switchyard`) nor for the beam's permission (chain, delivery unit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from simulators.physics.noise import Ripple, draw_ripple
from simulators.physics.rigidity import NUCLEI, nucleus
from simulators.plant.kernel import Kernel, Timer
from simulators.plant.machine_log import REFILL, Machine, MachineLog, Operation
from simulators.plant.truth import AcceleratorTruth, SpeciesTruth

NAME = "accelerator"
SETTLED_WITHIN_REL = 5e-4  # rigidity and radio frequency agree with the set-point this well when the energy is called right
CUTOFF_US = 200.0  # RF-KO is off after this at the latest: the unit's cut-off time (design figure)
UNCONFIRMED_US = 500.0  # beam still there this long after "off": the next element fires (design figure)
NEVER_US = 1e7  # neither RF-KO nor chopper takes the beam away: longer than anything else leaves it there
DRY_BELOW_IONS = 100.0  # nothing more is extracted from a fill this small


class RingState(IntEnum):
    """State of the ring, as on the wire."""

    OFF = 0
    INJECTING = 1
    ACCELERATING = 2
    FLATTOP = 3
    STEPPING = 4
    EMPTY = 5
    FAULT = 6


class RingFault(IntEnum):
    """Fault codes."""

    NONE = 0
    STEP_UP = 1  # energies only step down within a cycle
    SPECIES = 2  # unknown, not available or still switching
    ENERGY = 3  # outside the range of the species
    TRIPPED = 4  # made to fail


@dataclass(slots=True)
class RingFaults:
    """Faults to plant. None, 0 and False mean healthy.

    Attributes:
        early_end: fraction of each fill that can really be extracted.
        no_spill: extraction gives nothing.
        spike_factor: intensity of one burst in the next stretch of beam; cleared when used.
        spike_after_s, spike_length_s: where the burst lies in that stretch.
        intensity_factor: every spill's intensity is off by this factor.
        energy_offset_mev_u: next flattops are off by this; the measurement tells.
        wrong_species_token: the source gives another ion; the measurement tells unless `species_reading_lies`.
        species_reading_lies: source and stripper read-backs show what was asked.
        rfko_stuck_on: extraction does not stop when told; only the chopper takes the beam away.
        chopper_extra_us: the chopper needs that much longer.
        chopper_stuck: the chopper does not fire.
        chopper_reading_lies: its read-back says that it fired.
    """

    early_end: float = 1.0
    no_spill: bool = False
    spike_factor: float = 0.0
    spike_after_s: float = 0.05
    spike_length_s: float = 0.02
    intensity_factor: float = 1.0
    energy_offset_mev_u: float = 0.0
    wrong_species_token: int = 0
    species_reading_lies: bool = False
    rfko_stuck_on: bool = False
    chopper_extra_us: float = 0.0
    chopper_stuck: bool = False
    chopper_reading_lies: bool = False


@dataclass(frozen=True, slots=True)
class RingStatus:
    """What the accelerator shows of itself."""

    state: RingState
    energy_kev_u: int  # measured; 0 while not settled
    spill: int
    species_token: int  # measured; 0 while switching
    settled: bool
    ions_left: float
    fault: RingFault


class Synchrotron:
    """The accelerator of the facility.

    Attributes:
        state, spill, fault: as shown.
        true_energy_mev_u: 0 when nothing circulates.
        true_species: token of the ions that the source really gives.
        faults: see `RingFaults`.
    """

    def __init__(self, kernel: Kernel, truth: AcceleratorTruth, log: MachineLog) -> None:
        self.truth = truth
        self.state = RingState.OFF
        self.spill = 0
        self.fault = RingFault.NONE
        self.true_energy_mev_u = 0.0
        self.faults = RingFaults()
        self._kernel = kernel
        self._log = log
        self._offers: dict[int, SpeciesTruth] = {offer.token: offer for offer in truth.species}
        self._selected = truth.initial_species
        self._switching: Timer | None = None
        self._timer: Timer | None = None
        self._flattop_end: Timer | None = None
        self._operation: Operation | None = None
        self._asked_kev_u = 0
        self._filled_ions = 0.0
        self._stored_ions = 0.0
        self._in_flight: Callable[[], float] = lambda: 0.0
        self._wanting: set[str] = set()
        self._inhibited: set[str] = set()
        self._watchers: list[Callable[[], None]] = []
        self._cycles = 0
        self._switches = 0

    # --- what is seen -------------------------------------------------------------------------------------------

    @property
    def true_species(self) -> int:
        """Token of the ions that are really given."""
        return self.faults.wrong_species_token or self._selected

    @property
    def measured_species(self) -> int:
        """Token as linac and stripper show it; 0 while switching."""
        if self._switching is not None:
            return 0
        return self._selected if self.faults.species_reading_lies else self.true_species

    @property
    def settled(self) -> bool:
        """Whether a flattop stands."""
        return self.state is RingState.FLATTOP

    @property
    def measured_kev_u(self) -> int:
        """Energy token by rigidity and radio frequency: the set-point where they agree with it, else theirs; 0 unsettled."""
        if not self.settled:
            return 0
        if abs(self.true_energy_mev_u * 1000.0 / self._asked_kev_u - 1.0) < SETTLED_WITHIN_REL:
            return self._asked_kev_u
        return round(self.true_energy_mev_u * 1000.0)

    @property
    def ions_left(self) -> float:
        """Ions still stored, those in flight of a running extraction deducted."""
        return max(self._stored_ions - self._in_flight(), 0.0)

    @property
    def available_ions(self) -> float:
        """Ions that extraction can still get out."""
        return max(self._stored_ions - self._filled_ions * (1.0 - self.faults.early_end), 0.0)

    def status(self) -> RingStatus:
        """Everything shown, at once."""
        return RingStatus(
            self.state, self.measured_kev_u, self.spill, self.measured_species, self.settled, self.ions_left, self.fault
        )

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call on every change of state."""
        self._watchers.append(watcher)

    # --- commands -----------------------------------------------------------------------------------------------

    def select_species(self, token: int) -> None:
        """Retune source and linac; the ring is dumped. An ion that the source lacks is refused with a fault code."""
        if token == self._selected and self.fault is not RingFault.SPECIES:
            return
        if token not in self._offers or token not in NUCLEI:
            self._refuse(RingFault.SPECIES)
            return
        self.fault = RingFault.NONE
        if token == self._selected:
            self._tell()
            return
        if self._switching is not None:
            self._switching.cancel()
        self._dump(RingState.OFF)
        self._selected = token
        self._switches += 1
        low, high = self.truth.species_switch_s
        delay_ns = round(self._kernel.rng(NAME, "species", self._switches).uniform(low, high) * 1e9)
        self._log.add(Operation(Machine.SOURCE, "species", self._kernel.now_ns, self._kernel.now_ns + delay_ns))
        self._switching = self._kernel.after(delay_ns, self._switched)
        self._tell()

    def start_cycle(self, kev_u: int) -> None:
        """Dump, inject, accelerate to a flattop; a refusal shows as a fault code and leaves the ring as it is."""
        if self._inhibited:
            self._refuse(RingFault.TRIPPED)
        elif self._switching is not None:
            self._refuse(RingFault.SPECIES)
        elif self._in_range(kev_u):
            self.fault = RingFault.NONE
            self._asked_kev_u = kev_u
            self._fill(commanded=True)
        else:
            self._refuse(RingFault.ENERGY)

    def step_to(self, kev_u: int) -> None:
        """Step down on the flattop. An empty ring fills at the new energy instead; a step up is refused."""
        if not self._in_range(kev_u):
            self._refuse(RingFault.ENERGY)
        elif kev_u == self._asked_kev_u and self.state in (RingState.FLATTOP, RingState.STEPPING):
            self.fault = RingFault.NONE
            self._tell()
        elif self.state is RingState.EMPTY:
            self.start_cycle(kev_u)
        elif self.state not in (RingState.FLATTOP, RingState.STEPPING) or kev_u > self._asked_kev_u:
            self._refuse(RingFault.STEP_UP)
        else:
            self.fault = RingFault.NONE
            step_mev_u = (self._asked_kev_u - kev_u) / 1000.0
            self._asked_kev_u = kev_u
            self.state = RingState.STEPPING
            self._begin("step", self.truth.energy_step_s + self.truth.energy_step_per_mev_u_s * step_mev_u, self._at_flattop)
            self._tell()

    def off(self) -> None:
        """Dump the ring; clears a fault."""
        self.fault = RingFault.NONE
        self._dump(RingState.OFF)
        self._tell()

    def trip(self) -> None:
        """Fail: the ring is dumped and stays in FAULT until switched off."""
        self.fault = RingFault.TRIPPED
        self._dump(RingState.FAULT)
        self._tell()

    def dump(self, fault: bool) -> None:
        """Dumped by a safety chain: as if switched off, or with `fault` in FAULT until it is switched off."""
        if fault:
            self.trip()
            return
        self._dump(RingState.OFF)
        self._tell()

    def inhibit_source(self, room: str, inhibited: bool) -> None:
        """A room's safety chain keeps the source from giving another fill, or no longer does."""
        (self._inhibited.add if inhibited else self._inhibited.discard)(room)

    # --- for the units in the rooms -----------------------------------------------------------------------------

    def want_beam(self, unit: str, wanted: bool) -> None:
        """A unit with an open, started grant wants beam: an empty ring refills by itself."""
        (self._wanting.add if wanted else self._wanting.discard)(unit)
        if wanted and self.state is RingState.EMPTY:
            self._fill(commanded=False)

    def begin_extraction(
        self, intensity_per_s: int, stretch: tuple[int, ...], in_flight: Callable[[], float]
    ) -> tuple[float, Ripple]:
        """Set the extraction; returns the true mean intensity (ions/s) and its ripple from now.

        Args:
            intensity_per_s: asked of the RF-KO.
            stretch: keys of the random draws of this stretch of beam.
            in_flight: ions already taken in the running stretch, for the current transformer.
        """
        extraction, faults = self.truth.extraction, self.faults
        error = float(np.clip(self._kernel.rng(NAME, "intensity", self.spill).standard_normal(), -3.0, 3.0))
        mean = (
            0.0
            if faults.no_spill
            else intensity_per_s * faults.intensity_factor * (1.0 + extraction.intensity_error_rel * error)
        )
        ripple = draw_ripple(self._kernel.rng(NAME, "ripple", *stretch), extraction.ripple_rms, extraction.ripple_hz)
        if faults.spike_factor > 0.0:
            ripple = Ripple(
                ripple.amplitude,
                ripple.omega_rad_s,
                ripple.phase_rad,
                faults.spike_after_s,
                faults.spike_length_s,
                faults.spike_factor,
            )
            faults.spike_factor = 0.0
        self._in_flight = in_flight
        return mean, ripple

    def row_off_us(self) -> tuple[float, float]:
        """Decision to last ion when a row ends, mean and longest; a chopper fires when beam is still there after 500 us."""
        extraction, faults = self.truth.extraction, self.faults
        if not faults.rfko_stuck_on:
            return extraction.off_us, CUTOFF_US
        if faults.chopper_stuck:
            return NEVER_US, NEVER_US
        chopped_us = UNCONFIRMED_US + extraction.chopper_us + faults.chopper_extra_us
        return chopped_us, chopped_us

    @property
    def uncut(self) -> bool:
        """Whether neither RF-KO nor chopper takes the beam away."""
        return self.faults.rfko_stuck_on and self.faults.chopper_stuck

    def cutoff_ns(self) -> int:
        """Decision to last ion when beam must go off: RF-KO and chopper together, the first that works; seconds if none."""
        extraction, faults = self.truth.extraction, self.faults
        chopper_us = NEVER_US if faults.chopper_stuck else extraction.chopper_us + faults.chopper_extra_us
        return round(1e3 * (chopper_us if faults.rfko_stuck_on else min(extraction.off_us, chopper_us)))

    def end_extraction(self, ions: float) -> None:
        """Account for what was taken; an emptied ring says so, and refills when beam is wanted."""
        self._in_flight = lambda: 0.0
        self._stored_ions = max(self._stored_ions - ions, 0.0)
        if self.available_ions < DRY_BELOW_IONS and self.state is RingState.FLATTOP:
            self._run_dry()

    # --- inside -------------------------------------------------------------------------------------------------

    def _in_range(self, kev_u: int) -> bool:
        offer = self._offers[self._selected]
        return offer.energy_min_mev_u * 1000.0 <= kev_u <= offer.energy_max_mev_u * 1000.0

    def _refuse(self, fault: RingFault) -> None:
        if self.state is not RingState.FAULT:
            self.fault = fault
        self._tell()

    def _begin(self, kind: str, duration_s: float, then: Callable[[int], None]) -> None:
        self._stop_timers(keep_flattop=kind == "step")
        now = self._kernel.now_ns
        self._operation = self._log.add(Operation(Machine.RING, kind, now, now + round(duration_s * 1e9)))
        self._timer = self._kernel.at(self._operation.end_ns, then)

    def _stop_timers(self, keep_flattop: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._operation is not None:
            self._operation.end_ns = min(self._operation.end_ns, self._kernel.now_ns)
            self._operation = None
        if self._flattop_end is not None and not keep_flattop:
            self._flattop_end.cancel()
            self._flattop_end = None

    def _dump(self, state: RingState) -> None:
        self._stop_timers()
        had_beam = self.true_energy_mev_u > 0.0
        self.state = state
        self._stored_ions = 0.0
        self.true_energy_mev_u = 0.0
        if had_beam:
            self._kernel.emit(NAME, "spill.end", spill=self.spill, state=int(state))

    def _fill(self, commanded: bool) -> None:
        if self._inhibited:
            self.trip()
            return
        self._dump(RingState.INJECTING)
        self._cycles += 1
        self.spill += 1
        self._begin("cycle" if commanded else REFILL, self.truth.inject_s, self._injected)
        self._tell()

    def _injected(self, _t_ns: int) -> None:
        offer = self._offers[self._selected]
        draw = self._kernel.rng(NAME, "ions", self._cycles).standard_normal()
        self._filled_ions = offer.ions_per_cycle * float(np.clip(1.0 + offer.ions_spread_rel * draw, 0.5, 1.5))
        self._stored_ions = self._filled_ions
        self.state = RingState.ACCELERATING
        rise_tm = nucleus(self._selected).rigidity_tm(self._asked_kev_u / 1000.0) - self.truth.injection_rigidity_tm
        kind = self._operation.kind if self._operation is not None else "cycle"
        self._begin(kind, rise_tm / self.truth.accelerate_tm_s + self.truth.settle_s, self._at_flattop)
        self._tell()

    def _at_flattop(self, _t_ns: int) -> None:
        self._timer = None
        self._operation = None
        stepped = self.state is RingState.STEPPING
        self.state = RingState.FLATTOP
        draw = self._kernel.rng(NAME, "energy", self._cycles, self._asked_kev_u).standard_normal()
        true = self._asked_kev_u / 1000.0 * (1.0 + self.truth.energy_error_rel * float(np.clip(draw, -4.0, 4.0)))
        self.true_energy_mev_u = true + self.faults.energy_offset_mev_u
        if not stepped:
            self._flattop_end = self._kernel.after(round(self.truth.flattop_max_s * 1e9), self._expired)
            self._kernel.emit(
                NAME, "spill.start", spill=self.spill, energy_mev_u=self.true_energy_mev_u, ions=self._stored_ions
            )
        self._tell()

    def _expired(self, _t_ns: int) -> None:
        self._flattop_end = None
        self._run_dry()

    def _run_dry(self) -> None:
        """Nothing more comes out of this fill: used up, or the flattop has lasted as long as it may."""
        self._dump(RingState.EMPTY)
        self._tell()
        if self._wanting and self.state is RingState.EMPTY:
            self._fill(commanded=False)

    def _switched(self, _t_ns: int) -> None:
        self._switching = None
        self._kernel.emit(NAME, "species", token=self.true_species)
        self._tell()

    def _tell(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()
