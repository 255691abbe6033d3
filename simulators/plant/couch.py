"""The six-axis couch robot: all axes start and arrive together, in closed form; brakes hold it when it does not move.

Axes are lateral, longitudinal, vertical (mm) and angle, pitch, roll (deg), IEC 61217 table axes. Its encoders read what was
commanded; the true pose differs by an error that is drawn anew for each move. Spoken to with CiA 402 words like one drive.
Not responsible for the patient on it (`patient`), nor for collisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulators.physics import motion
from simulators.plant.brake import Brake
from simulators.plant.drive import ERROR_BRAKE, ERROR_LIMITS, ERROR_SUPERVISION, Drive, DriveState
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.motion_truth import CouchTruth
from simulators.plant.polling import PollingWatch

NS_PER_S = 1_000_000_000
AXES = ("lateral_mm", "longitudinal_mm", "vertical_mm", "angle_deg", "pitch_deg", "roll_deg")
BRAKE_TIMEOUT_S = 0.3  # assumed
BRAKE_STOP_FACTOR = 3.0  # assumed: closing brakes stop the robot this much harder than a move accelerates


class Couch:
    """One couch.

    Args:
        kernel: plant time, randomness, truth events.
        room: name of the room.
        truth: its figures.

    Attributes:
        targets: six set-points, in the units of the axes.
        standstill, torque_off: lines for the safety chain.
        sto: input line, True allows torque.
        may_move: input line; its fall is SS1 (ramp, brakes, torque off), and no torque until it is back and asked for anew.
        slipped_mm: how far the top has sunk in its brakes (a planted fault); its encoders do not see it.
    """

    def __init__(self, kernel: Kernel, room: str, truth: CouchTruth) -> None:
        self.kernel = kernel
        self.room = room
        self.truth = truth
        self.device = f"{room}-couch"
        self.drive = Drive(self, self.device)
        self.brake = Brake(kernel, truth.brake_set_s, truth.brake_release_s, self._brake_changed)
        self.targets = list(truth.initial)
        self.standstill = Line(kernel, f"{room}.couch.standstill", True)
        self.torque_off = Line(kernel, f"{room}.couch.torque_off", True)
        self.sto = Line(kernel, f"{room}.couch.sto", False)
        self.sto.watch(lambda _t, allowed: None if allowed else self._safe_torque_off())
        self.may_move = Line(kernel, f"{room}.couch.may_move", True)
        self.may_move.watch(lambda _t, allowed: None if allowed else self._safe_stop())
        self._start = np.array(truth.initial)
        self._delta = np.zeros(6)
        self._path = motion.rest(0.0)  # progress along the move, 0 to 1
        self._t0_ns = kernel.now_ns
        self._moves = 0
        self.slipped_mm = 0.0
        self._error = self._pose_error()
        self._error_change = np.zeros(6)  # the error of the new pose grows in with the move
        self._torque = False
        self._moving = False
        self._stopping = False
        self._leaving: DriveState | None = None
        self._timer: Timer | None = None
        self._watch = PollingWatch(kernel, truth.supervision_s, lambda: self._fail(ERROR_SUPERVISION))

    # --- where it is ----------------------------------------------------------------------------------------------

    def encoder(self, t_ns: int) -> NDArray[np.float64]:
        """What its encoders read, shape (6,), mm and deg."""
        return self._start + self._path.position((t_ns - self._t0_ns) / NS_PER_S) * self._delta

    def position(self, t_ns: int) -> NDArray[np.float64]:
        """Where the table top truly is, shape (6,), mm and deg."""
        progress = self._path.position((t_ns - self._t0_ns) / NS_PER_S)
        true = self._start + progress * self._delta + self._error + progress * self._error_change
        true[2] -= self.slipped_mm
        return true

    def speed(self, t_ns: int) -> NDArray[np.float64]:
        """True speed, shape (6,), mm/s and deg/s."""
        return self._path.at((t_ns - self._t0_ns) / NS_PER_S).speed * self._delta

    @property
    def brake_applied(self) -> bool:
        """Whether the brakes hold it now."""
        return self.brake.applied

    @property
    def drive_enabled(self) -> bool:
        """Whether its drives make torque now."""
        return self._torque

    def polled(self) -> None:
        """It was spoken to on its line."""
        self._watch.heard()

    def slip(self, by_mm: float) -> None:
        """The top sinks in its brakes, past the encoders."""
        self.slipped_mm += by_mm

    def follow_real(self, axes: NDArray[np.float64], moving: bool) -> None:
        """A real couch stands in for this one: it is where its encoders say."""
        self._start, self._delta, self._error_change = axes, np.zeros(6), np.zeros(6)
        self._path, self._t0_ns = motion.rest(0.0), self.kernel.now_ns
        if moving != self._moving:
            self._moving = moving
            kind = "motion.start" if moving else "motion.stop"
            self.kernel.emit(self.device, kind, room=self.room, device=self.device)
        self.standstill.set(not moving)

    def lose_real(self) -> None:
        """The real couch is not heard any more: nothing says that it stands."""
        self.standstill.set(False)

    # --- Firmware, as the drive asks it ---------------------------------------------------------------------------

    def power_available(self, drive: Drive) -> bool:
        """Torque is possible unless STO is active or the motion relay has fallen."""
        return self.sto.value and self.may_move.value

    def may_reset(self, drive: Drive) -> bool:
        """A fault is cleared once the brakes hold."""
        return not self._torque and self.brake.feedback_applied

    def enable(self, drive: Drive) -> None:
        """Torque on, brakes off, then enabled."""
        if not self.power_available(drive):
            drive.enabling = False
            return
        self._leaving = None
        self._set_torque(True)
        self._watch.start()
        self.brake.release()
        self._after(BRAKE_TIMEOUT_S, self._brake_overdue)

    def disable(self, drive: Drive, to: DriveState) -> None:
        """Stop if it must, brake, torque off."""
        self._leaving = to
        self._stop()

    def quick_stop(self, drive: Drive) -> None:
        """Stop as fast as allowed, brake, torque off."""
        self._leaving = DriveState.SWITCH_ON_DISABLED
        self._stop()

    def halt(self, drive: Drive) -> None:
        """A couch stops for a halt as for a quick stop, and brakes."""
        self._leaving = DriveState.SWITCHED_ON
        self._stop()

    def new_set_point(self, drive: Drive) -> bool:
        """Start a synchronous move to `targets`; a target outside the travel is a fault."""
        if self._moving or self._stopping:
            return False
        truth = self.truth
        if any(not low <= x <= high for x, low, high in zip(self.targets, truth.minimum, truth.maximum, strict=True)):
            drive.internal_limit = True
            self._fail(ERROR_LIMITS)
            return False
        start = self.encoder(self.kernel.now_ns)
        delta = np.array(self.targets) - start
        span = np.abs(delta)
        far = span > 1e-9
        self._moves += 1
        if far.any():
            # Progress runs from 0 to 1 within the limits of whichever axis needs longest.
            limits = motion.Limits(
                *(float(np.min(np.array(values)[far] / span[far])) for values in (truth.speed, truth.acceleration, truth.jerk))
            )
            path = motion.move(0.0, 1.0, limits)
            self._begin(start, delta, path)
            self._after(path.duration_s, self._arrived)
        else:
            self._after(0.0, self._arrived)
        return True

    # --- moving and stopping --------------------------------------------------------------------------------------

    def _begin(self, start: NDArray[np.float64], delta: NDArray[np.float64], path: motion.Trajectory) -> None:
        self._start, self._delta, self._path = start, delta, path
        self._error_change = self._pose_error() - self._error
        self._t0_ns = self.kernel.now_ns
        self._moving = True
        self.standstill.set(False)
        self.kernel.emit(self.device, "motion.start", room=self.room, device=self.device)

    def _arrived(self) -> None:
        self._rest()
        self._after(self.truth.settle_s, self._settled)

    def _settled(self) -> None:
        self.standstill.set(True)
        self.drive.target_reached = True

    def _rest(self) -> None:
        now = self.kernel.now_ns
        self._error = self.position(now) - self.encoder(now)
        self._error[2] += self.slipped_mm
        self._start = self.encoder(now)
        self._delta = self._error_change = np.zeros(6)
        self._path = motion.rest(0.0)
        self._t0_ns = now
        if self._moving:
            self._moving = False
            self.kernel.emit(self.device, "motion.stop", room=self.room, device=self.device)

    def _stop(self) -> None:
        if self._stopping:
            return
        if self._moving:
            self._ramp_down(self.truth.stop_factor, self._set_brake)
        elif self._torque:
            self._set_brake()
        else:
            self._finish()

    def _ramp_down(self, factor: float, then: Callable[[], None]) -> None:
        """Stop along the way it was going; `factor` times harder than the move's own limits."""
        now = self.kernel.now_ns
        state = self._path.at((now - self._t0_ns) / NS_PER_S)
        span = np.abs(self._delta)
        far = span > 1e-9
        truth = self.truth
        hardest, jerk = (float(np.min(np.array(v)[far] / span[far])) * factor for v in (truth.acceleration, truth.jerk))
        path = motion.stop(state, hardest, jerk)
        self._t0_ns, self._path = now, path
        self._stopping = True
        self._after(path.duration_s, then)

    def _set_brake(self) -> None:
        self._rest()
        self._stopping = True
        self.brake.set()
        self._after(BRAKE_TIMEOUT_S, self._brake_overdue)
        if self.brake.feedback_applied:
            self._finish()

    def _brake_changed(self, _brake: Brake) -> None:
        self.kernel.emit(self.device, "brake", room=self.room, device=self.device, applied=self.brake.applied)
        self._drive_torque_off_line()
        if self.drive.enabling and not self.brake.feedback_applied:
            self._cancel()
            self.drive.enabled()
        elif self._stopping and not self._moving and self.brake.feedback_applied:
            self._finish()

    def _brake_overdue(self) -> None:
        """A brake that does not open leaves the couch off; one that does not close leaves its drives holding."""
        self.drive.fail(ERROR_BRAKE)
        self._leaving = DriveState.FAULT
        if self.brake.commanded:
            self._stopping = True
        else:
            self._set_brake()

    def _fail(self, code: int) -> None:
        self.drive.fail(code)
        self._leaving = DriveState.FAULT
        self._stop()

    def _safe_stop(self) -> None:
        """SS1: the quick stop of the drive, whatever it was told. Without torque there is nothing to stop."""
        if self.drive.operational:
            self.drive.enter(DriveState.QUICK_STOP_ACTIVE)
        if self._torque:
            self.quick_stop(self.drive)
        else:
            self._safe_torque_off()

    def _safe_torque_off(self) -> None:
        """No torque from now on; the closing brakes stop the robot."""
        self._leaving = DriveState.FAULT if self.drive.faulted else DriveState.SWITCH_ON_DISABLED
        if not self._torque:
            self._finish()
            return
        self._set_torque(False)
        self._watch.stop()
        if not self.drive.faulted:
            self.drive.enter(DriveState.SWITCH_ON_DISABLED)
        self.brake.set()
        if self._moving:
            self._ramp_down(BRAKE_STOP_FACTOR, self._stopped_by_brake)
        elif self.brake.applied:
            self._finish()
        else:
            self._stopping = True
            self._cancel()

    def _stopped_by_brake(self) -> None:
        self._rest()
        if self.brake.applied:
            self._finish()

    def _finish(self) -> None:
        self._cancel()
        self._stopping = False
        self._watch.stop()
        self._set_torque(False)
        to = DriveState.FAULT if self.drive.faulted else self._leaving
        if to is not None:
            self.drive.enter(to)
        self.drive.enabling = False
        self._leaving = None
        if not self.standstill.value:
            self._after(self.truth.settle_s, lambda: self.standstill.set(True))

    # --- small things ---------------------------------------------------------------------------------------------

    def _pose_error(self) -> NDArray[np.float64]:
        """Error of the pose after a move: the robot does not come back to quite the same place."""
        rng = self.kernel.rng(self.device, "pose-error", self._moves)
        truth = self.truth
        scale = np.array([truth.pose_error_mm] * 3 + [truth.pose_error_deg] * 3)
        # Truncated at three standard deviations: a robot has a specification.
        return scale * np.clip(rng.normal(size=6), -3.0, 3.0)

    def _set_torque(self, on: bool) -> None:
        if on != self._torque:
            self._torque = on
            self.kernel.emit(self.device, "drive", room=self.room, device=self.device, enabled=on)
        self._drive_torque_off_line()

    def _drive_torque_off_line(self) -> None:
        self.torque_off.set(not self._torque and self.brake.applied)

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self.kernel.after(math.ceil(delay_s * NS_PER_S), lambda _t: action())

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
