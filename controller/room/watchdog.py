"""Feeds the request pulse only while every supervised task has reported: the last link between a living program and beam.

Who must live while beam is requested says so (`watch`) or is looked at (`follow`); `judge` is asked in the very step in which a
pulse would leave. Whoever is late by more than 100 ms beyond its period withholds the pulse, and is the cause; the first one
stays so until the watch is renewed. A loop that stood still shows as a gap between two pulses: the relay has fallen then, and
nothing closes it again by itself. Pure: no tasks, no timers, loop time alone. Not responsible for asking (`request_watch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controller.room.causes import Cause, Severity
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns

GRACE_NS = 100 * NS_PER_MS  # beyond the period of whoever is watched, and the longest gap between two pulses (docs/wires.md)
ASKED_NS = 100 * NS_PER_MS  # a judgement is asked for at least so often while beam is requested


@dataclass(slots=True, eq=False)
class Beat:
    """What a supervised task holds, and calls as it goes.

    Attributes:
        name: of the task, for the operator.
        period_ns: it reports at least so often, unless it has announced a longer step.
        due_ns: when it must have reported again; the grace comes on top.
        step_ns: how long the present step may take.
    """

    name: str
    period_ns: int
    due_ns: int
    step_ns: int
    _dog: Watchdog

    def beat(self, within_s: float | None = None) -> None:
        """Report. `within_s`: the next report comes within that time, because the step that begins now may take so long."""
        self.step_ns = self.period_ns if within_s is None else round(within_s * NS_PER_S)
        self.due_ns = now_ns() + self.step_ns

    def end(self) -> None:
        """The task has done its work and need not report any more. A task that dies does not come here."""
        self._dog.beats.pop(self.name, None)

    def renew(self, at_ns: int) -> None:
        """Count anew from `at_ns`: nobody was asked meanwhile."""
        self.due_ns = max(self.due_ns, at_ns + self.step_ns)


@dataclass(frozen=True, slots=True)
class Followed:
    """A poller that need not know of any watchdog: the time of what it read last says whether it lives."""

    name: str
    seen_ns: Callable[[], int]
    limit_ns: int


class Watchdog:
    """One per session.

    Attributes:
        beats: those who report, by name.
        first: what withheld the pulse first since the watch was renewed; None while all live.
    """

    def __init__(self) -> None:
        self.beats: dict[str, Beat] = {}
        self.first: Cause | None = None
        self._followed: list[Followed] = []
        self._asked_ns: int | None = None  # when the last judgement was asked for

    def watch(self, name: str, period_s: float) -> Beat:
        """Expect reports from a task at least every `period_s` from now on. A name that is there already begins anew."""
        period_ns = round(period_s * NS_PER_S)
        beat = self.beats[name] = Beat(name, period_ns, now_ns() + period_ns, period_ns, self)
        return beat

    def follow(self, name: str, seen_ns: Callable[[], int], limit_ms: float) -> None:
        """Expect that what a poller reads is never older than `limit_ms`; `seen_ns()` is loop time of its latest."""
        self._followed.append(Followed(name, seen_ns, round(limit_ms * NS_PER_MS)))

    def renew(self) -> None:
        """Beam is requested anew: who was not asked meanwhile has its whole period again."""
        self.first = None
        self._asked_ns = None
        at_ns = now_ns()
        for beat in self.beats.values():
            beat.renew(at_ns)

    def judge(self, at_ns: int, gap_ns: int = 0) -> Cause | None:
        """What withholds the pulse at `at_ns`; None: feed it.

        Args:
            at_ns: loop time.
            gap_ns: time since the pulse before; 0 for the first one.
        """
        idle_ns = 0 if self._asked_ns is None else at_ns - self._asked_ns
        self._asked_ns = at_ns
        if self.first is None:
            # Where nobody has asked for so long, nothing ran: that everybody is late then is no fault of theirs.
            self.first = self._late(at_ns, max(gap_ns, idle_ns if idle_ns > ASKED_NS + GRACE_NS else 0))
        return self.first

    def _late(self, at_ns: int, gap_ns: int) -> Cause | None:
        if gap_ns > GRACE_NS:
            return Cause(
                "watchdog.loop",
                Severity.PAUSE,
                "the program stood still: the request relay has fallen",
                device="controller",
                value=f"{gap_ns / NS_PER_MS:.0f} ms without a pulse",
                limit=f"{GRACE_NS / NS_PER_MS:g} ms",
                hint="look for load on this computer and its disk, then resume",
                t_ns=at_ns,
            )
        late = [(at_ns - beat.due_ns, beat) for beat in self.beats.values() if at_ns - beat.due_ns > GRACE_NS]
        if late:
            over_ns, beat = max(late, key=lambda item: item[0])
            return Cause(
                f"watchdog.{beat.name.replace(' ', '_')}",
                Severity.FAULT,
                f"the {beat.name} of this program does not report any more",
                device="controller",
                value=f"{(over_ns + beat.step_ns) / NS_PER_MS:.0f} ms without a report",
                limit=f"{(beat.step_ns + GRACE_NS) / NS_PER_MS:.0f} ms",
                hint="keep the event file; end this program and start it again before any beam",
                t_ns=at_ns,
            )
        for poller in self._followed:
            age_ns = at_ns - poller.seen_ns()
            if age_ns > poller.limit_ns + GRACE_NS:
                return Cause(
                    "status.stale",  # as the room watch calls it, which is a little faster while it lives
                    Severity.PAUSE,
                    f"{poller.name} is {age_ns / NS_PER_MS:.0f} ms old (limit {poller.limit_ns / NS_PER_MS:.0f} ms)",
                    hint="check the connection, then resume",
                    t_ns=at_ns,
                )
        return None
