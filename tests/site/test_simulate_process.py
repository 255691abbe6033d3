"""One simulator process on real wires, asked through its backdoor: what it shows is true, what it is told it does."""

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from site_process import SiteProcess, alive, descendants, until

from drivers.hal.endpoints import objections
from drivers.hal.errors import CommandRejected, CommunicationError
from drivers.hal.facility import load_facility
from interlocks.modbus import ModbusTcp
from simulators.backdoor_client import BackdoorClient, call_door
from simulators.invariants import Prescription

pytestmark = pytest.mark.xdist_group("wires")
COUNTER, CONTRIBUTIONS = 8, 10
PERMIT_B = 2


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    process = SiteProcess(tmp_path_factory.mktemp("site"), "--room", "G1", "--staff", "quick", "--at", "30", "--route", "G1")
    try:
        yield process.ready()
        assert process.end() == 0, process.said()
    finally:
        process.end(signal.SIGKILL)


@pytest.fixture
def safety(site):
    at = site.at("G1-safety")
    client = ModbusTcp(at.host, at.port, timeout_s=1.0)
    yield client
    client.close()


def counter(client):
    return client.read(1, COUNTER, 1)[0]


def test_the_endpoint_file_says_where_everything_of_the_served_rooms_answers(site):
    facility, endpoints = load_facility("asan"), site.endpoints
    assert objections(facility, endpoints) == []
    expected = {name for name, device in facility.devices.items() if device.room in ("", "G1")}
    assert set(endpoints.devices) == expected
    assert all(device.simulated for device in endpoints.devices.values())
    assert stat.S_IMODE(site.file.stat().st_mode) == 0o600, "it holds the key of the backdoor"
    assert endpoints.devices["G1-gantry"].endpoint == f"serial://{site.directory}/G1-motion?baudrate=115200"
    assert site.at("accelerator").scheme == "ca"
    assert site.at("G1-imager").scheme == "mqtt"
    assert endpoints.speed == 1.0
    assert list(site.directory.glob(".endpoints*")) == [], "nothing half written is left"


def test_the_table_tells_a_person_the_same(site):
    until(lambda: "Ctrl-C ends it" in site.said())
    said = site.said()
    for word in ("G1-motion", "G1-safety", "ioc", "broker", "G1-interlocks", "G1-messages", str(site.file)):
        assert word in said
    assert "simulated" in said


def test_the_plant_stands_as_asked_at_the_start(site):
    state = site.ask("GET", "/state")
    assert state["route"] == "G1"
    assert state["rooms"]["G1"]["gantry"]["angle_deg"] == pytest.approx(30.0, abs=0.1)
    assert state["rooms"]["G2"]["gantry"]["angle_deg"] == pytest.approx(90.0, abs=0.1), "it is not served"
    assert state["served"] == ["G1"]
    assert state["simulated"] is True


def test_a_pause_freezes_the_plant_and_nothing_else(site, safety):
    before = site.ask("POST", "/pause")
    assert before["paused"] is True
    first = counter(safety)
    time.sleep(0.3)
    assert counter(safety) == first, "the line answers, and the plant stands still"
    assert site.ask("GET", "/clock")["t_s"] == before["t_s"]
    assert site.ask("POST", "/run")["paused"] is False
    until(lambda: counter(safety) != first)


def test_speed_two_doubles_the_counters_rate_and_is_written_down(site, safety):
    assert steady(safety, 100.0), "+1 every 10 ms"
    answer = site.ask("POST", "/speed", {"factor": 2.0})
    assert answer["restarted"] == ["G1-interlocks"]
    try:
        assert steady(safety, 200.0)
        assert "speed = 2.0\n" in site.file.read_text(encoding="utf-8")
    finally:
        site.ask("POST", "/speed", {"factor": 1.0})


def steady(client, wanted):
    """Whether it counts at that rate: where this computer stands still, plant time slips, so a few looks."""
    return any(rate(client) == pytest.approx(wanted, rel=0.25) for _ in range(8))


def rate(client):
    first, begun = counter(client), time.monotonic()
    time.sleep(0.5)
    second, ended = counter(client), time.monotonic()
    return ((second - first) & 0xFFFF) / (ended - begun)


@pytest.mark.parametrize("factor", [0, -1, 1e9, "2", None, True, [1]])
def test_a_speed_that_is_none_is_refused(site, factor):
    with pytest.raises(CommandRejected, match=r"speed|factor"):
        site.ask("POST", "/speed", {"factor": factor})
    assert site.ask("GET", "/clock")["speed"] == 1.0


def test_a_fault_is_planted_seen_on_the_wire_and_cleared(site, safety):
    def health():
        return safety.read(1, 36, 1)[0]

    assert health() == 0b1111
    planted = site.ask("POST", "/faults", {"spec": "hv-sag:0.9"})
    assert (planted["state"], planted["value"]) == ("acting", 0.9)
    assert health() == 0b1110
    with pytest.raises(CommandRejected, match="already"):
        site.ask("POST", "/faults", {"spec": "hv-sag", "room": "G1"})
    assert [fault["name"] for fault in site.ask("GET", "/faults")] == ["hv-sag"]
    assert site.ask("DELETE", "/faults/hv-sag")["state"] == "over"
    assert health() == 0b1111
    with pytest.raises(CommandRejected, match="not planted"):
        site.ask("DELETE", "/faults/hv-sag")


def test_a_fault_that_waits_strikes_at_its_time_or_not_at_all(site):
    now_s = site.ask("GET", "/clock")["t_s"]
    assert site.ask("POST", "/faults", {"spec": f"counter-wrap@t={now_s + 0.5}"})["state"] == "waiting"
    assert site.ask("POST", "/faults", {"spec": "mu2-dead@beam"})["state"] == "waiting"
    until(lambda: {f["name"]: f["state"] for f in site.ask("GET", "/faults")}["counter-wrap"] == "acting")
    site.ask("DELETE", "/faults/counter-wrap")
    site.ask("DELETE", "/faults/mu2-dead")
    assert site.ask("GET", "/faults") == []


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("nonsense", "unknown"),
        ("hv-sag:x", "not a number"),
        ("mu1-dead@noon", "when"),
        ("mu1-dead:3", "takes no value"),
        ("load-encoder-jump:inf", "not a number"),
        ("", "unknown"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_before_the_plant_hears_of_it(site, spec, reason):
    with pytest.raises(CommandRejected, match=reason):
        site.ask("POST", "/faults", {"spec": spec})
    assert site.ask("GET", "/faults") == []


def test_what_was_one_event_cannot_be_cleared(site):
    site.ask("POST", "/faults", {"spec": "door-contact-bounce"})
    with pytest.raises(CommandRejected, match="cannot be cleared"):
        site.ask("DELETE", "/faults/door-contact-bounce")
    assert "over" in [fault["state"] for fault in site.ask("GET", "/faults")]


# --- servers --------------------------------------------------------------------------------------------------------------


def answers(site, name):
    """Whether a server does what it is for, as a client sees it."""
    device = {"G1-safety": "G1-safety", "ioc": "accelerator", "broker": "G1-imager"}.get(name)
    if device is None:
        return site.servers()[name]["state"] == "serving"
    at = site.at(device)
    try:
        with socket.create_connection((at.host, at.port), 1.0):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("name", ["G1-motion", "G1-safety", "ioc", "broker", "G1-interlocks", "G1-messages"])
def test_every_server_can_be_killed_stopped_and_started_again(site, name):
    before = site.servers()[name]
    assert answers(site, name)
    for action in ("kill", "stop"):
        assert site.ask("POST", f"/servers/{name}/{action}")["state"] == "stopped"
        assert not answers(site, name)
        assert before["pid"] is None or not alive(before["pid"])
        if name == "G1-motion":
            assert not (site.directory / "G1-motion").is_symlink()
        after = site.ask("POST", f"/servers/{name}/start")
        assert (after["state"], after["endpoint"]) == ("serving", before["endpoint"]), "under its old address"
        until(lambda: answers(site, name))
    assert site.servers()[name]["pid"] != before["pid"] or before["pid"] is None


@pytest.mark.parametrize("name", ["G1-motion", "G1-safety", "ioc", "broker", "G1-interlocks", "G1-messages"])
def test_every_server_can_be_suspended_and_resumed(site, name):
    for action in ("suspend", "silent"):
        assert site.ask("POST", f"/servers/{name}/{action}")["state"] in ("suspended", "silent")
        assert site.ask("POST", f"/servers/{name}/resume")["state"] == "serving"
        site.ask("POST", f"/servers/{name}/suspend")
        assert site.ask("POST", f"/servers/{name}/start")["state"] == "serving", "start ends every suspension"


def test_a_silent_line_takes_requests_and_answers_none(site, safety):
    counter(safety)
    site.ask("POST", "/servers/G1-safety/silent")
    quick = ModbusTcp(site.at("G1-safety").host, site.at("G1-safety").port, timeout_s=0.2)
    with pytest.raises(TimeoutError):
        counter(quick)
    site.ask("POST", "/servers/G1-safety/resume")
    counter(safety)


@pytest.mark.slow
def test_a_thousand_clients_do_not_end_the_plant(site):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    at, clients = site.at("G1-safety"), []
    try:
        refused = 0
        while len(clients) < 1100 and refused < 3:
            try:
                clients.append(
                    socket.create_connection((at.host, at.port), 3.0)
                )  # a full queue drops one: tried again after 1 s
            except OSError:
                refused += 1  # it takes no more
        assert len(clients) > 900
        assert "Traceback" not in site.said()
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    quick = ModbusTcp(at.host, at.port, timeout_s=5.0)
    until(lambda: _answered(quick), 20.0)
    quick.close()
    assert site.process.poll() is None


def _answered(client):
    try:
        return client.read(1, 0, 1)
    except OSError:
        return None


def test_one_that_dies_unasked_is_told_and_stays_dead(site):
    pid = site.servers()["broker"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: site.servers()["broker"]["state"] == "stopped")
    until(lambda: "server broker has ended by itself" in site.said())
    time.sleep(0.5)
    assert site.servers()["broker"]["state"] == "stopped", "nobody starts it again: that is the point of a rig"
    assert site.ask("POST", "/servers/broker/start")["state"] == "serving"


@pytest.mark.parametrize(("name", "action"), [("nobody", "stop"), ("ioc", "explode"), ("..", "stop"), ("ioc", "act")])
def test_an_unknown_server_or_action_is_refused(site, name, action):
    with pytest.raises(CommandRejected):
        site.ask("POST", f"/servers/{name}/{action}")


# --- people and permit ----------------------------------------------------------------------------------------------------


def test_the_interlock_system_holds_permit_b_over_modbus_after_search_and_key(site, safety):
    assert site.ask("POST", "/people/G1/confirm", {"kind": "positioned"}) == {"answer": True, "why": ""}
    until(lambda: site.room()["search"] == "secured", 60.0)
    until(lambda: site.room()["permits"]["B"], 20.0, "the staff has pressed key and reset")
    seen, end = [], time.monotonic() + 2.0
    while time.monotonic() < end:
        seen.append(bool(safety.read(1, CONTRIBUTIONS, 1)[0] & PERMIT_B))
        time.sleep(0.02)
    assert seen.count(True) > 0.9 * len(seen), "held; a computer that stalls the interlock system for 100 ms lets it fall once"
    site.ask("POST", "/servers/G1-interlocks/suspend")
    until(lambda: not safety.read(1, CONTRIBUTIONS, 1)[0] & PERMIT_B, 1.0, "a frozen interlock system holds nothing")
    site.ask("POST", "/servers/G1-interlocks/resume")
    site.ask("POST", "/people/G1/stop", {})
    assert site.ask("POST", "/people/G1/confirm", {"kind": "beam_on"})["answer"] is True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/people/G9/confirm", {"kind": "identify"}),
        ("/people/G1/confirm", {}),
        ("/people/G1/confirm", {"kind": 7}),
        ("/people/G1/dance", {}),
        ("/people/G1/press", {"role": ""}),
    ],
)
def test_people_refuse_what_makes_no_sense(site, path, body):
    with pytest.raises(CommandRejected, match="refuses"):
        site.ask("POST", path, body)


# --- sessions -------------------------------------------------------------------------------------------------------------


async def test_a_session_is_prescribed_and_measured_through_the_client(site):
    door = BackdoorClient(site.endpoints.backdoor, site.endpoints.token)
    try:
        prescription = Prescription(plan_hash=5, room="G1", gantry_angle_deg={1: 30.0}, layers={})
        await door.prescribe(prescription)
        assert await door.violations() == []
        assert await door.machine_limited_s("G1", 1) == 0.0
        with pytest.raises(CommandRejected, match="G9"):
            await door.prescribe(Prescription(plan_hash=5, room="G9", gantry_angle_deg={}, layers={}))
        await door.shadow({"parts": {"G1-load-encoder": {"age_s": 0.0, "angle_deg": 31.5, "speed_deg_s": 0.0, "valid": 1}}})
        for nonsense in ({"parts": {"G1-magnets": {}}}, {"parts": []}, {"parts": {"G1-couch": 3}}):
            with pytest.raises(CommandRejected, match="shadow"):
                await door.shadow(nonsense)
        assert (await door.clock())["speed"] == 1.0
        assert (await door.state())["facility"] == "asan"
    finally:
        await door.close()


# --- the door itself ------------------------------------------------------------------------------------------------------


def raw(site, path, *, method="POST", token=None, data=b"", **headers):
    """Status and JSON of a request made by hand."""
    given = {"Authorization": f"Bearer {site.endpoints.token if token is None else token}", **headers}
    request = urllib.request.Request(site.endpoints.backdoor + path, data=data or None, method=method, headers=given)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/state"),
        ("GET", "/clock"),
        ("POST", "/pause"),
        ("POST", "/speed"),
        ("POST", "/faults"),
        ("DELETE", "/faults/mu1-dead"),
        ("POST", "/servers/ioc/kill"),
        ("POST", "/people/G1/confirm"),
        ("POST", "/prescription"),
        ("GET", "/violations"),
        ("POST", "/shadow"),
    ],
)
@pytest.mark.parametrize("token", ["", "wrong", "é", "x" * 5000])
def test_without_the_token_nothing_is_shown_and_nothing_is_done(site, method, path, token):
    before = site.ask("GET", "/state")
    status, answer = raw(site, path, method=method, token=token.encode().decode("latin-1"))
    assert status == 401
    assert set(answer) == {"reason"}
    state = site.ask("GET", "/state")
    for part in ("servers", "faults", "violations", "notes"):
        assert state[part] == before[part]
    assert not state["clock"]["paused"]


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/speed", b"{", 400),
        ("/speed", b"\xff\xfe\x00", 400),
        ("/speed", b"[2]", 400),
        ("/speed", b"{}", 400),
        ("/speed", b"[" * 20000, 400),
        ("/speed", b" " * 70_000, 413),
        ("/speed", b'{"factor": NaN}', 400),
        ("/faults", b'{"spec": 3}', 400),
        ("/faults", b'{"spec": "mu1-dead", "room": 3}', 404),
        ("/prescription", b"{}", 400),
        ("/prescription", b'{"layers": 3}', 400),
        ("/servers/ioc", b"", 404),
        ("/nothing", b"", 404),
        ("/state", b"", 405),
    ],
)
def test_what_cannot_be_understood_is_refused_in_words(site, path, data, status):
    got, answer = raw(site, path, data=data)
    assert got == status
    assert answer["reason"]
    assert "Traceback" not in json.dumps(answer)
    assert site.ask("GET", "/clock")["speed"] == 1.0


def test_it_listens_on_the_loopback_only(site):
    port = int(site.endpoints.backdoor.rpartition(":")[2])
    table = [line.split()[1] for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    assert [address for address in table if address == f"0100007F:{port:04X}"]
    assert f"00000000:{port:04X}" not in table


def test_where_nobody_is_the_client_says_so():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(CommunicationError, match="not there"):
        call_door(f"http://127.0.0.1:{port}", "x", "GET", "/clock")


def test_a_living_simulators_file_is_not_taken_from_it(site):
    again = SiteProcess(site.directory, "--room", "F1", log="again.log")
    assert again.process.wait(40.0) == 2
    assert "still runs" in again.said()
    assert site.ask("GET", "/clock")["speed"] == 1.0
    command = [sys.executable, "-m", "controller", "backdoor", str(site.file), "server", "G1-messages", "kill"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(told.stdout)["state"] == "stopped"
    site.ask("POST", "/servers/G1-messages/start")


def test_nothing_but_its_own_children_belongs_to_it(site):
    known = {view["pid"] for view in site.servers().values()} - {None}
    assert set(descendants(site.process.pid)) == known, site.said()
