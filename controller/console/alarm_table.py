"""Which events are alarms: severity, words, and what ends the condition, in one table that code, tests and documents read.

Severity follows IEC 62682 and EEMUA 191 (what happens if nobody acts, and how soon): high, beam or dose is in question and the
treatment has ended or must not go on; medium, something has to be done before it can go on; low, it may wait for the end of the
field. What an operator does himself is no alarm, and neither is a planted fault. Not responsible for the list (`alarms`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from drivers.hal.events import Event

Severity = Literal["high", "medium", "low"]
RANK: Mapping[Severity, int] = MappingProxyType({"high": 2, "medium": 1, "low": 0})
LAG_ALARM_MS, LAG_PAUSE_MS = 20.0, 100.0  # hazard T1: alarm above 20 ms, the watchdog pauses above 100 ms
REFUSALS, REFUSALS_S = 3, 60.0  # one refusal is an answer, three in a minute are somebody in need of help; assumed
BOOT = "POWER_UP"  # every interlock system starts tripped


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """One kind of event that raises an alarm.

    Attributes:
        kind: of the event.
        severity: unless `grade` says otherwise.
        words: what the operator reads, with value, limit and what to do.
        until: what ends the condition, for people; empty: it is over at once and only waits to be acknowledged.
        key: tells alarms of one kind and source apart.
        grade: severity by what the event says; None: this event is no alarm.
        repeats, within_s: how often it has to come, within how many seconds, before it is an alarm.
    """

    kind: str
    severity: Severity
    words: Callable[[Event], str]
    until: str = ""
    key: Callable[[Event], str] = lambda _event: ""
    grade: Callable[[Event], Severity | None] | None = None
    repeats: int = 1
    within_s: float = 0.0

    def severity_of(self, event: Event) -> Severity | None:
        """How severe this event is, None when it is none."""
        return self.severity if self.grade is None else self.grade(event)


@dataclass(frozen=True, slots=True)
class Clearing:
    """An event that says that conditions of its source are over.

    Attributes:
        kind: of the event.
        ends: kinds of alarms whose condition is over.
        when: whether this event says so.
        keys: which of them; None: all.
        anywhere: of every source, not of the event's own alone.
    """

    kind: str
    ends: tuple[str, ...]
    when: Callable[[Event], bool] = lambda _event: True
    keys: Callable[[Event], Iterable[str]] | None = None
    anywhere: bool = False


def _text(event: Event, name: str) -> str:
    value = event.data.get(name)
    return "" if value is None else str(value)


def _number(value: Any) -> float:
    """A number, NaN for what is none: it is neither above nor below a limit."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _trip_words(event: Event) -> str:
    value, limit, device, hint = (_text(event, name) for name in ("value", "limit", "device", "hint"))
    numbers = f" ({value}; limit {limit})" if limit else f" ({value})" if value else ""
    where = f"{device}: " if device else ""
    return f"{where}{_text(event, 'message')}{numbers}" + (f"; {hint}" if hint else "")


def _trip_grade(event: Event) -> Severity:
    return "medium" if event.data.get("severity") == "pause" else "high"


def _interlock_words(event: Event) -> str:
    advice = _text(event, "advice")
    return f"{_text(event, 'id')}: {_text(event, 'cause')}" + (f"; {advice}" if advice else "")


def _still_stands(event: Event) -> str:
    return f"still stands: {_interlock_words(event)}"


def _interlock_silent(event: Event) -> str:
    why = _text(event, "error") or "the interlock system does not answer"
    return f"{event.source}: {why}; see whether its process runs, and the load of this computer"


def _interlock_grade(event: Event) -> Severity:
    """What follows from the first-out needs its reset and no attention of its own; every system starts with a trip."""
    return "high" if event.data.get("first_out", True) and event.data.get("id") != BOOT else "medium"


def _motion_grade(event: Event) -> Severity | None:
    return None if event.data.get("asked") else "medium"  # stopped by whoever asked for it: a button that was let go of, STOP


def _lag_grade(event: Event) -> Severity | None:
    lag_ms = _number(event.data.get("lag_ms"))
    return "high" if lag_ms > LAG_PAUSE_MS else "medium" if lag_ms > LAG_ALARM_MS else None


def _lag_words(event: Event) -> str:
    lag_ms = _number(event.data.get("lag_ms"))
    return f"the room's program is late by {lag_ms:.0f} ms (limit {LAG_ALARM_MS:g} ms); look for load on this computer"


def _says(words: str, field: str = "error") -> Callable[[Event], str]:
    """`words`, and after a colon what the event carries in `field`."""

    def say(event: Event) -> str:
        detail = _text(event, field)
        return f"{event.source}: {words}{f': {detail}' if detail else ''}"

    return say


def _not_connected(event: Event) -> str:
    why = _text(event, "error") or _text(event, "reason")
    return f"{event.source} is not connected{f': {why}' if why else ''}"


def _close_failed(event: Event) -> str:
    if "beam_number" in event.data:
        return f"beam {_text(event, 'beam_number')} is not closed in the ledger: {_text(event, 'error')}; reconcile it"
    return f"{_text(event, 'device')} could not be let go of: {_text(event, 'error')}"


def _cut_off(event: Event) -> str:
    name = _text(event, "id")
    if event.data.get("state") == "locked":
        return f"treatment {name}: its dose is in doubt: a physicist takes control and signs it under Treatments"
    return f"treatment {name} was cut off in beam: a physicist takes control and presses Reconcile under Treatments"


def _cleared(event: Event) -> Iterable[str]:
    cleared = event.data.get("cleared")
    return map(str, cleared) if isinstance(cleared, list | tuple) else ()


def _field(name: str) -> Callable[[Event], str]:
    return lambda event: _text(event, name)


_NEXT_MOTION = "the next motion"
_ROWS: tuple[AlarmRule, ...] = (
    AlarmRule("trip", "high", _trip_words, "the room is in standby again, or goes on", _field("cause"), _trip_grade),
    AlarmRule("interlock.trip", "high", _interlock_words, "its reset", _field("id"), _interlock_grade),
    AlarmRule("interlock.stands", "medium", _still_stands, "its reset", _field("id")),
    AlarmRule("interlock.silent", "high", _interlock_silent, "it answers again"),
    AlarmRule("device.down", "medium", _not_connected, "it is connected again"),
    AlarmRule("device.refused", "medium", _says("another device answers in its place"), "it is connected again"),
    AlarmRule("device.fault", "high", _says("its driver has failed; start the room again"), "it is connected again"),
    AlarmRule("motion.failed", "medium", _says("the motion failed"), _NEXT_MOTION, grade=_motion_grade),
    AlarmRule("motion.stop_unconfirmed", "high", _says("nobody confirmed the stop; look at the axis"), _NEXT_MOTION),
    AlarmRule("stop.failed", "high", _says("a stop of motion was not confirmed; look at gantry and couch")),
    AlarmRule("unit.not_asked", "medium", _says("the delivery unit was not asked what it gave")),
    AlarmRule("loop.lag", "medium", _lag_words, f"it is below {LAG_ALARM_MS:g} ms", grade=_lag_grade),
    AlarmRule(
        "disk.refuses",
        "high",
        _says("the disk does not take what has to be durable; free space, or check it"),
        "a write succeeds",
    ),
    AlarmRule("ledger.unreadable", "high", _says("the ledger cannot be read; look at its disk"), "the next treatment"),
    AlarmRule(
        "close.failed",
        "high",
        _close_failed,
        key=lambda event: _text(event, "beam_number") or _text(event, "device"),
        grade=lambda event: "high" if "beam_number" in event.data else "low",
    ),
    AlarmRule("treatment.cut_off", "high", _cut_off, "it is reconciled, and signed where in doubt", _field("id")),
    AlarmRule("grant.unsettled", "high", _says("what a grant gave is not known; reconcile it"), key=_field("grant_id")),
    AlarmRule("results.lost", "high", _says("results of a grant are lost; reconcile it"), key=_field("grant_id")),
    AlarmRule("latch.unreadable", "high", _says("the delivery unit does not say what it gave")),
    AlarmRule("results.awaited", "medium", _says("results are waited for; start the delivery unit's server", "")),
    AlarmRule("violation", "high", _says("the simulated plant shows what must never be", "message"), "the next treatment"),
    AlarmRule("program.exception", "high", _says("fault of the program; keep the event file")),
    AlarmRule("task.error", "high", _says("a task of the room failed")),
    AlarmRule("unit.rebooted", "medium", _says("the delivery unit has started again; its open grant has to be reconciled", "")),
    AlarmRule("request.dropped", "medium", _says("the beam request did not arrive and is withdrawn")),
    AlarmRule("request.withheld", "medium", _says("the beam request came too late and is withdrawn", "")),
    AlarmRule("finding", "medium", _says("delivered spots are out of tolerance", "message"), key=_field("code")),
    AlarmRule("problem", "medium", _says("the field could not be closed as it should", "what"), key=_field("what")),
    AlarmRule(
        "listener.removed", "medium", _says("a part of the program that follows events has failed and follows none any more")
    ),
    AlarmRule(
        "limits.unsigned", "medium", _says("limits unsigned: only a simulated room runs with them"), "the room is started again"
    ),
    AlarmRule("refused", "low", _says("not treated", "reason")),
    AlarmRule(
        "room.refused",
        "low",
        _says(f"refused {REFUSALS} times within {REFUSALS_S:g} s", "reason"),
        key=_field("event"),
        repeats=REFUSALS,
        within_s=REFUSALS_S,
    ),
    AlarmRule("result.damaged", "low", _says("a damaged result was fetched again")),
    AlarmRule("echo.damaged", "low", _says("a damaged echo was read again")),
    AlarmRule("magnets.warm", "low", _says("warm magnets: ramps wait until they have cooled", "")),
    AlarmRule("oracle.silent", "low", _says("the simulator does not say what the machine alone would need")),
    AlarmRule("simulator.silent", "low", _says("the simulator does not say whether its invariants hold")),
)
RULES: Mapping[str, AlarmRule] = MappingProxyType({rule.kind: rule for rule in _ROWS})

_CLEARINGS: tuple[Clearing, ...] = (
    Clearing(
        "room.state", ("trip",), lambda event: event.data.get("state") == "standby" or event.data.get("event") == "resume"
    ),
    Clearing("interlock.reset", ("interlock.trip", "interlock.stands"), keys=_cleared),
    Clearing("disk.takes", ("disk.refuses",)),
    Clearing("interlock.heard", ("interlock.silent",)),
    Clearing("treatment.settled", ("treatment.cut_off",), keys=lambda event: (_text(event, "id"),)),
    Clearing("device.up", ("device.down", "device.refused", "device.fault")),
    Clearing("motion.start", ("motion.failed", "motion.stop_unconfirmed")),
    Clearing("motion.end", ("motion.failed", "motion.stop_unconfirmed")),
    Clearing("loop.lag", ("loop.lag",), lambda event: _number(event.data.get("lag_ms")) <= LAG_ALARM_MS),
    Clearing("treatment.started", ("ledger.unreadable", "violation"), anywhere=True),
)
CLEARINGS: Mapping[str, tuple[Clearing, ...]] = MappingProxyType(
    {kind: tuple(c for c in _CLEARINGS if c.kind == kind) for kind in {c.kind for c in _CLEARINGS}}
)
