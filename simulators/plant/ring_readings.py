"""What can be read of a gantry ring: its true motion, its encoders, its torque. Changes nothing.

Not responsible for moving the ring (`gantry`), nor for the registers in which the readings travel (`servers.modbus`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulators.plant.brake import BrakePair
from simulators.plant.ring_body import RingBody
from simulators.plant.ring_real import RealRing
from simulators.plant.ring_torque import RingTorque
from simulators.plant.ring_watch import RingEncoders


class RingReadings:
    """The readable side of a ring; the ring itself provides the parts."""

    body: RingBody
    encoders: RingEncoders
    torque: RingTorque
    brakes: BrakePair
    real: RealRing | None = None  # what a real ring says, where one stands in for the model's

    def angle_deg(self, t_ns: int) -> float:
        """True angle of the ring, deg."""
        return self.body.angle_deg(t_ns)

    def speed_deg_s(self, t_ns: int) -> float:
        """True speed of the ring, deg/s."""
        return self.body.speed_deg_s(t_ns)

    def angles_deg(self, t_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """True angles, shape (n,), at times from the start of the present motion on."""
        return self.body.angles_deg(t_ns)[0]

    @property
    def brake_applied(self) -> bool:
        """Whether a brake physically holds the ring now; one is enough."""
        return self.brakes.applied if self.real is None else self.real.braked

    @property
    def drive_enabled(self) -> bool:
        """Whether a drive makes torque now."""
        return self.torque.enabled

    @property
    def torque_proven(self) -> bool:
        """Whether both drives have proven their torque since they were enabled."""
        return self.torque.proven

    def load_encoder_mdeg(self, t_ns: int) -> int:
        """Reading of the load encoder on the motion line."""
        return self.encoders.load_mdeg(t_ns)

    def load_encoder2_mdeg(self, t_ns: int) -> int:
        """Reading of the second load encoder, hard-wired to the safety I/O."""
        return self.encoders.load2_mdeg(t_ns)

    def motor_encoder_mdeg(self, drive: int, t_ns: int) -> int:
        """Reading of a drive's motor encoder, in mdeg of the ring."""
        return self.encoders.motor_mdeg(drive, t_ns)

    def motor_speed_mdeg_s(self, t_ns: int) -> int:
        """Motor speed, mdeg/s of the ring."""
        return round(self.body.motor(t_ns).speed * 1000.0)

    def torque_permille(self, drive: int, t_ns: int) -> int:
        """Torque of a drive, 0.1 % of rated, signed."""
        return self.torque.permille(drive, t_ns)
