"""The rotating gantry: two CiA 402 drives and their brakes on one ring, and the motion firmware that makes them act as one.

The firmware shares torque, proves it before the brakes open, closes the brakes before it takes torque away, compares
encoders, and provides STO, SS1, SBC, SLS and SOS (IEC 61800-5-2). Lost polling for 200 ms ends in SS1, brake, fault 0x8700.
Between its events everything is closed-form (`ring_body`). Not responsible for registers (`servers.modbus`) or permits.

Ring rule: a set-point is taken when both drives are operation-enabled and both hold the same target; the set-point bit of
drive A starts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum

from simulators.physics import motion
from simulators.plant.brake import BrakePair
from simulators.plant.drive import (
    ERROR_BRAKE,
    ERROR_ENCODER,
    ERROR_FOLLOWING,
    ERROR_LIMITS,
    ERROR_OVERCURRENT,
    ERROR_SUPERVISION,
    Drive,
    DriveState,
)
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.motion_truth import GantryTruth
from simulators.plant.polling import PollingWatch
from simulators.plant.ring_body import FREE_STEP_S, RingBody
from simulators.plant.ring_readings import RingReadings
from simulators.plant.ring_real import FollowsReal
from simulators.plant.ring_torque import RingTorque
from simulators.plant.ring_watch import LimitSwitches, RingEncoders, StandstillWatch

NS_PER_S = 1_000_000_000

# Safety word, by the names of IEC 61800-5-2.
STO, SS1, SBC, SLS, SOS, TORQUE_PROVEN = 1, 2, 4, 8, 16, 32


class Phase(Enum):
    """What the ring's firmware is doing."""

    OFF = "off"  # brakes closed, no torque
    PROVING = "proving"  # torque against closed brakes
    RELEASING = "releasing"
    HOLDING = "holding"
    MOVING = "moving"
    STOPPING = "stopping"
    BRAKING = "braking"  # at rest, brakes closing, torque still there
    FREE = "free"  # torque taken away before rest: brakes alone stop the ring


class GantryRing(RingReadings, FollowsReal):
    """One ring with its drives (0 = A, 1 = B), brakes and encoders.

    Args:
        kernel: plant time, randomness, truth events.
        room: name of the room, for example ``"G1"``.
        truth: its figures.

    Attributes:
        standstill: line, True while the ring stands within its SOS window.
        torque_off: line, True while no drive can make torque and a brake holds.
        sto: input line, True allows torque; its fall takes torque away at once.
        may_move: input line; its fall is SS1 (ramp, brakes, torque off), and no torque until it is back and asked for anew.
    """

    def __init__(self, kernel: Kernel, room: str, truth: GantryTruth) -> None:
        self.kernel = kernel
        self.room = room
        self.truth = truth
        self.device = f"{room}-gantry"
        self.body = RingBody(kernel, truth)
        self.drives = (Drive(self, f"{room}-drive-A"), Drive(self, f"{room}-drive-B"))
        self.brakes = BrakePair(kernel, room, self.device, truth.brake_set_s, truth.brake_release_s, self._brake_changed)
        self.torque = RingTorque(kernel, room, self.device, truth, self.body, self.brakes)
        self.torque_off = self.torque.off
        self.encoders = RingEncoders(kernel, self.device, truth, self.body, self._encoders_disagree)
        self._limits = LimitSwitches(kernel, truth, self.body, self._hard_limit, self._final_limit)
        self._still = StandstillWatch(kernel, f"{room}.standstill", truth, self.body)
        self.standstill = self._still.line
        self.sto = Line(kernel, f"{room}.sto", False)
        self.sto.watch(lambda _t, allowed: None if allowed else self._safe_torque_off())
        self.may_move = Line(kernel, f"{room}.may_move", True)
        self.may_move.watch(lambda _t, allowed: None if allowed else self.quick_stop(self.drives[0]))
        self.phase = Phase.OFF
        self.sls_active = True
        self.targets_mdeg = [round(truth.initial_deg * 1000.0)] * 2
        self.profile_speed_mdeg_s = [round(truth.speed_max_deg_s * 1000.0)] * 2
        self.profile_acceleration_mdeg_s2 = [round(truth.acceleration_deg_s2 * 1000.0)] * 2
        self.ignores_stop = False
        self._leaving: list[DriveState | None] = [None, None]
        self._path_speed_deg_s = 0.0
        self._stop_for_safety = False
        self._hold_after_stop = False
        self._in_motion = False
        self._brakes_late = False
        self._watches = tuple(PollingWatch(kernel, truth.supervision_s, self._polling_lost(i)) for i in (0, 1))
        self._phase_timer: Timer | None = None

    def safety_word(self, drive: int) -> int:
        """Safety functions that act now, as bits."""
        word = 0
        if not self.sto.value or (not self.may_move.value and self.phase is Phase.OFF):
            word |= STO
        if self._stop_for_safety:
            word |= SS1
        if self.brakes.each[drive].feedback_applied:
            word |= SBC
        if self.sls_active:
            word |= SLS
        if self.standstill.value and self.phase is not Phase.MOVING:
            word |= SOS
        if self.torque.drive_proven(drive):
            word |= TORQUE_PROVEN
        return word

    # --- inputs -------------------------------------------------------------------------------------------------

    def polled(self, drive: int) -> None:
        """The drive was spoken to on its line."""
        self._watches[drive].heard()

    def set_sls(self, active: bool) -> None:
        """Someone may be in the room: limit the speed; a ring that is, or would become, faster is stopped."""
        self.sls_active = active
        if active and self.phase is Phase.MOVING and self._path_speed_deg_s > self.truth.sls_deg_s:
            for drive in self.drives:
                drive.internal_limit = True
            self._fail(0, ERROR_LIMITS)

    # --- Firmware, as the drives ask it ---------------------------------------------------------------------------

    def power_available(self, drive: Drive) -> bool:
        """Torque is possible unless STO is active or the motion relay has fallen."""
        return self.sto.value and self.may_move.value

    def may_reset(self, drive: Drive) -> bool:
        """A fault is cleared when its cause is gone: encoders agree again, brakes closed when they should be."""
        if self.phase is not Phase.OFF:
            return False
        good = not self.encoders.differing(self.kernel.now_ns) and self.brakes.seen_closed == 2
        if good:
            self._still.doubt(False)
        return good

    def enable(self, drive: Drive) -> None:
        """Bring torque up against the closed brake and prove it."""
        if not self.power_available(drive) or self.phase not in (Phase.OFF, Phase.PROVING):
            drive.enabling = False
            return
        i = self.drives.index(drive)
        self.phase = Phase.PROVING
        self._leaving[i] = None
        self._watches[i].start()
        self.torque.switch_on(i, self._proven)

    def disable(self, drive: Drive, to: DriveState) -> None:
        """Stop if it must, brake, take torque away."""
        self._leaving[self.drives.index(drive)] = to
        self._hold_after_stop = False
        self._stop()

    def quick_stop(self, drive: Drive) -> None:
        """Stop both drives: they turn one ring."""
        for i, other in enumerate(self.drives):
            self._leaving[i] = DriveState.SWITCH_ON_DISABLED
            if other.operational:
                other.enter(DriveState.QUICK_STOP_ACTIVE)
        self._hold_after_stop = False
        self._stop()

    def halt(self, drive: Drive) -> None:
        """Stop along the profile and hold with torque."""
        if self.phase is not Phase.MOVING:
            return
        now = self.kernel.now_ns
        self._hold_after_stop = True
        self._begin_stop(motion.stop(self.body.motor(now), self.truth.acceleration_deg_s2, self.truth.jerk_deg_s3))

    def new_set_point(self, drive: Drive) -> bool:
        """Start a move when the ring rule allows it."""
        if drive is self.drives[1]:
            return self.phase in (Phase.HOLDING, Phase.MOVING)
        if self.phase is not Phase.HOLDING or not all(d.operational for d in self.drives):
            return False
        if self.targets_mdeg[0] != self.targets_mdeg[1]:
            return False
        truth = self.truth
        target_deg = self.targets_mdeg[0] / 1000.0
        if abs(target_deg) > truth.soft_limit_deg:
            for d in self.drives:
                d.internal_limit = True
            self._fail(0, ERROR_LIMITS)
            return False
        speed = min(truth.speed_max_deg_s, *(v / 1000.0 for v in self.profile_speed_mdeg_s))
        limited = self.sls_active and speed > truth.sls_deg_s
        if limited:
            speed = truth.sls_deg_s
        acceleration = min(truth.acceleration_deg_s2, *(a / 1000.0 for a in self.profile_acceleration_mdeg_s2))
        for d in self.drives:
            d.internal_limit = limited
            d.target_reached = False
        self._path_speed_deg_s = speed
        start = self.body.motor(self.kernel.now_ns).position
        self._move(motion.move(start, target_deg, motion.Limits(speed, acceleration, truth.jerk_deg_s3)))
        return True

    # --- moving and stopping --------------------------------------------------------------------------------------

    def _move(self, path: motion.Trajectory) -> None:
        self.phase = Phase.MOVING
        self._announce(True, to_deg=path.end)
        if self.brake_applied:  # a brake drags unseen: the demand runs away from a ring that stands
            late_s = path.time_of(
                path.states[0][0] + math.copysign(self.truth.following_error_deg, path.end - path.states[0][0])
            )
            self._after(path.duration_s if late_s is None else late_s, self._lost_the_demand)
            return
        self._follow(path)
        self._after(path.duration_s, self._arrived)

    def _lost_the_demand(self) -> None:
        for drive in self.drives:
            drive.following_error = True
        self._fail(0, ERROR_FOLLOWING, torque_off=True)

    def _arrived(self) -> None:
        self._announce(False)
        if any(to is not None for to in self._leaving):  # a stop was asked for and not obeyed
            self._set_brakes()
            return
        self.phase = Phase.HOLDING
        self._after(self.truth.settle_s, self._settled)

    def _settled(self) -> None:
        now = self.kernel.now_ns
        window_mdeg = self.truth.in_position_deg * 1000.0
        for i, drive in enumerate(self.drives):
            drive.target_reached = abs(self.motor_encoder_mdeg(i, now) - self.targets_mdeg[i]) <= window_mdeg

    def _stop(self) -> None:
        """SS1: along the stop ramp to rest, then brakes, then torque off. Does nothing when that is under way."""
        if self.phase is Phase.MOVING or (self.phase is Phase.STOPPING and not self._stop_for_safety):
            if self.ignores_stop:
                self._stop_for_safety = True
                self.kernel.after(self._ns(self.truth.stop_monitor_s), self._stop_was_ignored)
                return
            truth = self.truth
            state = self.body.motor(self.kernel.now_ns)
            self._begin_stop(motion.stop(state, truth.stop_deceleration_deg_s2, truth.stop_jerk_deg_s3))
        elif self.phase in (Phase.HOLDING, Phase.RELEASING):
            self._set_brakes()
        elif self.phase is Phase.PROVING:
            self._finish()
        elif self.phase is Phase.OFF:
            self._settle_states()

    def _begin_stop(self, path: motion.Trajectory) -> None:
        self.phase = Phase.STOPPING
        self._stop_for_safety = not self._hold_after_stop
        if not self.brake_applied:
            self._follow(path)
        self._after(path.duration_s, self._ramp_ended)

    def _ramp_ended(self) -> None:
        self._announce(False)
        if self._hold_after_stop:
            self._hold_after_stop = False
            self.phase = Phase.HOLDING
            for drive in self.drives:
                drive.target_reached = True
            return
        self._set_brakes()

    def _stop_was_ignored(self, _t_ns: int) -> None:
        if self.phase is Phase.MOVING:
            for drive in self.drives:
                drive.following_error = True
            self._fail(0, ERROR_FOLLOWING, torque_off=True)

    def _set_brakes(self) -> None:
        self.phase = Phase.BRAKING
        self._brakes_late = False
        self.brakes.set()
        self._after(self.truth.brake_feedback_timeout_s, self._brakes_overdue)
        self._judge_brakes()

    def _brakes_overdue(self) -> None:
        """A brake did not answer. One closed brake holds the ring; with none the drives go on holding it."""
        for i in self.brakes.unanswered():
            self._mark_fault(i, ERROR_BRAKE)
        if self.phase is Phase.RELEASING:
            self._set_brakes()
        else:
            self._brakes_late = True
            self._judge_brakes()

    def _brake_changed(self) -> None:
        self.torque.drive_line()
        self._judge_brakes()

    def _judge_brakes(self) -> None:
        if self.phase is Phase.RELEASING and self.brakes.seen_closed == 0:
            self.phase = Phase.HOLDING
            self._cancel_phase_timer()
            for drive in self.drives:
                drive.enabled()
        elif self.phase is Phase.BRAKING and (self.brakes.seen_closed == 2 or (self._brakes_late and self.brake_applied)):
            self._finish()
        elif self.phase is Phase.FREE:
            self._coast()

    def _proven(self, i: int, good: bool) -> None:
        if self.phase is not Phase.PROVING:
            return
        if not good:
            self._fail(i, ERROR_OVERCURRENT)
        elif self.torque.proven:
            self.phase = Phase.RELEASING
            self.brakes.release()
            self._after(self.truth.brake_feedback_timeout_s, self._brakes_overdue)

    # --- faults and safe torque off -------------------------------------------------------------------------------

    def fail_drive(self, drive: int, code: int = ERROR_OVERCURRENT) -> None:
        """A drive breaks down: its torque is gone, so the brakes must stop the ring."""
        self._fail(drive, code, torque_off=True)

    def _mark_fault(self, i: int, code: int) -> None:
        self.drives[i].fail(code)
        self._leaving[i] = DriveState.FAULT
        other = self.drives[1 - i]
        if not other.faulted:
            self._leaving[1 - i] = DriveState.SWITCH_ON_DISABLED
            if other.operational:
                other.enter(DriveState.QUICK_STOP_ACTIVE)

    def _fail(self, i: int, code: int, *, torque_off: bool = False) -> None:
        self._mark_fault(i, code)
        self._hold_after_stop = False
        if torque_off:
            self._safe_torque_off()
        else:
            self._stop()

    def _safe_torque_off(self) -> None:
        """STO: no torque from now on; the spring brakes close by themselves."""
        for i, drive in enumerate(self.drives):
            if drive.faulted:
                self._leaving[i] = DriveState.FAULT
            else:
                self._leaving[i] = DriveState.SWITCH_ON_DISABLED
                drive.enter(DriveState.SWITCH_ON_DISABLED)
        if self.phase in (Phase.OFF, Phase.PROVING):
            self._finish()
            return
        self._cancel_phase_timer()
        self._torque_off()
        self.phase = Phase.FREE
        self.brakes.set()
        self._coast()

    def _coast(self) -> None:
        """Follow the ring without torque: free, or against the friction of the brakes that have closed."""
        now = self.kernel.now_ns
        motor = self.body.motor(now)
        closed = self.brakes.closed
        if closed:
            path = motion.friction_stop(motor.position, motor.speed, closed * self.truth.brake_deceleration_deg_s2)
            self._follow(path)
            self._after(path.duration_s, self._came_to_rest)
            return
        acceleration = self.body.free_acceleration_deg_s2()
        at_buffer = abs(self.body.ring_now_deg()) >= self.truth.buffer_deg
        if at_buffer or (motor.speed == 0.0 and acceleration == 0.0):
            self._follow(motion.rest(motor.position))
            self._announce(False)
            return
        step_s = FREE_STEP_S
        if motor.speed * acceleration < 0.0 and -motor.speed / acceleration <= step_s:
            self._follow(motion.friction_stop(motor.position, motor.speed, abs(acceleration)))
            self._after(-motor.speed / acceleration, self._coast)
            return
        self._announce(True)
        self._follow(motion.coast(motor.position, motor.speed, acceleration), 1 if (motor.speed or acceleration) > 0.0 else -1)
        self._after(step_s, self._coast)

    def _came_to_rest(self) -> None:
        self._announce(False)
        self._finish()

    def _finish(self) -> None:
        """Brakes hold: take torque away and let the drives be where they were sent."""
        self._cancel_phase_timer()
        self.phase = Phase.OFF
        self._stop_for_safety = False
        self._torque_off()
        self._settle_states()

    def _settle_states(self) -> None:
        for i, drive in enumerate(self.drives):
            to = self._leaving[i]
            if drive.faulted:
                to = DriveState.FAULT
            elif to is None and drive.state in (DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP_ACTIVE):
                to = DriveState.SWITCHED_ON
            if to is not None:
                drive.enter(to)
            drive.enabling = False
            self._leaving[i] = None

    def _polling_lost(self, i: int) -> Callable[[], None]:
        return lambda: self._fail(i, ERROR_SUPERVISION)

    # --- watching the ring ----------------------------------------------------------------------------------------

    def _follow(self, path: motion.Trajectory, direction: int = 0) -> None:
        if self.real is None:
            self._follow_path(path, direction)

    def _follow_path(self, path: motion.Trajectory, direction: int = 0) -> None:
        self.body.follow(path, direction)
        self._still.look_ahead()
        self._limits.look_ahead()
        self.encoders.look_ahead()

    def _hard_limit(self) -> None:
        for drive in self.drives:
            drive.internal_limit = True
        self._fail(0, ERROR_LIMITS)

    def _final_limit(self) -> None:
        self._fail(0, ERROR_LIMITS, torque_off=True)

    def _encoders_disagree(self, drives: Sequence[int]) -> None:
        for i in drives:
            self._mark_fault(i, ERROR_ENCODER)
        self._still.doubt(True)
        self._safe_torque_off()

    def _announce(self, moving: bool, **data: float) -> None:
        """Tell the truth listeners that the ring begins or ends to move."""
        if moving == self._in_motion:
            return
        self._in_motion = moving
        angle_deg = self.body.angle_deg(self.kernel.now_ns)
        kind = "motion.start" if moving else "motion.stop"
        self.kernel.emit(self.device, kind, room=self.room, device=self.device, angle_deg=angle_deg, **data)

    # --- faults that act on the ring ------------------------------------------------------------------------------

    def creep(self, speed_deg_s: float) -> None:
        """The closed brakes slip at this speed (0 ends it). SOS is lost by speed at once, or when the window is left."""
        motor_deg = self.body.motor(self.kernel.now_ns).position
        if speed_deg_s == 0.0:
            self._follow(motion.rest(motor_deg))
            return
        if self.phase is not Phase.OFF:
            return
        self.body.follow(motion.coast(motor_deg, speed_deg_s, 0.0), 1 if speed_deg_s > 0 else -1)
        self._still.creeping(speed_deg_s)
        self.encoders.look_ahead()

    def reverse_axis(self) -> None:
        """The motors turn the ring the wrong way round from now on."""
        self.body.reverse_axis()
        self.encoders.look_ahead()

    # --- small things ---------------------------------------------------------------------------------------------

    def _torque_off(self) -> None:
        for watch in self._watches:
            watch.stop()
        self.torque.switch_off()

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._cancel_phase_timer()
        self._phase_timer = self.kernel.after(math.ceil(delay_s * NS_PER_S), lambda _t: action())

    def _cancel_phase_timer(self) -> None:
        if self._phase_timer is not None:
            self._phase_timer.cancel()
            self._phase_timer = None

    @staticmethod
    def _ns(seconds: float) -> int:
        return round(seconds * NS_PER_S)
