"""The panel of a room on real wires: every row that the interlock daemon holds; only the first-out when it does not tell."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safety_line import SafetyLine
from safety_room import LIMITS, MS, armed, ready

from controller.attached import InterlockNews
from controller.interlock_rows import rows_of
from controller.interlock_standing import (
    NO_SOCKET,
    NOT_UNDERSTOOD,
    NOT_YET,
    OLD_NS,
    SILENT,
    StandingWatch,
    ToldApart,
    standing_of,
)
from controller.serving import interlock_book
from controller.serving.interlock_book import ANOTHER, InterlockBook
from drivers.hal import events
from drivers.hal.capabilities import InterlockStatus
from drivers.hal.clock import now_ns
from drivers.hal.events import EventBus
from interlocks.daemon import obey

ROOT = Path(__file__).parents[2]
ROWS = rows_of(LIMITS)
SPOT, DOOR = LIMITS.row("SPOT_POSITION"), LIMITS.row("DOOR")


def two_tripped():
    bench = armed()
    bench.set(spot_error_um=9000)
    bench.run(40)
    bench.set(door_a_closed=0)
    bench.run(40)
    return bench


def told_by(bench) -> bytes:
    return bench.node.status(bench.room.now_ns)


def status_of(bench, **more) -> InterlockStatus:
    """The status line of a bench, read now."""
    room = bench.room
    fields = {"t_ns": 0, "relay_closed": room.relay_closed(), "active_trips": room.active_trips, "boot_id": room.boot_id}
    return InterlockStatus(**{**fields, "first_out_code": room.first_out_code, "first_out_input": room.evidence[4], **more})


class Panel:
    """The book of a room whose status line and interlock system are told by hand."""

    def __init__(self, bench, told):
        self.status, self.told, self.bus = status_of(bench), told, EventBus()
        self.book = InterlockBook(ROWS, lambda: self.status, lambda: self.told)
        self.bus.subscribe(self.book.take)
        InterlockNews(self.bus, "G1", LIMITS).attach()
        value, limit = 9000, 2000
        data = {"first_out_code": self.status.first_out_code, "first_out_input": self.status.first_out_input}
        self.bus.emit("G1-interlock", "interlock.status", **data, first_out_value=value, first_out_limit=limit)

    @property
    def view(self):
        return self.book.view(())


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time of these rooms stands still, but where a loop of its own runs."""
    monkeypatch.setattr(interlock_book, "now_ns", lambda: 10**9)
    monkeypatch.setattr(events, "now_ns", lambda: 10**9)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_all_that_stands_is_shown_the_first_out_on_top_and_what_followed_marked():
    bench = two_tripped()
    view = Panel(bench, standing_of(told_by(bench), 10**9)).view
    assert view.rest_unknown == "" and view.active_trips == 2
    assert [(t.id, t.first_out, t.latched) for t in view.trips] == [("SPOT_POSITION", True, True), ("DOOR", False, True)]
    assert view.first_out == view.trips[0]
    first, second = view.trips
    assert (first.cause, first.value, first.limit) == (SPOT.what, "spot_error_um 9000", "limit 2000 um".removeprefix("limit "))
    assert (second.value, second.reset_role) == ("door_a_closed 0, door_b_closed 1", "operator")
    assert 40 * MS <= 10**9 - second.t_ns <= 50 * MS


@pytest.mark.parametrize("reason", [SILENT, NOT_UNDERSTOOD, NO_SOCKET, NOT_YET])
def test_without_an_answer_the_first_out_of_the_wire_is_shown_and_why_no_more(reason):
    bench = two_tripped()
    panel = Panel(bench, standing_of(told_by(bench), 10**9))
    assert len(panel.view.trips) == 2
    panel.told = reason
    view = panel.view
    assert [t.id for t in view.trips] == ["SPOT_POSITION"] and view.first_out.id == "SPOT_POSITION"
    assert view.rest_unknown == reason and view.active_trips == 2
    assert (view.trips[0].value, view.trips[0].limit) == ("spot_error_um 9000 um", "2000 um")


def test_inputs_that_are_not_believed_are_named_and_the_operator_may_reset_them():
    bench = ready()
    bench.room.counter_runs = False
    bench.run(300)
    bench.set(door_a_closed=0)
    view = Panel(bench, standing_of(told_by(bench), 10**9)).view
    assert len(view.trips) == view.active_trips > 5
    assert all("(not valid)" in trip.value for trip in view.trips)
    accused = {
        trip.id: (trip.cause, trip.advice) for trip in view.trips if trip.id in ("MOTION_WELDED", "RELAY_WELDED", "DOOR")
    }
    assert accused and all(cause == "not known" and "check the link" in advice for cause, advice in accused.values())
    assert {trip.reset_role for trip in view.trips if trip.latched} == {LIMITS.invalid_reset_role}


def test_the_role_that_would_clear_a_row_is_the_one_that_is_shown():
    """A row that tripped on an input that was not believed, and then on its value, is reset by the role of its value."""
    bench = ready()
    bench.room.counter_runs = False
    bench.run(300)
    bench.room.counter_runs = True
    bench.set(area_dose_rate=60_000)
    bench.run(1000)
    bench.set(area_dose_rate=8)
    bench.run(1000)
    needed = LIMITS.row("AREA_MONITOR").reset_role
    assert needed != LIMITS.invalid_reset_role
    row = next(t for t in Panel(bench, standing_of(told_by(bench), 10**9)).view.trips if t.id == "AREA_MONITOR")
    assert row.reset_role == needed and "AREA_MONITOR" in bench.press(needed)


def test_a_first_out_that_is_newer_than_the_answer_is_shown_besides():
    bench = two_tripped()
    told = standing_of(told_by(bench), 10**9)
    panel = Panel(bench, told)
    code = LIMITS.row("ESTOP").code
    panel.status = status_of(bench, first_out_code=code, active_trips=3)
    assert [t.id for t in panel.view.trips] == ["ESTOP", "SPOT_POSITION", "DOOR"] and panel.view.first_out.id == "ESTOP"


def test_one_row_is_the_first_out_and_stands_on_top_whatever_was_reset_before():
    """The oldest that is left is what the status line shows: the banner, the top of the list and its mark name the same."""
    bench = two_tripped()
    told = json.loads(told_by(bench))
    for row in told["rows"]:
        row["first_out"] = False
    panel = Panel(bench, standing_of(json.dumps(told).encode(), 10**9))
    for code, order in ((DOOR.code, ["DOOR", "SPOT_POSITION"]), (SPOT.code, ["SPOT_POSITION", "DOOR"])):
        panel.status = status_of(bench, first_out_code=code)
        view = panel.view
        assert [(t.id, t.first_out) for t in view.trips] == [(order[0], True), (order[1], False)]
        assert view.first_out == view.trips[0]
    panel.told = SILENT
    for row in ("DOOR", "SPOT_POSITION"):  # of the bus: each was the first-out of the status line at its time
        panel.bus.emit("G1-interlocks", "interlock.trip", id=row, code=LIMITS.row(row).code, cause="", first_out=True)
    assert [t.first_out for t in panel.view.trips] == [True, False]


def test_limits_of_several_inputs_are_shown_by_their_names():
    bench = ready(search_complete=0)
    bench.set(armed=1)
    bench.run(100)
    trip = next(t for t in Panel(bench, standing_of(told_by(bench), 10**9)).view.trips if t.id == "SEARCH")
    assert trip.limit == "search_complete 1, search_state 2, chain_door_search 1", trip


def test_when_that_tripped_which_is_left_after_a_reset_is_not_made_up():
    bench = two_tripped()
    panel = Panel(bench, SILENT)
    panel.status = status_of(bench, first_out_code=DOOR.code, active_trips=1)
    panel.bus.emit("G1-interlocks", "interlock.stands", id="DOOR", code=DOOR.code, cause="", first_out=True)
    assert {t.id: t.t_ns for t in panel.view.trips}["DOOR"] == 0


def test_a_status_line_that_is_newer_and_shows_nothing_has_seen_the_reset():
    bench = two_tripped()
    panel = Panel(bench, standing_of(told_by(bench), 10**9))
    panel.status = status_of(bench, first_out_code=0, active_trips=0, t_ns=10**9 + 1)
    assert panel.view.trips == [] and panel.book.roles() == {}
    panel.status = status_of(bench, first_out_code=0, active_trips=0, t_ns=10**9 - 1)
    assert len(panel.view.trips) == 2, "one that is older has not seen the trip"


def test_the_interlock_system_of_another_room_is_not_believed():
    bench = two_tripped()
    panel = Panel(bench, standing_of(told_by(bench), 10**9))
    panel.status = status_of(bench, boot_id=0x4321)
    assert panel.view.rest_unknown == ANOTHER and [t.id for t in panel.view.trips] == ["SPOT_POSITION"]


def test_a_row_that_this_program_does_not_know_is_shown_in_the_words_of_who_does():
    bench = two_tripped()
    told = json.loads(told_by(bench))
    told["rows"][1] |= {"id": "NEW_ROW", "code": 900, "what": "something is wrong", "advice": "call service"}
    told["latched"].append("NEW_ROW")
    view = Panel(bench, standing_of(json.dumps(told).encode(), 10**9)).view
    assert (view.trips[1].id, view.trips[1].cause, view.trips[1].advice) == ("NEW_ROW", "something is wrong", "call service")


def test_what_withholds_and_bypasses_from_before_this_process_are_shown():
    bench = ready(service_mode=1, door_a_closed=0)
    obey(bench.node, b"bypass SPOT_POSITION Olga Petra 60000 monitor is replaced", bench.room.now_ns)
    bench.run(60)
    panel = Panel(bench, standing_of(told_by(bench), 10**9))
    (bypass,) = panel.view.bypasses
    assert (bypass.interlock, bypass.owner, bypass.approver) == ("SPOT_POSITION", "Olga", "Petra")
    assert 59.8 <= bypass.remaining_s <= 60.0
    assert "DOOR" in panel.view.withheld and panel.view.proof_age_s == 0
    panel.book.forget_bypass("SPOT_POSITION")
    assert panel.view.bypasses == [], "ended here, whatever an older answer says"


def test_words_that_could_spoil_a_page_are_made_harmless():
    bench = two_tripped()
    told = json.loads(told_by(bench))
    told["rows"][0]["what"] = "half \ud800 a\x00 character"
    view = Panel(bench, standing_of(json.dumps(told).encode(), 10**9)).view
    view.model_dump_json().encode()
    assert standing_of(json.dumps(told).encode(), 0).rows[0].cause.startswith("half ? a? character")


def answers_that_are_none():
    bench = two_tripped()
    good = json.loads(told_by(bench))

    def but(**more):
        return json.dumps({**good, **more}).encode()

    row = good["rows"][0]
    yield from (b"", b"null", b"[]", b"7", b"{}", b"\xff\xfe", b"[" * 60_000, told_by(bench)[:-1], told_by(bench) * 2)
    yield from (json.dumps({k: v for k, v in good.items() if k != key}).encode() for key in good)
    yield from (but(t_ns=None), but(t_ns=1e300), but(t_ns=1 << 70), but(boot_id=True), but(latched={}), but(latched=[1]))
    yield from (but(by=[]), but(rows={}), but(rows=[row] * 300), but(withheld="DOOR"))
    yield from (but(rows=[{**row, key: None}]) for key in row)
    yield from (but(rows=[{**row, "states": [["a", 1]]}]), but(rows=[{**row, "shown": [1, 2]}]), but(bypasses=[{}]))


@pytest.mark.parametrize("answer", list(answers_that_are_none()), ids=lambda answer: answer[:40].decode("latin-1"))
def test_what_is_no_answer_is_not_understood(answer):
    with pytest.raises(ValueError):
        standing_of(answer, 0)
    assert ToldApart().of(answer, 0) in (NOT_UNDERSTOOD, NOT_YET)


# --- asking -----------------------------------------------------------------------------------------------------------


class Teller:
    """Stands in for the interlock daemon: answers as it is told to."""

    def __init__(self, path, answer):
        self.path, self.answer, self.asked = str(path), answer, []
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.bind(self.path)
        self._line.setblocking(False)
        asyncio.get_running_loop().add_reader(self._line, self._hear)

    def _hear(self):
        question, sender = self._line.recvfrom(4096)
        self.asked.append(asyncio.get_running_loop().time())
        for answer in self.answer(question):
            with contextlib.suppress(BlockingIOError):
                self._line.sendto(answer, sender)

    def close(self):
        asyncio.get_running_loop().remove_reader(self._line)
        self._line.close()


@contextlib.asynccontextmanager
async def watching(path, answer):
    bus, teller = EventBus(), Teller(path, answer)
    watch = StandingWatch(str(path), "G1", bus)
    watch.start()
    try:
        yield watch, teller, bus
    finally:
        await watch.stop()
        teller.close()


async def until(true, within_s=5.0):
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.005)


async def test_it_asks_at_once_and_at_each_change_of_the_status_line(tmp_path):
    bench = two_tripped()
    async with watching(tmp_path / "b", lambda question: [question + b" " + told_by(bench)]) as (watch, teller, bus):
        assert watch.standing() == NOT_YET
        await until(lambda: not isinstance(watch.standing(), str))
        assert [row.id for row in watch.standing().rows] == ["SPOT_POSITION", "DOOR"]
        begin, asked = asyncio.get_running_loop().time(), len(teller.asked)
        bus.emit("G2-interlock", "interlock.status", first_out_code=1)
        bus.emit("G1-interlock", "interlock.status", first_out_code=1)
        await until(lambda: len(teller.asked) > asked)
        assert teller.asked[asked] - begin < 0.5, "not at the next second"
        for _ in range(20):
            watch.look()
            await asyncio.sleep(0.01)
        assert len(teller.asked) <= asked + 6, "but no more than it can bear"
    assert watch.standing() == NOT_YET


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _question: [b"rubbish"] * 5, NOT_UNDERSTOOD),
        (lambda question: [question + b" {}"], NOT_UNDERSTOOD),
        (lambda question: [question + b" "], NOT_UNDERSTOOD),
    ],
)
async def test_an_answer_that_is_none_is_said_to_be_none(tmp_path, monkeypatch, answer, reason):
    monkeypatch.setattr("controller.interlock_standing.ANSWERS_MAX", 4)
    async with watching(tmp_path / "b", answer) as (watch, _, _bus):
        await until(lambda: watch.standing() != NOT_YET)
        assert watch.standing() == reason


async def test_late_answers_to_former_questions_are_passed_over_and_silence_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("controller.interlock_standing.ANSWER_S", 0.1)
    good, late = two_tripped(), ready()
    told = [[b"status x " + told_by(late), b"status 0 " + told_by(good)], [b"status 0 " + told_by(late)]]
    async with watching(tmp_path / "b", lambda _question: told.pop(0) if told else []) as (watch, _, _bus):
        await until(lambda: watch.standing() != NOT_YET)
        assert len(watch.standing().rows) == 2
        watch.look()
        await until(lambda: isinstance(watch.standing(), str))
        assert watch.standing() == SILENT, "the answer to the former question is none to this"


async def test_where_nobody_listens_or_no_socket_is_named_it_is_said(tmp_path):
    watch, none = StandingWatch(str(tmp_path / "none"), "G1", EventBus()), StandingWatch("", "G1", EventBus())
    watch.start()
    none.start()
    await until(lambda: watch.standing() == SILENT)
    assert none.standing() == NO_SOCKET
    await watch.stop()
    await none.stop()


async def test_what_was_told_long_ago_says_nothing_of_now(tmp_path, monkeypatch):
    bench = two_tripped()
    async with watching(tmp_path / "b", lambda question: [question + b" " + told_by(bench)]) as (watch, _, _bus):
        await until(lambda: not isinstance(watch.standing(), str))
        late_ns = now_ns() + OLD_NS + 1
        monkeypatch.setattr("controller.interlock_standing.now_ns", lambda: late_ns)
        assert watch.standing() == SILENT


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("wires")
async def test_the_panel_tells_what_the_daemon_holds_and_says_so_when_it_is_killed(tmp_path):
    line, buttons = SafetyLine(), tmp_path / "buttons"
    command = [sys.executable, "-S", "-P", "-m", "interlocks.daemon", "--unsigned", "--port", str(line.port)]
    command += ["--buttons", str(buttons), "--journal", str(tmp_path / "journal.jsonl")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})  # noqa: ASYNC220 - it is not waited for
    bus, room = EventBus(), line.room
    watch = StandingWatch(str(buttons), "G1", bus)

    def status() -> InterlockStatus:
        room.now_ns = time.monotonic_ns()
        shown = room.active_trips, room.first_out_code, room.boot_id
        return InterlockStatus(
            now_ns(), room.relay_closed(), *shown, first_out_input=room.evidence[4] if room.evidence else 0xFFFF
        )

    book = InterlockBook(ROWS, status, watch.standing)

    async def pressed(role: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as button:
            for verb in ("press", "release"):
                button.sendto(f"{verb} {role}".encode(), str(buttons))
                await asyncio.sleep(0.06)
        return room.active_trips == 0

    def change(**values: int) -> None:
        room.values.update(values)
        bus.emit("G1-interlock", "interlock.status", first_out_code=0)

    def shown(*ids: str) -> bool:
        view = book.view(())
        return view.rest_unknown == "" and [trip.id for trip in view.trips] == [*ids]

    try:
        await until(buttons.exists)
        watch.start()
        await until(lambda: shown("POWER_UP"))
        for role in ("key", "operator") * 5:
            if await pressed(role):
                break
        await until(shown)
        room.values.update(flow_a_permille=0, flow_b_permille=0)
        await until(lambda: book.view(()).withheld == ["COOLING_FLOW"])
        change(armed=1)
        await until(lambda: room.active_trips == 1)
        change(vacuum_good=0)
        await until(lambda: room.active_trips == 2)
        bus.emit("G1-interlock", "interlock.status", first_out_code=0)
        await until(lambda: shown("COOLING_FLOW", "VACUUM"))
        view = book.view(())
        assert [(trip.first_out, trip.latched) for trip in view.trips] == [(True, True), (False, True)]
        assert view.first_out.id == "COOLING_FLOW" and not view.relay_closed
        assert view.trips[0].value == "flow_a_permille 0, flow_b_permille 0, flow_c_permille 1010"
        process.send_signal(signal.SIGKILL)
        process.wait()
        watch.look()
        await until(lambda: book.view(()).rest_unknown == SILENT)
        assert [trip.id for trip in book.view(()).trips] == ["COOLING_FLOW"] and book.view(()).active_trips == 2
    finally:
        await watch.stop()
        process.kill()
        process.wait()
        line.close()
