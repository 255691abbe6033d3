"""What stands around the controller of a room while it treats: a simulated world in this process, or a room on real wires.

`treatment` knows this contract and not which of them it is. Not responsible for either (`assembly`, `attached`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

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


class Bodies(Protocol):
    """People beside the console: what only a body in the plant can do.

    In a simulated plant its staff; where a room is real, people, whom the program only waits for.
    """

    async def attend(self, kind: str) -> None:
        """Do what follows when the console has said yes to a question; see `simulators.staff.Staff.attend`.

        Raises BeamlineError: it could not be done.
        """
        ...

    async def turn_key(self, service: bool) -> None:
        """Turn the mode key. Raises CommandRejected where a person has to."""
        ...

    async def press(self, role: str) -> None:
        """Press and release the reset button of the interlock system of a role (``key``: turn the reset key).

        Raises CommandRejected where a person has to, or nobody can.
        """
        ...


class Unheard(str):
    """Why it is not known what stands, in words: the interlock system was asked, and does not answer."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class InterlockRow:
    """What a console has to know of a row of the interlock matrix.

    Attributes:
        reset_role: who resets what latched on a value; ``key``: a person at the key switch.
        invalid_reset_role: who resets what latched on missing or stale inputs alone.
        longest_bypass_s: of one bypass, s.
    """

    id: str
    code: int
    what: str
    advice: str
    latches: bool
    reset_role: str
    invalid_reset_role: str
    bypassable: bool
    longest_bypass_s: float


@dataclass(frozen=True, slots=True)
class StandingRow:
    """A row of the interlock matrix that is active or latched, in the interlock system's own words.

    Attributes:
        first_out: False: it followed from another.
        cause: what happened, the inputs with their values (and whether they were not believed), and the limit, in one line.
        shown_input: index of the input that shows it; 0x8000 added: not believed; 0xFFFF: none (docs/wires.md, node 2).
        since_ns: of its trip, in the room's time.
        resettable_by: the role whose reset would clear it now; empty: nobody's would.
    """

    id: str
    code: int
    first_out: bool
    cause: str
    advice: str
    shown_input: int
    since_ns: int
    latched: bool
    resettable_by: str


@dataclass(frozen=True, slots=True)
class StandingBypass:
    """A bypass that the interlock system holds, until `until_ns` in the room's time."""

    id: str
    owner: str
    approver: str
    reason: str
    until_ns: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything that stands in the interlock system, as it told.

    Attributes:
        t_ns: when it was asked, in the room's time.
        boot_id: of its start, as on the status line.
        rows: the first-out before what followed, in the order of their trips.
        withheld: ids of rows that keep the permit off without having tripped.
        proof_age_s: since the last proof test that passed; 0 where none is required; None: none since the start.
    """

    t_ns: int
    boot_id: int
    rows: tuple[StandingRow, ...]
    withheld: tuple[str, ...]
    bypasses: tuple[StandingBypass, ...]
    proof_age_s: int | None


class ServedSurroundings(Surroundings, Protocol):
    """A room that stands by for a console: many treatments in one world, and people who leave the deciding to the console."""

    @property
    def bodies(self) -> Bodies:
        """Who does what a console cannot."""
        ...

    @property
    def rows(self) -> Mapping[str, InterlockRow]:
        """The interlock matrix, by id."""
        ...

    def standing(self) -> Standing | str:
        """What stands in the interlock system, for display alone; where no more than the first-out is known: why, in words."""
        ...

    async def give_plan(self, plan: Path, sha256: str) -> None:
        """Let the interlock system hold grants against another plan, which it reads by itself. Raises CommandRejected."""
        ...

    async def take_plan_back(self) -> None:
        """No plan is treated any more."""
        ...

    async def bypass(self, interlock: str, owner: str, approver: str, duration_s: float, reason: str) -> None:
        """Hand a bypass that two persons agreed on to the interlock system. Raises CommandRejected with its reason."""
        ...

    async def end_bypass(self, interlock: str) -> None:
        """End a bypass early."""
        ...


@runtime_checkable
class Hearing(Protocol):
    """Surroundings whose interlock system is a process of its own: it may stand still, and what is sent to it then waits."""

    async def unheard(self) -> str:
        """Empty when the interlock system answers now; else why what is sent to it is not known to be heard, in words."""
        ...


@runtime_checkable
class Telling(Protocol):
    """Surroundings with somebody outside who listens: a broker."""

    def show(self, view: Callable[[], Mapping[str, Any]]) -> None:
        """What the room shows its consoles; asked for only where somebody listens."""
        ...


def served_surroundings(
    facility: Facility, where: Whereabouts | None, seed: int, bus: EventBus, room: str, staff: str = "real", life: int = 0
) -> ServedSurroundings:
    """The world of a room that stands by.

    Args:
        facility, where, seed, bus, room: see `surroundings`.
        staff: pace of the people of a world in this process.
        life: of that world's plant (`FacilityPlant.begin_life`); 0: the boot ids of the shipped plant, the same each time.
    """
    if where is None:
        from controller.assembly import SimulatedWorld

        return SimulatedWorld(facility, seed, bus, room, breathing=True, staff=staff, life=life)
    from controller.attached import AttachedRoom

    return AttachedRoom(where, bus, room, breathing=True, panel=True)


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
