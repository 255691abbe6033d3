"""The ring as a mass: where it truly is at any time, between the motors' gears and its encoders.

Motor coordinate m (deg at the ring) follows a closed-form path. The ring follows the motors through the play of the gears and
sags under its residual unbalance:

    r = r0 + sign (m - m0)                         gears; sign is -1 when an axis is wired the wrong way round
    q = max(q0, r - b/2) going up, min(q0, r + b/2) going down     play b: it is taken up after a reversal
    angle = q - S sin(q - phase)                   twist of the ring under its own weight

Each path runs one way only, so that this stays closed-form. Not responsible for drives, brakes or limits (`gantry`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulators.physics.motion import State, Trajectory, rest
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import GantryTruth

NS_PER_S = 1_000_000_000
NEVER_NS = 1 << 62
FREE_STEP_S = 0.05  # a ring without torque or brake is followed in pieces of constant acceleration this long


class RingBody:
    """Truth of one ring.

    Args:
        kernel: plant time.
        truth: its figures.
    """

    def __init__(self, kernel: Kernel, truth: GantryTruth) -> None:
        self._kernel = kernel
        self._play_deg = truth.backlash_mdeg / 1000.0
        self._sag_deg = truth.sag_mdeg / 1000.0
        self._sag_phase_rad = math.radians(truth.sag_phase_deg)
        self._unbalance_deg_s2 = math.degrees(truth.unbalance_torque_nm / truth.inertia_kg_m2)
        self._friction_deg_s2 = math.degrees(truth.friction_torque_nm / truth.inertia_kg_m2)
        self._sign = truth.axis_sign
        self._ring0_deg = self._motor0_deg = truth.initial_deg
        self._play0_deg = truth.initial_deg
        self._direction = 0
        self._t0_ns = kernel.now_ns
        self._rest_ns = NEVER_NS  # from then on the ring stands: at `_rest` of the motors, `_rest_deg` of the ring
        self._rest, self._rest_deg = State(truth.initial_deg), truth.initial_deg
        self.path: Trajectory = rest(truth.initial_deg)
        self._settle()

    # --- where things are ---------------------------------------------------------------------------------------

    def motor(self, t_ns: int) -> State:
        """Motor position deg, speed deg/s, acceleration deg/s2."""
        if t_ns >= self._rest_ns:
            return self._rest
        return self.path.at((t_ns - self._t0_ns) / NS_PER_S)

    def angle_deg(self, t_ns: int) -> float:
        """True angle of the ring."""
        if t_ns >= self._rest_ns:
            return self._rest_deg
        q = self._engaged(self.path.position((t_ns - self._t0_ns) / NS_PER_S))
        return q - self._sag_deg * math.sin(math.radians(q) - self._sag_phase_rad)

    def angles_deg(self, t_ns: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """True angles and motor positions, deg, at times of shape (n,), none before the present path began."""
        m, _, _ = self.path.sample((np.asarray(t_ns) - self._t0_ns) / NS_PER_S)
        r = self._ring0_deg + self._sign * (m - self._motor0_deg)
        half = self._play_deg / 2.0
        if self._direction > 0:
            q = np.maximum(self._play0_deg, r - half)
        elif self._direction < 0:
            q = np.minimum(self._play0_deg, r + half)
        else:
            q = np.full_like(r, self._play0_deg)
        return q - self._sag_deg * np.sin(np.radians(q) - self._sag_phase_rad), m

    def speed_deg_s(self, t_ns: int) -> float:
        """True speed of the ring: 0 while the motors only take up play."""
        motor = self.motor(t_ns)
        if motor.speed == 0.0:
            return 0.0
        r = self._ring_of(motor.position)
        q = self._engaged(motor.position)
        if abs(r - q) < self._play_deg / 2.0 - 1e-12:
            return 0.0
        twist = self._sag_deg * math.cos(math.radians(q) - self._sag_phase_rad) * math.pi / 180.0
        return self._sign * motor.speed * (1.0 - twist)

    @property
    def rests_at_ns(self) -> int | None:
        """When the present path comes to rest; None when it never does."""
        _, speed, acceleration = self.path.states[-1]
        if speed != 0.0 or acceleration != 0.0:
            return None
        return self._t0_ns + math.ceil(self.path.duration_s * NS_PER_S)

    def ring_crossing_ns(self, ring_deg: float) -> int | None:
        """When the present path reaches `ring_deg` (play and sag neglected); None when it does not."""
        motor_deg = self._motor0_deg + self._sign * (ring_deg - self._ring0_deg)
        t_s = self.path.time_of(motor_deg)
        return None if t_s is None else self._t0_ns + math.ceil(t_s * NS_PER_S)

    @property
    def aligned(self) -> bool:
        """Whether motors and ring count alike, as they were commissioned."""
        return self._sign == 1 and abs(self._ring0_deg - self._motor0_deg) < 1e-9

    @property
    def path_end_deg(self) -> float:
        """Ring coordinate at the end of the present path."""
        return self._ring_of(self.path.end)

    def ring_now_deg(self) -> float:
        """Ring coordinate now, without play and sag."""
        return self._ring_of(self.motor(self._kernel.now_ns).position)

    # --- what moves it ------------------------------------------------------------------------------------------

    def follow(self, path: Trajectory, direction: int = 0) -> None:
        """Take a new path that begins now; `direction` (of the motors) is needed when the path has no end."""
        now_ns = self._kernel.now_ns
        motor_deg = self.motor(now_ns).position
        self._play0_deg = self._engaged(motor_deg)
        ahead = path.end - path.states[0][0]
        motion = direction or (0 if ahead == 0.0 else (1 if ahead > 0 else -1))
        self._direction = motion * self._sign
        self._t0_ns = now_ns
        self.path = path
        self._settle()

    def reverse_axis(self) -> None:
        """From now on the motors turn the ring the other way."""
        motor_deg = self.motor(self._kernel.now_ns).position
        self._ring0_deg, self._motor0_deg = self._ring_of(motor_deg), motor_deg
        self._sign = -self._sign
        self._settle()

    def unbalance_deg_s2(self, t_ns: int) -> float:
        """Acceleration of the motors' coordinate that the unbalance alone would give."""
        angle_rad = math.radians(self.angle_deg(t_ns)) - self._sag_phase_rad
        return -self._sign * self._unbalance_deg_s2 * math.sin(angle_rad)

    def free_acceleration_deg_s2(self) -> float:
        """Acceleration now without torque and brake: unbalance against friction; 0 when friction holds the ring."""
        now_ns = self._kernel.now_ns
        pull = self.unbalance_deg_s2(now_ns)
        speed = self.motor(now_ns).speed
        if speed == 0.0:
            return 0.0 if abs(pull) <= self._friction_deg_s2 else pull - math.copysign(self._friction_deg_s2, pull)
        return pull - math.copysign(self._friction_deg_s2, speed)

    def _settle(self) -> None:
        """Work out where the present path ends: a ring rests for most of its life, and is asked for its angle all the time."""
        rests_at_ns, self._rest_ns = self.rests_at_ns, NEVER_NS
        if rests_at_ns is not None:
            self._rest, self._rest_deg = self.motor(rests_at_ns), self.angle_deg(rests_at_ns)
            self._rest_ns = rests_at_ns

    def _ring_of(self, motor_deg: float) -> float:
        return self._ring0_deg + self._sign * (motor_deg - self._motor0_deg)

    def _engaged(self, motor_deg: float) -> float:
        """The ring behind the play of the gears."""
        if self._direction > 0:
            return max(self._play0_deg, self._ring_of(motor_deg) - self._play_deg / 2.0)
        if self._direction < 0:
            return min(self._play0_deg, self._ring_of(motor_deg) + self._play_deg / 2.0)
        return self._play0_deg
