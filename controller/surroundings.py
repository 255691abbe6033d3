"""What stands around the controller of a room while it treats: a simulated world in this process, or a room on real wires.

`treatment` knows this contract and not which of them it is. Not responsible for either (`assembly`, `attached`).
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from controller.endpoints import Whereabouts
    from controller.room.ports import OperatorPort
    from drivers.hal.capabilities import RoomDevices
    from drivers.hal.events import EventBus
    from drivers.hal.facility import Facility
    from drivers.wire.tap import Tap
    from simulators.faults import TimedFault
    from simulators.invariants import Prescription, RecordProbe

T = TypeVar("T")


class Surroundings(Protocol):
    """One room, its wires, whoever answers for people, and what a simulator can tell of itself."""

    @property
    def operator(self) -> OperatorPort:
        """Who answers the room's questions."""
        ...

    @property
    def operator_name(self) -> str:
        """Who that is, for the record."""
        ...

    def watch(self, prescription: Prescription, record: RecordProbe | None = None) -> object:
        """Judge what happens by the invariants, where there is a simulated plant."""
        ...

    async def start(self) -> None:
        """Open the wires. Raises BeamlineError when that cannot be."""
        ...

    def devices(self) -> RoomDevices:
        """The drivers of the room, not yet connected."""
        ...

    async def inject(self, faults: Iterable[TimedFault]) -> None:
        """Plant faults, each at its time. Raises BeamlineError where none can be planted."""
        ...

    async def until_violated(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`; a violated invariant ends it. Raises `assembly.InvariantViolated`."""
        ...

    async def machine_limited_s(self, beam_number: int) -> float | None:
        """What an oracle would have needed for a beam, s; None where nobody can say."""
        ...

    async def stop(self) -> None:
        """Take everything down; no task is left."""
        ...


def surroundings(
    facility: Facility,
    where: Whereabouts | None,
    seed: int,
    bus: EventBus,
    room: str,
    tap: Tap | None = None,
    plan: Path | None = None,
    *,
    commands: bool = True,
) -> Surroundings:
    """A room on real wires where `where` tells them; a simulated world in this process otherwise, given the plan.

    `commands`: False where a room is only looked at.
    """
    if where is None:
        from controller.assembly import SimulatedWorld

        return SimulatedWorld(facility, seed, bus, room, tap=tap, plan=plan)
    from controller.attached import AttachedRoom

    return AttachedRoom(where, bus, room, tap, commands=commands)
