"""What watches the ring: its encoders and their comparison, the limit switches, the standstill line.

Each watcher looks once at a new path, computes when it will act, and sets one timer. Not responsible for what is done then
(`gantry`), nor for where the ring is (`ring_body`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from simulators.plant.encoder import Encoder
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.motion_truth import GantryTruth
from simulators.plant.ring_body import RingBody

NS_PER_S = 1_000_000_000
DRIFT_HORIZON_S = 60.0  # a drifting encoder is looked at this far ahead, then again


class RingEncoders:
    """Two load encoders on the ring and one encoder on each motor, and the firmware's comparison of them.

    Args:
        kernel: plant time and randomness.
        device: name of the gantry.
        truth: how they are mounted.
        body: what they see.
        disagree: called with the numbers of the drives whose encoder differs from the load encoder.
    """

    def __init__(
        self, kernel: Kernel, device: str, truth: GantryTruth, body: RingBody, disagree: Callable[[Sequence[int]], None]
    ) -> None:
        self._kernel = kernel
        self._truth = truth
        self._body = body
        self._disagree = disagree
        self.load = Encoder(kernel, device, "load-encoder", truth.load_encoder)
        self.load2 = Encoder(kernel, device, "load-encoder-2", truth.load_encoder2)
        self.motors = (
            Encoder(kernel, device, "motor-encoder-A", truth.motor_encoder_a),
            Encoder(kernel, device, "motor-encoder-B", truth.motor_encoder_b),
        )
        self._limit_mdeg = truth.encoder_pair_deg * 1000.0
        self._timer: Timer | None = None

    def load_mdeg(self, t_ns: int) -> int:
        """Reading of the load encoder on the motion line."""
        return self.load.read_mdeg(self._body.angle_deg(t_ns), t_ns)

    def load2_mdeg(self, t_ns: int) -> int:
        """Reading of the load encoder that is hard-wired to the safety I/O."""
        return self.load2.read_mdeg(self._body.angle_deg(t_ns), t_ns)

    def motor_mdeg(self, drive: int, t_ns: int) -> int:
        """Reading of a motor encoder, in mdeg of the ring."""
        return self.motors[drive].read_mdeg(self._body.motor(t_ns).position, t_ns)

    def differing(self, t_ns: int) -> list[int]:
        """Drives whose encoder now differs from the load encoder by more than the limit."""
        load = self.load_mdeg(t_ns)
        return [i for i in (0, 1) if abs(self.motor_mdeg(i, t_ns) - load) > self._limit_mdeg]

    def freeze(self, encoder: Encoder) -> None:
        """Plant a fault: the encoder repeats what it reads now."""
        now = self._kernel.now_ns
        motor = encoder in self.motors
        encoder.freeze(self._body.motor(now).position if motor else self._body.angle_deg(now))
        self.look_ahead()

    def look_ahead(self) -> None:
        """Find when the comparison will trip on the present path. Sound encoders cannot differ so far: they cost nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        truth, body = self._truth, self._body
        play_mdeg = truth.backlash_mdeg / 2.0 + truth.sag_mdeg
        bound_mdeg = self.load.bound_mdeg + max(e.bound_mdeg for e in self.motors) + play_mdeg
        if bound_mdeg <= self._limit_mdeg and body.aligned:
            return
        now = self._kernel.now_ns
        rests_at = body.rests_at_ns
        horizon_s = 1.0 + (max(rests_at - now, 0) / NS_PER_S if rests_at is not None else 0.0)
        again = rests_at is None or any(e.drifts for e in (self.load, *self.motors))
        if again:
            horizon_s = max(horizon_s, DRIFT_HORIZON_S)
        period_ns = round(truth.encoder_check_s * NS_PER_S)
        first_ns = (now // period_ns + 1) * period_ns
        t = first_ns + period_ns * np.arange(math.ceil(horizon_s / truth.encoder_check_s), dtype=np.int64)
        angle_deg, motor_deg = body.angles_deg(t)
        load = self.load.read_many_mdeg(angle_deg, t)
        a, b = (e.read_many_mdeg(motor_deg, t) for e in self.motors)
        # Readings are whole mdeg: compare as the firmware will.
        apart = np.maximum(np.abs(np.rint(a) - np.rint(load)), np.abs(np.rint(b) - np.rint(load)))
        hits = np.flatnonzero(apart > self._limit_mdeg)
        if hits.size:
            self._timer = self._kernel.at(int(t[hits[0]]), self._judge)
        elif again:
            self._timer = self._kernel.at(int(t[-1]), lambda _t: self.look_ahead())

    def _judge(self, t_ns: int) -> None:
        self._timer = None
        off = self.differing(t_ns)
        if off:
            self._disagree(off)


class LimitSwitches:
    """Hard and final limit switches on the ring.

    Args:
        kernel: plant time.
        truth: where they are.
        body: what passes them.
        hard: called when the hard limit is passed outward.
        final: called when the final limit is passed outward.
    """

    def __init__(
        self, kernel: Kernel, truth: GantryTruth, body: RingBody, hard: Callable[[], None], final: Callable[[], None]
    ) -> None:
        self._kernel = kernel
        self._body = body
        self._switches = ((truth.hard_limit_deg, hard), (truth.final_limit_deg, final))
        self._timers: list[Timer] = []

    def look_ahead(self) -> None:
        """Find when the present path passes a switch outward."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        body = self._body
        now_deg, end_deg = body.ring_now_deg(), body.path_end_deg
        if body.rests_at_ns is None:
            return
        for limit_deg, action in self._switches:
            if abs(end_deg) <= limit_deg or abs(end_deg) <= abs(now_deg):
                continue
            # A switch that is already passed forbids to go on outward.
            crossing_ns = body.ring_crossing_ns(math.copysign(limit_deg, end_deg)) if abs(now_deg) < limit_deg else 0
            if crossing_ns is not None:
                self._timers.append(self._kernel.at(crossing_ns, self._acting(action)))

    @staticmethod
    def _acting(action: Callable[[], None]) -> Callable[[int], None]:
        return lambda _t_ns: action()


class StandstillWatch:
    """The standstill line (SOS): falls when motion begins, rises when the ring has stood for its window.

    Standstill is proven by encoders that agree: while they were found to differ the line stays down, until the fault is reset.

    Args:
        kernel: plant time.
        name: of the line.
        truth: speed, position and time that mean standstill.
        body: what stands.
    """

    def __init__(self, kernel: Kernel, name: str, truth: GantryTruth, body: RingBody) -> None:
        self._kernel = kernel
        self._truth = truth
        self._body = body
        self._timer: Timer | None = None
        self._doubts: frozenset[str] = frozenset()
        self.line = Line(kernel, name, True)

    def doubt(self, doubted: bool, why: str = "encoders") -> None:
        """The encoders were found to differ, or their fault was reset; a real ring is not heard any more, or again."""
        doubts = self._doubts | {why} if doubted else self._doubts - {why}
        if doubts != self._doubts:
            self._doubts = doubts
            self.line.set(False)
            self.look_ahead()

    def look_ahead(self) -> None:
        """Find when the line will change on the present path."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rests_at = self._body.rests_at_ns
        if rests_at is None or rests_at > self._kernel.now_ns:
            self.line.set(False)
        if rests_at is not None and not self.line.value and not self._doubts:
            window_ns = round(self._truth.standstill_window_s * NS_PER_S)
            self._timer = self._kernel.at(rests_at + window_ns, lambda _t: self.line.set(True))

    def creeping(self, speed_deg_s: float) -> None:
        """The ring slips at a constant speed: seen by its speed after one check, or when the window is left."""
        if self._timer is not None:
            self._timer.cancel()
        truth = self._truth
        fast = abs(speed_deg_s) > truth.standstill_speed_deg_s
        seen_s = truth.encoder_check_s if fast else truth.standstill_position_deg / abs(speed_deg_s)
        self._timer = self._kernel.after(round(seen_s * NS_PER_S), lambda _t: self.line.set(False))
