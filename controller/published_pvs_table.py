"""Which process variables show rooms, and what each shows of a view: names, kinds, values, alarms. Pure; for both processes.

Names are `FAC:ROOM:SIGNAL` for the room itself and `FAC:ROOM:DEVICE:SIGNAL` for its devices. None ends in `SP`, `RB` or `STS`:
those are the equipment's own, and nobody shall take one for the other. Not responsible for serving them (`published_pvs`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from controller.console.shown import FIELDS, GOOD, Plain, Shown, View, signals_of

NAME_MAX = 60  # EPICS base 7, PVNAME_STRINGSZ
UNIT_MAX, MEANING_MAX = 15, 40  # fields EGU and DESC
TEXT_MAX, STRING_MAX = 255, 39  # bytes of a long string (an array of characters) and of a string
ELEMENTS_MAX = 256
INT_MAX = 2**31 - 1
TEXT_FIELDS = frozenset(  # of the room: words that may be long
    {"why", "banners", "beam.held_why", "firstout.cause", "firstout.value", "firstout.limit", "firstout.advice", "alarms.top"}
)
_OWN = {field.signal: field for field in FIELDS}
_EQUIPMENTS = ("SP", "RB", "STS")

NO_ALARM, MAJOR, INVALID = 0, 2, 3  # EPICS severities
STATE_ALARM, COMM_ALARM, TIMEOUT_ALARM, UDF_ALARM = 7, 9, 10, 17  # and alarm statuses, alarm.h
ALARM_OF = {
    GOOD: (NO_ALARM, NO_ALARM),
    "alarm": (MAJOR, STATE_ALARM),
    "stale": (INVALID, TIMEOUT_ALARM),
    "disconnected": (INVALID, COMM_ALARM),
}

Sent = float | int | str | list[float | None]
KINDS = ("bool", "int", "double", "string", "text", "double[]")


class Variable(NamedTuple):
    """One variable that is served."""

    name: str
    kind: str
    elements: int
    unit: str
    meaning: str


class Post(NamedTuple):
    """What a variable shows; value None: nothing sound. `t_s` is when it was true, s since 1970 UTC."""

    value: Sent | None
    severity: int
    status: int
    t_s: float


class Table:
    """The variables that were ever wanted, in the order in which they came.

    Attributes:
        variables: by name.
        version: counts up when one is new or has become of another kind.
    """

    def __init__(self) -> None:
        self.variables: dict[str, Variable] = {}
        self.version = 0

    def posts(self, view: View) -> Iterator[tuple[str, Post]]:
        """Name and post of each variable of a view."""
        prefix = f"{view['facility']}:{view['room']}".upper()
        viewed_s = datetime.fromisoformat(view["utc"]).timestamp()
        for shown in signals_of(view):
            name = _name(prefix, str(view["room"]), shown)
            before = self.variables.get(name)
            variable = _variable(name, shown, before)
            if variable != before:
                self.variables[name] = variable
                self.version += 1
            yield name, _post(variable, shown, viewed_s)


def room_variable(signal: str) -> str:
    """Last level of the name of a room's own signal, for example ``PERMIT-A``."""
    return _level(signal)


def _name(prefix: str, room: str, shown: Shown) -> str:
    device = shown.device.removeprefix(f"{room}-")
    signal = _level(shown.signal)
    if signal in _EQUIPMENTS:
        signal += "_"
    return (f"{prefix}:{_level(device)}:{signal}" if device else f"{prefix}:{signal}")[:NAME_MAX]


def _level(text: str) -> str:
    """One level of a name: capitals, digits, dash and underscore."""
    return re.sub(r"[^A-Z0-9_]+", "-", text.upper())


def _variable(name: str, shown: Shown, before: Variable | None) -> Variable:
    """How a signal is served. A kind once wide enough stays: what was text is not made a number by its next value."""
    own = _OWN.get(shown.signal) if not shown.device else None
    if own is not None:
        kind = "text" if own.signal in TEXT_FIELDS else own.kind
        return Variable(name, kind, 0, own.unit[:UNIT_MAX], own.meaning[:MEANING_MAX])
    kind, elements = _kind(shown.value), 0
    if before is not None:
        kind = before.kind if kind in ("", before.kind) else _wider(before.kind, kind)
        elements = before.elements
    if isinstance(shown.value, list):
        elements = max(elements, min(len(shown.value), ELEMENTS_MAX), 2)  # a client tells an array by its elements
    return Variable(name, kind or "double", elements, shown.unit[:UNIT_MAX], shown.name[:MEANING_MAX])


def _kind(value: Plain) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    return "double[]" if isinstance(value, list) else "double"


def _wider(before: str, now: str) -> str:
    return "double" if {before, now} == {"bool", "double"} else before if before in ("text", "double[]") else now


def _post(variable: Variable, shown: Shown, viewed_s: float) -> Post:
    severity, status = ALARM_OF.get(shown.quality, (INVALID, COMM_ALARM))
    value = _fitting(variable.kind, shown.value)
    if value is None:
        severity, status = INVALID, UDF_ALARM
    return Post(value, severity, status, viewed_s - shown.age_ms / 1e3)


def _fitting(kind: str, value: Plain) -> Sent | None:
    """The value as its kind wants it; None where there is none that fits."""
    if value is None:
        return None
    if kind in ("string", "text"):
        most = STRING_MAX if kind == "string" else TEXT_MAX
        return str(value).encode(errors="replace")[:most].decode(errors="ignore")
    if kind == "double[]":
        return list(value[:ELEMENTS_MAX]) if isinstance(value, list) else None
    if isinstance(value, str | list):
        return None
    if kind == "int":
        return int(value) if math.isfinite(value) and abs(value) <= INT_MAX else None
    return bool(value) + 0 if kind == "bool" else float(value)
