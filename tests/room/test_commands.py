"""Commands: who may do what, when, cell by cell; once, fresh, from the console that commands; and stop, always."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from controller.commands import AGE_MAX_NS, Actor, Command, CommandDesk
from controller.roles import RULES, Mode, Role, judge
from controller.room.states import State
from drivers.hal.errors import CommandRejected, DeviceError
from simulators.clock import run

# The same table a second time, as somebody would read it from the safety notes: o operator, p physicist, s service,
# a security admin, v observer; modes treat | qa | service; then the states by their first letters.
P = "identified positioning imaging positioned secured allocated tuning"
EXPECTED = f"""
stop             vopsa | vopsa | vopsa | *
view             vopsa | vopsa | vopsa | *
take_control     op    | op    | s     | *
give_control     ops   | ops   | ops   | standby {P} armed complete partial fault qa beam_tuning physics
import_plan      op    | op    | op    | *
load_plan        o     | p     |       | standby
unload_plan      o     | p     |       | standby
decline          o     | p     |       | standby identified positioning imaging armed interrupted
reset_interlock  ops   | ops   | ops   | standby {P} armed interrupted complete partial fault qa beam_tuning physics
reset_drives     op    | op    | s     | standby fault qa beam_tuning physics
acknowledge_alarm ops  | ops   | ops   | *
shelve_alarm     ops   | ops   | ops   | *
self_test        op    | op    | s     | standby qa beam_tuning physics
end_bypass       ps    | ps    | ps    | *
identify         o     | p     |       | standby identified
move_on          o     | p     |       | positioning imaging
accept_position  o     | p     |       | imaging
edit             o     | p     |       | standby {P} armed
beam_on          o     | p     |       | armed
pause            op    | op    | ops   | beam_on held
resume           o     | p     |       | interrupted
cancel           o     | p     |       | {P} armed
terminate        o     | p     |       | beam_on held interrupted
acknowledge      op    | op    | op    | fault
reconcile        p     | p     |       | complete partial fault standby
reset_dose_trip  p     | p     |       | complete partial fault standby
approve_plan     p     | p     | p     | standby qa beam_tuning physics
jog              op    | op    | s     | standby identified qa beam_tuning physics
enter_service    sp    | sp    | s     | standby qa beam_tuning physics
leave_service    sp    | sp    | sp    | qa beam_tuning physics
request_bypass         | s     | s     | qa beam_tuning physics
approve_bypass         | p     | p     | qa beam_tuning physics
manage_users     a     | a     | a     | standby qa beam_tuning physics
"""
LETTER = {Role.OBSERVER: "v", Role.OPERATOR: "o", Role.PHYSICIST: "p", Role.SERVICE: "s", Role.SECURITY_ADMIN: "a"}


def expected() -> dict[str, tuple[dict[Mode, str], set[str]]]:
    table = {}
    for line in EXPECTED.strip().splitlines():
        name, rest = line.split(maxsplit=1)
        cells = [cell.strip() for cell in rest.split("|")]
        if len(cells) == 3:  # nobody in treatment: the first cell was swallowed by the name
            cells.insert(0, "")
        *roles, states = cells[-4:]
        table[name] = dict(zip(Mode, roles, strict=True)), set(states.split())
    return table


TABLE = expected()


def is_expected(name: str, role: Role, mode: Mode, state: State) -> bool:
    roles, states = TABLE[name]
    return LETTER[role] in roles[mode] and ("*" in states or state.value.split(".")[-1] in states)


def test_the_expectation_covers_every_command() -> None:
    assert set(TABLE) == set(RULES)


class Desk:
    """A desk whose handlers count."""

    def __init__(self, state: State = State.STANDBY, mode: Mode = Mode.TREAT) -> None:
        self.state = state
        self.mode = mode
        self.done: list[str] = []
        self.journal: list[tuple[str, dict[str, Any]]] = []
        self.full = False
        names = set(RULES) - {"view", "take_control", "give_control"}
        handlers = {name: (lambda command: self.done.append(command.name) or len(self.done)) for name in names}
        self.desk = CommandDesk("G1", 7, lambda: self.state, lambda: self.mode, self.note, handlers)
        self.sequence = 0

    def note(self, kind: str, data: Any) -> None:
        if self.full:
            raise OSError(28, "no space left")
        self.journal.append((kind, dict(data)))

    def command(self, name: str, role: Role = Role.OPERATOR, **more: Any) -> Command:
        self.sequence += 1
        control = self.desk.control
        values: dict[str, Any] = {
            "arguments": {},
            "actor": Actor(f"a {role}", role),
            "console": "console-1",
            "token": control.token if control is not None else 0,
            "boot_id": 7,
            "sequence": self.sequence,
            "age_ns": 1_000_000,
        }
        return Command(name, **(values | more))


@pytest.mark.parametrize("name", list(RULES))
def test_every_cell_of_role_mode_and_state(name: str) -> None:
    """The command takes effect in exactly the cells where the table says so, with control in hand."""

    async def body() -> None:
        for role, mode, state in itertools.product(Role, Mode, State):
            desk = Desk(state, mode)
            # Control is in this person's hands, however it got there: what is tested is the cell.
            desk.desk._take_control(desk.command("take_control", role))
            answer = await desk.desk.submit(desk.command(name, role))
            allowed = is_expected(name, role, mode, state)
            assert answer.accepted == allowed, (role, mode, state, answer.rejection)
            assert (judge(name, role, mode, state) is None) == allowed
            if name not in ("view", "take_control", "give_control"):
                assert desk.done == ([name] if allowed else [])
            if not allowed:
                assert isinstance(answer.rejection, CommandRejected)
                assert answer.rejection.hint

    run(body())


def test_there_is_no_beam_command_in_service_mode_and_none_for_observers() -> None:
    for name in ("beam_on", "resume", "load_plan", "identify", "accept_position", "edit"):
        for role, state in itertools.product(Role, State):
            assert judge(name, role, Mode.SERVICE, state) is not None
            for mode in Mode:
                assert judge(name, Role.OBSERVER, mode, state) is not None


@pytest.mark.parametrize("name", ["edit_config", "sign_config", "sign_limits", "sign-limits"])
def test_no_role_changes_or_signs_the_facility_at_a_console(name: str) -> None:
    for role, mode, state in itertools.product(Role, Mode, State):
        refused = judge(name, role, mode, state)
        assert refused is not None and refused.code == 4401, (role, mode, state)


def test_nobody_both_asks_for_and_approves_a_bypass() -> None:
    for role, mode, state in itertools.product(Role, Mode, State):
        asks = judge("request_bypass", role, mode, state) is None
        approves = judge("approve_bypass", role, mode, state) is None
        assert not (asks and approves)


@pytest.mark.parametrize("state", list(State))
def test_stop_needs_nothing(state: State) -> None:
    """No control, no token, the wrong boot, an old command, an old sequence, a full disk: it stops."""

    async def body() -> None:
        desk = Desk(state)
        desk.full = True
        worst = desk.command("stop", Role.OBSERVER, token=99, boot_id=1, sequence=-5, age_ns=10**12, console="nobody")
        await desk.desk.submit(worst)
        await desk.desk.submit(worst)
        assert desk.done == ["stop", "stop"]

    run(body())


def test_stop_does_not_wait_for_a_command_that_is_being_executed() -> None:
    async def body() -> None:
        desk = Desk()

        async def slow(_command: Command) -> None:
            await asyncio.sleep(100.0)

        desk.desk._handlers["load_plan"] = slow
        await desk.desk.submit(desk.command("take_control"))
        waiting = asyncio.ensure_future(desk.desk.submit(desk.command("load_plan")))
        await asyncio.sleep(1.0)
        before = asyncio.get_running_loop().time()
        assert (await desk.desk.submit(desk.command("stop"))).accepted
        assert asyncio.get_running_loop().time() == before
        assert desk.done == ["stop"]
        await waiting

    run(body())


def test_a_command_sent_twice_is_executed_once_and_answered_twice() -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        await desk.desk.submit(desk.command("take_control"))
        command = desk.command("beam_on")
        first = await desk.desk.submit(command)
        desk.state = State.BEAM_ON
        again = await desk.desk.submit(command)
        assert (first.accepted, again.accepted, again.repeated) == (True, True, True)
        assert again.value == first.value
        assert desk.done == ["beam_on"]

    run(body())


def test_a_repeat_while_the_first_is_executed_waits_for_its_answer() -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        calls = 0

        async def slow(_command: Command) -> str:
            nonlocal calls
            calls += 1
            await asyncio.sleep(5.0)
            return "done"

        desk.desk._handlers["beam_on"] = slow
        await desk.desk.submit(desk.command("take_control"))
        command = desk.command("beam_on")
        answers = await asyncio.gather(desk.desk.submit(command), desk.desk.submit(command))
        assert calls == 1
        assert [a.value for a in answers] == ["done", "done"]

    run(body())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"boot_id": 6}, 4411),
        ({"age_ns": AGE_MAX_NS + 1}, 4412),
        ({"age_ns": -1}, 4412),
        ({"sequence": 1}, 4413),
        ({"sequence": 0}, 4413),
        ({"token": 0}, 4414),
        ({"token": 2}, 4414),
        ({"console": "console-2"}, 4414),
        ({"actor": Actor("somebody else", Role.OPERATOR)}, 4414),
        ({"name": "to_irradiating"}, 4401),
    ],
)
def test_what_is_old_replayed_or_from_elsewhere_is_refused_and_noted(change: dict[str, Any], code: int) -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        await desk.desk.submit(desk.command("take_control"))
        changed = dict(change)
        answer = await desk.desk.submit(desk.command(changed.pop("name", "beam_on"), **changed))
        assert answer.rejection is not None
        assert answer.rejection.code == code
        assert desk.done == []
        assert desk.journal[-1][0] == "command.refused"

    run(body())


def test_an_old_sequence_with_other_contents_is_a_replay() -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        await desk.desk.submit(desk.command("take_control"))
        command = desk.command("cancel")
        await desk.desk.submit(command)
        answer = await desk.desk.submit(desk.command("beam_on", sequence=command.sequence))
        assert answer.rejection is not None
        assert answer.rejection.code == 4413
        assert desk.done == ["cancel"]

    run(body())


def test_a_backlog_of_53_minutes_is_dropped_whole() -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        await desk.desk.submit(desk.command("take_control"))
        for minute in range(53):
            await desk.desk.submit(desk.command("beam_on", age_ns=(53 - minute) * 60 * 10**9))
        assert desk.done == []

    run(body())


def test_one_console_commands_until_it_gives_back_or_is_lost() -> None:
    async def body() -> None:
        desk = Desk()
        first = await desk.desk.submit(desk.command("take_control"))
        assert desk.desk.console_alive()
        other = await desk.desk.submit(desk.command("take_control", console="console-2"))
        assert other.rejection is not None
        assert other.rejection.code == 4418
        for _ in range(5):
            await asyncio.sleep(0.5)
            assert desk.desk.heartbeat("console-1", first.value)
        assert not desk.desk.heartbeat("console-2", first.value)
        assert not desk.desk.heartbeat("console-1", first.value + 1)
        assert desk.desk.console_alive()
        await asyncio.sleep(1.01)
        assert not desk.desk.console_alive()
        second = await desk.desk.submit(desk.command("take_control", console="console-2"))
        assert second.value != first.value
        late = await desk.desk.submit(desk.command("load_plan", token=first.value))
        assert late.rejection is not None
        assert late.rejection.code == 4414
        assert not desk.desk.heartbeat("console-1", first.value)

    run(body())


def test_a_command_that_cannot_be_journalled_is_not_executed() -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        await desk.desk.submit(desk.command("take_control"))
        desk.full = True
        answer = await desk.desk.submit(desk.command("beam_on"))
        assert answer.rejection is not None
        assert answer.rejection.code == 4415
        assert desk.done == []

    run(body())


def test_every_executed_command_is_in_the_journal_before_its_effect() -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        noted: list[int] = []
        desk.desk._handlers["cancel"] = lambda _command: noted.append(len(desk.journal))
        await desk.desk.submit(desk.command("take_control"))
        await desk.desk.submit(desk.command("cancel"))
        assert noted == [3], "control was taken, and that was told; then the command itself"
        assert desk.journal[-1][1]["name"] == "cancel"
        assert desk.journal[-1][1]["actor"] == "a operator"

    run(body())


def test_a_device_error_is_an_answer_and_an_unforeseen_one_is_not_hidden() -> None:
    async def body() -> None:
        desk = Desk(State.ARMED)
        await desk.desk.submit(desk.command("take_control"))

        def failing(_command: Command) -> None:
            raise DeviceError("relay stuck", code=3001)

        def broken(_command: Command) -> None:
            raise ZeroDivisionError

        desk.desk._handlers |= {"cancel": failing, "beam_on": broken}
        answer = await desk.desk.submit(desk.command("cancel"))
        assert answer.rejection is not None
        assert answer.rejection.code == 3001
        command = desk.command("beam_on")
        with pytest.raises(ZeroDivisionError):
            await desk.desk.submit(command)
        again = await desk.desk.submit(command)
        assert not again.accepted
        assert again.rejection is not None
        assert again.rejection.code == 4416

    run(body())


def test_handlers_for_commands_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown commands: fire"):
        CommandDesk("G1", 1, lambda: State.STANDBY, lambda: Mode.TREAT, lambda _k, _d: None, {"fire": lambda _c: None})
