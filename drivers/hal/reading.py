"""A reading: a value with its unit, its quality and the instant it was true."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Quality(Enum):
    """How far a value may be trusted. Only GOOD may decide anything."""

    GOOD = "good"
    ALARM = "alarm"  # the device itself flags the value
    STALE = "stale"  # older than its deadline, or its source's counter stands still
    DISCONNECTED = "disconnected"


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """One value of one signal.

    Attributes:
        name: signal, for example ``"G1-gantry.angle"``.
        value: the value, in `unit`.
        unit: ``"deg"``, ``"A"``, ``"counts"``; empty for states and flags.
        t_ns: loop time in ns at which the value was taken from the wire.
        quality: see `Quality`.
        simulated: True when the value came from a simulated device.
    """

    name: str
    value: T
    unit: str
    t_ns: int
    quality: Quality = Quality.GOOD
    simulated: bool = True

    @property
    def good(self) -> bool:
        """Whether the value may be used in a decision."""
        return self.quality is Quality.GOOD

    def age_ns(self, now_ns: int) -> int:
        """Age of the value at `now_ns`, in ns."""
        return now_ns - self.t_ns
