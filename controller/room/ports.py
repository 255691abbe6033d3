"""What a session needs from others, and what passes between room and delivery. Protocols and values, no behaviour.

Implemented elsewhere: the operator by the console or a script, the beam token by `controller.beam.sharing`, tuning by
`controller.beam.request`, delivery by `controller.delivery`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from controller.plan.model import Beam, Plan
from controller.room.causes import Cause
from controller.room.positioning import Placement, Targets
from controller.room.watchdog import Watchdog
from drivers.hal.capabilities import RoomDevices


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One fraction of one beam."""

    plan_uid: str
    plan_label: str
    plan_hash: int
    patient_id: str
    fraction: int
    beam: Beam

    @classmethod
    def of(cls, plan: Plan, beam_number: int, fraction: int) -> Job:
        """The job of treating a beam of a plan."""
        return cls(plan.uid, plan.label, plan.plan_hash, plan.patient.id, fraction, plan.beam(beam_number))


class Confirm(StrEnum):
    """What an operator is asked."""

    IDENTIFY = "identify"  # is this the patient, plan, fraction, beam and room?
    MOVE_ON = "move_on"  # a motion was stopped without a standing cause: is everything clear, and shall it go on?
    POSITIONED = "positioned"  # is the position accepted? (then leave the room and search it)
    BEAM_ON = "beam_on"  # the one deliberate act
    RESUME = "resume"  # a fresh beam-on after an interruption


class OperatorPort(Protocol):
    """A person, or a script in simulated worlds."""

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Ask; False declines. May wait for ever: the room's deadlines take the question back by cancelling it."""
        ...


class Lease(Protocol):
    """The beam token as this room holds it."""

    @property
    def token(self) -> int: ...


class BeamSharing(Protocol):
    """The beam supervisor; `controller.beam.sharing.BeamSupervisor` is one."""

    async def request(self, room: str) -> Any: ...

    def release(self, lease: Any) -> None: ...

    def holds(self, lease: Any) -> bool: ...


@dataclass(frozen=True, slots=True)
class Tuned:
    """Outcome of tuning: what the safety system is told, and the second dose unit's ceilings.

    Ceilings are counts of monitor 2 for the whole field and for the largest spot; they are loaded once per session.
    """

    species_token: int
    energy_kev_u: int
    field_counts2_max: int
    spot_counts2_max: int


class Tuner(Protocol):
    """Brings source, synchrotron, magnets and scanner map to the first layer. Called again after a disarm; then it is quick."""

    async def tune(self, job: Job, devices: RoomDevices, placement: Placement) -> Tuned: ...


class BeamEnded(Exception):
    """Raised by `BeamPermission.permission` when there will be no more beam for this field."""

    def __init__(self, cause: Cause | None) -> None:
        super().__init__(str(cause) if cause is not None else "ended")
        self.cause = cause


class BeamPermission(Protocol):
    """What the delivery sees of the room.

    The room stops the beam by itself: it drops the request line, shuts the gate and aborts the open grant. The delivery sees
    its grant end early, pulls and journals its results as always, and asks for permission before the next grant.
    """

    async def permission(self) -> None:
        """Return when beam may be granted: at once while irradiating, after a resume while interrupted.

        Raises:
            BeamEnded: the field is over; wind up and return a `DeliveryResult`.
            DeviceError: 3305, the request for beam was not answered in time.
        """
        ...

    @property
    def ended(self) -> bool:
        """Whether the field is over."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether the room is interrupted now."""
        ...

    def beam_on(self) -> None:
        """Tell the room that spots are being delivered."""
        ...

    def held(self, why: str) -> None:
        """Tell the room that the beam is held without an operator: gate shut, end of spill, energy step, refill."""
        ...

    def lost(self) -> None:
        """Tell the room that the unit lost the beam: the next `permission` waits until beam is seen enabled again."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DeliveryContext:
    """Everything a delivery is given."""

    job: Job
    devices: RoomDevices
    control: BeamPermission
    tuned: Tuned
    targets: Targets
    placement: Placement
    room: str
    watchdog: Watchdog = field(default_factory=Watchdog)  # to whom the delivery reports


@dataclass(frozen=True, slots=True, eq=False)
class DeliveryResult:
    """What a delivery returns, however it ended.

    Attributes:
        complete: everything planned was delivered and reconciled.
        reconciled: no grant is open in the journal; False leaves an interval that somebody has to sign.
        counts1, counts2: monitor totals of this session.
        reason: why it is not complete, in words.
        detail: whatever the delivery wants to hand to its caller.
    """

    complete: bool
    reconciled: bool = True
    counts1: int = 0
    counts2: int = 0
    reason: str = ""
    detail: Any = None


Deliver = Callable[[DeliveryContext], Awaitable[DeliveryResult]]
