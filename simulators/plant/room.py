"""One treatment room of the plant: its moving parts, its access, its safety chain, and how they are wired to each other.

Wiring: door, search and E-stop lines, standstill and torque-off of ring, couch and nozzle, and the collision contact go into
chain A; the E-stop loop and that contact take the torque of ring and couch away; the motion relay of a room that has an
interlock system stops both (SS1) and keeps their torque off; a room that is not secured limits the ring's speed. The beam
side (`magnets`, `scanner`, `unit`, `unit2`) and the route are set by the facility, which also drives the dose and quench
elements of the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulators.plant.access import Access
from simulators.plant.couch import Couch
from simulators.plant.fixed_port import FixedPort
from simulators.plant.gantry import GantryRing
from simulators.plant.kernel import Kernel, Line
from simulators.plant.motion_truth import RoomMotionTruth
from simulators.plant.nozzle import Nozzle
from simulators.plant.patient import Patient
from simulators.plant.safety_chain import SafetyChain
from simulators.plant.services import RoomServices


def _no_route() -> str:
    return "none"


def _no_species() -> int:
    return 0


class RoomPlant:
    """A room.

    Args:
        kernel: plant time, randomness, truth events.
        truth: what moves and guards it.
        interlocked: it has an interlock system, so a motion relay: de-energised, nothing moves. Without one there is no relay.

    Attributes:
        name, kind: of the room; kind is ``"gantry"`` or ``"fixed"``.
        gantry: the ring, or the fixed ports with the same readable side.
        couch, nozzle, access, chain, patient, services: see their modules.
        magnets, scanner, unit, unit2: the beam side; None until the facility sets them.
        measured_species: asks the accelerator's measurement for the species token; set by the facility.
    """

    def __init__(self, kernel: Kernel, truth: RoomMotionTruth, *, interlocked: bool = False) -> None:
        self.kernel = kernel
        self.truth = truth
        self.name = truth.name
        self.kind = truth.kind
        self._route: Callable[[], str] = _no_route
        self.measured_species: Callable[[], int] = _no_species
        self.magnets: Any = None
        self.scanner: Any = None
        self.unit: Any = None
        self.unit2: Any = None
        self.chain = SafetyChain(kernel, self.name, truth.chain)
        self.access = Access(kernel, self.name, truth.access)
        self.services = RoomServices(kernel, self.name)
        self.couch = Couch(kernel, self.name, truth.couch)
        self.nozzle = Nozzle(kernel, self.name, truth.nozzle)
        self.patient = Patient(kernel, self.name, truth.patient, self.couch)
        self.gantry: GantryRing | FixedPort
        if truth.gantry is not None:
            self.gantry = GantryRing(kernel, self.name, truth.gantry)
        else:
            self.gantry = FixedPort(kernel, self.name, truth.ports_deg)
        self._wire()
        if interlocked:
            _join((self.chain.motion_permit,), self.gantry.may_move)
            _join((self.chain.motion_permit,), self.couch.may_move)

    @property
    def route(self) -> Callable[[], str]:
        """Asks the switchyard for the open route; assigned by the facility."""
        return self._route

    @route.setter
    def route(self, route: Callable[[], str]) -> None:
        self._route = route
        if isinstance(self.gantry, FixedPort):
            self.gantry.route = route

    @property
    def route_open(self) -> bool:
        """Whether the beam line leads to this room."""
        return self._route().partition(":")[0] == self.name

    @property
    def stopper_closed(self) -> bool:
        """No way for beam: the path leads elsewhere, or the end switch of the room's stopper says that it is in."""
        return not self.route_open or self.chain.beam_off.stopper.inside

    @property
    def beam_present(self) -> bool:
        """Whether the room's unit takes beam now."""
        return self.unit is not None and bool(self.unit.delivering)

    def _wire(self) -> None:
        chain, access = self.chain, self.access
        for source, element in (
            (access.estop_ok, chain.estop_ok),
            (access.door_ok, chain.door_ok),
            (access.search_ok, chain.search_ok),
            (self.services.collision, chain.collision_ok),
        ):
            _join((source,), element)
        _join((self.gantry.standstill, self.couch.standstill, self.nozzle.settled), chain.standstill_ok)
        _join((self.gantry.torque_off, self.couch.torque_off), chain.torque_off_ok)
        _join((access.estop_ok, self.services.collision), self.gantry.sto)
        _join((access.estop_ok, self.services.collision), self.couch.sto)
        self.gantry.set_sls(not access.clear.value)
        access.clear.watch(lambda _t, clear: self.gantry.set_sls(not clear))


def _join(sources: tuple[Line, ...], target: Line) -> None:
    """Contacts in series: the target is closed while all sources are."""

    def follow(_t_ns: int = 0, _value: bool = False) -> None:
        target.set(all(source.value for source in sources))

    for source in sources:
        source.watch(follow)
    follow()
