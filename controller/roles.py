"""Who may do what, when: one table of command x role x mode x state. Code, tests and the interface document read it.

Stop is always allowed; nothing else is by default. What changes the facility (its file, limits, their signature) is no command:
docs/decisions/0019. Pure. Not responsible for who somebody is (the console's sign-in) nor for tokens, age and replay
(`commands`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from controller.room.states import IRRADIATING, PREPARATORY, SERVICE, TERMINATED, State
from drivers.hal.errors import CommandRejected


class Role(StrEnum):
    """What somebody is signed in as: one role at a time, so nobody is service and physicist at once."""

    OBSERVER = "observer"
    OPERATOR = "operator"
    PHYSICIST = "physicist"
    SERVICE = "service"
    SECURITY_ADMIN = "security_admin"


class Mode(StrEnum):
    """What the room is used for: treatment, quality assurance (a QA plan, or the key in QA), or service (the key)."""

    TREAT = "treat"
    QA = "qa"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Rule:
    """One command.

    Attributes:
        name: of the command.
        does: for the interface document.
        roles: who, by mode; a mode that is missing allows nobody.
        states: where.
        needs_control: whether the console must hold the room's control token.
    """

    name: str
    does: str
    roles: Mapping[Mode, frozenset[Role]]
    states: frozenset[State]
    needs_control: bool = True


EVERYBODY = frozenset(Role)
EVERYWHERE = frozenset(State)
_OPERATOR = frozenset({Role.OPERATOR})
_PHYSICIST = frozenset({Role.PHYSICIST})
_SERVICE = frozenset({Role.SERVICE})
_CLINICAL = _OPERATOR | _PHYSICIST
_STAFF = _CLINICAL | _SERVICE
_TREATING: Mapping[Mode, frozenset[Role]] = {
    Mode.TREAT: _OPERATOR,
    Mode.QA: _PHYSICIST,
}  # load, arm, start: physicist in QA only
_IDLE = frozenset({State.STANDBY, *SERVICE})
_BEFORE_BEAM = frozenset({*PREPARATORY, State.ARMED})
_IN_BEAM = frozenset({*IRRADIATING, State.INTERRUPTED})
_ENDED = frozenset({*TERMINATED, State.FAULT, State.STANDBY})


def _in_all(roles: frozenset[Role]) -> Mapping[Mode, frozenset[Role]]:
    return dict.fromkeys(Mode, roles)


_ROWS: tuple[Rule, ...] = (
    Rule("stop", "beam off, motion off, end the field", _in_all(EVERYBODY), EVERYWHERE, needs_control=False),
    Rule("view", "read anything", _in_all(EVERYBODY), EVERYWHERE, needs_control=False),
    Rule(
        "take_control",
        "become the room's commanding console",
        {Mode.TREAT: _CLINICAL, Mode.QA: _CLINICAL, Mode.SERVICE: _SERVICE},
        EVERYWHERE,
        needs_control=False,
    ),
    Rule(
        "give_control",
        "give the room's control back",
        _in_all(_STAFF),
        EVERYWHERE - _IN_BEAM,
    ),
    Rule("import_plan", "file a plan that was received", _in_all(_CLINICAL), EVERYWHERE, needs_control=False),
    Rule("load_plan", "select an approved plan", _TREATING, frozenset({State.STANDBY})),
    Rule("unload_plan", "put the loaded plan back", _TREATING, frozenset({State.STANDBY})),
    Rule("identify", "confirm patient, plan, fraction, room", _TREATING, frozenset({State.STANDBY, State.IDENTIFIED})),
    Rule(
        "move_on",
        "go on with a motion that was stopped, after a look into the room",
        _TREATING,
        frozenset({State.POSITIONING, State.IMAGING}),
    ),
    Rule("accept_position", "accept the imaged position", _TREATING, frozenset({State.IMAGING})),
    Rule("edit", "change plan, beam, set-up or tolerances", _TREATING, frozenset({State.STANDBY}) | _BEFORE_BEAM),
    Rule("beam_on", "the one deliberate act", _TREATING, frozenset({State.ARMED})),
    Rule(
        "pause",
        "interrupt the beam",
        {Mode.TREAT: _CLINICAL, Mode.QA: _CLINICAL, Mode.SERVICE: _CLINICAL | _SERVICE},
        frozenset(IRRADIATING),
        needs_control=False,
    ),
    Rule(
        "decline",
        "answer no to the room's question",
        _TREATING,
        frozenset({State.STANDBY, State.IDENTIFIED, State.POSITIONING, State.IMAGING, State.ARMED, State.INTERRUPTED}),
    ),
    Rule("resume", "a fresh beam-on after an interruption", _TREATING, frozenset({State.INTERRUPTED})),
    Rule("cancel", "give up before beam", _TREATING, _BEFORE_BEAM),
    Rule("terminate", "end the field and record it", _TREATING, _IN_BEAM),
    Rule("acknowledge", "leave fault when every cause is gone", _in_all(_CLINICAL), frozenset({State.FAULT})),
    Rule("reconcile", "sign what an open grant delivered", {Mode.TREAT: _PHYSICIST, Mode.QA: _PHYSICIST}, _ENDED),
    Rule(
        "reset_interlock",
        "press the interlock system's reset button of one's own role",
        _in_all(_STAFF),
        EVERYWHERE - frozenset(IRRADIATING),
        needs_control=False,
    ),
    Rule(
        "reset_drives",
        "clear faults of gantry and couch whose cause is gone; moves nothing",
        {**_in_all(_CLINICAL), Mode.SERVICE: _SERVICE},
        _IDLE | {State.FAULT},
    ),
    Rule("acknowledge_alarm", "take notice of an alarm", _in_all(_STAFF), EVERYWHERE, needs_control=False),
    Rule("shelve_alarm", "put an alarm aside for a while", _in_all(_STAFF), EVERYWHERE, needs_control=False),
    Rule("self_test", "test both dose channels", {**_in_all(_CLINICAL), Mode.SERVICE: _SERVICE}, _IDLE),
    Rule("reset_dose_trip", "reset a latched dose unit", {Mode.TREAT: _PHYSICIST, Mode.QA: _PHYSICIST}, _ENDED),
    Rule("approve_plan", "approve a plan for treatment", _in_all(_PHYSICIST), _IDLE, needs_control=False),
    Rule(
        "jog",
        "move gantry or couch while held",
        {Mode.TREAT: _CLINICAL, Mode.QA: _CLINICAL, Mode.SERVICE: _SERVICE},
        _IDLE | {State.IDENTIFIED},
    ),
    Rule(
        "enter_service",
        "leave treatment, with the key",
        {Mode.TREAT: _SERVICE | _PHYSICIST, Mode.QA: _SERVICE | _PHYSICIST, Mode.SERVICE: _SERVICE},
        _IDLE,
        needs_control=False,  # the handler wants it free, or in the same hands, and gives it to who enters
    ),
    Rule("leave_service", "back to treatment", _in_all(_SERVICE | _PHYSICIST), frozenset(SERVICE)),
    Rule("request_bypass", "ask to bypass one input", {Mode.QA: _SERVICE, Mode.SERVICE: _SERVICE}, frozenset(SERVICE)),
    Rule("approve_bypass", "approve a bypass", {Mode.QA: _PHYSICIST, Mode.SERVICE: _PHYSICIST}, frozenset(SERVICE), False),
    Rule("end_bypass", "end a bypass early", _in_all(_SERVICE | _PHYSICIST), EVERYWHERE, needs_control=False),
    Rule("manage_users", "users and keys", _in_all(frozenset({Role.SECURITY_ADMIN})), _IDLE, needs_control=False),
)
RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ROWS})


def judge(name: str, role: Role, mode: Mode, state: State) -> CommandRejected | None:
    """None when the command is allowed, else why not. Never raises: a refusal is a value."""
    rule = RULES.get(name)
    if rule is None:
        return CommandRejected(f"there is no command {name!r}", code=4401, hint=f"commands: {', '.join(RULES)}")
    allowed = rule.roles.get(mode, frozenset())
    if role not in allowed:
        who = ", ".join(sorted(allowed)) or "nobody"
        return CommandRejected(f"{name} is not for the role {role} in mode {mode}", code=4402, hint=f"allowed: {who}")
    if state not in rule.states:
        where = ", ".join(s.value for s in State if s in rule.states)
        return CommandRejected(f"{name} is not possible in {state}", code=4403, hint=f"possible in: {where}")
    return None
