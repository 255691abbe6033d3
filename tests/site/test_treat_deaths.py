"""A whole treatment in beam over real wires, and each process that it needs is killed, stopped, or hangs.

The permit that the victim held falls within 100 ms of the plant's own time, by the plant's own log; the first-out is named and
latched; who comes back closes nothing; and whatever was given is on record. The table is complete: controller, interlock system
and the simulators' link, each killed (SIGKILL, or the connection cut), stopped (SIGSTOP) and hung (a busy loop). The same with
a small controller, and quicker: test_process_deaths.py.
"""

import contextlib
import json
import os
import signal
import time

import pytest
from site_process import until
from treating import Treating, check_dark, check_whole, planned, quick_site, sphere

pytestmark = [pytest.mark.xdist_group("wires"), pytest.mark.timeout(1200), pytest.mark.slow]

RELAY_S = 0.1
STOPPED_S = 0.8  # the hang of HANGS lasts as long; 1.5 s without news of the delivery unit would end the field
HANGS = """
import signal, time

def hang(*_):
    end = time.monotonic() + 0.8
    while time.monotonic() < end:  # nothing else of this process runs
        pass

signal.signal(signal.SIGUSR1, hang)
"""
BLOWS = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "hang": signal.SIGUSR1}
# victim: contributions that must fall, and the trips of the interlock system of which one is the first-out
VICTIMS = {
    "controller": (
        "R",
        {"kill -9": {"CONTROLLER_HEARTBEAT"}, "SIGSTOP": {"CONTROLLER_HEARTBEAT"}, "hang": {"CONTROLLER_HEARTBEAT"}},
    ),
    "interlocks": ("B", {"kill -9": {"POWER_UP"}, "SIGSTOP": {"LOOP_STALL"}, "hang": {"LOOP_STALL"}}),
    "link": ("BR", {blow: {"PLANT_STALE", "CONTROLLER_HEARTBEAT"} for blow in BLOWS}),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return sphere(tmp_path_factory.mktemp("plans") / "sphere.dcm", 30)


@pytest.fixture
def in_beam(plan, tmp_path, monkeypatch):
    """A site and a treatment in its third layer; each Python process of both hangs for a while when asked to by SIGUSR1."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HANGS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(hooks), os.environ.get("PYTHONPATH")))))
    with contextlib.ExitStack() as stack:
        site = quick_site(tmp_path / "site", speed=1.0)  # a computer's own delays count least
        stack.callback(site.end)
        site.ready()
        run = Treating(site, plan, tmp_path)
        stack.callback(run.kill)
        run.until_said("layer 3/")
        yield site, run


def journal(site):
    """What the interlock system wrote down."""
    lines = (site.directory / "G1-interlocks.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def trips(site):
    return [record for record in journal(site) if record["kind"] == "trip"]


def calm(site):
    """Beam is enabled, and has been for a while."""
    now_s, state = site.ask("GET", "/clock")["t_s"], site.room()
    return state["permits"]["beam_enable"] and all(now_s - state["relays"][name]["changed_s"] > 0.5 for name in "BR")


def told(site, run):
    return f"{[record['id'] for record in trips(site)]}\n{run.said()}"


def strike(site, run, victim, blow):
    """The blow. What lets the victim go on; the simulators, which can be asked nothing meanwhile, have gone on already."""
    if (victim, blow) == ("link", "kill -9"):
        site.ask("POST", "/servers/G1-safety/kill")
        return lambda: None
    processes = {"controller": run.process.pid, "link": site.process.pid}
    process = processes.get(victim) or site.servers()["G1-interlocks"]["pid"]
    os.kill(process, BLOWS[blow])
    go_on = (lambda: os.kill(process, signal.SIGCONT)) if blow == "SIGSTOP" else (lambda: None)
    if victim == "link":
        time.sleep(STOPPED_S)
        go_on()
    return go_on


def revive(site, victim, blow):
    if blow == "kill -9" and victim != "controller":
        site.ask("POST", f"/servers/{'G1-safety' if victim == 'link' else 'G1-interlocks'}/start")


@pytest.mark.parametrize("blow", list(BLOWS))
@pytest.mark.parametrize("victim", list(VICTIMS))
def test_what_dies_in_beam_loses_its_permit_in_100_ms_of_the_plant_and_is_remembered(in_beam, victim, blow):
    site, run = in_beam
    contributions, first_outs = VICTIMS[victim]
    until(lambda: calm(site), 30.0, lambda: f"beam without interruption: {told(site, run)}")
    known = len(trips(site))
    before_s = site.ask("GET", "/clock")["t_s"]
    go_on = strike(site, run, victim, blow)
    after_s = site.ask("GET", "/clock")["t_s"]
    in_flight_s = 0.1 if victim == "link" else 0.0  # a pulse that waited on the wire arrives when the simulators go on
    fallen = {}

    def all_fell():
        state = site.room()
        for name in contributions:
            if state["relays"][name]["changed_s"] > before_s:
                fallen.setdefault(name, (state["relays"][name], state["permits"]))
        return len(fallen) == len(contributions)

    until(all_fell, 5.0, lambda: f"{contributions} fall after {before_s}: {site.room()['relays']} {told(site, run)}")
    for name, (relay, permits) in fallen.items():
        assert not permits[name] and not permits["beam_enable"], f"{name} came back by itself: {relay} {told(site, run)}"
        assert relay["changed_s"] - relay["pulsed_s"] <= RELAY_S + 1e-6, "100 ms after the last pulse"
        assert before_s - RELAY_S <= relay["pulsed_s"] <= after_s + in_flight_s, "which had left before the blow"
    if blow == "SIGSTOP" and victim != "link":
        time.sleep(STOPPED_S)
    go_on()
    check_dark(site)
    revive(site, victim, blow)
    until(lambda: trips(site)[known:], 10.0, "evidence of the interlock system")
    first = trips(site)[known]
    assert first["id"] in first_outs[blow] and first["first_out"] and first["id"] in first["latched"], first
    if (victim, blow) == ("controller", "kill -9"):
        assert not site.room()["permits"]["beam_enable"]
        return  # what is left of it is recovered in test_treat_over_wires.py
    if victim == "link" and blow != "kill -9":
        # Long enough without an answer even the relay's read-back counts as a fault, and that is no operator's to reset.
        run.until_said("interrupted")
        run.send()
        assert run.wait() == 3, run.said()
        assert site.room()["unit"]["total_counts1"] == run.counts1()
    else:  # people reset what latched, the operator resumes, and the plan is given: nobody went on by himself
        assert run.wait() == 0, run.said()
        check_whole(site, run, planned(run))
        assert any(
            record["cleared"] for record in journal(site) if record["kind"] == "reset" and record["t_ns"] > first["t_ns"]
        )
    assert run.summary()["interlocks"], "the controller's own record names what interrupted it"
    assert "interrupted" in run.said()
