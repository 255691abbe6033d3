"""The hard-wired gate of a delivery unit: from a motion sensor straight into the unit, past every program.

Open means that beam may flow. A sensor that is connected must show life: while its gate is open it sends an edge at
least every 60 ms (design figure); when none comes the unit closes the gate by itself until the next edge. Without a
sensor a jumper holds the gate open. Not responsible for the controller's own gate, another condition of the unit.
"""

from __future__ import annotations

from simulators.plant.kernel import Kernel, Line, Timer

STALE_NS = 60_000_000


class GateInput(Line):
    """The line as the unit sees it; `value` is True while beam may flow."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__(kernel, name, value=True)
        self._wanted = True
        self._edge_ns: int | None = None  # None: a jumper
        self._timer: Timer | None = None

    def connect(self) -> None:
        """A sensor takes the place of the jumper: closed until its first edge."""
        self._edge_ns = self.kernel.now_ns
        self._wanted = False
        self.set(False)

    def disconnect(self) -> None:
        """The jumper again: open."""
        self._edge_ns = None
        self._wanted = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.set(True)

    def edge(self, open_: bool) -> None:
        """The sensor says what it wants, and lives."""
        if self._edge_ns is None:
            return
        self._edge_ns = self.kernel.now_ns
        self._wanted = open_
        if open_ and self._timer is None:
            self._timer = self.kernel.after(STALE_NS, self._look)
        self.set(open_)

    def _look(self, t_ns: int) -> None:
        """Close when the last edge is too old, else look again when it would be."""
        self._timer = None
        if self._edge_ns is None or not self._wanted:
            return
        if t_ns - self._edge_ns >= STALE_NS:
            self.set(False)
        else:
            self._timer = self.kernel.at(self._edge_ns + STALE_NS, self._look)
