"""Commands over HTTP: judged by the one table, executed once, as whom the sign-in says, and stop before everything."""

from __future__ import annotations

import asyncio
import json

import pytest
from console_site import console_site, until

from controller.console.dispatch import status_of
from controller.console.views import AnswerView
from controller.roles import RULES, Mode, Role, judge
from controller.room.states import State

STATUS = {4401: 422, 4402: 403, 4403: 409}


def _two_states(name):
    """One where the table allows the command to somebody, one where it does not, if there are such."""
    rule = RULES[name]
    inside = [state for state in State if state in rule.states]
    outside = [state for state in State if state not in rule.states]
    return [*inside[:1], *outside[:1]]


async def _take(site, caller, mode):
    """Whether the caller has control now; where the table gives it any, it takes it."""
    if judge("take_control", Role(caller.told["role"]), mode, State.STANDBY) is None:
        site.room.state, site.room.mode = State.STANDBY, mode
        assert (await caller.command("take_control")).status_code == 200
    return site.room.desk.control is not None


@pytest.mark.parametrize("role", list(Role))
async def test_every_cell_of_role_command_and_mode_answers_as_the_table_judges(tmp_path, role):
    """Every command in every mode, in a state of its own and in one that is not."""
    async with console_site(tmp_path, inert=True) as site:
        caller, seen = await site.sign_in(role.value), 0
        for mode in Mode:
            for name in [*RULES, "no_such_command"]:
                if name == "import_plan":
                    continue  # comes as a file
                for state in _two_states(name) if name in RULES else [State.STANDBY]:
                    holds = await _take(site, caller, mode)
                    site.room.state, site.room.mode = state, mode
                    site.room.taken.clear()
                    site.hub.by_person.__init__(1e6, 1e6, asyncio.get_running_loop().time)
                    answer = await caller.command(name, {"file": "x", "name": "y"})
                    told = answer.json()
                    expected = None if name == "stop" else judge(name, role, mode, state)
                    if expected is not None:
                        assert (answer.status_code, told["code"]) == (STATUS[expected.code], expected.code), (name, mode, state)
                        assert told["reason"] == expected.message and told["accepted"] is False
                        assert site.room.taken == [], (name, mode, state)
                    elif name != "stop" and RULES[name].needs_control and not holds:
                        assert (answer.status_code, told["code"]) == (409, 4414)
                        assert site.room.taken == []
                    else:
                        assert answer.status_code == 200, (name, mode, state, told)
                        assert [one.name for one in site.room.taken] == [name] or name in {
                            "view",
                            "take_control",
                            "give_control",
                        }
                    seen += 1
        assert seen > 3 * len(RULES)


async def test_the_table_is_told_as_it_is(site):
    ann = await site.sign_in("observer")
    rows = {row["name"]: row for row in (await ann.get("/api/rules")).json()}
    assert set(rows) == set(RULES)
    for name, rule in RULES.items():
        assert {Mode(mode): frozenset(map(Role, who)) for mode, who in rows[name]["roles"].items()} == dict(rule.roles)
        assert frozenset(map(State, rows[name]["states"])) == rule.states


async def test_who_and_as_what_come_from_the_sign_in_alone(site):
    ann = await site.sign_in("operator", "desk-1")
    for extra in (
        {"actor": "physicist"},
        {"role": "physicist"},
        {"console": "other"},
        {"sequence": 1},
        {"age_ns": 0},
        {"token": 1},
    ):
        assert (await ann.command("take_control", **extra)).status_code == 422, extra
    assert (await ann.command("take_control")).status_code == 200
    assert (await ann.command("load_plan", {"plan_id": "0123456789ab", "role": "physicist"})).status_code == 200
    (one,) = [command for command in site.room.taken if command.name == "load_plan"]
    assert (one.actor.name, one.actor.role, one.console) == ("operator", Role.OPERATOR, "desk-1")
    assert dict(one.arguments) == {"plan_id": "0123456789ab", "role": "physicist"}, "which fraction is meant the room says"


async def test_the_same_key_is_the_same_command(site):
    ann = await site.sign_in("operator")
    await ann.command("take_control")
    first = await ann.command("load_plan", {"fraction": 1}, key="k1")
    again = await ann.command("load_plan", {"fraction": 1}, key="k1", age_ms=5000.0)
    assert (first.status_code, first.json()["repeated"]) == (200, False)
    assert (again.status_code, again.json()["repeated"], again.json()["value"]) == (200, True, first.json()["value"])
    other = await ann.command("load_plan", {"fraction": 2}, key="k1")
    assert other.status_code == 409 and "Idempotency-Key" in other.json()["reason"]
    refused = await ann.command("beam_on", {}, key="k2")
    site.room.state = State.ARMED
    still = await ann.command("beam_on", {}, key="k2")
    assert refused.status_code == still.status_code == 409 and still.json()["repeated"], "a refusal stays one"
    assert [command.name for command in site.room.taken] == ["load_plan"]
    together = await asyncio.gather(*(ann.command("pause", {}, key="k3") for _ in range(8)))
    assert len({answer.json()["reason"] for answer in together}) == 1
    bob = await site.sign_in("physicist")
    assert (await bob.command("approve_plan", {}, key="k1")).status_code in (200, 409), "a key is one console's own"


async def test_a_command_that_was_executed_once_is_not_again_when_its_answer_was_lost(site):
    ann = await site.sign_in("operator")
    await ann.command("take_control")
    submit = site.room.submit

    async def lost(command):
        await submit(command)
        for client in site.room.server._clients:
            client.hang_up()
        await asyncio.Event().wait()

    site.room.submit = lost
    first = await ann.command("load_plan", {"fraction": 1}, key="k1")
    assert first.status_code == 504 and "not known" in first.json()["hint"]
    site.room.submit = submit
    await until(lambda: site.hub.link("G1").connected)
    again = await ann.command("load_plan", {"fraction": 1}, key="k1")
    assert again.status_code == 200 and again.json()["repeated"]
    assert [command.name for command in site.room.taken] == ["load_plan"]


async def test_a_command_needs_a_key_a_boot_and_a_fresh_age(site):
    ann = await site.sign_in("operator")
    body = {"name": "take_control", "boot_id": 1}
    for key in (None, "", "with space", "x" * 129, "ümlaut".encode()):
        headers = {**ann.headers, **({} if key is None else {"Idempotency-Key": key})}
        assert (await site.http.post("/api/rooms/G1/commands", json=body, headers=headers)).status_code == 422
    assert (await ann.command("take_control", boot_id=7)).json()["code"] == 4411
    old = await ann.command("take_control", age_ms=250.0)
    assert old.status_code == 425 and old.json()["code"] == 4412
    assert (await ann.command("take_control", age_ms=-1.0)).status_code == 422
    assert (await ann.command("take_control", room="G9")).status_code == 404
    assert (await ann.command("import_plan", {"file": "/etc/passwd", "name": "x"})).status_code == 422
    for text in ('{"x": NaN}', '{"x": 1e999}', '{"x": "\\ud800"}'):
        raw = f'{{"name": "take_control", "boot_id": 1, "arguments": {text}}}'
        headers = {**ann.headers, "Idempotency-Key": "odd", "Content-Type": "application/json"}
        assert (await site.http.post("/api/rooms/G1/commands", content=raw, headers=headers)).status_code == 422
    raw = '{"name":"take_control","boot_id":1,"age_ms":Infinity}'
    assert (await site.http.post("/api/rooms/G1/commands", content=raw, headers=headers)).status_code == 422
    assert site.hub.link("G1").losses == 0
    assert site.room.taken == []


async def test_the_time_a_command_waited_here_makes_it_older(site, monkeypatch):
    ann = await site.sign_in("operator")
    loop = asyncio.get_running_loop()
    link = site.hub.link("G1")
    submit = link.submit
    seen = []

    async def watched(command, *rest):
        seen.append(command["age_ns"])
        return await submit(command, *rest)

    monkeypatch.setattr(link, "submit", watched)
    from controller.console import guard

    admit = guard.Guard._admit

    def earlier(self, scope, headers):
        admit(self, scope, headers)
        scope["state"]["came_s"] = loop.time() - 0.3  # it waited for 300 ms

    monkeypatch.setattr(guard.Guard, "_admit", earlier)
    answer = await ann.command("take_control", age_ms=10.0)
    assert seen[0] >= 310e6
    assert answer.status_code == 425


async def test_two_consoles_do_not_both_command(site):
    ann, bob = await site.sign_in("operator", "desk-1"), await site.sign_in("physicist", "desk-2")
    assert (await ann.command("take_control")).status_code == 200
    refused = await bob.command("take_control")
    assert refused.status_code == 409 and "desk-1" in refused.json()["reason"]
    stolen = await bob.command("load_plan", {}, control_token=ann.control)
    assert stolen.json()["code"] in (4402, 4414) and not stolen.json()["accepted"]
    site.room.mode = Mode.QA
    stolen = await bob.command("load_plan", {}, control_token=ann.control)
    assert stolen.json()["code"] == 4414, "the token of another console commands nothing"
    assert (await bob.post("/api/rooms/G1/stop")).status_code == 200


async def test_stop_needs_nothing_at_all(site):
    ways = [
        {},
        {"headers": {"Authorization": "Bearer forged"}},
        {"headers": {"Host": "evil.example"}},
        {"headers": {"Content-Encoding": "gzip"}, "content": b"\x1f\x8b nonsense"},
        {"content": b"{" * 1_000_000},
        {"headers": {"Content-Length": "99999999999"}},
        {"headers": {"Origin": "https://evil.example", "X-Console": "\x7f"}},
    ]
    for number, way in enumerate(ways):
        answer = await site.http.post("/api/rooms/G1/stop", **way)
        assert answer.status_code == 200 and answer.json()["accepted"], way
        assert len(site.room.taken) == number + 1
    assert {command.actor.name for command in site.room.taken} == {"anybody"}
    ann = await site.sign_in("operator")
    await ann.post("/api/rooms/G1/stop")
    assert site.room.taken[-1].actor.name == "operator", "a token names who it was"
    assert (await site.http.post("/api/rooms/G9/stop")).status_code == 404


async def test_a_flood_of_stops_is_taken_and_spares_the_room(tmp_path):
    async with console_site(tmp_path, inert=True) as site:
        answers = await asyncio.gather(*(site.http.post("/api/rooms/G1/stop") for _ in range(400)))
        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.json()["accepted"] for answer in answers)
        assert len(site.room.taken) < 200, "neighbours in a flood go together"
        site.app._stops["G1"]._at_once.take = lambda _key: 1.0  # the flood goes on
        for _ in range(3):
            before = len(site.room.taken)
            await site.http.post("/api/rooms/G1/stop")
            assert len(site.room.taken) > before, "each is executed after it came"


async def test_without_the_room_it_is_said_that_nothing_was_done(tmp_path):
    async with console_site(tmp_path, linked=False) as site:
        ann = await site.sign_in("operator")
        for answer in (await ann.command("take_control"), await site.http.post("/api/rooms/G1/stop")):
            assert answer.status_code == 503 and not answer.json()["accepted"]
        assert "button" in answer.json()["hint"]
        for path in ("/api/rooms/G1", "/api/rooms/G1/devices", "/api/plans", "/api/treatments", "/health"):
            assert (await ann.get(path)).status_code == 503, path
        rooms = {room["name"]: room for room in (await ann.get("/api/rooms")).json()}
        assert rooms["G1"]["served"] and not rooms["G1"]["connected"]
        assert not rooms["G2"]["served"]


async def test_several_rooms_are_commanded_apart(tmp_path):
    async with console_site(tmp_path, ("G1", "G2")) as site:
        ann = await site.sign_in("operator")
        assert (await ann.command("take_control", room="G2")).status_code == 200
        assert [desk.desk.control is not None for desk in site.rooms] == [False, True]
        await ann.post("/api/rooms/G1/stop")
        assert [len(desk.taken) for desk in site.rooms] == [1, 0]
        views = [json.loads((await ann.get(f"/api/rooms/{room}")).content) for room in ("G1", "G2")]
        assert [view["room"] for view in views] == ["G1", "G2"]


@pytest.mark.parametrize(
    ("code", "status"), [(4402, 403), (4403, 409), (4412, 425), (4414, 409), (4415, 503), (5201, 422), (3001, 409), (None, 409)]
)
def test_every_refusal_has_its_status(code, status):
    assert status_of(AnswerView(accepted=False, code=code)) == status
    assert status_of(AnswerView(accepted=True)) == 200
