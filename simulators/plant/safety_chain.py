"""The hard-wired safety chain of one room: chain A, pulse relays B and R, the beam enable that needs all three; motion relay.

A is the AND of its elements after a hardware delay; it protects alone. B (interlock system) and R (controller) are relays
that close on a pulse and fall 100 ms after the last *changed* value: supervision, not protection. So is the motion relay, by a
pulse of its own; it has no part in beam. Pulses of two sources open a relay. Nothing here asks any process of ours: an E-stop
takes the permit away with every process killed. Not responsible for what the elements measure, nor for what drives do when the
motion relay falls (`room`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from simulators.plant.beam_off import BeamOffElements
from simulators.plant.kernel import Kernel, Line, Timer
from simulators.plant.motion_truth import ChainTruth

NS_PER_MS = 1_000_000
NS_PER_US = 1_000
ALONE_MS = 300.0  # that a source must have written alone before a relay closes: several polls (50 ms), assumed
EVIDENCE_KEPT = 64

ELEMENTS = ("estop", "door", "search", "dose1", "dose2", "standstill", "torque_off", "quench", "beam_off", "collision")


@dataclass(frozen=True, slots=True)
class Fall:
    """Evidence of one element that fell.

    Attributes:
        t_ns: when its contact opened.
        element: one of `ELEMENTS`.
        first: whether chain A was whole until then.
    """

    t_ns: int
    element: str
    first: bool


class PulseRelay:
    """A relay held by a value that keeps changing; a value that stays the same does not hold it.

    Only a change within what one source writes is a pulse: two sources that each write a number of their own, always the same,
    make one that changes. So a write of another source than the last opens it at once, and it does not close before nobody
    else has written for `ALONE_MS`.

    Args:
        kernel: plant time.
        line: what it switches.
        hold_ms: time after the last change until it falls.
        contested: told (source that was, source that is) when a second source begins to write beside the first.
    """

    def __init__(
        self, kernel: Kernel, line: Line, hold_ms: float, contested: Callable[[int, int], None] = lambda _was, _now: None
    ) -> None:
        self._kernel = kernel
        self._line = line
        self._hold_ns = round(hold_ms * NS_PER_MS)
        self._tell = contested
        self._value = 0
        self._source = 0
        self._written_ns = self._other_ns = -round(ALONE_MS * NS_PER_MS)  # the last write; that of another source than its own
        self._timer: Timer | None = None
        self.changed_ns = kernel.now_ns  # when the value last changed

    @property
    def contested(self) -> bool:
        """Whether another source than the last has written so lately that it is held open."""
        return self._kernel.now_ns - self._other_ns < ALONE_MS * NS_PER_MS

    def pulse(self, value: int, source: int = 0) -> None:
        """Take a value from the wire, and who wrote it (0: who did not say)."""
        written_ns, self._written_ns = self._written_ns, self._kernel.now_ns
        if source != self._source:
            self._another(source, written_ns)
            self._value = value
            return
        if value == self._value:
            return
        self._value = value
        self.changed_ns = self._kernel.now_ns
        if self.contested:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._kernel.after(self._hold_ns, self._fall)
        self._line.set(True)

    def _another(self, source: int, written_ns: int) -> None:
        """Another source writes than did at `written_ns`."""
        was, self._source = self._source, source
        before, self._other_ns = self.contested, written_ns
        if self.contested and not before:
            self._tell(was, source)
        if self._timer is not None:
            self._timer.cancel()
            self._fall(self._kernel.now_ns)

    def _fall(self, _t_ns: int) -> None:
        self._timer = None
        self._line.set(False)


class SafetyChain:
    """Chain A, relays B and R, and what the controller has selected in the safety I/O of one room.

    Every element starts open (False); its owner closes it.

    Args:
        kernel: plant time, truth events.
        room: name of the room.
        truth: delays.

    Attributes:
        estop_ok, door_ok, search_ok, dose1_ok, dose2_ok, standstill_ok, torque_off_ok, quench_ok, beam_off_ok, collision_ok:
            elements of A.
        permit_a, permit_b, permit_r, beam_enable: the contributions and their AND.
        motion_permit: contact of the motion relay.
        room_token, preset_angle_mdeg, preset_species, armed, plan_hash, beam_number: as the controller wrote them.
        first_out: the element that fell first since chain A was last whole; None before the first fall.
        evidence: the latest falls, oldest first.
        beam_off: what takes the beam away, and proves that it did.
    """

    def __init__(self, kernel: Kernel, room: str, truth: ChainTruth) -> None:
        self.kernel = kernel
        self.room = room
        self.device = f"{room}-safety"
        self._fall_ns = round(truth.permit_fall_us * NS_PER_US)
        self._rise_ns = round(truth.permit_rise_ms * NS_PER_MS)
        self.estop_ok = Line(kernel, f"{room}.estop_ok")
        self.door_ok = Line(kernel, f"{room}.door_ok")
        self.search_ok = Line(kernel, f"{room}.search_ok")
        self.dose1_ok = Line(kernel, f"{room}.dose1_ok")
        self.dose2_ok = Line(kernel, f"{room}.dose2_ok")
        self.standstill_ok = Line(kernel, f"{room}.standstill_ok")
        self.torque_off_ok = Line(kernel, f"{room}.torque_off_ok")
        self.quench_ok = Line(kernel, f"{room}.quench_ok")
        self.beam_off_ok = Line(kernel, f"{room}.beam_off_ok")
        self.collision_ok = Line(kernel, f"{room}.collision_ok")
        self.permit_a = Line(kernel, f"{room}.permit_a")
        self.permit_b = Line(kernel, f"{room}.permit_b")
        self.permit_r = Line(kernel, f"{room}.permit_r")
        self.beam_enable = Line(kernel, f"{room}.beam_enable")
        self.motion_permit = Line(kernel, f"{room}.motion_permit")
        self.elements: dict[str, Line] = {name: getattr(self, f"{name}_ok") for name in ELEMENTS}
        self.room_token = 0
        self.preset_angle_mdeg = 0
        self.preset_species = 0
        self.armed = False
        self.plan_hash = 0
        self.beam_number = 0
        self.first_out: Fall | None = None
        self.evidence: deque[Fall] = deque(maxlen=EVIDENCE_KEPT)
        self._whole = False
        self._rising: Timer | None = None
        self._relay_b = self._relay("B", self.permit_b, truth.pulse_relay_ms)
        self._relay_r = PulseRelay(kernel, self.permit_r, truth.pulse_relay_ms)
        self._relay_motion = self._relay("motion", self.motion_permit, truth.pulse_relay_ms)
        for name, line in self.elements.items():
            line.watch(lambda t_ns, value, name=name: self._element_changed(t_ns, name, value))  # type: ignore[misc]
        self.beam_off = BeamOffElements(kernel, room, self.beam_off_ok, self.permit_a, self.beam_enable)
        for which, line in (("A", self.permit_a), ("B", self.permit_b), ("R", self.permit_r)):
            line.watch(lambda _t, value, which=which: self._contribution_changed(which, value))  # type: ignore[misc]
        self.beam_enable.watch(lambda _t, value: self._tell("beam_enable", value))
        self.motion_permit.watch(lambda _t, value: self._tell("motion", value))

    def select(
        self,
        room_token: int,
        preset_angle_mdeg: int,
        preset_species: int,
        armed: bool,
        plan_hash: int = 0,
        beam_number: int = 0,
    ) -> None:
        """Take what the controller has selected; a change is a truth event of its own."""
        before = (self.room_token, self.preset_angle_mdeg, self.preset_species, self.armed)
        self.room_token, self.preset_angle_mdeg, self.preset_species = room_token, preset_angle_mdeg, preset_species
        self.armed = armed
        self.plan_hash, self.beam_number = plan_hash, beam_number
        if (room_token, preset_angle_mdeg, preset_species, armed) != before:
            self.kernel.emit(self.device, "selection", room=self.room, armed=armed)

    def pulse_b(self, value: int, source: int = 0) -> None:
        """The interlock system's pulse and boot id: a value that it changed holds relay B for another 100 ms."""
        self._relay_b.pulse(value, source)

    def pulse_r(self, value: int) -> None:
        """The controller's request pulse: a changed value holds relay R for another 100 ms."""
        self._relay_r.pulse(value)

    def pulse_motion(self, value: int, source: int = 0) -> None:
        """The interlock system's pulse for motion and boot id; likewise for the motion relay."""
        self._relay_motion.pulse(value, source)

    @property
    def contested(self) -> tuple[bool, bool]:
        """Whether relay B, and the motion relay, are held open because two interlock systems write them."""
        return self._relay_b.contested, self._relay_motion.contested

    def _relay(self, which: str, line: Line, hold_ms: float) -> PulseRelay:
        def contested(was: int, now: int) -> None:
            self.kernel.emit(self.device, "relay.contested", room=self.room, which=which, sources=(was, now))

        return PulseRelay(self.kernel, line, hold_ms, contested)

    def last_pulse_ns(self, which: str) -> int:
        """When the pulse of relay ``"B"`` or ``"R"`` last changed, whatever its relay made of it."""
        return (self._relay_b if which == "B" else self._relay_r).changed_ns

    @property
    def whole(self) -> bool:
        """Whether every element of chain A is healthy now."""
        return self._whole

    def _element_changed(self, t_ns: int, name: str, value: bool) -> None:
        was_whole = self._whole
        self._whole = all(line.value for line in self.elements.values())
        if not value:
            fall = Fall(t_ns, name, was_whole)
            self.evidence.append(fall)
            if self.beam_enable.value:
                self.beam_off.person(name)
            if was_whole:
                self.first_out = fall
                if self.armed or self.beam_enable.value:  # between treatments drives are enabled and doors opened all day
                    self.kernel.emit(self.device, "trip", room=self.room, element=name, cause=name)
        if self._whole == was_whole:
            return
        if self._rising is not None:
            self._rising.cancel()
            self._rising = None
        if self._whole:
            self._rising = self.permit_a.set_after(self._rise_ns, True)
        else:  # a fall is never taken back, however short it was
            self.permit_a.set_after(self._fall_ns, False)

    def _contribution_changed(self, which: str, value: bool) -> None:
        self._tell(which, value)
        self.beam_enable.set(self.permit_a.value and self.permit_b.value and self.permit_r.value)

    def _tell(self, which: str, value: bool) -> None:
        self.kernel.emit(self.device, "permit", room=self.room, which=which, value=value)
