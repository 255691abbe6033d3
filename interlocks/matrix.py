"""The interlock matrix: reads `limits.toml`, refuses it with every reason, gives the rows as values.

Not responsible for evaluating anything (`engine`).
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from interlocks.inputs import SIGNALS
from interlocks.overlay import figures, is_number, merged

SHIPPED = Path(__file__).with_name("limits.toml")
CLASSES = ("PERS", "PAT", "MACH", "OPS")
PHASES = ("always", "armed", "requested", "beam", "moving", "never")
ROLES = ("operator", "physicist", "service", "key")
PERSONNEL = {"estop_healthy": 1, "door_a_closed": 1, "door_b_closed": 1, "search_complete": 1}  # input: the only good value
PERSONNEL_DEADLINE_MS = 100.0  # assumed; the hard-wired chain is far faster
FIELDS = {"what", "sort", "test", "when", "reaction", "source", "advice"}
NOT_NEGATIVE = ("limit", "hysteresis", "percent", "floor")
ABOVE_ZERO = ("window_ms", "ratio", "modulus")
# What each kind of test must have, may have, and how many inputs it takes (0: one or more, -1: none).
KINDS: Mapping[str, tuple[set[str], set[str], int]] = {
    "equal": ({"value"}, {"vote"}, 0),
    "limit": ({"limit"}, {"hysteresis", "vote"}, 0),
    "band": ({"low", "high"}, {"hysteresis", "vote"}, 0),
    "difference": ({"limit"}, {"hysteresis", "modulus", "neutral"}, 2),
    "drift": ({"limit"}, {"modulus"}, 0),
    "still": ({"limit"}, set(), 1),
    "above": ({"percent", "floor"}, set(), 2),
    "rate": ({"limit", "window_ms"}, set(), 1),
    "window": ({"percent", "floor", "window_ms"}, {"ratio"}, 2),
    "discrepancy": (set(), set(), 2),
    "pattern": ({"forbidden"}, set(), 0),
    "stale": (set(), set(), 0),
    "feedback": (set(), set(), 1),
    "boot": (set(), set(), -1),
    "stall": (set(), set(), -1),
    "bypass": (set(), set(), -1),
}
BUILT_IN = ("boot", "stall", "bypass")  # exactly one row each: causes inside the interlock system


class Action(Enum):
    """What a tripped interlock demands. The pulse of permit B is withheld for every one of them, that of motion for three."""

    INHIBIT_MOTION = "no motion while the cause is there: what stands does not start, what moves ends in a controlled stop"
    BEAM_PAUSE = "extraction off; goes on when the cause is gone"
    BEAM_OFF = "extraction off and chopper"
    DUMP_AND_STOP = "extraction off, chopper, ring dumped, stopper and source"
    MOTION_STOP = "no motion until reset: controlled stop, then brakes and safe torque off"
    EMERGENCY = "all beam-off elements, and no motion until reset"


class LimitsError(ValueError):
    """The limits file was refused; `reasons` has all of them."""

    def __init__(self, where: str, reasons: list[str]) -> None:
        super().__init__(f"{where}: {len(reasons)} fault(s):\n" + "\n".join(f"  {r}" for r in reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, slots=True)
class Interlock:
    """One row. Times in ms, `params` in the row's unit; rows with `acts` "hardware" are never evaluated."""

    id: str
    code: int
    klass: str
    acts: str
    by: str
    what: str
    kind: str
    inputs: tuple[str, ...]
    params: Mapping[str, Any]
    unit: str
    deadline_ms: float
    debounce_ms: float
    hold_ms: float
    trips: str
    withholds: bool
    actions: tuple[Action, ...]
    latch: bool
    reset_role: str
    bypassable_in: tuple[str, ...]
    source: str
    advice: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The whole file. `sha256` is of its bytes, `signature` the text of the `.sig` file beside it (empty: none).

    `conversion` is from the overlay: (unit, species) to pairs of MeV/u and counts of monitor 1 per unit.
    """

    rows: tuple[Interlock, ...]
    poll_ms: float
    stall_ms: float
    stale_ms: float
    invalid_reset_role: str
    bypass_max_h: float
    sha256: str
    signature: str = ""
    plan_required: bool = False
    proof_required: bool = False
    conversion: Mapping[tuple[str, int], tuple[tuple[float, float], ...]] = field(default_factory=dict)
    overlay_sha256: str = ""

    @property
    def software(self) -> tuple[Interlock, ...]:
        """Rows that the engine evaluates, in file order: of causes seen together the first is the first-out."""
        return tuple(row for row in self.rows if row.acts == "software")

    def row(self, interlock: str) -> Interlock:
        """The row of that id; KeyError when there is none."""
        return {row.id: row for row in self.rows}[interlock]


def load(path: Path = SHIPPED, verify: Callable[[str, str], bool] | None = None, overlay: Path | None = None) -> Limits:
    """Read a limits file and a facility's overlay. With `verify(sha256, signature)` both must be signed.

    `verify` says False, or raises ValueError with the reason, for a signature that does not hold.

    Raises:
        LimitsError: with every reason at once.
    """
    reasons: list[str] = []
    data, signature = _signed(path, verify, reasons)
    over = b""
    if overlay is not None:
        reasons = [f"{path.name}: {why}" for why in reasons]
        over = _signed(overlay, verify, reasons)[0]
    try:
        limits = parse(data, str(overlay or path), signature=signature, overlay=over)
    except LimitsError as error:
        reasons += error.reasons
    if reasons:
        raise LimitsError(str(overlay or path), reasons)
    return limits


def _signed(path: Path, verify: Callable[[str, str], bool] | None, reasons: list[str]) -> tuple[bytes, str]:
    """Bytes of a file, and of the signature beside it; what is wrong with that goes to `reasons`."""
    data, beside = path.read_bytes(), path.with_suffix(path.suffix + ".sig")
    signature = beside.read_bytes().decode("ascii", "replace").strip() if beside.exists() else ""
    if verify is not None:
        try:
            holds = bool(signature) and verify(hashlib.sha256(data).hexdigest(), signature)
        except ValueError as error:
            reasons.append(f"signature not valid: {error}")
            return data, ""
        if not holds:
            reasons.append(f"signature {'not valid' if signature else f'missing: no {beside.name} beside it'}")
    return data, signature


@lru_cache(maxsize=8)  # equal bytes give equal limits, which nobody changes: a test or a console reads the same files again
def parse(data: bytes, where: str = "limits", signature: str = "", overlay: bytes = b"") -> Limits:
    """Parse and validate the bytes of a limits file with an overlay."""
    try:
        raw, over = tomllib.loads(data.decode("utf-8")), tomllib.loads(overlay.decode("utf-8"))
    except ValueError as error:  # TOML and encoding errors both are; a duplicate id is one
        raise LimitsError(where, [f"not a limits file: {error}"]) from None
    reasons = [f"unknown table {name!r}" for name in raw if name not in ("engine", "interlock")]
    if over and not reasons:
        parse(data, where)  # an overlay is held against a sound file only
        raw = merged(raw, over, reasons)
    conversion = figures(raw.get("conversion", {}), reasons)
    engine = _table(raw.get("engine"), "engine", reasons)
    switches = {name: engine.get(name) for name in ("plan_required", "proof_required")}
    reasons += [f"engine: {name} must be true or false" for name, value in switches.items() if not isinstance(value, bool)]
    for name in ("poll_ms", "stall_ms", "stale_ms", "bypass_max_h"):
        if not is_number(engine.get(name)) or engine[name] <= 0:
            reasons.append(f"engine: {name} must be a number above 0")
            engine = {**engine, name: 1.0}
    if engine["bypass_max_h"] > 8 or engine["poll_ms"] > 50:
        reasons.append("engine: bypass_max_h is at most 8 and poll_ms at most 50")
    if engine.get("invalid_reset_role") not in ROLES:
        reasons.append(f"engine: invalid_reset_role must be one of {', '.join(ROLES)}")
    tables = _table(raw.get("interlock"), "interlock", reasons)
    rows = tuple(_row(name, _table(table, name, reasons), engine["poll_ms"], reasons) for name, table in tables.items())
    _judge_whole(rows, reasons)
    if reasons:
        raise LimitsError(where, reasons)
    numbers: Any = {name: float(engine[name]) for name in ("poll_ms", "stall_ms", "stale_ms", "bypass_max_h")}
    told: Any = {name: engine[name] for name in ("invalid_reset_role", "plan_required", "proof_required")}
    over_digest = hashlib.sha256(overlay).hexdigest() if overlay else ""
    digests: Any = {"sha256": hashlib.sha256(data).hexdigest(), "overlay_sha256": over_digest}
    return Limits(rows, **numbers, **told, **digests, signature=signature, conversion=conversion)


def _table(value: Any, where: str, reasons: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        reasons.append(f"{where}: table missing")
        return {}
    return value


def _row(name: str, raw: Mapping[str, Any], poll_ms: float, reasons: list[str]) -> Interlock:
    """One row with defaults for whatever is missing; every fault goes to `reasons`."""
    mine: list[str] = [f"unknown field {key!r}" for key in raw if key not in FIELDS]
    sort, test, when = (_table(raw.get(key), key, mine) for key in ("sort", "test", "when"))
    reaction = _table(raw.get("reaction"), "reaction", mine)
    software = sort.get("acts") == "software"
    _known_keys("sort", sort, {"class", "acts", "code", "by"}, mine)
    phases = {"trips", "withholds", "debounce_ms", "hold_ms"} if software else set()
    _known_keys("when", when, {"deadline_ms", *phases}, mine)
    _known_keys("reaction", reaction, {"action", "latch", "reset_role", "bypassable_in"}, mine)
    for key in ("what", "source", *(["advice"] if software else [])):
        if not isinstance(raw.get(key), str) or not raw[key]:
            mine.append(f"{key} missing")
    code = sort.get("code")
    times_ms: Any = {key: _ms(when, key, mine) for key in ("deadline_ms", "debounce_ms", "hold_ms")}
    texts: Any = {key: str(raw.get(key, "")) for key in ("what", "source", "advice")}
    asked, inputs = _list(reaction, "action"), tuple(map(str, _list(test, "inputs")))
    actions = tuple(Action[a] for a in map(str, asked) if a in Action.__members__)
    params = {k: v for k, v in test.items() if k not in ("kind", "inputs", "unit")}
    checks = (
        (sort.get("class") in CLASSES, f"class must be one of {', '.join(CLASSES)}"),
        (software or (sort.get("acts") == "hardware" and sort.get("by")), "acts must be software, or hardware with `by`"),
        (type(code) is int and 0 < code < 0x10000, "code must be an integer from 1 to 65535"),
        (actions and len(actions) == len(asked), "trips nothing: action is empty or not an action"),
        (isinstance(reaction.get("latch"), bool), "latch must be true or false"),
        (reaction.get("reset_role") in ROLES, f"reset_role must be one of {', '.join(ROLES)}"),
        (reaction.get("bypassable_in") in ([], ["service"]), 'bypassable_in must be [] or ["service"]'),
    )
    mine += [why for holds, why in checks if not holds]
    if software:
        _judge_software(str(test.get("kind")), inputs, params, mine)
        trips, withholds = when.get("trips"), when.get("withholds")
        if trips not in PHASES or withholds not in ("always", "tripped") or (trips == "never" and withholds != "always"):
            mine.append(f"trips nothing: trips = {trips!r}, withholds = {withholds!r}")
        if poll_ms + times_ms["debounce_ms"] > times_ms["deadline_ms"]:
            why = f"cannot be met: poll {poll_ms} + debounce {times_ms['debounce_ms']}"
            mine.append(f"deadline_ms {times_ms['deadline_ms']} {why}")
    elif not params or not all(is_number(v) for v in params.values()) or not test.get("unit"):
        mine.append("a hardware row needs at least one figure and its unit")
    row = Interlock(
        id=name,
        code=code if type(code) is int else 0,
        klass=str(sort.get("class")),
        acts=str(sort.get("acts")),
        by=str(sort.get("by", "interlock daemon")),
        kind=str(test.get("kind", "")),
        inputs=inputs,
        params=params,
        unit=str(test.get("unit", "")),
        trips=str(when.get("trips", "always")),
        withholds=when.get("withholds") == "always",
        actions=actions,
        latch=reaction.get("latch") is True,
        reset_role=str(reaction.get("reset_role")),
        bypassable_in=tuple(map(str, _list(reaction, "bypassable_in"))),
        **texts,
        **times_ms,
    )
    if software and row.klass == "PERS":
        _judge_personnel(row, mine)
    reasons += [f"{name}: {why}" for why in mine]
    return row


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    return value if isinstance(value, list) else []


def _ms(when: Mapping[str, Any], key: str, mine: list[str]) -> float:
    value = when.get(key, None if key == "deadline_ms" else 0)
    if not is_number(value) or value < 0 or (key == "deadline_ms" and value == 0):
        mine.append(f"{key} missing or not a time")
        return 0.0
    return float(value)


def _known_keys(table: str, given: Mapping[str, Any], allowed: set[str], mine: list[str]) -> None:
    mine += [f"{table}: unknown key {key!r}" for key in given if key not in allowed]


def _judge_software(kind: str, inputs: tuple[str, ...], params: Mapping[str, Any], mine: list[str]) -> None:
    if kind not in KINDS:
        mine.append(f"kind {kind!r} is unknown; known: {', '.join(KINDS)}")
        return
    needed, optional, count = KINDS[kind]
    mine += [f"unknown input {name!r}" for name in inputs if name not in SIGNALS]
    if len(inputs) != max(count, 0) if count else not inputs:
        mine.append(f"{kind} takes {max(count, 0) or 'one or more' if count >= 0 else 'no'} input(s), {len(inputs)} given")
    mine += [f"test: {key} missing" for key in sorted(needed - params.keys())]
    mine += [f"test: {kind} takes no {key!r}" for key in params if key not in needed | optional]
    for key, value in params.items():
        values = value if isinstance(value, list) and key in ("value", "forbidden") else [value]
        if not all(map(is_number, values)) or ((isinstance(value, list) or key == "forbidden") and len(values) != len(inputs)):
            mine.append(f"test: {key} = {value!r} is not a finite number, nor one for each input")
        elif (key in NOT_NEGATIVE and value < 0) or (key in ABOVE_ZERO and value <= 0):
            mine.append(f"test: {key} = {value} is out of range")
        elif key == "vote" and not (type(value) is int and 1 <= value <= len(inputs)):
            mine.append(f"test: vote = {value} of {len(inputs)} input(s)")


def _judge_personnel(row: Interlock, mine: list[str]) -> None:
    diagnostic = row.kind in ("discrepancy", "feedback")  # these need time to be sure; the cause itself has a row without
    checks = (
        (row.latch, "must latch"),
        (not row.bypassable_in, "cannot be bypassed"),
        (row.params.get("vote", 1) == 1, "any one channel must trip it"),
        (row.trips == "always" or (row.trips == "armed" and row.withholds), "must withhold always"),
        (bool({Action.DUMP_AND_STOP, Action.EMERGENCY} & set(row.actions)), "must dump the beam and close the stopper"),
        (row.deadline_ms <= PERSONNEL_DEADLINE_MS * (10 if diagnostic else 1), f"deadline {row.deadline_ms:g} ms is too long"),
    )
    mine += [f"relaxed personnel class: {why}" for holds, why in checks if not holds]


def wanted(row: Interlock) -> tuple[int, ...]:
    """The good value of each input of an `equal` row."""
    value = row.params.get("value", 0)
    return tuple(value) if isinstance(value, list) else (value,) * len(row.inputs)


def _judge_whole(rows: tuple[Interlock, ...], reasons: list[str]) -> None:
    codes: dict[int, str] = {}
    for row in rows:
        if row.code in codes:
            reasons.append(f"{row.id}: code {row.code} is also that of {codes[row.code]}")
        codes.setdefault(row.code, row.id)
    software = [row for row in rows if row.acts == "software"]
    for kind in BUILT_IN:
        if sum(row.kind == kind and row.trips == "always" for row in software) != 1:
            reasons.append(f"there must be exactly one row of kind {kind!r}, and it trips always")
    personnel = [row for row in software if row.klass == "PERS"]
    watched = {pair for row in personnel if row.kind == "equal" for pair in zip(row.inputs, wanted(row), strict=False)}
    reasons += [f"relaxed personnel class: no row wants {i} = {v}" for i, v in PERSONNEL.items() if (i, v) not in watched]
    if not any(row.kind == "feedback" for row in personnel):
        reasons.append("relaxed personnel class: no row watches the permit relay (feedback)")
