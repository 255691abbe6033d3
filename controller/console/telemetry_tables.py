"""The tables of docs/telemetry.md, made from the code that they describe. Pure."""

from __future__ import annotations

from controller.console.alarm_table import RULES
from controller.console.shown import FIELDS, LISTS
from controller.published_pvs_table import room_variable

SEVERITY_WORDS = {"trip": "high; interruption: medium", "interlock.trip": "high; what follows, and a start: medium"}


def signal_table() -> str:
    """Signals of a room itself: topic, archived signal, process variable."""
    lines = ["| `room/...` and archive | variable `FAC:ROOM:...` | unit | what |", "|---|---|---|---|"]
    for field in FIELDS:
        variable = f"`{room_variable(field.signal)}`"
        lines.append(f"| `{field.signal}` | {variable} | {field.unit} | {field.meaning} |")
    return "\n".join(lines)


def list_table() -> str:
    """Lists that go out on topics alone."""
    lines = ["| `room/...` | of each row |", "|---|---|"]
    for name, _path, columns in LISTS:
        told = [*columns, *(("acknowledged",) if name == "alarms" else ())]
        lines.append(f"| `{name}` | {', '.join(f'`{column}`' for column in told)} |")
    return "\n".join(lines)


def alarm_table() -> str:
    """Kinds of alarms: severity, and until when they stand."""
    lines = ["| event | severity | stands until |", "|---|---|---|"]
    for rule in RULES.values():
        severity = SEVERITY_WORDS.get(rule.kind, rule.severity)
        if rule.repeats > 1:
            severity += f" ({rule.repeats} times in {rule.within_s:g} s)"
        lines.append(f"| `{rule.kind}` | {severity} | {rule.until or 'it is acknowledged: over at once'} |")
    return "\n".join(lines)
