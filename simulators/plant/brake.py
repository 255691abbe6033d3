"""A fail-safe spring brake: closes when its coil loses current, with delays, a feedback contact, and faults.

Not responsible for when it is used (the firmware) or for what it does to a moving mass (`ring_body`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from simulators.plant.kernel import Kernel, Timer

NS_PER_S = 1_000_000_000


class BrakeFault(Enum):
    """How a brake may fail."""

    NONE = "none"
    SLOW = "slow"  # closes after four times its delay
    FAILS_TO_SET = "fails to set"
    FAILS_TO_RELEASE = "fails to release"
    DRAGS_UNSEEN = "drags unseen"  # stays closed while its contact says open


class Brake:
    """One brake.

    Args:
        kernel: plant time.
        set_s: from command to closed, s.
        release_s: from command to open, s.
        changed: called when the brake physically closes or opens, or its contact changes.

    Attributes:
        applied: physically closed.
        commanded: the coil has no current: it should be closed.
    """

    def __init__(self, kernel: Kernel, set_s: float, release_s: float, changed: Callable[[Brake], None]) -> None:
        self._kernel = kernel
        self._set_ns = round(set_s * NS_PER_S)
        self._release_ns = round(release_s * NS_PER_S)
        self._changed = changed
        self._timer: Timer | None = None
        self.applied = True
        self.commanded = True
        self.fault = BrakeFault.NONE

    @property
    def feedback_applied(self) -> bool:
        """What its contact says."""
        if self.fault is BrakeFault.DRAGS_UNSEEN:
            return self.commanded
        return self.applied

    def set(self) -> None:
        """Take the coil's current away."""
        if self.commanded:
            return
        self.commanded = True
        if self.fault is BrakeFault.FAILS_TO_SET:
            self._wait(0, None)
            return
        delay_ns = self._set_ns * 4 if self.fault is BrakeFault.SLOW else self._set_ns
        self._wait(delay_ns, True)

    def release(self) -> None:
        """Energise the coil."""
        if not self.commanded:
            return
        self.commanded = False
        if self.fault is BrakeFault.FAILS_TO_RELEASE:
            self._wait(0, None)
            return
        # A brake that drags unseen keeps holding and says that it does not: its contact opens on time.
        self._wait(self._release_ns, self.applied if self.fault is BrakeFault.DRAGS_UNSEEN else False)

    def set_fault(self, fault: BrakeFault) -> None:
        """Plant a fault, or take it away; a brake that is freed does what its coil asks."""
        self.fault = fault
        if fault in (BrakeFault.NONE, BrakeFault.SLOW) and self.applied != self.commanded:
            self._wait(self._set_ns if self.commanded else self._release_ns, self.commanded)

    def _wait(self, delay_ns: int, applied: bool | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if applied is not None:
            self._timer = self._kernel.after(delay_ns, lambda _t: self._arrive(applied))

    def _arrive(self, applied: bool) -> None:
        self._timer = None
        self.applied = applied
        self._changed(self)


class BrakePair:
    """Two brakes on one mass; either alone holds it.

    Args:
        kernel: plant time, truth events.
        room: name of the room.
        device: whose brakes.
        set_s: from command to closed, s.
        release_s: from command to open, s.
        changed: called after a brake has moved.
    """

    def __init__(
        self, kernel: Kernel, room: str, device: str, set_s: float, release_s: float, changed: Callable[[], None]
    ) -> None:
        self._kernel = kernel
        self._room = room
        self._device = device
        self._changed = changed
        self._was_applied = True
        self.each = tuple(Brake(kernel, set_s, release_s, self._moved) for _ in range(2))

    @property
    def applied(self) -> bool:
        """Whether the mass is held."""
        return self.each[0].applied or self.each[1].applied

    @property
    def closed(self) -> int:
        """How many are physically closed."""
        return self.each[0].applied + self.each[1].applied

    @property
    def seen_closed(self) -> int:
        """How many say that they are closed."""
        return self.each[0].feedback_applied + self.each[1].feedback_applied

    def unanswered(self) -> list[int]:
        """Brakes whose contact does not follow their command."""
        return [i for i, brake in enumerate(self.each) if brake.commanded != brake.feedback_applied]

    def set(self) -> None:
        """Close both."""
        for brake in self.each:
            brake.set()

    def release(self) -> None:
        """Open both."""
        for brake in self.each:
            brake.release()

    def set_fault(self, fault: BrakeFault, brake: int | None = None) -> None:
        """Plant a fault in one brake, or in both."""
        for i in (0, 1) if brake is None else (brake,):
            self.each[i].set_fault(fault)

    def _moved(self, _brake: Brake) -> None:
        applied = self.applied
        if applied != self._was_applied:
            self._was_applied = applied
            self._kernel.emit(self._device, "brake", room=self._room, device=self._device, applied=applied)
        self._changed()
