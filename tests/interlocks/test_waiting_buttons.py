"""A button counts from when it surely was not yet pressed; one that waited while the daemon stood still is no press at all."""

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safety_line import SafetyLine, wait_until
from safety_room import LIMITS, MS, SafetyRoom

import interlocks.daemon
from interlocks.daemon import WAITED, InterlockNode, run

ROOT = Path(__file__).parents[2]
START_MS = 2_000  # what happens begins then: the key was turned, nothing stands


class Ended(Exception):
    """The script is over."""


class Panel:
    """A clock that is passed by every look at it and by waiting, and people who press while the process runs or stands still.

    `script`: (ms, what is sent), or (ms, for how many ms the process stands still). What is sent meanwhile waits.
    """

    LOOK_NS = 30_000

    def __init__(self, script: list[tuple[float, str | float]]) -> None:
        self.room = SafetyRoom()
        self.records: list[dict] = []
        self.answers: list[bytes] = []
        self.sent: list[tuple[int, str]] = []
        self.queue: list[bytes] = []
        last_ms = max((ms + (what if isinstance(what, float | int) else 0) for ms, what in script), default=START_MS)
        turn = [(1_000, "press key"), (1_100, "release key")]
        late = [(last_ms + 1_000, "press operator"), (last_ms + 1_100, "release operator")]
        told = [*turn, *sorted(script, key=lambda happens: happens[0]), *late]
        self.script = [(round(ms * MS), what) for ms, what in told]
        self.end_ns = round((last_ms + 1_500) * MS)
        self.node = InterlockNode(
            self.room.read_image,
            self.room.write_permit,
            LIMITS,
            7,
            read_pulses=self.room.read_pulses,
            journal=lambda record: self.records.append(dict(record)),
            clock=self.clock,
        )

    def pass_to(self, t_ns: int, until_heard: bool = False) -> None:
        while self.script and self.script[0][0] <= t_ns:
            at_ns, what = self.script.pop(0)
            self.room.now_ns = max(self.room.now_ns, at_ns)
            if isinstance(what, str):
                self.sent.append((at_ns, what))
                self.queue.append(what.encode())
                if until_heard:
                    return
            else:
                t_ns = max(t_ns, at_ns + round(what * MS))
                until_heard = False
        self.room.now_ns = max(self.room.now_ns, t_ns)

    def clock(self) -> int:
        self.pass_to(self.room.now_ns + self.LOOK_NS)
        if self.room.now_ns > self.end_ns:
            raise Ended
        return self.room.now_ns

    # --- as `select` and as the socket

    def select(self, asked, _write, _error, timeout_s):
        if not self.queue:
            self.pass_to(self.room.now_ns + round(timeout_s * 1e9), until_heard=True)
        return (asked if self.queue else []), [], []

    def recvfrom(self, _size: int) -> tuple[bytes, None]:
        return self.queue.pop(0), None

    def go(self, monkeypatch) -> "Panel":
        answer = interlocks.daemon.obey
        with monkeypatch.context() as patch, pytest.raises(Ended):
            patch.setattr(interlocks.daemon, "select", self)
            patch.setattr(interlocks.daemon, "obey", lambda *told: self.answers.append(answer(*told)) or self.answers[-1])
            run(self.node, self, 1.0, None)
        return self

    def cleared(self) -> list[tuple[str, int, int]]:
        """Each row that a reset of the operator cleared: when it had tripped last, and when it was cleared."""
        found, tripped = [], {}
        for record in self.records:
            if record["kind"] == "trip":
                tripped[record["id"]] = record["t_ns"]
            if record["kind"] == "reset" and record["role"] == "operator":
                found += [(row, tripped[row], record["t_ns"]) for row in record["cleared"]]
        return found

    def judged(self) -> None:
        pressed = [t_ns for t_ns, what in self.sent if what == "press operator"]
        for row, tripped_ns, cleared_ns in self.cleared():
            assert any(tripped_ns < t_ns <= cleared_ns for t_ns in pressed), (
                f"{row} tripped at {tripped_ns}, pressed at {pressed}"
            )
        assert self.node.decision is not None and self.node.decision.permit, "a press that nothing stood in the way of resets"


def told(panel: Panel) -> list[str]:
    return [record["id"] for record in panel.records if record["kind"] == "trip"]


@pytest.mark.parametrize("order", list(permutations(["press operator", "release operator", "status w"])))
@pytest.mark.parametrize("into_ms", [0.0, 3.0, 19.0, 48.0])
def test_what_was_sent_while_it_stood_still_resets_nothing(monkeypatch, order, into_ms):
    sent = [(START_MS + into_ms + 1_000 + i, what) for i, what in enumerate(order)]
    panel = Panel([(START_MS + into_ms, 5_000.0), *sent]).go(monkeypatch)
    assert told(panel)[-1] == "LOOP_STALL"
    resets = [record for record in panel.records if record["kind"] == "reset"]
    assert [(record["role"], record["cleared"]) for record in resets[1:]] == [("operator", ("LOOP_STALL",))], (
        "the late one alone"
    )
    assert resets[-1]["t_ns"] > (START_MS + 5_900) * MS
    dropped = [record for record in panel.records if record["kind"] == "not taken"]
    assert [(record["role"], record["why"]) for record in dropped] == [("operator", WAITED)] * 2
    assert f"press operator not taken: {WAITED}".encode() in panel.answers
    assert any(answer.startswith(b"status w {") for answer in panel.answers), "a question is answered all the same"
    panel.judged()


@pytest.mark.parametrize("gap_ms", [60, 98, 130, 180, 400])
@pytest.mark.parametrize("after_ms", [-1, 0, 1, 20, 59])
def test_a_press_about_a_stall_is_never_taken_for_a_later_one(monkeypatch, gap_ms, after_ms):
    script = [(START_MS, float(gap_ms)), (START_MS + after_ms, "press operator"), (START_MS + gap_ms + 40, "release operator")]
    Panel(script).go(monkeypatch).judged()


def test_a_press_that_was_heard_before_the_stall_and_released_in_it_is_gone(monkeypatch):
    script = [(START_MS - 100, "press operator"), (START_MS, 3_000.0), (START_MS + 500, "release operator")]
    panel = Panel(script).go(monkeypatch)
    assert [row for row, _, _ in panel.cleared()] == ["LOOP_STALL"]
    panel.judged()


def test_a_press_that_came_while_the_step_was_working_that_trips_is_before_that_trip(monkeypatch):
    """Read right after it, and nothing stood still: only the last look at the empty socket tells what came first."""
    panel = Panel([(START_MS + 300, "release key")])
    read = panel.node._read_image

    def pressed_meanwhile():
        stopped = panel.room.now_ns >= START_MS * MS and "ESTOP" not in told(panel)
        panel.room.values["estop_healthy"] = int(not stopped)
        image = read()
        if stopped:
            panel.queue.append(b"press key")
        return image

    panel.node._read_image = pressed_meanwhile
    panel.go(monkeypatch)
    refusals = [dict(record["refused"]) for record in panel.records if record["kind"] == "reset"]
    assert "pressed before it tripped" in refusals[1]["ESTOP"]
    assert "ESTOP" in panel.node.engine.latched()


def test_a_stall_between_the_look_at_the_socket_and_what_it_found_is_one_as_well(monkeypatch):
    panel = Panel([])
    look, stood = panel.select, []

    def stands_still(*asked):
        found = look(*asked)
        if panel.room.now_ns >= START_MS * MS and not stood and not found[0]:
            stood.append(panel.room.now_ns)
            panel.queue += [b"press operator", b"release operator"]
            panel.room.now_ns += 600 * MS
        return found

    panel.select = stands_still
    panel.go(monkeypatch)
    assert stood and [record["kind"] for record in panel.records if record["kind"] == "not taken"] == ["not taken"] * 2
    panel.judged()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(START_MS, START_MS + 1500),
            st.one_of(
                st.sampled_from(["press operator", "release operator", "status w"]),
                st.sampled_from([5.0, 40.0, 99.0, 101.0, 151.0, 700.0]),
            ),
        ),
        max_size=12,
    )
)
def test_no_order_of_presses_questions_and_stalls_clears_what_tripped_later(script):
    with pytest.MonkeyPatch.context() as patch:
        Panel([*script, (START_MS + 3_000, "release operator")]).go(patch).judged()


def test_the_process_takes_no_button_that_was_pressed_while_it_was_stopped(tmp_path):
    line = SafetyLine()
    buttons, journal = tmp_path / "buttons", tmp_path / "journal.jsonl"
    command = [sys.executable, "-S", "-P", "-m", "interlocks.daemon", "--unsigned", "--port", str(line.port)]
    command += ["--buttons", str(buttons), "--journal", str(journal)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def permitted() -> bool:
        line.room.now_ns = time.monotonic_ns()
        return line.room.relay_closed()

    def pressed(role: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as button:
            for verb in ("press", "release"):
                button.sendto(f"{verb} {role}".encode(), str(buttons))
                time.sleep(0.1)
        return permitted()

    def not_taken() -> int:
        return journal.read_text(encoding="utf-8").count('"kind": "not taken"')

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as panel:
        panel.bind(str(tmp_path / "panel"))
        panel.settimeout(5.0)
        try:
            assert wait_until(buttons.exists)
            assert wait_until(lambda: pressed("key") or pressed("operator"), 15.0)
            before = not_taken()
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.3)
            for message in (b"status w", b"press operator", b"release operator"):
                panel.sendto(message, str(buttons))
            process.send_signal(signal.SIGCONT)
            assert wait_until(lambda: line.room.first_out_code == LIMITS.row("LOOP_STALL").code)
            answers = [b""]
            while not answers[-1].startswith(b"release"):
                answers.append(panel.recv(65536))
            assert answers[-1] == f"release operator not taken: {WAITED}".encode()
            assert not wait_until(permitted, 0.5), "it stays latched"
            assert not_taken() == before + 2
            assert wait_until(lambda: pressed("operator"), 15.0), "until somebody presses who saw it"
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            line.close()
