"""What a room process stands on: one room, its world and devices, the facility's state. Values and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controller.beam.sharing import BeamSupervisor
from controller.endpoints import Whereabouts
from controller.room.machine import Room
from controller.surroundings import ServedSurroundings
from drivers.hal.capabilities import RoomDevices
from drivers.hal.events import EventBus
from drivers.hal.facility import Facility
from drivers.hal.facility import Room as RoomBelief


@dataclass(slots=True, eq=False)
class Ground:
    """One room.

    Attributes:
        facility: with its devices where they answer; `called` is its shipped name or file.
        belief: the facility file's view of the room; `machine` the room's state, for the life of the process.
        state: the facility's directory (plans, treatments, ledger, audit).
        where, endpoints: the room on real wires; None: a simulated world in this process.
        seed: of that world.
        speed: seconds of the room per second of a wall clock.
        virtual: no wall clock runs beside the room: nothing may be left to another process.
        limits_unsigned: why the interlock limits of a simulated room are not the signed ones; empty: they are.
    """

    facility: Facility
    called: str
    belief: RoomBelief
    world: ServedSurroundings
    devices: RoomDevices
    machine: Room
    supervisor: BeamSupervisor
    bus: EventBus
    state: Path
    boot_id: int
    where: Whereabouts | None = None
    endpoints: Path | None = None
    seed: int = 0
    speed: float = 1.0
    virtual: bool = False
    limits_unsigned: str = ""

    @property
    def room(self) -> str:
        """Its name."""
        return self.belief.name

    @property
    def simulated(self) -> bool:
        """Whether anything of it is."""
        return self.where is None or self.where.simulated

    @property
    def real(self) -> tuple[str, ...]:
        """Devices that no simulator answers for."""
        return self.where.real if self.where is not None else ()

    @property
    def treatments(self) -> Path:
        """Where the outputs of treatments are."""
        return self.state / "treatments"
