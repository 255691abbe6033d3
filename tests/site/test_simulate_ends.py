"""However a simulator process ends, nothing of it is left; two do not disturb each other; what cannot start is refused."""

import asyncio
import errno
import math
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from site_process import SiteProcess, alive, descendants, until

from drivers.hal.endpoints import DeviceEndpoint, EndpointMap, load_endpoints
from drivers.hal.facility import load_facility
from simulators import site as site_module
from simulators.clock import SteerableLoop
from simulators.endpoint_file import remove_if_ours, write_endpoints
from simulators.site_options import SiteOptions, SiteRefused, objections

pytestmark = pytest.mark.xdist_group("wires")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_no_child_pty_or_file_is_left(tmp_path, number):
    site = SiteProcess(tmp_path, "--room", "G1")
    try:
        site.ready()
        children = descendants(site.process.pid)
        assert len(children) == 3, "IOC, broker, interlocks"
        site.ask("POST", "/servers/ioc/suspend")  # a child that cannot hear dies all the same
        buttons = site.endpoints.interlock_buttons["G1"]
        code = site.end(number)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0), site.said()
        until(lambda: not any(alive(pid) for pid in children), 10.0, "children outlive it")
    finally:
        site.end(signal.SIGKILL)
    if number != signal.SIGKILL:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["G1-interlocks.jsonl", "simulate.log"]
        assert not Path(buttons).parent.exists()
    else:
        shutil.rmtree(Path(buttons).parent)  # a killed process cannot tidy up
        again = SiteProcess(tmp_path, "--room", "G1")  # what a killed one left behind is no obstacle
        try:
            before = site.file.read_text(encoding="utf-8")
            until(lambda: site.file.exists() and site.file.read_text(encoding="utf-8") != before, 40.0, again.said())
            assert again.ready().servers()["ioc"]["state"] == "serving"
            assert again.end() == 0
        finally:
            again.end(signal.SIGKILL)


def test_an_interrupt_on_the_way_up_leaves_nothing(tmp_path):
    site = SiteProcess(tmp_path, "--room", "G1")
    try:
        children = until(lambda: descendants(site.process.pid), 40.0)
        assert site.end(signal.SIGTERM) == 0, site.said()
        until(lambda: not any(alive(pid) for pid in children))
        assert not site.file.exists()
    finally:
        site.end(signal.SIGKILL)


def test_two_sites_at_once_share_nothing(tmp_path):
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    sites = [SiteProcess(homes[0], "--room", "G1"), SiteProcess(homes[1], "--room", "G1", "--serial", "tcp", "--speed", "2")]
    try:
        for site in sites:
            site.ready()
        places = [{d.endpoint for d in site.endpoints.devices.values()} | {site.endpoints.backdoor} for site in sites]
        assert not places[0] & places[1]
        assert sites[1].at("G1-gantry").options == {"framing": "rtu"}, "a serial line behind a terminal server"
        sites[0].ask("POST", "/pause")
        assert sites[1].ask("GET", "/clock")["paused"] is False
        sites[1].ask("POST", "/faults", {"spec": "mu1-dead"})
        assert sites[0].ask("GET", "/faults") == []
        children = descendants(sites[0].process.pid)
        assert sites[0].end() == 0, "also while it is paused"
        assert not any(alive(pid) for pid in children)
        assert sites[1].servers()["ioc"]["state"] == "serving"
        assert sites[1].end(signal.SIGTERM) == 0
    finally:
        for site in sites:
            site.end(signal.SIGKILL)


def refusal(tmp_path, *arguments):
    command = [sys.executable, "-m", "controller", "simulate", "--directory", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "endpoints.toml").exists()
    return done.stderr


def test_every_reason_why_it_cannot_start_is_told_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    told = refusal(
        tmp_path,
        *("--speed", "fast", "--serial", "usb", "--staff", "lazy", "--broker", nobody),
        *("--room", "G1", "--at", "400", "--output", str(tmp_path / "no" / "where.toml")),
    )
    for words in ("real or a factor", "usb", "lazy", f"broker {nobody}: nobody answers", "400", "does not exist"):
        assert words in told
    assert "moon" in refusal(tmp_path, "--facility", "moon")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rooms": ("G9",)}, "no room 'G9'"),
        ({"route": "G7"}, "no route 'G7'"),
        ({"rooms": ("F1",), "at_deg": 10.0}, "no ring in F1"),
        ({"speed": 0.0}, "speed 0"),
        ({"speed": math.nan}, "speed nan"),
        ({"speed": 1e6}, "at most 100"),
        ({"broker": "here"}, "expected HOST:PORT"),
        ({"broker": "[::1"}, "broker"),
        ({"broker": "127.0.0.1:99999"}, "broker"),
        ({"directory": Path("what?"), "output": Path("endpoints.toml")}, "must not contain ?"),
    ],
)
def test_what_cannot_be_simulated_is_known_beforehand(tmp_path, asked, words):
    options = SiteOptions(load_facility("asan"), **{"directory": tmp_path, **asked})
    found = objections(options)
    assert len(found) == 1
    assert words in found[0]
    assert objections(SiteOptions(load_facility("asan"), directory=tmp_path)) == []


def test_a_device_on_a_line_that_nobody_simulates_is_told_beforehand(tmp_path):
    facility = load_facility("asan")
    elsewhere = facility.devices["G1-couch"].model_copy(update={"endpoint": "memory:G1-couch-line"})
    changed = facility.model_copy(update={"devices": {**facility.devices, "G1-couch": elsewhere}})
    [reason] = objections(SiteOptions(changed, directory=tmp_path, rooms=("G1",)))
    assert "device G1-couch: its line 'G1-couch-line' is none that is simulated: G1-motion, G1-safety" in reason
    assert objections(SiteOptions(changed, directory=tmp_path, rooms=("G2",))) == []


def test_an_endpoint_file_that_cannot_be_written_is_a_refusal_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_endpoints, path):
        raise OSError(errno.ENOSPC, "no space left", str(path))

    monkeypatch.setattr(site_module, "write_endpoints", full)

    async def main():
        site = site_module.Site(SiteOptions(load_facility("asan"), directory=tmp_path, rooms=("F1",)))
        with pytest.raises(SiteRefused, match="no space left"):
            await site.start()
        return {server.state for server in site.servers.values()}

    with asyncio.Runner(loop_factory=SteerableLoop) as runner:
        assert runner.run(main()) == {"stopped"}


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    for name, content, words in (
        ("notes.toml", "shopping = 'milk'\n", "not an endpoint file"),
        ("overlay.toml", "facility = 'asan'\n", "was not written by a simulator"),
    ):
        file = tmp_path / name
        file.write_text(content, encoding="utf-8")
        [reason] = objections(SiteOptions(load_facility("asan"), output=file))
        assert words in reason
    assert objections(SiteOptions(load_facility("asan"), output=tmp_path)) == [f"{tmp_path}: exists and is not a file"]


def test_the_endpoint_file_keeps_any_name_and_path(tmp_path):
    entry = DeviceEndpoint(endpoint='serial:///dev/"quoted" \\ \x7f ü/tty', simulated=True, identity="1009:D1")
    sent = EndpointMap(facility="a", speed=0.1 + 0.2, token="t", interlock_buttons={"G 1": "/x"}, devices={"G1.x y": entry})
    write_endpoints(sent, tmp_path / "endpoints.toml")
    assert load_endpoints(tmp_path / "endpoints.toml") == sent
    remove_if_ours(tmp_path / "endpoints.toml", "other")
    assert (tmp_path / "endpoints.toml").exists()
    remove_if_ours(tmp_path / "endpoints.toml", "t")
    assert not (tmp_path / "endpoints.toml").exists()
