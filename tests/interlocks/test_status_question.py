"""`status WORD` on the socket tells what stands; it changes nothing, and costs no pulse however it is asked."""

import itertools
import json
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress

import pytest
from safety_room import LIMITS, MS, Bench, SafetyRoom, _Node, armed, ready

import interlocks.daemon
from interlocks.daemon import obey, run
from interlocks.first_out import Trip
from interlocks.permit import RELAY_MS


def asked(bench: Bench, word: str = "w1") -> dict:
    verb, said, told = obey(bench.node, f"status {word}".encode(), bench.room.now_ns).split(b" ", 2)
    assert (verb, said) == (b"status", word.encode())
    return json.loads(told)


def two_tripped() -> Bench:
    bench = armed()
    bench.set(spot_error_um=9000)
    bench.run(40)
    bench.set(door_a_closed=0)
    bench.run(40)
    assert bench.tripped == ("DOOR", "SPOT_POSITION")
    return bench


def test_every_row_that_stands_is_told_with_what_it_saw():
    bench = two_tripped()
    told = asked(bench)
    rows = {row["id"]: row for row in told["rows"]}
    assert [row["first_out"] for row in told["rows"]] == [True, False] and list(rows) == ["SPOT_POSITION", "DOOR"]
    trips = {trip.id: trip for trip in bench.node.trips}
    assert [Trip(**row).cause for row in told["rows"]] == [trips[row].cause for row in rows], "the same words"
    assert told["boot_id"] == 0x1234 and told["latched"] == list(bench.node.engine.latched()) == ["DOOR", "SPOT_POSITION"]
    assert 40 * MS <= told["t_ns"] - rows["DOOR"]["t_ns"] <= 50 * MS
    assert rows["SPOT_POSITION"]["shown"] == [0, 9000, 2000]
    assert (told["withheld"], told["bypasses"], told["proof_age_s"]) == ([], [], 0)


def test_an_input_that_is_not_believed_is_told_as_such():
    bench = ready()
    bench.room.counter_runs = False
    bench.run(300)
    told = asked(bench)
    assert len(told["rows"]) > 5
    assert all(row["shown"][0] & 0x8000 and not all(good for _, _, good in row["states"]) for row in told["rows"])
    assert "(not valid)" in Trip(**told["rows"][0]).cause


def test_what_withholds_without_a_trip_is_told():
    bench = ready(door_a_closed=0)
    assert bench.tripped == ()
    assert asked(bench)["rows"] == [] and asked(bench)["withheld"] == list(bench.withheld) and "DOOR" in bench.withheld


def test_the_role_whose_reset_would_clear_a_row_is_told_once_it_would():
    bench = two_tripped()
    assert asked(bench)["by"] == {}, "the causes are still there"
    bench.set(spot_error_um=0)
    bench.run(40)
    assert asked(bench)["by"] == {"SPOT_POSITION": LIMITS.row("SPOT_POSITION").reset_role}
    bench.set(door_a_closed=1)
    bench.run(40)
    assert set(asked(bench)["by"]) == {"SPOT_POSITION", "DOOR"}
    for row, role in asked(bench)["by"].items():
        assert row in bench.press(role)
    assert asked(bench)["rows"] == []


def test_a_row_that_trips_again_is_told_as_it_tripped_the_last_time():
    bench = two_tripped()
    first = next(row for row in asked(bench)["rows"] if row["id"] == "SPOT_POSITION")
    bench.set(spot_error_um=0, door_a_closed=1)
    bench.run(40)
    for role in set(asked(bench)["by"].values()):
        bench.press(role)
    assert asked(bench)["rows"] == []
    bench.set(spot_error_um=7000)
    bench.run(40)
    (row,) = asked(bench)["rows"]
    assert row["shown"] == [0, 7000, 2000] and row["first_out"] and row["seq"] > first["seq"] and row["t_ns"] > first["t_ns"]


def test_a_bypass_is_told_with_its_two_persons():
    bench = ready(service_mode=1)
    answer = obey(bench.node, b"bypass SPOT_POSITION Olga Petra 60000 monitor is replaced", bench.room.now_ns)
    assert answer == b"bypass taken"
    bench.run(50)
    told = asked(bench)
    (bypass,) = told["bypasses"]
    assert [bypass[key] for key in ("id", "owner", "approver")] == ["SPOT_POSITION", "Olga", "Petra"]
    assert bypass["reason"] == "monitor is replaced"
    assert 59_900 * MS <= bypass["expires_ns"] - told["t_ns"] <= 60_000 * MS


def test_before_the_first_step_nothing_is_told():
    bench = Bench()
    assert obey(bench.node, b"status w", 0) == b"status w "
    bench.step()
    assert asked(bench)["rows"][0]["id"] == "POWER_UP"


def test_the_question_changes_nothing_and_is_not_journalled():
    bench, other = two_tripped(), two_tripped()
    bench.set(spot_error_um=0)
    other.set(spot_error_um=0)
    for _ in range(50):
        for role in ("operator", "physicist", "service", "key"):
            obey(bench.node, f"status {role}".encode(), bench.room.now_ns)
        bench.run(20)
        other.run(20)
    assert {"DOOR", "SPOT_POSITION"} <= set(bench.node.engine.latched()) == set(other.node.engine.latched())
    assert bench.node.decision == other.node.decision and bench.records == other.records
    assert bench.room.pulse == other.room.pulse and bench.room.motion_pulse == other.room.motion_pulse


def test_it_is_worked_out_once_for_each_step(monkeypatch):
    bench, made = two_tripped(), []
    monkeypatch.setattr(interlocks.daemon.json, "dumps", lambda told, dumps=json.dumps: made.append(told) or dumps(told))
    for _ in range(1000):
        obey(bench.node, b"status w", bench.room.now_ns)
    assert len(made) == 1
    before = obey(bench.node, b"status w", bench.room.now_ns)
    bench.set(spot_error_um=0, door_b_closed=0)
    assert obey(bench.node, b"status w", bench.room.now_ns) != before, "and anew after each"


def test_the_answer_is_small_whatever_is_asked_and_whatever_stands():
    bench = armed(beam=True)
    bench.room.counter_runs = False
    bench.run(2000)
    assert len(bench.tripped) > 40
    answer = obey(bench.node, b"status " + b"\xff" * 4000, bench.room.now_ns)
    assert len(answer) < 32_768 and len(answer.split(b" ", 2)[1]) <= 3 * 32


class Ended(Exception):
    """The run is long enough."""


class Crowd:
    """An armed room in whose interlock system's socket a question waits whenever it looks; nobody reads an answer.

    Time passes with each look at the clock, so that each message costs some, as it does on a real one.
    """

    LOOK_NS = 200_000

    def __init__(self, directory: str, crowd: Callable[[socket.socket, str], None]) -> None:
        self.room: SafetyRoom
        self.gaps_ms: list[float] = []
        self.steps = 0
        bench = armed()
        self.room, self._end_ns = bench.room, bench.room.now_ns + 2000 * MS
        self._crowd, self._path = crowd, f"{directory}/buttons"
        self.buttons = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.buttons.bind(self._path)
        self.asker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.asker.bind(f"{directory}/asker")
        self.asker.setblocking(False)
        self.node = _Node(
            self.room,
            self._read,
            self._pulse,
            LIMITS,
            boot_id=9,
            read_pulses=self.room.read_pulses,
            latched=(),
            clock=self.clock,
        )
        self.node.step(self.room.now_ns)
        self.node.reset(self.room.now_ns, "key", True)
        self.node.reset(self.room.now_ns + 1, "key", False)
        self._pulsed_ns = self.room.now_ns

    def _read(self):
        self.steps += 1
        return self.room.read_image()

    def clock(self) -> int:
        self.room.now_ns += self.LOOK_NS
        if self.room.now_ns > self._end_ns:
            raise Ended
        self._crowd(self.asker, self._path)
        return self.room.now_ns

    def _pulse(self, *values: int) -> None:
        if values[0] != self.room.pulse:
            self.gaps_ms.append((self.room.now_ns - self._pulsed_ns) / MS)
            self._pulsed_ns = self.room.now_ns
        self.room.write_permit(*values)

    def close(self) -> None:
        self.asker.close()
        self.buttons.close()


def ask(asker: socket.socket, path: str) -> None:
    with suppress(BlockingIOError):  # its queue is full: so it is meant
        asker.sendto(b"status again", path)


@pytest.fixture
def crowded():
    with tempfile.TemporaryDirectory(prefix="crowd-") as directory:
        crowd = Crowd(directory, ask)
        yield crowd
        crowd.close()


def test_a_crowd_that_asks_all_the_time_and_reads_nothing_costs_no_pulse(crowded):
    with pytest.raises(Ended):
        run(crowded.node, crowded.buttons, 1e3, None)
    assert crowded.room.relay_closed() and not crowded.node.decision.tripped
    assert len(crowded.gaps_ms) > 80 and max(crowded.gaps_ms[2:]) < RELAY_MS / 2, "a pulse every 20 ms, all the way"
    assert crowded.steps >= 40


def test_who_reads_no_answers_keeps_nobody_else_from_theirs(crowded):
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = crowded.asker.getsockname().replace("asker", "other")
    heard.bind(path)
    heard.setblocking(False)
    big, told = b"x" * 60_000, []  # the largest that could be
    turns = itertools.cycle([ask, lambda _asker, where: heard.sendto(b"status mine", where), *[lambda *_: None] * 4])

    def crowd(asker: socket.socket, where: str) -> None:
        next(turns)(asker, where)
        with suppress(BlockingIOError):
            told.append(heard.recv(65536))

    crowded._crowd = crowd
    crowded.node.status = lambda _now_ns: big
    with pytest.raises(Ended):
        run(crowded.node, crowded.buttons, 1e3, None)
    heard.close()
    assert len(told) > 1000 and set(told) == {b"status mine " + big}
