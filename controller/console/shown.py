"""A room's view as plain, named signals: one list that the archive, the process variables, the topics and the metrics share.

Works on the decoded JSON of a `RoomView` and not on the model, ten times a second for each room. Who is treated is not among
the signals: no name, no id, no plan, nothing that a question shows. Not responsible for where the signals go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Plain = float | int | str | bool | list[float] | None
View = Mapping[str, Any]

GOOD = "good"
QUALITIES = (GOOD, "alarm", "stale", "disconnected")  # best first, as `drivers.hal.reading.Quality`
ROOM_DEVICE = ""  # signals of the room itself belong to no device
SEVERITIES = ("high", "medium", "low")


class Shown(NamedTuple):
    """One signal of a room.

    Attributes:
        device: whose; empty for the room itself.
        signal: for example ``"delivery.energy_mev_u"``, ``"angle"``.
        value: None where nothing sound is known.
        quality: see `QUALITIES`.
        age_ms: since the value was true; 0 for the room's own.
    """

    device: str
    signal: str
    value: Plain
    unit: str = ""
    quality: str = GOOD
    simulated: bool = True
    age_ms: float = 0.0

    @property
    def name(self) -> str:
        """Device and signal, joined."""
        return f"{self.device}.{self.signal}" if self.device else self.signal


class Field(NamedTuple):
    """One signal of the room itself: its name, its kind for a process variable, its unit, where it is in a view."""

    signal: str
    kind: str  # "int", "double", "string", "bool"
    unit: str
    meaning: str
    value: Callable[[View], Plain]
    quality: Callable[[View], str] = lambda _view: GOOD


def _at(*path: str) -> Callable[[View], Any]:
    """The value at a path; None where the path ends early."""

    def value(view: View) -> Any:
        at: Any = view
        for name in path:
            if not isinstance(at, Mapping):
                return None
            at = at.get(name)
        return at

    return value


def _beam(name: str) -> Callable[[View], Any]:
    """A figure of the beam that is treated, or of the last one begun."""

    def value(view: View) -> Any:
        beam = current_beam(view)
        return None if beam is None else beam.get(name)

    return value


def current_beam(view: View) -> Mapping[str, Any] | None:
    """The beam that is treated now; between beams the last one that was begun; None where there is none."""
    treatment = view.get("treatment")
    if not treatment:
        return None
    beams: Sequence[Mapping[str, Any]] = treatment["beams"]
    for beam in beams:
        if beam["number"] == treatment.get("current"):
            return beam
    begun = [beam for beam in beams if beam["status"] != "waiting"]
    return begun[-1] if begun else None


def _total(name: str) -> Callable[[View], float | None]:
    def value(view: View) -> float | None:
        treatment = view.get("treatment")
        return sum(float(beam[name]) for beam in treatment["beams"]) if treatment else None

    return value


def _standing(severity: str) -> Callable[[View], int]:
    """Alarms of a severity that stand or wait, without what is shelved."""
    return lambda view: sum(a["severity"] == severity and not a.get("shelved_by") for a in view["alarms"])


def _unacknowledged(view: View) -> int:
    return sum(not a.get("acknowledged_by") and not a.get("shelved_by") for a in view["alarms"])


def _top_alarm(view: View) -> str:
    return next((str(a["text"]) for a in view["alarms"] if not a.get("shelved_by")), "")


def _gantry_quality(view: View) -> str:
    return str(view["gantry"].get("quality", GOOD))


def _first_out(name: str) -> Callable[[View], Any]:
    def value(view: View) -> Any:
        first = view["interlocks"].get("first_out")
        return first.get(name, "") if first else ""

    return value


def _checks_open(view: View) -> int:
    return sum(not item["done"] for item in view["checklist"])


def _connected(view: View) -> int:
    return sum(bool(device["connected"]) for device in view["devices"])


FIELDS: tuple[Field, ...] = (
    Field("heartbeat", "int", "", "counts up with every view: when it stands still, so does all the rest", _at("seq")),
    Field("state", "string", "", "state of the room (docs/room-states.md)", _at("state")),
    Field("why", "string", "", "why it is in this state", _at("why")),
    Field("mode", "string", "", "treat, qa or service", _at("mode")),
    Field(
        "banners",
        "string",
        "",
        "SIMULATED, SERVICE, BYPASS, RESEARCH, LIMITS UNSIGNED, STALE",
        lambda v: " ".join(v["banners"]),
    ),
    Field("simulated", "bool", "", "the room as a whole is", _at("simulated")),
    Field("deadline", "double", "s", "until the state lapses by itself", _at("deadline_s")),
    Field("control", "string", "", "the console that commands the room", lambda v: (v.get("control") or {}).get("console", "")),
    Field(
        "question", "string", "", "what the room waits for a person to say", lambda v: (v.get("question") or {}).get("kind", "")
    ),
    Field("checks_open", "int", "", "conditions of the way to beam that are not met", _checks_open),
    Field("permit.a", "bool", "", "contribution A, the hard-wired chain", _at("delivery", "permit_a")),
    Field("permit.b", "bool", "", "contribution B, the interlock system", _at("delivery", "permit_b")),
    Field("permit.r", "bool", "", "contribution R, this room's request", _at("delivery", "permit_r")),
    Field("beam.enabled", "bool", "", "all three permit beam", _at("delivery", "beam_enabled")),
    Field("beam.present", "bool", "", "beam is in the room", _at("delivery", "beam_present")),
    Field("beam.species", "string", "", "ion", _at("delivery", "species")),
    Field("beam.energy", "double", "MeV/u", "of the layer", _at("delivery", "energy_mev_u")),
    Field("beam.layer", "int", "", "layer that is delivered, in the plan's order", _at("delivery", "layer")),
    Field("beam.painting", "int", "", "painting of the layer, from 0", _at("delivery", "painting")),
    Field("beam.spill", "int", "", "spill of the synchrotron", _at("delivery", "spill")),
    Field("beam.held_why", "string", "", "why the beam is held", _at("delivery", "held_why")),
    Field("dose.counts1", "double", "counts", "monitor 1, this treatment", _at("delivery", "counts1")),
    Field("dose.counts2", "double", "counts", "monitor 2, this treatment", _at("delivery", "counts2")),
    Field("dose.counts2_max", "double", "counts", "ceiling of the second dose unit", _at("delivery", "counts2_max")),
    Field("gate.open", "bool", "", "the breathing gate", _at("delivery", "gate_open")),
    Field("gate.breathing", "double", "mm", "amplitude of the breathing surrogate", _at("delivery", "breathing")),
    Field("treatment.status", "string", "", "loaded, running, writing, complete, partial ...", _at("treatment", "status")),
    Field("treatment.fraction", "int", "", "number of the fraction", _at("treatment", "fraction")),
    Field("treatment.beam", "int", "", "number of the beam", _beam("number")),
    Field("treatment.layers", "int", "", "layers of the beam", _beam("layers")),
    Field("treatment.layer", "int", "", "layers begun", _beam("layer")),
    Field("treatment.spots_planned", "int", "", "spots of the beam", _beam("spots_planned")),
    Field("treatment.spots_delivered", "int", "", "spots delivered of the beam", _beam("spots_delivered")),
    Field("treatment.meterset_planned", "double", "", "of the beam, in its own unit", _beam("meterset_planned")),
    Field("treatment.meterset_delivered", "double", "", "of the beam, in its own unit", _beam("meterset_delivered")),
    Field("treatment.meterset_unit", "string", "", "MU or NP", _beam("unit")),
    Field("treatment.total_planned", "double", "", "meterset of all beams", _total("meterset_planned")),
    Field("treatment.total_delivered", "double", "", "meterset of all beams", _total("meterset_delivered")),
    Field("gantry.angle", "double", "deg", "IEC 61217", _at("gantry", "angle_deg"), _gantry_quality),
    Field("gantry.target", "double", "deg", "where it is to go", _at("gantry", "target_deg")),
    Field("gantry.moving", "bool", "", "the ring moves", _at("gantry", "moving")),
    Field("gantry.enabled", "bool", "", "torque is on", _at("gantry", "enabled")),
    Field("interlock.relay", "bool", "", "the permit relay is closed", _at("interlocks", "relay_closed")),
    Field("interlock.trips", "int", "", "interlocks that stand", _at("interlocks", "active_trips")),
    Field("interlock.bypasses", "int", "", "bypasses, asked for or active", lambda v: len(v["interlocks"]["bypasses"])),
    Field("firstout", "string", "", "what tripped first; empty: nothing", _first_out("id")),
    Field("firstout.code", "int", "", "its code, 0: nothing", lambda v: _first_out("code")(v) or 0),
    Field("firstout.cause", "string", "", "in words", _first_out("cause")),
    Field("firstout.value", "string", "", "what was seen", _first_out("value")),
    Field("firstout.limit", "string", "", "what is allowed", _first_out("limit")),
    Field("firstout.advice", "string", "", "what to do", _first_out("advice")),
    Field("alarms.high", "int", "", "alarms of severity high, not shelved", _standing("high")),
    Field("alarms.medium", "int", "", "alarms of severity medium, not shelved", _standing("medium")),
    Field("alarms.low", "int", "", "alarms of severity low, not shelved", _standing("low")),
    Field("alarms.unacknowledged", "int", "", "alarms that nobody has acknowledged", _unacknowledged),
    Field("alarms.top", "string", "", "the most urgent one", _top_alarm),
    Field("devices.total", "int", "", "devices of the room", lambda v: len(v["devices"])),
    Field("devices.connected", "int", "", "of which are connected", _connected),
)


def room_signals(view: View) -> Iterator[Shown]:
    """The room's own signals, in the order of `FIELDS`, then couch and nozzle, whose parts a facility names."""
    simulated = bool(view["simulated"])
    for field in FIELDS:
        yield Shown(ROOM_DEVICE, field.signal, field.value(view), field.unit, field.quality(view), simulated)
    for axis in view["couch"]:
        quality = str(axis.get("quality", GOOD))
        yield Shown(ROOM_DEVICE, f"couch.{axis['name']}", axis["value"], axis["unit"], quality, simulated)
    for name, text in (view.get("nozzle") or {}).items():
        yield Shown(ROOM_DEVICE, f"nozzle.{name}", text, "", GOOD, simulated)


# Lists of a view that are no signals: name, where it is, and what of each row goes out.
LISTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("alarms", ("alarms",), ("id", "severity", "text", "source", "count", "active", "shelved_s")),
    (
        "trips",
        ("interlocks", "trips"),
        ("id", "code", "cause", "value", "limit", "advice", "reset_role", "latched", "first_out"),
    ),
    ("causes", ("interlocks", "room_causes"), ("id", "cause", "value", "limit", "advice")),
    ("bypasses", ("interlocks", "bypasses"), ("interlock", "reason", "remaining_s")),
    (
        "beams",
        ("treatment", "beams"),
        (
            "number",
            "status",
            "meterset_planned",
            "meterset_delivered",
            "unit",
            "layers",
            "layer",
            "spots_planned",
            "spots_delivered",
        ),
    ),
    ("checklist", ("checklist",), ("name", "done", "detail")),
)


def room_lists(view: View) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The view's lists, by name, without persons."""
    for name, path, columns in LISTS:
        rows = _at(*path)(view) or ()
        told = [{column: row.get(column) for column in columns} for row in rows]
        if name == "alarms":
            for row, alarm in zip(told, rows, strict=True):
                row["acknowledged"] = bool(alarm.get("acknowledged_by"))
        yield name, told


def device_signals(view: View) -> Iterator[Shown]:
    """Every device: whether it is connected, and each of its signals. What is not connected shows nothing that is good."""
    for device in view["devices"]:
        name, connected = device["name"], bool(device["connected"])
        yield Shown(name, "connected", connected, "", GOOD, bool(device["simulated"]))
        for signal in device["signals"]:
            quality = signal["quality"] if connected else "disconnected"
            age_ms = signal["age_ms"]
            yield Shown(
                name,
                signal["name"],
                signal["value"],
                signal["unit"],
                quality,
                signal["simulated"],
                0.0 if age_ms is None else age_ms,
            )


def signals_of(view: View) -> Iterable[Shown]:
    """Everything that a view shows, as signals."""
    yield from room_signals(view)
    yield from device_signals(view)
