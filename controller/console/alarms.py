"""The alarm list of a room: what a person has to take notice of, until that person has and the condition is over.

States are those of ISA-18.2 (IEC 62682): unacknowledged and active, acknowledged and active, returned and unacknowledged; what
is returned and acknowledged leaves the list. A repeated alarm is counted, not listed again. Habits of IEC 62682 and EEMUA 191
that are kept here:

- Shelving is temporary (8 h at most, by loop time) and ends by itself; what still stands then has to be acknowledged anew.
- An alarm of severity high is shelved only after it was acknowledged, and comes off the shelf when it happens again. A milder
  one stays there when it happens again (that is what shelving is for), but not when it grows to severity high.
- The list is bounded. In a flood the least severe and oldest that are over go first, and the list says how many went.

Pure but for the loop's time. Not responsible for what is an alarm (`alarm_table`), nor for who may acknowledge (the command
desk), and never for control: acknowledging and shelving change nothing but this list.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from controller.console.alarm_table import CLEARINGS, RANK, RULES, AlarmRule, Severity
from controller.console.views import AlarmView
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommandRejected
from drivers.hal.events import Event

ALARMS_MAX = 1000
SHOWN_MAX = 200  # rows of a view; assumed: more than anybody reads
SHELVED_MAX_S = 8 * 3600.0
WORDS_MAX = 400
ID_MAX = 120
LOST = "alarms.lost"
_ORDERLY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:-_")


@dataclass(slots=True)
class _Alarm:
    id: str
    kind: str
    source: str
    key: str
    severity: Severity
    text: str
    raised_t_ns: int
    active: bool
    count: int = 1
    acknowledged_by: str = ""
    shelved_by: str = ""
    shelved_until_ns: int = 0
    view: AlarmView | None = None

    @property
    def bucket(self) -> int:
        """The higher, the longer it is kept."""
        return RANK[self.severity] + (len(RANK) if self.active else 0)

    def order(self) -> tuple[bool, bool, int, int]:
        """Unacknowledged before acknowledged, severe before mild, new before old; what is shelved comes last."""
        return bool(self.shelved_by), bool(self.acknowledged_by), -RANK[self.severity], -self.raised_t_ns

    def shown(self, at_ns: int) -> AlarmView:
        """The alarm as it is shown; made anew only when it has changed."""
        left_s = float(-(-max(self.shelved_until_ns - at_ns, 0) // NS_PER_S)) if self.shelved_by else 0.0
        if self.view is None or self.view.shelved_s != left_s:
            self.view = AlarmView(
                id=self.id,
                severity=self.severity,
                text=self.text,
                source=self.source,
                raised_t_ns=self.raised_t_ns,
                count=self.count,
                active=self.active,
                acknowledged_by=self.acknowledged_by,
                shelved_by=self.shelved_by,
                shelved_s=left_s,
            )
        return self.view


class AlarmList:
    """One room's alarms, made from its events.

    Args:
        alarms_max: how many are kept.

    Attributes:
        lost: alarms that were dropped because the list was full, since somebody acknowledged that.
    """

    def __init__(self, alarms_max: int = ALARMS_MAX) -> None:
        self.lost = 0
        self._max = alarms_max
        self._alarms: dict[str, _Alarm] = {}
        self._buckets: list[dict[str, None]] = [{} for _ in range(2 * len(RANK))]
        self._recent: dict[str, deque[int]] = {}  # by id: when it came, for what is an alarm only when repeated
        self._lost_t_ns = 0
        self._sorted: list[_Alarm] | None = None
        self._shelf: set[str] = set()

    def __len__(self) -> int:
        return len(self._alarms)

    def take(self, event: Event) -> None:
        """Listen to the bus: raise, count or clear. Never raises."""
        for clearing in CLEARINGS.get(event.kind, ()):
            if clearing.when(event):
                source = None if clearing.anywhere else event.source
                keys = None if clearing.keys is None else set(clearing.keys(event))
                self._end(clearing.ends, source, keys)
        rule = RULES.get(event.kind)
        if rule is not None and (severity := rule.severity_of(event)) is not None:
            self._raise(rule, severity, event)

    def acknowledge(self, alarm_id: str, name: str) -> None:
        """Somebody has taken notice. Again by another: the first stays.

        Raises:
            CommandRejected: there is no such alarm (4431).
        """
        if alarm_id == LOST and self.lost:
            self.lost = 0
            return
        alarm = self._known(alarm_id)
        if not alarm.acknowledged_by:
            alarm.acknowledged_by = name
            self._changed(alarm)
        self._forget_done(alarm)

    def shelve(self, alarm_id: str, name: str, duration_s: float) -> None:
        """Put an alarm aside for a time; 0 s takes it back.

        Raises:
            CommandRejected: no such alarm (4431), too long, or of severity high and not acknowledged (4432).
        """
        alarm = self._known(alarm_id)
        if not 0.0 <= duration_s <= SHELVED_MAX_S:
            raise CommandRejected(
                f"{alarm_id} cannot be shelved for {duration_s:g} s (0 to {SHELVED_MAX_S:g} s)",
                code=4432,
                hint="shelve it shorter",
            )
        if duration_s == 0.0:
            self._unshelve(alarm)
            return
        if alarm.severity == "high" and not alarm.acknowledged_by:
            raise CommandRejected(
                f"{alarm_id} is of severity high and nobody has acknowledged it",
                code=4432,
                hint="read and acknowledge it first",
            )
        alarm.shelved_by, alarm.shelved_until_ns = name, now_ns() + round(duration_s * NS_PER_S)
        self._shelf.add(alarm_id)
        self._changed(alarm)

    def view(self, at_ns: int) -> list[AlarmView]:
        """The list as it is shown, most urgent first, at most `SHOWN_MAX` rows; the last row tells of what is not there."""
        for alarm_id in [i for i in self._shelf if self._alarms[i].shelved_until_ns <= at_ns]:
            self._unshelve(self._alarms[alarm_id])
        if self._sorted is None:
            self._sorted = sorted(self._alarms.values(), key=_Alarm.order)
        rows = [alarm.shown(at_ns) for alarm in self._sorted[:SHOWN_MAX]]
        hidden = len(self._sorted) - len(rows)
        if self.lost or hidden:
            words = [f"{self.lost} alarms were dropped: the list holds {self._max}"] if self.lost else []
            words += [f"{hidden} more alarms are not shown"] if hidden else []
            text = "; ".join(words)
            rows.append(
                AlarmView(
                    id=LOST,
                    severity="medium",
                    text=text,
                    source="alarms",
                    raised_t_ns=self._lost_t_ns,
                    count=max(self.lost, 1),
                    active=True,
                )
            )
        return rows

    # --- inside ------------------------------------------------------------------------------------------------------

    def _raise(self, rule: AlarmRule, severity: Severity, event: Event) -> None:
        key = rule.key(event)
        alarm_id = _orderly(":".join(filter(None, (rule.kind, event.source, key))))
        alarm = self._alarms.get(alarm_id)
        came = 1
        if alarm is None and rule.repeats > 1:
            came = self._came(alarm_id, rule, event.t_ns)
            if came < rule.repeats:
                return
        if alarm is None:
            alarm = _Alarm(
                alarm_id, rule.kind, event.source, key, severity, "", event.t_ns, active=bool(rule.until), count=came
            )
            alarm.text = rule.words(event)[:WORDS_MAX]
            self._add(alarm)
            return
        del self._buckets[alarm.bucket][alarm_id]
        alarm.count += 1
        worse = RANK[severity] > RANK[alarm.severity]
        if worse or not alarm.active:  # another occurrence, or a worse one: who acknowledged knew only what was before
            alarm.acknowledged_by = ""
            alarm.raised_t_ns = event.t_ns
        if worse:
            alarm.severity = severity
        if alarm.severity == "high" and not alarm.acknowledged_by:
            self._off_shelf(alarm)
        alarm.active = bool(rule.until)
        alarm.text = rule.words(event)[:WORDS_MAX]
        self._buckets[alarm.bucket][alarm_id] = None
        self._changed(alarm)

    def _came(self, alarm_id: str, rule: AlarmRule, t_ns: int) -> int:
        """How often it came lately, with this time."""
        times = self._recent.get(alarm_id)
        if times is None:
            if len(self._recent) >= self._max:
                self._recent.pop(next(iter(self._recent)))
            times = self._recent[alarm_id] = deque(maxlen=rule.repeats)
        times.append(t_ns)
        since_ns = t_ns - round(rule.within_s * NS_PER_S)
        return sum(at_ns >= since_ns for at_ns in times)

    def _add(self, alarm: _Alarm) -> None:
        if len(self._alarms) >= self._max:
            self.lost += 1
            self._lost_t_ns = alarm.raised_t_ns
            lowest = next(index for index, bucket in enumerate(self._buckets) if bucket)
            if lowest > alarm.bucket:
                return
            self._remove(self._alarms[next(iter(self._buckets[lowest]))])
        self._alarms[alarm.id] = alarm
        self._buckets[alarm.bucket][alarm.id] = None
        self._sorted = None

    def _end(self, kinds: tuple[str, ...], source: str | None, keys: set[str] | None) -> None:
        """Conditions are over. Looks through what is active only."""
        over = [
            alarm
            for bucket in self._buckets[len(RANK) :]
            for alarm in map(self._alarms.__getitem__, bucket)
            if alarm.kind in kinds and source in (None, alarm.source) and (keys is None or alarm.key in keys)
        ]
        for alarm in over:
            del self._buckets[alarm.bucket][alarm.id]
            alarm.active = False
            self._buckets[alarm.bucket][alarm.id] = None
            self._changed(alarm)
            self._forget_done(alarm)

    def _known(self, alarm_id: str) -> _Alarm:
        alarm = self._alarms.get(alarm_id)
        if alarm is None:
            raise CommandRejected(
                f"there is no alarm {alarm_id[:ID_MAX]!r}", code=4431, hint="it may be over; look at the list"
            )
        return alarm

    def _unshelve(self, alarm: _Alarm) -> None:
        if alarm.shelved_by:
            self._off_shelf(alarm)
            if alarm.active:
                alarm.acknowledged_by = ""
            self._changed(alarm)
            self._forget_done(alarm)

    def _off_shelf(self, alarm: _Alarm) -> None:
        alarm.shelved_by, alarm.shelved_until_ns = "", 0
        self._shelf.discard(alarm.id)

    def _forget_done(self, alarm: _Alarm) -> None:
        """Returned and acknowledged is normal (ISA-18.2). On the shelf it waits: it may come and go as it likes there."""
        if alarm.acknowledged_by and not alarm.active and not alarm.shelved_by:
            self._remove(alarm)

    def _remove(self, alarm: _Alarm) -> None:
        del self._alarms[alarm.id]
        del self._buckets[alarm.bucket][alarm.id]
        self._shelf.discard(alarm.id)
        self._sorted = None

    def _changed(self, alarm: _Alarm) -> None:
        alarm.view = None
        self._sorted = None


def _orderly(text: str) -> str:
    """An id that fits into a command and a topic."""
    return "".join(letter if letter in _ORDERLY else "-" for letter in text)[:ID_MAX]
