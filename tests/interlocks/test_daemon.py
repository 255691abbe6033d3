"""The process: reads by its own client, pulses the relay, dies safely, needs nothing that is not in the standard library."""

import ast
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from safety_line import SafetyLine, wait_until
from safety_room import LIMITS, MS, Bench, armed, ready

from interlocks.daemon import claim, latched_before, main
from interlocks.modbus import ModbusError, ModbusTcp

ROOT = Path(__file__).parents[2]


@pytest.fixture
def line() -> Iterator[SafetyLine]:
    server = SafetyLine()
    yield server
    server.close()


def test_the_client_reads_and_writes_and_closes_on_every_fault(line):
    client = ModbusTcp("127.0.0.1", line.port, timeout_s=0.2)
    assert client.read(1, 0, 2) == [0x1009, 0x51]
    client.write(2, 16, [7, 1, 2, 3, 0, 0, 0, 0, 0xFFFF, 0, 0])
    assert client.read(2, 16, 1) == [7]
    with pytest.raises(ModbusError, match="exception 2"):
        client.read(1, 100, 100)
    spoilt = {
        "another transaction": lambda f: bytes([f[0] ^ 1]) + f[1:],
        "another node": lambda f: f[:6] + bytes([9]) + f[7:],
        "another count": lambda f: f[:8] + bytes([f[8] + 2]) + f[9:],
        "another protocol": lambda f: f[:2] + b"\x00\x01" + f[4:],
        "a huge length": lambda f: f[:4] + b"\xff\xff" + f[6:],
    }
    for spoil in spoilt.values():
        line.spoil = spoil
        with pytest.raises(OSError):
            client.read(1, 0, 2)
    line.spoil = lambda frame: frame
    assert client.read(1, 0, 2) == [0x1009, 0x51], "the next request opens a new connection"
    line.answer = False
    with pytest.raises(TimeoutError):
        client.read(1, 0, 2)
    client.close()


def test_the_process_gives_a_permit_after_the_key_and_loses_it_when_killed(line, tmp_path):
    buttons, journal = tmp_path / "buttons", tmp_path / "journal.jsonl"
    command = [sys.executable, "-S", "-P", "-m", "interlocks.daemon", "--unsigned", "--port", str(line.port)]
    command += ["--buttons", str(buttons), "--journal", str(journal)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def relay() -> bool:
        line.room.now_ns = time.monotonic_ns()
        return line.room.relay_closed()

    def key() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as button:
            button.sendto(b"press key", str(buttons))
            time.sleep(0.02)
            button.sendto(b"press nonsense", str(buttons))
            button.sendto(b"release key", str(buttons))

    process = subprocess.Popen(command, env=environment)
    try:
        assert wait_until(lambda: line.room.first_out_code == LIMITS.row("POWER_UP").code)
        assert not relay()
        time.sleep(0.1)
        assert wait_until(lambda: key() or wait_until(relay, 0.5), 15.0)
        boot_id = line.room.boot_id
    finally:
        process.kill()
        process.wait()
    killed_ns = time.monotonic_ns()
    assert wait_until(lambda: not relay(), 1.0)
    assert time.monotonic_ns() - killed_ns < 150 * MS, "100 ms of relay, and the time to look"
    records = [json.loads(text) for text in journal.read_text(encoding="utf-8").splitlines()]
    assert records[0]["id"] == "POWER_UP"
    assert records[-1]["kind"] == "reset"
    line.room.pulsed_ns = -(10**12)
    process = subprocess.Popen(command, env=environment)
    try:
        assert wait_until(lambda: line.room.boot_id != boot_id)
        for _ in range(20):
            assert not relay(), "a new process begins tripped and without a pulse"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("node", [1, 2])
@pytest.mark.parametrize("ms", [130, 400])
def test_a_process_that_was_stopped_closes_no_relay_when_it_is_continued(line, tmp_path, node, ms):
    """It is stopped while it waits for an answer about the room (1) or for that to a pulse (2)."""
    buttons, journal = tmp_path / "buttons", tmp_path / "journal.jsonl"
    command = [sys.executable, "-S", "-P", "-m", "interlocks.daemon", "--unsigned", "--port", str(line.port)]
    command += ["--buttons", str(buttons), "--journal", str(journal)]
    changes: list[int] = []
    write = line.room.write_permit

    def noted(pulse: int, *more: int) -> None:
        if pulse != line.room.pulse:
            changes.append(time.monotonic_ns())
        write(pulse, *more)

    line.room.write_permit = noted
    stopped = threading.Event()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def stop(frame: bytes) -> bytes:
        if frame[6] == node and not stopped.is_set():
            process.send_signal(signal.SIGSTOP)
            stopped.set()
        return frame

    def permitted() -> bool:
        line.room.now_ns = time.monotonic_ns()
        return line.room.relay_closed()

    def pressed(role: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as button:
            for verb in ("press", "release"):
                button.sendto(f"{verb} {role}".encode(), str(buttons))
                time.sleep(0.1)
        return permitted()

    try:
        assert wait_until(buttons.exists)
        assert wait_until(lambda: pressed("key") or pressed("operator"))
        line.spoil = stop
        assert stopped.wait(2.0)
        at_ns = time.monotonic_ns()
        time.sleep(ms / 1000)
        process.send_signal(signal.SIGCONT)
        told = LIMITS.row("LOOP_STALL").code
        assert wait_until(lambda: line.room.first_out_code == told)
        assert not wait_until(permitted, 0.5)
        assert [t_ns for t_ns in changes if t_ns > at_ns + 50 * MS] == [], "no pulse"
        assert "LOOP_STALL" in journal.read_text(encoding="utf-8")
        assert wait_until(lambda: pressed("operator")), "until it was reset"
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def test_the_process_refuses_a_bad_limits_file(tmp_path, capsys):
    bad = tmp_path / "limits.toml"
    bad.write_text("[engine]\n", encoding="utf-8")
    given = [
        "--unsigned",
        "--port",
        "1",
        "--limits",
        str(bad),
        "--buttons",
        str(tmp_path / "b"),
        "--journal",
        str(tmp_path / "j"),
    ]
    assert main(given) == 2
    assert "interlock: table missing" in capsys.readouterr().err


def test_nothing_but_the_standard_library_is_imported():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import interlocks.daemon, interlocks.bypass\n"
        "ours = {m for m in sys.modules if m.partition('.')[0] not in sys.stdlib_module_names | {'__main__'}}\n"
        "print(*sorted(ours))"
    )
    run = subprocess.run([sys.executable, "-S", "-I", "-c", program, str(ROOT)], capture_output=True, text=True, check=True)
    assert run.stdout.split(), "the package itself"
    assert {name.partition(".")[0] for name in run.stdout.split()} == {"interlocks"}


def code_lines(text: str) -> int:
    """Lines of code: not those that are empty, or hold nothing but a comment or a docstring."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            told.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in blank]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - told)


def test_the_package_stays_small_enough_to_read():
    texts = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "interlocks").glob("*.py"))}
    lines = {name: code_lines(text) for name, text in texts.items()}
    assert lines.pop("plan_ceilings.py") < 250, "the second reader of the plan is counted by itself"
    assert sum(lines.values()) <= 1500, lines
    assert max(len(text.splitlines()) for text in texts.values()) <= 400


def test_the_link_lost_and_found_is_no_pulse_even_if_the_last_write_arrived_unconfirmed():
    bench = armed(beam=True)
    write = bench.node._write_permit

    def arrives_unconfirmed(*values: int) -> None:
        write(*values)
        raise TimeoutError

    bench.node._write_permit = arrives_unconfirmed
    bench.run(50)
    bench.room.link_up = False
    bench.node._write_permit = write
    bench.run(500)
    assert not bench.room.relay_closed()
    bench.room.link_up = True
    for _ in range(20):
        bench.run(25)
        assert not bench.room.relay_closed()
    assert "PLANT_STALE" in bench.tripped


def test_a_pulse_that_never_arrived_is_not_made_up_for_when_the_permit_is_withheld():
    """To withhold is to write what the relay holds: the number of a lost pulse would be one more pulse."""
    bench = armed(beam=True)
    write, lost = bench.node._write_permit, []

    def lose(*values: int) -> None:
        lost.append(values[0])
        raise TimeoutError

    bench.node._write_permit = lose
    bench.run(30)
    held = bench.room.read_pulses()[0]
    assert lost and lost[-1] != held, "a pulse was made, and did not arrive"
    bench.node._write_permit = write
    bench.set(door_a_closed=0)
    bench.run(300)
    assert not bench.permit
    assert bench.room.read_pulses()[0] == held


def test_a_lost_write_alone_costs_a_pulse_and_no_trip():
    bench = ready()
    write, calls = bench.node._write_permit, []

    def lose_one(*values: int) -> None:
        calls.append(values)
        if len(calls) == 1:
            raise TimeoutError
        write(*values)

    bench.node._write_permit = lose_one
    bench.run(200)
    assert bench.node.link_faults == 1
    assert bench.permit
    assert bench.room.relay_closed()


def test_a_trip_that_cannot_be_journalled_stops_the_pulse():
    bench = armed()

    def full(record):
        raise OSError("no space left on device")

    bench.node._journal = full
    with pytest.raises(OSError, match="no space"):
        bench.set(door_a_closed=0)
    bench.room.now_ns += 101 * MS
    assert not bench.room.relay_closed()


def test_latches_of_a_former_life_are_read_from_the_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert latched_before(path, LIMITS) == ()
    bench: Bench = armed()
    with path.open("w", encoding="utf-8") as file:
        bench.node._journal = lambda record: file.write(json.dumps(record) + "\n")
        bench.set(spot_error_um=9000)
        bench.set(door_a_closed=0)
        bench.set(spot_error_um=0, door_a_closed=1)
        bench.press("operator")
        file.write('{"kind": "trip", "latched": ["ES')
    assert latched_before(path, LIMITS) == ("SPOT_POSITION",)
    path.write_text("rubbish\n[1]\n", encoding="utf-8")
    assert latched_before(path, LIMITS) == ()


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two ports of this computer on which nobody listens, and that nobody else gets."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        yield first.getsockname()[1], second.getsockname()[1]


def arguments(directory: Path, port: int, name: str, host: str = "127.0.0.1") -> list[str]:
    return [
        *(sys.executable, "-m", "interlocks.daemon", "--host", host, "--port", str(port), "--unsigned"),
        *("--buttons", str(directory / f"{name}.buttons"), "--journal", str(directory / f"{name}.jsonl")),
    ]


def started(command: list[str]) -> subprocess.Popen:
    """A daemon that has got as far as its socket, or that has ended."""
    buttons = Path(command[command.index("--buttons") + 1])
    buttons.unlink(missing_ok=True)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: buttons.exists() or process.poll() is not None, 20.0)
    return process


def refused(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert run.returncode == 2 and run.stdout == ""
    return run.stderr


def test_a_second_interlock_system_of_a_room_is_refused_and_ctrl_c_is_an_end(tmp_path, ports):
    first = started(arguments(tmp_path, ports[0], "a"))
    try:
        told = f"another interlock system on this computer serves 127.0.0.1:{ports[0]}: stop it first\n"
        assert refused(arguments(tmp_path, ports[0], "b")) == told, "with a journal and a socket of its own"
        assert refused(arguments(tmp_path, ports[0], "b", "localhost")) == told.replace("127.0.0.1", "localhost")
        before = (tmp_path / "a.buttons").stat().st_ino
        assert refused(arguments(tmp_path, ports[0], "a")) == told
        assert (tmp_path / "a.buttons").stat().st_ino == before, "nor does it take the other's buttons away"
        assert "is kept by another interlock system" in refused(arguments(tmp_path, ports[1], "a"))
        first.send_signal(signal.SIGINT)
        assert first.wait(20) == 0
        assert first.stderr.read() == ""
    finally:
        first.kill()
        first.wait()
        first.stderr.close()


def test_an_address_is_served_once_by_whatever_name_and_another_beside_it(tmp_path, ports, monkeypatch, capsys):
    served = []
    monkeypatch.setattr("interlocks.daemon.run", lambda *told: served.append(told))
    with claim("127.0.0.1", ports[0]):
        for host in ("127.0.0.1", "localhost"):
            assert main(arguments(tmp_path, ports[0], "a", host)[3:]) == 2
            assert f"serves {host}:{ports[0]}: stop it first" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == [] and served == []
        assert main(arguments(tmp_path, ports[1], "a")[3:]) == 0
    assert main(arguments(tmp_path, ports[0], "a")[3:]) == 0
    assert len(served) == 2


def test_one_that_was_killed_leaves_its_room_to_the_next_at_once(tmp_path, ports):
    for number in range(3):
        process = started(arguments(tmp_path, ports[0], f"life{number}"))
        assert process.poll() is None, process.stderr.read()
        process.kill()
        process.wait()
        process.stderr.close()


def test_another_room_has_an_interlock_system_of_its_own(tmp_path, ports):
    both = [started(arguments(tmp_path, port, str(port))) for port in ports]
    assert [process.poll() for process in both] == [None, None]
    for process in both:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("option", ["--overlay", "--limits", "--plan", "--trust"])
def test_a_file_that_is_not_there_is_named_in_words(tmp_path, ports, capsys, option):
    missing = tmp_path / "missing.toml"
    command = [*arguments(tmp_path, ports[0], "a")[3:], option, str(missing)]
    if option == "--trust":
        command.remove("--unsigned")
    assert main(command) == 2
    assert capsys.readouterr().err == f"{missing}: No such file or directory\n"
