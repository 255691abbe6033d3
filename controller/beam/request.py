"""What one pass of one layer asks of accelerator, magnets and delivery unit, and the proof that all three mean the same beam.

`choose` decides, purely, between staying, stepping down and a new cycle. `BeamRequest.prepare` then sets ring, magnets and map
at the same time, and returns only when every read-back carries the token of the pass: the same energy, species and route.

Not responsible for who has the beam (`sharing`), for grants (`controller.delivery`), nor for refills during a grant: an empty
ring refills by itself while a unit wants beam.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from controller.beam.library import BeamLibrary, LibraryEntry
from drivers.hal.capabilities import AcceleratorState, AcceleratorStatus, BeamSource, DeliveryUnit, PowerSupply
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommandRejected, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Accelerator, Room
from drivers.hal.ions import Ion

NO_ROUTE = "none"


class TokenMismatch(DeviceError):
    """Ring, magnets, map or switchyard mean another beam than the pass: 3301 energy, 3302 species, 3303 route."""


@dataclass(frozen=True, slots=True)
class BeamPass:
    """The beam of one painting of one layer.

    Attributes:
        ion, energy_mev_u: which beam.
        room, angle_deg: where to; the route follows from them.
        ions: how many the pass will take, for the decision to refill; 0 when unknown.
        duration_s: how long it will take, against the end of the flattop; 0 when unknown.
        new_cycle: True demands a fresh fill (the schedule grouped the layers so), False leaves it to `choose`.
        focus: focus id.
    """

    ion: Ion
    energy_mev_u: float
    room: str
    angle_deg: float
    ions: float = 0.0
    duration_s: float = 0.0
    new_cycle: bool = False
    focus: int = 1

    @property
    def energy_kev_u(self) -> int:
        """Energy token."""
        return round(self.energy_mev_u * 1000.0)


class Approach(Enum):
    """How the ring gets to the energy."""

    STAY = "stay"
    STEP = "step"
    CYCLE = "cycle"


@dataclass(frozen=True, slots=True)
class PreparedBeam:
    """Everything settled for a pass: library entry used, how the ring got there, its status, and how long it took."""

    request: BeamPass
    entry: LibraryEntry
    approach: Approach
    status: AcceleratorStatus
    took_ns: int


@runtime_checkable
class SettledSupply(PowerSupply, Protocol):
    """A supply that tells for which energy token it is settled."""

    @property
    def settled_kev_u(self) -> int: ...


@runtime_checkable
class RoutedSource(BeamSource, Protocol):
    """A source that tells which way the beam goes."""

    @property
    def route(self) -> str: ...


def route_of(room: Room, angle_deg: float) -> str:
    """Name of the beam path: ``"G1"`` for a gantry room, ``"F1:90"`` for a port.

    Raises:
        CommandRejected: the fixed room has no port at this angle (4311).
    """
    if room.kind == "gantry":
        return room.name
    for port in room.ports_deg:
        if abs(port - angle_deg) <= room.port_tolerance_deg:
            return f"{room.name}:{port:g}"
    ports = ", ".join(f"{p:g}" for p in room.ports_deg)
    raise CommandRejected(f"room {room.name} has no port at {angle_deg:g} deg", code=4311, hint=f"ports: {ports}")


def choose(status: AcceleratorStatus, wanted: BeamPass, flattop_left_s: float = float("inf")) -> Approach:
    """Stay, step down, or refill.

    A new cycle is needed for another species, an energy above the present one, a ring that does not stand on a flattop, fewer
    ions than the pass takes (when a fresh fill would hold more than is left), or a flattop that ends before the pass does.
    """
    on_flattop = status.state is AcceleratorState.FLATTOP and status.settled
    if wanted.new_cycle or not on_flattop or status.species_token != wanted.ion.token:
        return Approach.CYCLE
    if wanted.energy_kev_u > status.energy_kev_u or status.ions_left < wanted.ions or flattop_left_s < wanted.duration_s:
        return Approach.CYCLE
    return Approach.STAY if wanted.energy_kev_u == status.energy_kev_u else Approach.STEP


class BeamRequest:
    """Prepares the beam of one room.

    Args:
        accelerator, magnets, unit: the devices.
        library: released settings.
        room: the room's facts; its name and ports make the route.
        facts: the accelerator's facts: flattop length, what a fill holds.
        bus: event ``beam.prepared`` from ``beam.<room>``.
    """

    def __init__(
        self,
        accelerator: BeamSource,
        magnets: PowerSupply,
        unit: DeliveryUnit,
        library: BeamLibrary,
        room: Room,
        facts: Accelerator,
        bus: EventBus,
    ) -> None:
        self._accelerator = accelerator
        self._magnets = magnets
        self._unit = unit
        self._library = library
        self._room = room
        self._facts = facts
        self._bus = bus
        self._loaded: tuple[int, LibraryEntry] | None = None  # (unit boot id, entry whose map it holds)
        self._cycle_ns = 0
        self._spill = -1

    async def prepare(self, wanted: BeamPass) -> PreparedBeam:
        """Bring species, route, energy, magnets and map to a pass, at the same time; returns when all agree.

        Raises:
            NotReleased: the library has no released row for it.
            TokenMismatch: something settled at another energy, species or route.
            CommandRejected, DeviceError, CommunicationError: from the device that failed; the others are left as they are.
        """
        began_ns = now_ns()
        entry = self._library.lookup(wanted.ion, wanted.energy_mev_u, wanted.room, wanted.angle_deg, wanted.focus)
        route = route_of(self._room, wanted.angle_deg)
        approach = choose(self._accelerator.status, self._affordable(wanted), self._flattop_left_s(began_ns))
        await together(
            self._bring_ring(wanted, approach),
            self._accelerator.select_route(route),
            self._magnets.set_currents(entry.energy_kev_u, entry.dipole_a, entry.quadrupole_a),
            self._load(entry),
        )
        self.verify(wanted)
        status = self._accelerator.status
        self._flattop_left_s(now_ns())  # a new spill began just now
        self._bus.emit(
            f"beam.{wanted.room}",
            "beam.prepared",
            species=wanted.ion.symbol,
            energy_kev_u=entry.energy_kev_u,
            approach=approach.value,
            spill=status.spill,
            library_version=entry.library_version,
            took_ms=(now_ns() - began_ns) / 1e6,
        )
        return PreparedBeam(wanted, entry, approach, status, now_ns() - began_ns)

    def verify(self, wanted: BeamPass) -> None:
        """Compare the tokens of ring, magnets, map and route with a pass, without I/O. Raises TokenMismatch."""
        token, status = wanted.energy_kev_u, self._accelerator.status
        energies = {"the ring": status.energy_kev_u if status.settled else 0}
        if isinstance(self._magnets, SettledSupply):
            energies["the magnets"] = self._magnets.settled_kev_u
        energies["the unit's map"] = self._loaded[1].energy_kev_u if self._loaded is not None else 0
        wrong = [f"{who} {kev_u / 1000:g}" for who, kev_u in energies.items() if kev_u != token]
        if wrong:
            raise TokenMismatch(
                f"{wanted.room}: {token / 1000:g} MeV/u was asked, but in MeV/u: {', '.join(wrong)} (0: not settled)",
                code=3301,
                device="beam",
                hint="prepare the layer again; call physics when it stays",
                retryable=True,
            )
        if status.species_token != wanted.ion.token:
            raise TokenMismatch(
                f"{wanted.room}: {wanted.ion.symbol} was asked, the ring measures token {status.species_token}",
                code=3302,
                device="beam",
                hint="select the species again",
            )
        route = route_of(self._room, wanted.angle_deg)
        if isinstance(self._accelerator, RoutedSource) and self._accelerator.route != route:
            raise TokenMismatch(
                f"{wanted.room}: route {route} was asked, the switchyard says {self._accelerator.route or 'nothing'}",
                code=3303,
                device="beam",
                hint="select the route again",
            )

    async def close_route(self) -> None:
        """Close every beam path: the end of a room's turn."""
        await self._accelerator.select_route(NO_ROUTE)

    async def _bring_ring(self, wanted: BeamPass, approach: Approach) -> None:
        if self._accelerator.status.species_token != wanted.ion.token:
            await self._accelerator.select_species(wanted.ion)
        if approach is Approach.STEP:
            try:
                await self._accelerator.step_to(wanted.energy_mev_u)
            except (CommandRejected, DeviceError) as error:
                if self._accelerator.status.state is AcceleratorState.FAULT:
                    raise
                # The flattop ended between the decision and the step: what a refill is for.
                self._bus.emit(f"beam.{wanted.room}", "beam.step_failed", error=str(error))
                approach = Approach.CYCLE
        if approach is Approach.CYCLE:
            await self._accelerator.start_cycle(wanted.energy_mev_u)

    async def _load(self, entry: LibraryEntry) -> None:
        boot_id = self._unit.status.boot_id
        if self._loaded is not None and self._loaded[0] == boot_id and self._loaded[1] is entry:
            return
        self._loaded = None
        await self._unit.load_map(entry.scanner_map)
        self._loaded = (boot_id, entry)

    def _affordable(self, wanted: BeamPass) -> BeamPass:
        """A pass that takes more than a fill holds is refilled on its way: what is left in the ring is not thrown away."""
        offer = self._facts.offer(wanted.ion.symbol)
        if offer is None or wanted.ions < offer.ions_per_cycle:
            return wanted
        return replace(wanted, ions=1.0, duration_s=0.0)

    def _flattop_left_s(self, t_ns: int) -> float:
        """How much of the flattop is left, as far as we saw it begin."""
        spill = self._accelerator.status.spill
        if spill != self._spill:
            self._spill, self._cycle_ns = spill, t_ns
        return self._facts.flattop_max_s - (t_ns - self._cycle_ns) / NS_PER_S


async def together(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run jobs at the same time; the first failure cancels the others and is raised as itself, never as a group."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
