"""Mosquitto's own programs judge our MQTT: what they hear of us, and what they can do to us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from mosquitto import MosquittoServer, until
from witness import system_program

from controller.console.telemetry import Telemetry, last_will
from drivers.devices.imager import OrthogonalImager
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility
from drivers.wire.messages import Message, Notice
from drivers.wire.mqtt_messages import MqttMessages
from drivers.wire.waiting import PER_TOPIC
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.servers import room_messages
from simulators.servers.room_messages import RoomMessages
from simulators.world import World

pytestmark = pytest.mark.xdist_group("wires")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLOOD_PER_S, FLOOD_S = 10_000, 3
FEED = f"""
import sys, time
start, n = time.perf_counter(), 0
while n < {FLOOD_PER_S * FLOOD_S}:
    due = int((time.perf_counter() - start) * {FLOOD_PER_S})
    sys.stdout.write("".join(f"{{i}}\\n" for i in range(n, min(due, {FLOOD_PER_S * FLOOD_S}))))
    sys.stdout.flush()
    n = max(n, due)
    time.sleep(0.002)
"""


@pytest.fixture
async def mosquitto() -> AsyncIterator[MosquittoServer]:
    server = MosquittoServer()
    await server.start()
    yield server
    server.close()


class Ear:
    """`mosquitto_sub`: what it has heard, as (topic, content)."""

    def __init__(self, port: int, topic: str, *options: str) -> None:
        program = system_program("mosquitto_sub", "mosquitto-clients")
        self._process = subprocess.Popen(
            [program, "-h", "127.0.0.1", "-p", str(port), "-t", topic, "-F", "%r %t %p", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._rest = b""
        self.retained: list[tuple[str, Any]] = []
        self._heard: list[tuple[str, Any]] = []

    @property
    def heard(self) -> list[tuple[str, Any]]:
        assert self._process.stdout is not None
        while chunk := self._process.stdout.read():
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                kept, topic, payload = line.decode().split(" ", 2)
                content = json.loads(payload)
                self._heard.append((topic, content))
                if kept == "1":
                    self.retained.append((topic, content))
        return self._heard

    def of(self, topic: str) -> list[Any]:
        return [content for heard, content in self.heard if heard == topic]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def ear(port: int, topic: str, *options: str) -> Iterator[Ear]:
    listener = Ear(port, topic, *options)
    try:
        yield listener
    finally:
        listener.close()


STATE, ANGLE = "iongantry/ASAN/G1/state", "iongantry/ASAN/G1/reading/G1-gantry/angle"


async def test_mosquitto_sub_sees_telemetry_and_the_last_will_of_a_killed_room(mosquitto: MosquittoServer) -> None:
    with ear(mosquitto.port, "iongantry/#") as listener:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        room = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [sys.executable, str(HERE / "telemetry_process.py"), str(mosquitto.port)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            await until(lambda: len(listener.of(ANGLE)) >= 5 and listener.of(STATE), within_s=20.0)
            state, angles = listener.of(STATE)[-1], listener.of(ANGLE)
            assert (state["value"], state["simulated"]) == ("ready", True)
            assert {(a["unit"], a["quality"]) for a in angles} == {("deg", "good")}
            assert [a["seq"] for a in angles] == list(range(angles[0]["seq"], angles[0]["seq"] + len(angles)))
            assert any(content["kind"] == "room.state" for content in listener.of("iongantry/ASAN/G1/event"))
            room.kill()
            await until(lambda: listener.of(STATE)[-1]["value"] == "offline")
        finally:
            room.kill()
            room.wait()
    with ear(mosquitto.port, STATE) as late:
        await until(lambda: late.of(STATE))
        assert late.retained[0][1]["value"] == "offline"


async def test_a_flood_of_10000_messages_per_second_neither_slows_nor_grows_us(mosquitto: MosquittoServer) -> None:
    loop = asyncio.get_running_loop()
    client = await MqttMessages.open("127.0.0.1", mosquitto.port, "flooded")
    told: list[int] = []
    echoes: list[float] = []
    late_s: list[float] = []

    def take(message: Message) -> None:
        told.append(int(message.payload))

    async def probe() -> None:
        """The rest of the program: a 10 ms beat."""
        while True:
            due_s = loop.time() + 0.01
            await asyncio.sleep(0.01)
            late_s.append(loop.time() - due_s)

    async def talk() -> None:
        """Somebody else's message through the same client."""
        while True:
            sent_s, before = loop.time(), len(echoes)
            await client.publish("echo", b"")
            await until(lambda n=before: len(echoes) > n)  # type: ignore[misc]
            echoes[-1] -= sent_s
            await asyncio.sleep(0.05)

    client.subscribe("flood", take)
    client.subscribe("echo", lambda _message: echoes.append(loop.time()))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jobs = [asyncio.ensure_future(probe()), asyncio.ensure_future(talk())]
    publisher = system_program("mosquitto_pub", "mosquitto-clients")
    feeder = subprocess.Popen([sys.executable, "-c", FEED], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: ASYNC220
    flooder = subprocess.Popen(  # noqa: ASYNC220
        [publisher, "-h", "127.0.0.1", "-p", str(mosquitto.port), "-t", "flood", "-l"], stdin=feeder.stdout
    )
    last = FLOOD_PER_S * FLOOD_S - 1
    try:
        await until(lambda: told and told[-1] == last, within_s=40.0)
    finally:
        for process in (feeder, flooder):
            process.kill()
            process.wait()
        if feeder.stdout is not None:
            feeder.stdout.close()
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await client.close()
    assert told == sorted(set(told))  # in order, none twice
    assert len(told) + client.dropped >= 0.5 * FLOOD_PER_S * FLOOD_S  # the broker itself may drop
    late_s.sort()
    assert late_s[len(late_s) // 2] < 0.02 and late_s[-1] < 0.5
    assert max(echoes[:-1]) < 2.0
    assert len(client._subscriptions.waiting) <= PER_TOPIC
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 30_000


async def test_a_broker_that_is_killed_and_restarted_is_told_once_and_forgets_nothing_of_ours(
    mosquitto: MosquittoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_messages, "EXPOSURE_S", 0.1)
    plant = FacilityPlant.shipped(Kernel(1), "asan")
    world = World(plant.kernel)
    world.start()
    bus, events = EventBus(), []
    bus.subscribe(lambda event: events.append(event.kind))
    will = Notice(*last_will("asan", "G1"))
    room_side = await MqttMessages.open("127.0.0.1", mosquitto.port, "plant")
    ours = await MqttMessages.open("127.0.0.1", mosquitto.port, "room", will=will)
    server = RoomMessages(plant.rooms["G1"], "ASAN", room_side, world.sync, breathing_s=0.05)
    server.start()
    imager = OrthogonalImager("G1-imager", load_facility("asan").devices["G1-imager"], ours, bus)
    telemetry = Telemetry("asan", "G1", ours.post, [imager])
    telemetry.attach(bus)
    ours.watch(lambda up: telemetry.republish() if up else None)
    telling = asyncio.ensure_future(telemetry.run())
    try:
        await imager.connect()
        bus.emit("room.G1", "room.state", state="ready", why="")
        assert set(await imager.registered_correction()) == set(COUCH_AXES)
        await asyncio.sleep(0.3)  # telemetry has told it
        mosquitto.kill()
        await until(lambda: "device.down" in events)
        await asyncio.sleep(1.0)
        await mosquitto.start()
        with ear(mosquitto.port, "iongantry/#") as listener:
            await until(lambda: events.count("device.up") == 2, within_s=15.0)
            assert set(await imager.registered_correction()) == set(COUCH_AXES)
            await until(lambda: listener.of(STATE) and listener.of("iongantry/ASAN/G1/breathing"))
            assert listener.of(STATE)[-1]["value"] == "ready"
            await until(lambda: listener.of("iongantry/ASAN/G1/reading/G1-imager/lateral_mm"))
        assert [kind for kind in events if kind.startswith("device.")] == ["device.up", "device.down", "device.up"]
        with ear(mosquitto.port, STATE) as late:
            await until(lambda: late.of(STATE))
            assert late.retained[0][1]["value"] == "ready"
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await imager.close()
        server.stop()
        await ours.close()
        await room_side.close()
        world.stop()
