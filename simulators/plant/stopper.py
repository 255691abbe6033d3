"""The room's beam stopper: a block that falls into the beam line, with an end switch that tells when it is in.

Air holds it out, its weight brings it in; it takes its travel time either way. Not responsible for when it has to be in
(`beam_off`, the chain) nor for the path of the beam (`switchyard`).
"""

from __future__ import annotations

from collections.abc import Callable

from simulators.plant.kernel import Kernel, Timer

NS_PER_S = 1_000_000_000


class Stopper:
    """One stopper.

    Args:
        kernel: plant time.
        travel_s: from one end to the other, s.
        arrived: called when it has come in.

    Attributes:
        asked_in: where it was sent.
        inside: its end switch says that it is in; it stops the beam then, not before.
        stuck: does not come in (a planted fault).
    """

    def __init__(self, kernel: Kernel, travel_s: float, arrived: Callable[[], None]) -> None:
        self._kernel = kernel
        self._travel_ns = round(travel_s * NS_PER_S)
        self._arrived = arrived
        self._timer: Timer | None = None
        self.asked_in = True
        self.inside = True
        self.stuck = False

    def send(self, inside: bool) -> None:
        """Let it in, or take it out; its end switch opens as soon as it leaves."""
        if inside == self.asked_in:
            return
        self.asked_in = inside
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not inside:
            self.inside = False
        elif not self.stuck:
            self._timer = self._kernel.after(self._travel_ns, self._come_in)

    def repair(self) -> None:
        """It moves again: what was asked of it meanwhile happens now."""
        self.stuck = False
        if self.asked_in and not self.inside and self._timer is None:
            self._timer = self._kernel.after(self._travel_ns, self._come_in)

    def _come_in(self, _t_ns: int) -> None:
        self._timer = None
        if self.stuck:
            return
        self.inside = True
        self._arrived()
