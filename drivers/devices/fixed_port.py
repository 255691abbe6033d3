"""The axis of a fixed room: beam angles that exist, and a refusal for all others.

Nothing moves here. Which port is open is decided by the switchyard and shown by its route read-back, which is the angle that
this axis reads; while no route leads here it is the port chosen last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from drivers.hal.capabilities import RingState
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected, ConfigError
from drivers.hal.facility import Room
from drivers.hal.reading import Reading

NO_SUCH_PORT = 4001


class FixedPort:
    """`Axis` of a fixed room.

    Args:
        name: device, for example ``"F1-port"``.
        room: its ports.
        open_route: the switchyard's read-back, for example ``"F1:90"``.
        simulated: whether the room is.
    """

    def __init__(self, name: str, room: Room, *, open_route: Callable[[], str] = lambda: "", simulated: bool = True) -> None:
        if not room.ports_deg:
            raise ConfigError("a fixed room needs ports", code=1006, device=name)
        self._name = name
        self._room = room
        self._open_route = open_route
        self._simulated = simulated
        self._port_deg = room.ports_deg[0]

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    @property
    def route(self) -> str:
        """The switchyard's name of the port chosen last, for example ``"F1:90"``."""
        return f"{self._room.name}:{self._port_deg:g}"

    @property
    def angle_deg(self) -> float:
        """The port on the open route, or the one chosen last."""
        routes = {f"{self._room.name}:{port:g}": port for port in self._room.ports_deg}
        return routes.get(self._open_route(), self._port_deg)

    async def connect(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to close."""

    def readings(self) -> Sequence[Reading[object]]:
        """The angle of the port."""
        return (Reading(f"{self._name}.angle", self.angle_deg, "deg", now_ns(), simulated=self._simulated),)

    async def read_state(self) -> RingState:
        """A ring that stands at the port, braked for ever."""
        angle = Reading(f"{self._name}.angle", self.angle_deg, "deg", now_ns(), simulated=self._simulated)
        return RingState(angle, angle, 0.0, enabled=False, brake_applied=True, standstill=True, error_code=0)

    async def move_to(self, angle_deg: float) -> RingState:
        """Choose the port of that angle. Raises CommandRejected when the room has none."""
        port = self._room.beam_angle_deg(angle_deg) if math.isfinite(angle_deg) else None
        if port is None:
            ports = ", ".join(f"{p:g}" for p in self._room.ports_deg)
            raise CommandRejected(
                f"no port at {angle_deg:g} deg; ports: {ports} deg",
                code=NO_SUCH_PORT,
                device=self._name,
                hint="this room's beams are fixed; use a gantry room",
            )
        self._port_deg = port
        return await self.read_state()

    async def stop(self) -> None:
        """Nothing moves."""
