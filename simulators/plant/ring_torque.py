"""Torque of the two drives on one ring: switched on together, proven against the closed brakes, taken away together.

Drives the torque-off line of the chain. Not responsible for when that happens (`gantry`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from simulators.plant.brake import BrakePair
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.motion_truth import GantryTruth
from simulators.plant.ring_body import RingBody

NS_PER_S = 1_000_000_000
PROVING_TORQUE_PERMILLE = 200  # assumed: 20 % of rated, against the closed brake


class RingTorque:
    """Torque of drives 0 and 1.

    Args:
        kernel: plant time, truth events.
        room: name of the room.
        device: name of the gantry.
        truth: its figures.
        body: what the torque turns.
        brakes: what holds it otherwise.

    Attributes:
        off: line, True while no drive can make torque and a brake holds.
        weak: drives that cannot reach the torque asked for (a planted fault).
    """

    def __init__(self, kernel: Kernel, room: str, device: str, truth: GantryTruth, body: RingBody, brakes: BrakePair) -> None:
        self._kernel = kernel
        self._room = room
        self._device = device
        self._truth = truth
        self._body = body
        self._brakes = brakes
        self._on = [False, False]
        self._proven = [False, False]
        self._timers: list[Timer | None] = [None, None]
        self.weak = [False, False]
        self._real: tuple[bool, bool] | None = None  # torque and brake of a real ring
        self.off = Line(kernel, f"{room}.torque_off", True)

    @property
    def enabled(self) -> bool:
        """Whether any drive makes torque."""
        return self._on[0] or self._on[1] if self._real is None else self._real[0]

    def follow_real(self, torque: bool, braked: bool) -> None:
        """From now on a real ring's torque and brake count."""
        before = self.enabled
        self._real = torque, braked
        if torque != before:
            self._kernel.emit(self._device, "drive", room=self._room, device=self._device, enabled=torque)
        self.drive_line()

    def lose_real(self) -> None:
        """The real ring is not heard any more: it counts as making torque, as the chain must assume."""
        if self._real is not None:
            self._real = True, self._real[1]
            self.drive_line()

    @property
    def proven(self) -> bool:
        """Whether both drives have proven their torque since they were switched on."""
        return self._proven[0] and self._proven[1]

    def drive_proven(self, drive: int) -> bool:
        """Whether one drive has proven its torque."""
        return self._proven[drive]

    def switch_on(self, drive: int, proven: Callable[[int, bool], None]) -> None:
        """Make torque against the closed brakes; `proven(drive, good)` follows after the proving time."""
        self._set(drive, True)
        self._cancel(drive)

        def judge(_t_ns: int) -> None:
            self._proven[drive] = not self.weak[drive]
            proven(drive, self._proven[drive])

        self._timers[drive] = self._kernel.after(round(self._truth.torque_prove_s * NS_PER_S), judge)

    def switch_off(self) -> None:
        """No torque from now on."""
        for drive in (0, 1):
            self._cancel(drive)
            self._proven[drive] = False
            self._set(drive, False)

    def permille(self, drive: int, t_ns: int) -> int:
        """Torque of a drive, 0.1 % of rated: its share of accelerating, of friction and of holding the unbalance."""
        if not self._on[drive]:
            return 0
        if self._brakes.applied:
            return 0 if self.proven else PROVING_TORQUE_PERMILLE
        truth = self._truth
        motor = self._body.motor(t_ns)
        needed_deg_s2 = motor.acceleration - self._body.unbalance_deg_s2(t_ns)
        friction_nm = math.copysign(truth.friction_torque_nm, motor.speed) if motor.speed else 0.0
        torque_nm = truth.inertia_kg_m2 * math.radians(needed_deg_s2) + friction_nm
        return round(torque_nm / sum(self._on) / truth.rated_torque_nm * 1000.0)

    def drive_line(self) -> None:
        """Set the torque-off line by what is true now; call after a brake has moved."""
        braked = self._brakes.applied if self._real is None else self._real[1]
        self.off.set(not self.enabled and braked)

    def _set(self, drive: int, on: bool) -> None:
        before = self.enabled
        self._on[drive] = on
        if self.enabled != before:
            self._kernel.emit(self._device, "drive", room=self._room, device=self._device, enabled=not before)
        self.drive_line()

    def _cancel(self, drive: int) -> None:
        timer = self._timers[drive]
        if timer is not None:
            timer.cancel()
            self._timers[drive] = None
