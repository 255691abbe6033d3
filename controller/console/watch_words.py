"""A room's view in words for a terminal: the same essentials as the page. Pure; colour is never the only sign.

Takes decoded `RoomView`s. Not responsible for where on the screen they stand (`watch_app`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from controller.commands import CONSOLE_LOST_NS
from controller.console.shown import current_beam
from drivers.hal.clock import NS_PER_MS

View = Mapping[str, Any]
BAR_WIDTH = 24
NOT_KNOWN = "?"
LEFT = "left"
LOST_MS = CONSOLE_LOST_NS / NS_PER_MS  # a commanding console that is silent for longer commands no more
GOOD, BAD, WARN, DIM, STRONG = "bold green", "bold white on red", "bold black on yellow", "dim", "bold"
_STATE_STYLES = {
    "preparatory": "cyan",
    "ready": GOOD,
    "irradiating": WARN,
    "interrupted": "bold magenta",
    "terminated": STRONG,
    "fault": BAD,
}
_SEVERITY_STYLES = {"high": BAD, "medium": WARN, "low": "cyan"}
_SEVERITY_SIGNS = {"high": "!!!", "medium": "!! ", "low": "!  "}


def banner(view: View | None, *, room: str, stale: bool, trouble: str, who: str, in_control: bool) -> Text:
    """The first lines: whether all this is now, what is simulated, the room, who is here; then why it is old, and the time.

    What may fall off a narrow terminal stands last.
    """
    text = Text()
    text.append(" STALE " if stale else "", BAD)
    text.append(" " if stale else "")
    for word in (view or {}).get("banners", ()):
        text.append(f" {word} ", WARN)
        text.append(" ")
    text.append(f"{room or 'no room'}", STRONG)
    text.append(f" of {view['facility']}" if view is not None else "", DIM)
    text.append("  IN CONTROL" if in_control else "", GOOD)
    text.append(f"  {who}" if who else "  nobody is signed in (l)", "cyan" if who else WARN)
    text.append(f"  {trouble or 'nothing new has come'}" if stale else "", "bold red")
    if view is not None:
        text.append(f"  mode {view['mode']}  {view['utc'][:19].replace('T', ' ')} UTC", DIM)
    return text


def state_words(view: View, *, stale: bool = False) -> Text:
    """State, until when, why; who commands. An old state is called that, and has no colour that says that it is so now."""
    text = Text()
    state = str(view["state"])
    text.append("last known: " if stale else "", BAD)
    text.append(f" {state} ", DIM if stale else _STATE_STYLES.get(state.partition(".")[0], STRONG))
    if view.get("deadline_s") is not None:
        text.append(f"  (lapses in {view['deadline_s']:.0f} s)", "yellow")
    if view.get("why"):
        text.append(f"  {view['why']}")
    control = view.get("control")
    commanded = f"{control['console']}, {control['actor']} as {control['role']}" if control else "nobody"
    text.append(f"\ncommanded by {commanded}", DIM)
    if control and control["heard_ms"] > LOST_MS:
        text.append(f"; not heard for {control['heard_ms'] // 1000:.0f} s: control may be taken", WARN)
    return text


def question_words(view: View) -> Text:
    """What the room waits for, and how it is answered here."""
    question = view.get("question")
    if not question:
        return Text("the room asks nothing", DIM)
    text = Text()
    text.append(f" ? {question['text']} ", WARN)
    for name, value in facts_of(question):
        text.append(f"\n    {name}: {value}")
    text.append("\n    y: yes    n: no", STRONG)
    return text


def facts_of(question: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the person has to compare, in lines."""
    return [(str(name).replace("_", " "), _plain(value)) for name, value in question["facts"].items()]


def checklist_words(view: View) -> Text:
    """Conditions of the way to beam."""
    text = Text()
    for item in view["checklist"]:
        detail = f"  {item['detail']}" if item.get("detail") and not item["done"] else ""
        text.append(f"[{'x' if item['done'] else ' '}] ", GOOD if item["done"] else DIM)
        text.append(f"{item['label']}{detail}\n", "" if item["done"] else DIM)
    return _trimmed(text)


def gantry_words(view: View) -> Text:
    """Where the ring and the couch are, and where they go."""
    gantry = view["gantry"]
    text = Text(f"gantry {_number(gantry['angle_deg'], '.2f')} deg")
    if gantry.get("fixed_deg") is not None:
        text.append(f"  fixed port {gantry['fixed_deg']:g} deg")
    else:
        target = gantry.get("target_deg")
        text.append(f"  target {target:.2f} deg" if target is not None else "")
        text.append("  MOVES" if gantry.get("moving") else "  stands", WARN if gantry.get("moving") else "")
        text.append(f"  torque {'on' if gantry.get('enabled') else 'off'}" if gantry.get("enabled") is not None else "")
        text.append(f"  [{gantry['lower_deg']:g} to {gantry['upper_deg']:g}]", DIM)
    _quality(text, gantry.get("quality"))
    for axis in view["couch"]:
        text.append(f"\n{axis['name']:<14}{_number(axis['value'], '9.2f')} {axis['unit']}")
        text.append(f"  target {axis['target']:.2f}" if axis.get("target") is not None else "", DIM)
        _quality(text, axis.get("quality"))
    for name, value in (view.get("nozzle") or {}).items():
        text.append(f"\n{name:<14}{value}")
    return text


def progress_words(view: View) -> Text:
    """The fraction, its beams, and how far the present one is."""
    treatment = view.get("treatment")
    if not treatment:
        return Text("no treatment is loaded (o: open a plan)", DIM)
    text = Text(f"{treatment['patient_name']}  {treatment['patient_id']}  {treatment['plan_label']}", STRONG)
    text.append(f"\nfraction {treatment['fraction']}{' (remainder)' if treatment['remainder'] else ''}: {treatment['status']}")
    text.append(f"  {treatment['reason']}" if treatment.get("reason") else "")
    present = current_beam(view)
    for beam in treatment["beams"]:
        here = ">" if present is not None and beam["number"] == present["number"] else " "
        given, planned = beam["meterset_delivered"], beam["meterset_planned"]
        text.append(f"\n{here} {beam['number']} {beam['name']} at {beam['gantry_angle_deg']:g} deg  {beam['status']}")
        text.append(f"\n  {bar(given, planned)} {given:.2f} of {planned:.2f} {beam['unit']}")
        text.append(f"\n  layer {beam['layer']}/{beam['layers']}  spots {beam['spots_delivered']}/{beam['spots_planned']}")
    return text


def beam_words(view: View) -> Text:
    """Permits, energy, dose, gate: now."""
    now = view["delivery"]
    text = Text()
    for name in "abr":
        permits = bool(now[f"permit_{name}"])
        text.append(f" {name.upper()} {'yes' if permits else 'NO '} ", GOOD if permits else DIM)
    text.append("  ")
    text.append(" BEAM ENABLED " if now["beam_enabled"] else "beam off", WARN if now["beam_enabled"] else GOOD)
    text.append("  BEAM IN THE ROOM" if now["beam_present"] else "", WARN)
    energy = f"{now['energy_mev_u']:.1f} MeV/u" if now.get("energy_mev_u") is not None else "no energy"
    text.append(f"\n{now.get('species') or 'no ion'}  {energy}")
    for name in ("layer", "painting", "spill"):
        text.append(f"  {name} {now[name]}" if now.get(name) is not None else "")
    text.append(f"\nheld: {now['held_why']}" if now.get("held_why") else "", "yellow")
    ceiling = f" of at most {now['counts2_max']}" if now.get("counts2_max") is not None else ""
    text.append(f"\nmonitor 1 {_number(now.get('counts1'))}  monitor 2 {_number(now.get('counts2'))}{ceiling} counts")
    if now.get("gate_open") is not None:
        text.append(f"\ngate {'open' if now['gate_open'] else 'SHUT'}")
    if now.get("breathing") is not None:
        text.append(f"  breathing {now['breathing']:.1f} {now.get('breathing_unit', '')}")
    return text


def interlock_words(view: View) -> Text:
    """First-out on top: cause, value, limit, what to do, who may reset it."""
    interlocks = view["interlocks"]
    text = Text(f"permit relay {'closed' if interlocks['relay_closed'] else 'OPEN'}, {interlocks['active_trips']} tripped")
    rows = list(interlocks["trips"])
    first = interlocks.get("first_out")
    if first and not any(row["id"] == first["id"] for row in rows):
        rows.insert(0, first)
    for number, trip in enumerate([*rows, *interlocks["room_causes"]]):
        text.append(f"\n {'FIRST-OUT' if trip.get('first_out') or number == 0 else 'then'} ", BAD if number == 0 else WARN)
        text.append(f" {trip['id']}", STRONG)
        text.append(f"  {trip['cause']}")
        if trip.get("value") or trip.get("limit"):
            text.append(f"\n    value {trip.get('value') or NOT_KNOWN}, limit {trip.get('limit') or NOT_KNOWN}")
        text.append(f"\n    do: {trip['advice']}" if trip.get("advice") else "", "cyan")
        text.append(f"\n    reset by: {trip['reset_role']} (x)" if trip.get("reset_role") else "", DIM)
    if interlocks.get("rest_unknown"):
        text.append(f"\nonly the first-out is known, the rest is not: {interlocks['rest_unknown']}", WARN)
    for bypass in interlocks["bypasses"]:
        by = bypass["approver"] or "NOT APPROVED"
        text.append("\n BYPASS ", WARN)
        text.append(f" {bypass['interlock']} for {bypass['remaining_s']:.0f} s: {bypass['reason']} ({bypass['owner']}, {by})")
    return text


def alarm_row(alarm: Mapping[str, Any]) -> tuple[Text, Text, Text, Text]:
    """Sign and severity, state, count, words."""
    severity = str(alarm["severity"])
    sign = Text(f"{_SEVERITY_SIGNS.get(severity, '!')} {severity}", _SEVERITY_STYLES.get(severity, ""))
    state = "stands" if alarm["active"] else "returned"
    if alarm.get("shelved_by"):
        state += f", shelved by {alarm['shelved_by']} for {alarm['shelved_s']:.0f} s"
    elif alarm.get("acknowledged_by"):
        state += f", seen by {alarm['acknowledged_by']}"
    else:
        state += ", NOT SEEN"
    return sign, Text(state), Text(str(alarm["count"])), Text(str(alarm["text"]))


def alarm_summary(view: View) -> Text:
    """How many, and the most urgent one: its words may fall off a narrow terminal, the number may not."""
    alarms = [alarm for alarm in view["alarms"] if not alarm.get("shelved_by")]
    if not alarms:
        return Text("no alarm", DIM)
    first = alarms[0]
    text = Text(f" {_SEVERITY_SIGNS.get(first['severity'], '!')} ", _SEVERITY_STYLES.get(first["severity"], ""))
    text.append(f" (and {len(alarms) - 1} more)" if len(alarms) > 1 else "", DIM)
    text.append(f" {first['text']}")
    return text


def device_words(view: View) -> Text:
    """Every device and its signals."""
    text = Text()
    for device in view["devices"]:
        there = device["connected"]
        text.append(f"{device['name']}", STRONG)
        text.append("  connected" if there else "  NOT CONNECTED", GOOD if there else BAD)
        text.append("  simulated" if device["simulated"] else "  REAL", DIM if device["simulated"] else WARN)
        text.append(f"  {device['driver']}  {device['endpoint']}\n", DIM)
        text.append(f"    {device['error']}\n" if device.get("error") else "", "red")
        for signal in device["signals"]:
            text.append(f"    {signal['name']:<24} {_plain(signal['value'])} {signal['unit']}")
            _quality(text, signal["quality"] if there else "disconnected")
            text.append("\n")
    return _trimmed(text)


def event_lines(events: Iterable[Mapping[str, Any]]) -> Text:
    """The log, newest first."""
    text = Text()
    for event in reversed(list(events)):
        said = "  ".join(f"{name}={_plain(value)}" for name, value in event["data"].items())
        text.append(f"{event['t_ns'] / 1e9:10.1f} s  ", DIM)
        text.append(f"{event['source']}  ")
        text.append(f"{event['kind']}", STRONG)
        text.append(f"  {said}\n")
    return _trimmed(text)


def plan_line(plan: Mapping[str, Any], room: str) -> str:
    """One plan of the list, and the first objection to it here."""
    objections: Sequence[str] = plan["objections"].get(room, ())
    approved = plan.get("approved_by") or plan["approval"].lower()
    against = f"  NOT HERE: {objections[0]}" if objections else ""
    given = f"  {plan['standing']}" if plan.get("standing") else ""
    return f"{plan['id']}  {plan['label']}  {plan['patient_name']}  {plan['species']}  {approved}{against}{given}"


def fraction_choices(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of a plan may be loaded, the proposal first; the key is the fraction, with ``left`` for what an earlier one left."""
    told = {f["number"]: f["status"].replace("_", " ") for f in plan.get("history", ())}
    found = []
    for number in range(1, max(1, plan["fractions"]) + 1):
        found.append((str(number), f"fraction {number}{f': {told[number]}' if number in told else ''}"))
        if told.get(number) == "partial":
            found.append((f"{number} {LEFT}", f"what is left of fraction {number}"))
    following = plan.get("next")
    if following:
        wanted = f"{following['fraction']} {LEFT}" if following["remainder"] else str(following["fraction"])
        found.sort(key=lambda choice: choice[0] != wanted)
    return found


def fraction_of(key: str) -> dict[str, Any]:
    """Arguments of `load_plan` for a choice."""
    number, _, left = key.partition(" ")
    return {"fraction": int(number), **({"remainder": True} if left == LEFT else {})}


def bar(value: float, whole: float) -> str:
    """How much of it, as a bar."""
    filled = round(BAR_WIDTH * min(max(value / whole, 0.0), 1.0)) if whole > 0.0 else 0
    return f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}]"


def _quality(text: Text, quality: str | None) -> None:
    if quality not in (None, "good"):
        text.append(f"  {str(quality).upper()}", WARN)


def _number(value: float | int | None, form: str = "") -> str:
    return NOT_KNOWN if value is None else f"{value:{form}}"


def _plain(value: Any) -> str:
    if value is None:
        return NOT_KNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _trimmed(text: Text) -> Text:
    text.rstrip()
    return text
