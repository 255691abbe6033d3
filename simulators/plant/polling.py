"""Supervision of a line inside a device: was it spoken to lately? Costs one timer per lost interval, none per poll.

Not responsible for what the device does when it was not.
"""

from __future__ import annotations

from collections.abc import Callable

from simulators.plant.kernel import Kernel, Timer

NS_PER_S = 1_000_000_000


class PollingWatch:
    """Calls `lost()` once when nothing was heard for `limit_s` while watching.

    Args:
        kernel: plant time.
        limit_s: longest allowed silence, s.
        lost: what to do then; watching has ended when it is called.
    """

    def __init__(self, kernel: Kernel, limit_s: float, lost: Callable[[], None]) -> None:
        self._kernel = kernel
        self._limit_ns = round(limit_s * NS_PER_S)
        self._lost = lost
        self._heard_ns = kernel.now_ns
        self._timer: Timer | None = None

    def heard(self) -> None:
        """The device was spoken to now."""
        self._heard_ns = self._kernel.now_ns

    def start(self) -> None:
        """Begin to watch; now counts as heard."""
        self._heard_ns = self._kernel.now_ns
        if self._timer is None:
            self._timer = self._kernel.after(self._limit_ns, self._judge)

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _judge(self, t_ns: int) -> None:
        due_ns = self._heard_ns + self._limit_ns
        if t_ns >= due_ns:
            self._timer = None
            self._lost()
        else:
            self._timer = self._kernel.at(due_ns, self._judge)
