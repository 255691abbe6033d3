"""What the machine did and how long each thing took: the plant's own log, from which the oracle reckons.

Entries are made by the plant as it acts; nothing in it is the controller's word. Not responsible for judging (see `oracle`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

REFILL = "refill"  # kind of a cycle that the ring began by itself because a unit wanted beam


class Machine(Enum):
    """Which part of the machine was busy."""

    RING = "ring"
    SOURCE = "source"
    SWITCHYARD = "switchyard"
    MAGNETS = "magnets"


@dataclass(slots=True)
class Operation:
    """One operation somebody asked for; `end_ns` is when it was done, or cut short by the next."""

    machine: Machine
    kind: str
    start_ns: int
    end_ns: int
    room: str = ""  # magnets only
    requested_ns: int = -1  # differs from start when the machine itself delayed the start

    def __post_init__(self) -> None:
        if self.requested_ns < 0:
            self.requested_ns = self.start_ns


@dataclass(slots=True)
class GrantRun:
    """One grant from its START to its end."""

    room: str
    beam: int
    grant_id: int
    started_ns: int
    begun_ns: int = -1  # first beam; -1 when there was none
    ended_ns: int = -1
    controller_hold_ns: int = 0  # held by nothing but the controller, or until it acknowledged a pause


@dataclass(slots=True)
class MachineLog:
    """Operations and grants in order of their start."""

    operations: list[Operation] = field(default_factory=list)
    grants: list[GrantRun] = field(default_factory=list)

    def add(self, operation: Operation) -> Operation:
        """Append an operation and hand it back, so that its end can be corrected when it is cut short."""
        self.operations.append(operation)
        return operation
