"""A permit as a pulse: a number that changes while beam (or motion) may be, and stands still when it may not.

The relay falls 100 ms after the last change, so a dead, hung or disconnected daemon withholds by itself. To withhold is
therefore to write the *same* number again: any other value, zero included, would be one more pulse. What the register holds
is read before the first write of a process, and again after a write that failed. Not responsible for the decision.
"""

from __future__ import annotations

RELAY_NODE = 2
RELAY_MS = 100  # docs/wires.md: the relay falls so long after the last change of the pulse
PULSE_REGISTER = 16  # then boot id, first-out code, count of active trips, value and limit of the first-out, its input
PULSES_SPAN = 10  # registers to that of the motion permit's pulse; behind it the code of the row that withholds that permit


def words32(value: int) -> tuple[int, int]:
    """A number as two registers, high word first, two's complement; clipped to 32 bits."""
    value = max(-0x8000_0000, min(value, 0x7FFF_FFFF))
    return value >> 16 & 0xFFFF, value & 0xFFFF


class PermitPulse:
    """Makes the numbers of one pulse."""

    def __init__(self) -> None:
        self._last = 0

    def follow(self, present: int) -> None:
        """Go on from what the pulse register holds: at start, and whenever a write may or may not have arrived."""
        self._last = present & 0xFFFF

    def next(self, permit: bool) -> int:
        """The number to write now."""
        if permit:
            self._last = (self._last + 1) & 0xFFFF
        return self._last
