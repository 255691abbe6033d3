"""What the console shows is there as EPICS process variables, for EPICS' own programs to read and for nobody to write."""

from __future__ import annotations

import asyncio
import os
import re
import signal as signals
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channel_access import said as tool
from channel_access import until
from epics_tool import epics_tool
from shown_room import TRIP, alarm, as_bytes, beam, device, room_view, signal, treatment

from controller.console import process
from controller.console.outward import Outward
from controller.console.shown import FIELDS
from controller.published_pvs_feed import HOST, PublishedVariables
from controller.published_pvs_table import NAME_MAX, Table
from drivers.hal.errors import ConfigError
from simulators.servers.ioc_link import free_port

pytestmark = pytest.mark.xdist_group("wires")


@asynccontextmanager
async def published(*views: dict[str, Any]) -> AsyncIterator[tuple[PublishedVariables, int]]:
    port = free_port()
    variables = PublishedVariables(port)
    await variables.start()
    try:
        for view in views:
            variables.show(view)
        if views:
            await until(lambda: variables.running, "the process of the variables", 30.0)
        yield variables, port
    finally:
        await variables.close()


def treating() -> dict[str, Any]:
    beams = [beam(1, "complete"), beam(2, "current", layer=4, meterset_delivered=12.5, spots_delivered=77)]
    view = room_view(
        41,
        1.5,
        state="irradiating.beam_on",
        treatment=treatment(*beams, current=2),
        alarms=[alarm("high", "the gantry moved"), alarm("low", "x", shelved_by="ana")],
        devices=[
            device("G1-gantry", signal("angle", 30.25, "deg"), signal("standstill", True), signal("mode", "position")),
            device("G1-magnets", signal("current", [1.0, 2.5, float("nan")], "A", "stale")),
            device("accelerator", signal("energy", None, "MeV/u"), connected=False),
        ],
    )
    view["interlocks"] |= {"active_trips": 1, "first_out": TRIP}
    view["delivery"] |= {"energy_mev_u": 212.5, "permit_r": True, "counts1": 2**40}
    return view


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.published_pvs_feed.SETTLE_S", 0.05)
    monkeypatch.setattr("controller.published_pvs_feed.PAUSE_FIRST_S", 0.05)
    monkeypatch.setattr("controller.published_pvs_feed.UNSENT_BYTES_MAX", 20_000)


async def test_everything_is_read_by_caget_and_nothing_is_written_by_caput() -> None:
    expected = {
        "ASAN:G1:STATE": "irradiating.beam_on",
        "ASAN:G1:FIRSTOUT": "DOOR",
        "ASAN:G1:PERMIT-R": "yes",
        "ASAN:G1:BEAM-ENERGY": "212.5",
        "ASAN:G1:TREATMENT-LAYER": "4",
        "ASAN:G1:TREATMENT-METERSET_DELIVERED": "12.5",
        "ASAN:G1:ALARMS-HIGH": "1",
        "ASAN:G1:ALARMS-LOW": "0",
        "ASAN:G1:HEARTBEAT": "41",
        "ASAN:G1:GANTRY:ANGLE": "30.25",
        "ASAN:G1:GANTRY:STANDSTILL": "yes",
        "ASAN:G1:DOSE-COUNTS1": "1.09951e+12",
        "ASAN:G1:COUCH-LATERAL": "1.5",
    }
    async with published(treating(), room_view(1, room="F1")) as (variables, port):
        read = (await tool(port, "caget", *expected)).splitlines()
        assert {name: value.strip() for name, value in (line.split(maxsplit=1) for line in read)} == expected
        text = await tool(port, "caget", "-S", "ASAN:G1:FIRSTOUT-ADVICE", "ASAN:G1:GANTRY:MODE")
        assert "close the door and search" in text and "position" in text
        wide = await tool(port, "caget", "-a", "ASAN:G1:GANTRY:ANGLE", "ASAN:G1:MAGNETS:CURRENT", "ASAN:G1:ACCELERATOR:ENERGY")
        angle, current, energy = wide.splitlines()
        assert re.search(r"2031-01-01 \d\d:\d\d:01.495", angle), "the view's time less the age of the value"
        assert "INVALID" not in angle
        assert "TIMEOUT INVALID" in current and " 3 1 2.5 nan" in current
        assert "UDF INVALID" in energy
        assert "deg" in await tool(port, "caget", "-d", "DBR_GR_DOUBLE", "ASAN:G1:GANTRY:ANGLE")

        for name in ("ASAN:G1:STATE", "ASAN:G1:PERMIT-R", "ASAN:G1:GANTRY:ANGLE.DISP", "ASAN:G1:STATE.ASG"):
            refused = await tool(port, "caput", name, "0")
            assert re.search("Write access denied|no write access", refused, re.IGNORECASE), refused
        again = await tool(port, "caget", "-t", "ASAN:G1:STATE", "ASAN:G1:PERMIT-R", "ASAN:G1:STATE.ASG")
        assert again.split() == ["irradiating.beam_on", "yes", "DEFAULT"]

        async with epics_tool(port, "camonitor", "ASAN:G1:HEARTBEAT", "ASAN:G1:STATE") as process:
            assert process.stdout is not None
            seen = b""
            async with asyncio.timeout(15.0):
                for number in (41, 42, 43):
                    variables.show(treating() | {"seq": number, "state": "fault"})
                    while f" {number} ".encode() not in seen:
                        seen += await process.stdout.readline()
        assert [int(n) for n in re.findall(rb"HEARTBEAT\s+\S+ \S+ (\d+)", seen)][-3:] == [41, 42, 43]

        # The room's process is lost, and the other room's is not.
        variables.gone("G1")
        variables.show(room_view(2, room="F1"))
        told = await tool(port, "caget", "-a", "ASAN:G1:STATE", "ASAN:F1:STATE")
        lost, there = told.splitlines()
        assert "fault" in lost and "COMM INVALID" in lost
        assert "INVALID" not in there
        variables.show(room_view(3, 0.2))
        await shows(port, "ASAN:G1:STATE", lambda text: "INVALID" not in text)
        # Now nobody tells anything any more, as when the console hangs: the process itself says so.
        await shows(port, "ASAN:G1:STATE", lambda text: "COMM INVALID" in text)
        variables.show(room_view(4, 0.3))
        await shows(port, "ASAN:G1:STATE", lambda text: "INVALID" not in text)


async def shows(port: int, name: str, right: Callable[[str], bool]) -> None:
    async with asyncio.timeout(15.0):
        while not right(await tool(port, "caget", "-a", name)):
            pass


async def test_the_process_is_started_again_for_new_devices_and_when_it_dies_and_holds_nobody_up_when_it_hangs() -> None:
    async with published(room_view(1)) as (variables, port):
        new = [device("G1-new", signal("field", 1.25, "T"))]
        view = room_view(2, 0.1, devices=new)
        variables.show(view)
        await until(lambda: variables.starts == 2 and variables.running, "the second process", 30.0)
        assert (await tool(port, "caget", "-t", "ASAN:G1:NEW:FIELD")).strip() == "1.25"

        assert variables.pid is not None
        os.kill(variables.pid, signals.SIGSTOP)
        for number in range(2, 1000):
            new[0]["signals"][0]["value"] = float(number)
            variables.show(view | {"seq": number, "devices": new})
        assert 20_000 < variables.unsent_bytes < 30_000
        os.kill(variables.pid, signals.SIGCONT)
        await until(lambda: bool(variables.show(view | {"devices": new})) or variables.unsent_bytes == 0, "all is told")
        await shows(port, "ASAN:G1:NEW:FIELD", lambda text: "999" in text)

        os.kill(variables.pid, signals.SIGKILL)
        await until(lambda: variables.starts == 3 and variables.running, "the process after the killed one", 30.0)
        assert (await tool(port, "caget", "-t", "ASAN:G1:NEW:FIELD")).strip() == "999"
        pid = variables.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_port_that_is_taken_is_refused_with_words() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)) as refused:
            await PublishedVariables(port).start()
    assert refused.value.code == 1321 and "--epics-port" in refused.value.hint


# --- the table, without a process ------------------------------------------------------------------------------------------


def test_names_are_those_of_epics_and_none_is_taken_for_the_equipments_own() -> None:
    odd = device("G1/odd name \u00e4.$(X)", signal("a.b c", 1.0), signal("RB", 2.0), signal("sp", 3.0), signal("x" * 200, 4.0))
    names = [name for name, _ in Table().posts(room_view(devices=[odd]))]
    assert all(re.fullmatch(r"[A-Z0-9_:-]+", name) and len(name) <= NAME_MAX for name in names)
    assert not [name for name in names if name.rsplit(":", 1)[1] in ("SP", "RB", "STS")]
    assert len(set(names)) == len(names) > len(FIELDS)


def test_kinds_only_widen_and_every_widening_is_a_new_version() -> None:
    table = Table()
    name = "ASAN:G1:D:S"

    def kind(value: Any) -> tuple[str, int]:
        list(table.posts(room_view(devices=[device("G1-d", signal("s", value))])))
        return table.variables[name].kind, table.version

    unknown, first = kind(None)
    assert (unknown, kind(1.0)) == ("double", ("double", first))
    words, second = kind("on")
    assert words == "text" and second > first
    assert kind(2.0) == kind(None) == ("text", second), "what was text stays text"


def test_who_is_treated_is_in_no_variable() -> None:
    posts = dict(Table().posts(treating()))
    assert not [s for s in ("4711", "Doe", "Secret", "abcdef", "1.2.3.4") if s in repr(posts)]


def test_long_words_are_cut_between_letters() -> None:
    view = room_view(why="\u00e4" * 500)
    post = dict(Table().posts(view))["ASAN:G1:WHY"]
    assert isinstance(post.value, str) and post.value == "\u00e4" * 127


async def test_the_console_process_publishes_where_it_is_told_to_and_ends_that_in_order() -> None:
    given = ["--state", "s", "--rooms", "G1", "--epics-port", "21999"]
    assert process._options(given).epics_port == 21999
    assert process._options(given[:-2]).epics_port is None
    outward = Outward()
    async with process._published(outward, free_port()):
        assert isinstance(outward.variables, PublishedVariables)
        line = b'{"kind":"view","view":' + as_bytes(room_view(1)) + b"}"
        variables = outward.variables
        await until(lambda: bool(outward.take("G1", "view", line)) or variables.running, "views go on while it starts", 30.0)
        pid = outward.variables.pid
    assert outward.variables is None and outward.unreadable == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)
