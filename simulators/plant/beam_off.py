"""The beam-off elements of one room: RF-KO, chopper, stopper, ring dump, source; who does not answer is stood in for.

Hard-wired. When the beam enable falls, RF-KO is switched off and the chopper fires; when chain A falls, the stopper comes in.
Every element has to prove its work: RF-KO and chopper by their own read-back after 500 us, both by measured beam after 1 ms,
the stopper by its end switch within 1 s. What is not proven takes the next element, without asking any program; from level 2 on
an element of chain A is open until it is reset at its cabinet:

    level 1  RF-KO did not answer: the chopper had to do it alone
    level 2  chopper did not answer, or beam was measured: the ring is dumped and the stopper comes in
    level 3  stopper not in after 1 s, with the path open to this room: the ring is dumped, the source gives no new fill

A person in danger (E-stop, door, search) with the beam enabled dumps the ring in any case. Not responsible for how fast RF-KO
and chopper are (`synchrotron`), nor for what a stretch of beam becomes when it ends (`delivery_unit`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Protocol

from simulators.plant.kernel import Kernel, Line
from simulators.plant.stopper import Stopper
from simulators.plant.synchrotron import UNCONFIRMED_US, RingFaults

NS_PER_US = 1_000
ANSWER_NS = round(UNCONFIRMED_US) * NS_PER_US
CURRENT_NS = 1_000_000  # beam measured this long after "off" is one element too few; design figure
DUMP_NS = 300_000  # command to an empty ring: kicker and its logic; assumed
STOPPER_NS = 1_000_000_000  # a stopper is in within this; design figure
STOPPER_TRAVEL_S = 0.6  # assumed, below 1 s
DUMPING = ("estop", "door", "search")  # elements of chain A that mean a person


class Element(IntFlag):
    """The elements, as bits on the wire."""

    RFKO = 1
    CHOPPER = 2
    STOPPER = 4
    DUMP = 8
    SOURCE = 16


class Level(IntEnum):
    """How far it had to go; the values travel on the wire."""

    NONE = 0
    CHOPPER = 1
    DUMP = 2
    SOURCE = 3


class Accelerator(Protocol):
    """What the elements do to the accelerator."""

    faults: RingFaults

    def dump(self, fault: bool) -> None: ...

    def inhibit_source(self, room: str, inhibited: bool) -> None: ...


class BeamOffElements:
    """The elements of one room.

    Args:
        kernel: plant time, truth events.
        room: name of the room.
        ok: element of chain A; open from level 2 on until `reset`.
        permit_a, beam_enable: what demands: their fall.

    Attributes:
        stopper: see its module.
        level: the highest since the last `reset`; level 1 is forgotten when beam is enabled again.
        asked, confirmed: elements that are to work, and those of them that have proven it.
        accelerator: set by the facility; without one there is no ring to dump.
        beam, counts, lose: measured beam in the room, counts of its first monitor, and what tells the unit that no more comes.
        route_open: whether the path leads to this room.
    """

    def __init__(self, kernel: Kernel, room: str, ok: Line, permit_a: Line, beam_enable: Line) -> None:
        self.kernel = kernel
        self.room = room
        self.device = f"{room}-beam-off"
        self.stopper = Stopper(kernel, STOPPER_TRAVEL_S, self._stopper_in)
        self.level = Level.NONE
        self.asked = Element.RFKO | Element.CHOPPER | Element.STOPPER
        self.confirmed = self.asked
        self.accelerator: Accelerator | None = None
        self.beam: Callable[[], bool] = lambda: False
        self.counts: Callable[[], int] = lambda: 0
        self.lose: Callable[[], None] = lambda: None
        self.route_open: Callable[[], bool] = lambda: False
        self._ok = ok
        self._permit_a = permit_a
        self._enable = beam_enable
        self._asked_ns = kernel.now_ns  # when RF-KO and chopper were asked last
        self._late_from: int | None = None  # counts when the beam should have been gone
        self._late_counts = 0
        ok.set(True)
        permit_a.watch(self._permit_changed)
        beam_enable.watch(self._enable_changed)

    @property
    def residual_counts(self) -> int:
        """Counts of monitor 1 that came later than 1 ms after the last "off"."""
        if self._late_from is None:
            return self._late_counts
        return self._late_counts + self.counts() - self._late_from

    # --- demands ------------------------------------------------------------------------------------------------------

    def person(self, element: str) -> None:
        """An element of chain A has opened while beam was enabled: one that means a person dumps the ring."""
        if element in DUMPING and self.route_open():
            self._dump(fault=False)

    def off(self) -> None:
        """RF-KO and chopper must take the beam away: asked by the chain, or by a unit whose beam did not end."""
        self._asked_ns = now = self.kernel.now_ns
        self.asked |= Element.RFKO | Element.CHOPPER
        self.confirmed &= ~(Element.RFKO | Element.CHOPPER)
        self._late_from, self._late_counts = None, 0
        self.kernel.after(ANSWER_NS, lambda _t: self._judge_answers(now))
        self.kernel.after(CURRENT_NS, lambda _t: self._judge_current(now))

    def reset(self) -> bool:
        """Reset at the cabinet; False while an element still does not do what it was asked."""
        faults = self.accelerator.faults if self.accelerator is not None else RingFaults()
        if self.beam() or faults.rfko_stuck_on or faults.chopper_stuck or self.stopper.stuck:
            return False
        self.level = Level.NONE
        self.asked &= ~(Element.DUMP | Element.SOURCE)
        self.confirmed &= self.asked
        if self.accelerator is not None:
            self.accelerator.inhibit_source(self.room, False)
        self._ok.set(True)
        return True

    def _enable_changed(self, _t_ns: int, enabled: bool) -> None:
        if not enabled:
            self.off()
            return
        self.asked &= ~(Element.RFKO | Element.CHOPPER)
        self.confirmed &= self.asked
        self._late_from, self._late_counts = None, 0
        if self.level is Level.CHOPPER:
            self.level = Level.NONE

    def _permit_changed(self, _t_ns: int, permit: bool) -> None:
        if permit and self.level < Level.DUMP:
            self.stopper.send(False)
            self.asked &= ~Element.STOPPER
            self.confirmed &= self.asked
        elif not permit:
            self._stopper_needed()

    # --- feedback -----------------------------------------------------------------------------------------------------

    def _judge_answers(self, asked_ns: int) -> None:
        """RF amplitude and chopper field are read back."""
        if asked_ns != self._asked_ns or not self.asked & Element.RFKO or self.accelerator is None:
            return
        faults = self.accelerator.faults
        if faults.rfko_stuck_on:
            self._escalate(Level.CHOPPER, "RF-KO is still on")
        else:
            self.confirmed |= Element.RFKO
        if faults.chopper_stuck and not faults.chopper_reading_lies:
            self._escalate(Level.DUMP, "the chopper did not fire")
        else:
            self.confirmed |= Element.CHOPPER

    def _judge_current(self, asked_ns: int) -> None:
        """What the monitors measure in the room 1 ms after "off"."""
        if asked_ns == self._asked_ns and self.asked & Element.RFKO and self.beam():
            self._late_from = self.counts()
            self.confirmed &= ~(Element.RFKO | Element.CHOPPER)
            self._escalate(Level.DUMP, "beam is measured 1 ms after off")

    def _stopper_needed(self) -> None:
        if self.asked & Element.STOPPER:
            return
        self.asked |= Element.STOPPER
        self.stopper.send(True)
        self.kernel.after(STOPPER_NS, lambda _t: self._judge_stopper())

    def _judge_stopper(self) -> None:
        if self.asked & Element.STOPPER and not self.stopper.inside:
            self._escalate(Level.SOURCE, "the stopper is not in after 1 s")

    def _stopper_in(self) -> None:
        self.confirmed |= Element.STOPPER
        self._beam_gone()

    # --- escalation ---------------------------------------------------------------------------------------------------

    def _escalate(self, level: Level, why: str) -> None:
        if level <= self.level:
            return
        self.level = level
        self.kernel.emit(self.device, "beam_off.escalated", room=self.room, level=int(level), why=why)
        if level is Level.CHOPPER:
            return
        self._ok.set(False)
        self._stopper_needed()
        if level is Level.SOURCE and self.accelerator is not None and self.route_open():
            self.asked |= Element.SOURCE
            self.accelerator.inhibit_source(self.room, True)
            self.confirmed |= Element.SOURCE
        if level is Level.DUMP or self.route_open():
            self._dump(fault=True)

    def _dump(self, fault: bool) -> None:
        self.asked |= Element.DUMP
        self.kernel.after(DUMP_NS, lambda _t: self._dumped(fault))

    def _dumped(self, fault: bool) -> None:
        if self.accelerator is None:
            return
        self.confirmed |= Element.DUMP
        self._beam_gone()  # before the ring tells its watchers: what they find is a stretch that has ended
        self.accelerator.dump(fault)
        if not fault and self.level < Level.DUMP:  # done; nothing is left to be reset
            self.asked &= ~Element.DUMP
            self.confirmed &= self.asked

    def _beam_gone(self) -> None:
        self.lose()
        if self._late_from is not None:
            self._late_counts = self.residual_counts
            self._late_from = None
