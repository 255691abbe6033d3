"""The moving parts of the nozzle: snout on a spindle, pneumatic range shifters, ripple filter.

Range shifters and ripple filter move by air and take their travel time. The line `settled` is low while anything moves. A
snout that is not spoken to for 200 ms stops where it is and reports a fault until it is sent somewhere again. Not responsible
for what these parts do to the beam.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from simulators.physics import motion
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.motion_truth import NozzleTruth
from simulators.plant.polling import PollingWatch

NS_PER_S = 1_000_000_000
IN_POSITION, MOVING, FAULT = 1, 2, 4
STOP_FACTOR = 2.0  # assumed: an unattended snout stops this much harder than it accelerates


class Slab:
    """Something that air moves into the beam and out of it.

    Args:
        kernel: plant time.
        travel_s: from one end switch to the other, s.
        changed: called when it has left or reached an end.

    Attributes:
        commanded: where it was sent, True is into the beam.
        inside: which end it is at, or was at last.
        moving: between its ends.
        stuck: does not follow (a planted fault).
        switch_lies: its switches show the command whatever it does (a planted fault).
    """

    def __init__(self, kernel: Kernel, travel_s: float, changed: Callable[[], None]) -> None:
        self._kernel = kernel
        self._travel_ns = round(travel_s * NS_PER_S)
        self._changed = changed
        self._timer: Timer | None = None
        self.commanded = self.inside = False
        self.moving = self.stuck = self.switch_lies = False

    @property
    def seen_inside(self) -> bool:
        """What its switches say."""
        return self.commanded if self.switch_lies else self.inside and not self.moving

    @property
    def seen_arrived(self) -> bool:
        """Whether its switches say that it is where it was sent."""
        return self.switch_lies or (not self.moving and self.inside == self.commanded)

    def send(self, inside: bool) -> None:
        """Send it in or out; a change of mind half way costs a whole travel."""
        if inside == self.commanded:
            return
        self.commanded = inside
        if self.stuck:
            return
        self.moving = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._kernel.after(self._travel_ns, self._arrive)
        self._changed()

    def put(self, inside: bool) -> None:
        """Be at an end at once: a real slab says so."""
        if self._timer is not None:
            self._timer.cancel()
        self.commanded = inside
        self._arrive(0)

    def _arrive(self, _t_ns: int) -> None:
        self._timer = None
        self.moving = False
        self.inside = self.commanded
        self._changed()


class Nozzle:
    """One nozzle.

    Args:
        kernel: plant time, randomness, truth events.
        room: name of the room.
        truth: its figures.

    Attributes:
        shifters: range shifters in the facility's order.
        ripple_filter: the ripple filter.
        settled: line, True while nothing moves.
    """

    def __init__(self, kernel: Kernel, room: str, truth: NozzleTruth) -> None:
        self.kernel = kernel
        self.room = room
        self.truth = truth
        self.device = f"{room}-nozzle"
        self.settled = Line(kernel, f"{room}.nozzle.settled", True)
        travel_s = truth.range_shifter_travel_s
        self.shifters = tuple(Slab(kernel, travel_s, self._changed) for _ in truth.range_shifter_ids)
        self.ripple_filter = Slab(kernel, truth.ripple_filter_travel_s, self._changed)
        self.snout_target_mm = truth.snout_initial_mm
        self.fault = False
        self._snout_error_mm = float(kernel.rng(self.device, "snout-error").normal(0.0, truth.snout_error_mm))
        self._path = motion.rest(truth.snout_initial_mm)
        self._t0_ns = kernel.now_ns
        self._snout_moving = False
        self._timer: Timer | None = None
        self._was_moving = False
        self._watch = PollingWatch(kernel, truth.supervision_s, self._polling_lost)

    # --- truth ----------------------------------------------------------------------------------------------------

    def snout_mm(self, t_ns: int) -> float:
        """True distance of the snout's end from the isocentre, mm."""
        return self.snout_encoder_mm(t_ns) + self._snout_error_mm

    @property
    def moving(self) -> bool:
        """Whether anything moves."""
        return self._snout_moving or self.ripple_filter.moving or any(slab.moving for slab in self.shifters)

    @property
    def wet_mm(self) -> float:
        """Water-equivalent thickness truly in the beam, mm; a slab on its way counts with its last end."""
        return sum(wet for wet, slab in zip(self.truth.range_shifter_wet_mm, self.shifters, strict=True) if slab.inside)

    @property
    def inserted(self) -> tuple[str, ...]:
        """Names of the range shifters truly in the beam."""
        return tuple(name for name, slab in zip(self.truth.range_shifter_ids, self.shifters, strict=True) if slab.inside)

    # --- what it says ---------------------------------------------------------------------------------------------

    def snout_encoder_mm(self, t_ns: int) -> float:
        """What the spindle's encoder reads, mm."""
        return self._path.position((t_ns - self._t0_ns) / NS_PER_S)

    @property
    def mask(self) -> int:
        """Range shifters in the beam as their switches say, bit per slab."""
        return sum(1 << i for i, slab in enumerate(self.shifters) if slab.seen_inside)

    @property
    def barrier_mask(self) -> int:
        """Range shifters in the beam as light barriers beside their switches see them, bit per slab."""
        return sum(1 << i for i, slab in enumerate(self.shifters) if slab.inside and not slab.moving)

    @property
    def status(self) -> int:
        """In position, moving, fault as bits."""
        slabs = (*self.shifters, self.ripple_filter)
        arrived = not self._snout_moving and all(slab.seen_arrived for slab in slabs)
        word = FAULT if self.fault else (IN_POSITION if arrived else 0)
        return word | (MOVING if self.moving else 0)

    # --- a real nozzle ---------------------------------------------------------------------------------------------

    def follow_real(self, snout_mm: float, mask: int, ripple_filter: bool) -> None:
        """A real nozzle stands in for this one: its parts are where they say. ValueError when a bit has no slab."""
        if mask >> len(self.shifters):
            raise ValueError(f"{self.device}: mask {mask:#x} for {len(self.shifters)} range shifters")
        self._t0_ns, self._path = self.kernel.now_ns, motion.rest(snout_mm)
        for i, slab in enumerate(self.shifters):
            slab.put(bool(mask >> i & 1))
        self.ripple_filter.put(ripple_filter)
        self.fault = False
        self.settled.set(not self.moving)

    def lose_real(self) -> None:
        """The real nozzle is not heard any more: nothing says what is in the beam."""
        self.fault = True
        self.settled.set(False)

    # --- commands -------------------------------------------------------------------------------------------------

    def polled(self) -> None:
        """It was spoken to on its line."""
        self._watch.heard()

    def set_mask(self, mask: int) -> None:
        """Send the range shifters. ValueError when a bit has no slab."""
        if mask >> len(self.shifters):
            raise ValueError(f"{self.device}: mask {mask:#x} for {len(self.shifters)} range shifters")
        for i, slab in enumerate(self.shifters):
            slab.send(bool(mask >> i & 1))

    def set_ripple_filter(self, inside: bool) -> None:
        """Send the ripple filter."""
        self.ripple_filter.send(inside)

    def set_snout(self, position_mm: float) -> None:
        """Send the snout. ValueError outside its travel, or while it moves."""
        truth = self.truth
        if not truth.snout_minimum_mm <= position_mm <= truth.snout_maximum_mm:
            raise ValueError(
                f"{self.device}: snout {position_mm} mm, travel {truth.snout_minimum_mm} to {truth.snout_maximum_mm} mm"
            )
        self.fault = False
        self.snout_target_mm = position_mm
        now = self.kernel.now_ns
        state = self._path.at((now - self._t0_ns) / NS_PER_S)
        if self._snout_moving:
            if position_mm == self._path.end:
                return
            raise ValueError(f"{self.device}: the snout is moving to {self._path.end} mm")
        if position_mm == state.position:
            return
        limits = motion.Limits(truth.snout_speed_mm_s, truth.snout_acceleration_mm_s2, truth.snout_jerk_mm_s3)
        self._drive(motion.move(state.position, position_mm, limits))
        self._watch.start()

    def _drive(self, path: motion.Trajectory) -> None:
        self._t0_ns, self._path = self.kernel.now_ns, path
        self._snout_moving = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.kernel.after(math.ceil(path.duration_s * NS_PER_S), self._snout_arrived)
        self._changed()

    def _snout_arrived(self, _t_ns: int) -> None:
        self._snout_moving = False
        self._watch.stop()
        self._changed()

    def _polling_lost(self) -> None:
        self.fault = True
        truth = self.truth
        state = self._path.at((self.kernel.now_ns - self._t0_ns) / NS_PER_S)
        acceleration, jerk = truth.snout_acceleration_mm_s2, truth.snout_jerk_mm_s3
        self._drive(motion.stop(state, STOP_FACTOR * acceleration, STOP_FACTOR * jerk))

    def _changed(self) -> None:
        moving = self.moving
        if moving != self._was_moving:
            self._was_moving = moving
            self.settled.set(not moving)
            kind = "motion.start" if moving else "motion.stop"
            self.kernel.emit(self.device, kind, room=self.room, device=self.device)
