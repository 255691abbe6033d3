"""Switchyard: which room the beam line leads to. At most one path is ever open; while switching, none is.

Not responsible for who may have the beam (the controller's supervisor) nor for stopping it (the chain).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simulators.plant.kernel import Kernel, Timer
from simulators.plant.machine_log import Machine, MachineLog, Operation

NONE = "none"
MOVING = "moving"
CLOSE_S = 1.0  # stoppers in; assumed


class Switchyard:
    """Switching magnets and stoppers.

    Attributes:
        route: the true open path (`G1`, `F1:90`), ``"none"`` while moving or closed.
        faults: `stuck` ignores commands and keeps the path.
    """

    def __init__(self, kernel: Kernel, switch_s: Mapping[str, float], log: MachineLog) -> None:
        self.route = NONE
        self.stuck = False
        self._kernel = kernel
        self._switch_s = dict(switch_s)
        self._log = log
        self._target = NONE
        self._timer: Timer | None = None
        self._watchers: list[Callable[[], None]] = []

    @property
    def readback(self) -> str:
        """What the read-back says: the path, or ``"moving"``."""
        return MOVING if self._timer is not None else self.route

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call on every change."""
        self._watchers.append(watcher)

    def stand(self, route: str) -> None:
        """Begin with a path that was opened before the simulation began. Raises ValueError as `select` does."""
        if route != NONE and route not in self._switch_s:
            raise ValueError(f"no route {route!r}; routes: {', '.join(self._switch_s)}")
        self._target = route
        self._open(route)
        self._tell()

    def select(self, route: str) -> None:
        """Close what is open, then open a path.

        Raises:
            ValueError: the facility has no such path.
        """
        if route != NONE and route not in self._switch_s:
            raise ValueError(f"no route {route!r}; routes: {', '.join(self._switch_s)}")
        if self.stuck or route == self._target:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._target = route
        self._open(NONE)
        delay_ns = round((CLOSE_S if route == NONE else self._switch_s[route]) * 1e9)
        self._log.add(Operation(Machine.SWITCHYARD, "route", self._kernel.now_ns, self._kernel.now_ns + delay_ns))
        self._timer = self._kernel.after(delay_ns, self._arrived)
        self._tell()

    def _arrived(self, _t_ns: int) -> None:
        self._timer = None
        self._open(self._target)
        self._tell()

    def _open(self, route: str) -> None:
        if route != self.route:
            self.route = route
            self._kernel.emit("switchyard", "route", route=route)

    def _tell(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()
