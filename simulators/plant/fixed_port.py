"""A fixed beam port with the readable side of a gantry ring: its angle is that of the open route, and it never moves.

Not responsible for the route (`FacilityPlant`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulators.plant.kernel import Kernel, Line


def _no_route() -> str:
    return "none"


class FixedPort:
    """The ports of a fixed room.

    Args:
        kernel: plant time.
        room: name of the room; its routes are `ROOM:ANGLE`.
        ports_deg: beam angles, at least one.

    Attributes:
        route: asks the switchyard for the open route; set by the facility.
        standstill, torque_off: lines, always True: nothing here can move.
        sto, may_move: input lines, without effect.
    """

    brake_applied = True
    drive_enabled = False
    torque_proven = False

    def __init__(self, kernel: Kernel, room: str, ports_deg: tuple[float, ...]) -> None:
        self.room = room
        self.device = f"{room}-port"
        self.ports_deg = ports_deg
        self.route: Callable[[], str] = _no_route
        self.standstill = Line(kernel, f"{room}.standstill", True)
        self.torque_off = Line(kernel, f"{room}.torque_off", True)
        self.sto = Line(kernel, f"{room}.sto", False)
        self.may_move = Line(kernel, f"{room}.may_move", True)

    def angle_deg(self, t_ns: int) -> float:
        """Angle of the port on the open route; of the first port while no route leads here."""
        room, _, port = self.route().partition(":")
        if room == self.room and port:
            return float(port)
        return self.ports_deg[0]

    def speed_deg_s(self, t_ns: int) -> float:
        """Always 0."""
        return 0.0

    def angles_deg(self, t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """The angle now at each of the times, shape (n,)."""
        return np.full(np.shape(t_ns), self.angle_deg(0))

    def load_encoder_mdeg(self, t_ns: int) -> int:
        """The port's angle: coded by the route's switches, without noise."""
        return round(self.angle_deg(t_ns) * 1000.0)

    def load_encoder2_mdeg(self, t_ns: int) -> int:
        """The same."""
        return self.load_encoder_mdeg(t_ns)

    def motor_encoder_mdeg(self, drive: int, t_ns: int) -> int:
        """The same: there is no motor."""
        return self.load_encoder_mdeg(t_ns)

    def set_sls(self, active: bool) -> None:
        """Nothing moves, nothing needs limiting."""
