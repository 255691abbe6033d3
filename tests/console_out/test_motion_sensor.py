"""The breathing signal is shown while it lives, and said to be old, silent or absent when it is; it holds no beam."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mosquitto import MosquittoServer, until

from controller.assembly import SimulatedWorld
from controller.room_devices import room_devices
from drivers.devices.motion_sensor import DEADLINE_MS, RANGE_MM, SILENT_S, BreathingSensor
from drivers.hal.capabilities import MotionSensor
from drivers.hal.errors import CommunicationError
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality
from drivers.wire.memory import MemoryBroker
from drivers.wire.messages import Messages
from drivers.wire.mqtt_messages import MqttMessages
from simulators import clock
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.servers.room_messages import BREATHING_S, RoomMessages
from simulators.world import World

TOPIC = "iongantry/ASAN/G1/breathing"


class Stand:
    """A sensor's driver on a broker, and somebody who speaks for the sensor."""

    def __init__(self, here: Messages, there: Messages) -> None:
        self.there = there
        self.events: list[Event] = []
        bus = EventBus()
        bus.subscribe(self.events.append)
        self.sensor = BreathingSensor("G1-breathing", TOPIC, here, bus)
        self.seq = 0

    def say(self, displacement_mm: Any, **more: Any) -> None:
        self.seq += 1
        content = {"seq": self.seq, "t_ns": 0, "displacement_mm": displacement_mm} | more
        self.there.post(TOPIC, json.dumps(content).encode())

    async def heard(self, displacement_mm: Any, **more: Any) -> None:
        self.say(displacement_mm, **more)
        await asyncio.sleep(0.01)

    @property
    def shown(self) -> tuple[float, Quality] | None:
        told = [(reading.value, reading.quality) for reading in self.sensor.readings()]
        assert all(isinstance(value, float) for value, _ in told)
        return told[0] if told else None  # type: ignore[return-value]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def on_the_stand(body: Callable[[Stand, MemoryBroker], Awaitable[None]]) -> None:
    async def main() -> None:
        broker = MemoryBroker()
        stand = Stand(broker.client(), broker.client())
        await stand.sensor.connect()
        try:
            await body(stand, broker)
        finally:
            await stand.sensor.close()

    clock.run(main(), schedule_seed=3)


def test_a_value_is_shown_with_its_unit_and_time_and_grows_old() -> None:
    async def body(stand: Stand, _: MemoryBroker) -> None:
        assert isinstance(stand.sensor, MotionSensor)
        assert stand.shown is None
        with pytest.raises(CommunicationError, match="not connected"):
            await stand.sensor.read_amplitude()
        await stand.heard(3.25)
        reading = await stand.sensor.read_amplitude()
        assert (reading.name, reading.value, reading.unit, reading.quality) == (
            "G1-breathing.displacement",
            3.25,
            "mm",
            Quality.GOOD,
        )
        assert reading.simulated
        await asyncio.sleep(DEADLINE_MS / 1e3)
        assert stand.shown == (3.25, Quality.STALE)
        await stand.heard(3.5)
        assert stand.shown == (3.5, Quality.GOOD)

    on_the_stand(body)


def test_nobody_on_the_couch_is_no_value_and_no_silence() -> None:
    async def body(stand: Stand, _: MemoryBroker) -> None:
        await stand.heard(1.0)
        await stand.heard(None)
        assert stand.shown is not None
        value, quality = stand.shown
        assert math.isnan(value) and quality is Quality.ALARM

    on_the_stand(body)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[1]",
        b'{"seq": 2}',
        b'{"displacement_mm": 1.0}',
        b'{"seq": 2, "displacement_mm": NaN}',
        b'{"seq": 2, "displacement_mm": Infinity}',
        b'{"seq": 2, "displacement_mm": "1.0"}',
        b'{"seq": 2, "displacement_mm": true}',
        b'{"seq": 2, "displacement_mm": 1e999}',
        b'{"seq": true, "displacement_mm": 1.0}',
        b'{"seq": 2.0, "displacement_mm": 1.0}',
        json.dumps({"seq": 2, "displacement_mm": RANGE_MM + 1}).encode(),
        json.dumps({"seq": 2, "displacement_mm": -(10**400)}).encode(),
    ],
)
def test_what_is_no_value_is_not_shown_and_not_taken_for_life(payload: bytes) -> None:
    async def body(stand: Stand, _: MemoryBroker) -> None:
        await stand.heard(1.0)
        await asyncio.sleep(DEADLINE_MS / 1e3)
        stand.there.post(TOPIC, payload)
        await asyncio.sleep(0.01)
        assert stand.shown == (1.0, Quality.STALE)
        assert stand.sensor.ignored == 1

    on_the_stand(body)


def test_a_counter_that_stands_still_is_a_sensor_that_is_frozen() -> None:
    async def body(stand: Stand, _: MemoryBroker) -> None:
        for _number in range(20):
            await stand.heard(1.0, seq=7)
            await asyncio.sleep(0.03)
        assert stand.shown == (1.0, Quality.STALE)
        await stand.heard(2.0, seq=1)
        assert stand.shown == (2.0, Quality.GOOD), "it has started again"

    on_the_stand(body)


def test_what_the_broker_had_kept_from_before_is_not_now() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        stand = Stand(broker.client(), broker.client())
        stand.there.post(TOPIC, b'{"seq": 1, "displacement_mm": 9.0}', retain=True)
        await asyncio.sleep(0.01)
        await stand.sensor.connect()
        await asyncio.sleep(0.1)
        assert stand.shown is None
        await stand.heard(1.0, seq=2)
        assert stand.shown == (1.0, Quality.GOOD)
        await stand.sensor.close()

    clock.run(main(), schedule_seed=3)


def test_silence_and_a_lost_broker_are_told_once_and_so_is_the_return() -> None:
    async def body(stand: Stand, broker: MemoryBroker) -> None:
        assert stand.kinds == [], "a room without this signal is not told of its silence"
        await stand.heard(1.0)
        await asyncio.sleep(2.5 * SILENT_S)
        assert stand.kinds == ["device.up", "device.down"]
        assert "beam does not need it" in stand.events[-1].data["error"]
        assert stand.shown == (1.0, Quality.DISCONNECTED)
        await stand.heard(2.0)
        assert stand.shown == (2.0, Quality.GOOD)
        broker.stop()
        await asyncio.sleep(0.01)
        assert stand.shown == (2.0, Quality.DISCONNECTED)
        assert stand.kinds == ["device.up", "device.down"] * 2
        broker.start()
        await asyncio.sleep(5.0)
        await stand.heard(3.0)
        assert stand.shown == (3.0, Quality.GOOD)
        assert stand.kinds == ["device.up", "device.down"] * 2 + ["device.up"]

    on_the_stand(body)


def test_connecting_without_a_broker_waits_for_nobody() -> None:
    async def main() -> None:
        broker = MemoryBroker()
        stand = Stand(broker.client(), broker.client())
        broker.stop()
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        await stand.sensor.connect()
        assert loop.time() == before_s
        broker.start()
        await asyncio.sleep(5.0)
        await stand.heard(1.0)
        assert stand.shown == (1.0, Quality.GOOD)
        await stand.sensor.close()
        await stand.sensor.close()

    clock.run(main(), schedule_seed=3)


def test_the_plants_breathing_is_read_as_it_is() -> None:
    async def main() -> None:
        plant = FacilityPlant.shipped(Kernel(4), "asan")
        world, broker = World(plant.kernel), MemoryBroker()
        room = plant.rooms["G1"]
        spoken = RoomMessages(room, "ASAN", broker.client(), world.sync, breathing_s=BREATHING_S)
        sensor = BreathingSensor("G1-breathing", TOPIC, broker.client(), EventBus())
        world.start()
        spoken.start()
        await sensor.connect()
        room.patient.lie_down()
        seen = []
        for _ in range(50):
            await asyncio.sleep(0.1)
            reading = await sensor.read_amplitude()
            assert reading.good
            seen.append(reading.value)
            world.sync()
            now_mm = room.patient.breathing.at(plant.kernel.now_ns / 1e9)
            assert reading.value == pytest.approx(now_mm, abs=2.0), "at most 40 ms old"
        assert max(seen) - min(seen) > 5.0
        await sensor.close()
        spoken.stop()
        world.stop()

    clock.run(main(), schedule_seed=3)


def test_a_room_has_it_only_when_it_is_asked_for_and_connects_it_last() -> None:
    async def main() -> None:
        facility = load_facility("asan")
        world = SimulatedWorld(facility, 4, EventBus(), "G1", breathing=True)
        await world.start()
        assert room_devices(facility, "G1", world.wires, EventBus()).motion_sensor is None
        devices = world.devices()
        assert devices.all()[-1] is devices.motion_sensor
        assert devices.motion_sensor is not None
        await devices.motion_sensor.connect()
        await asyncio.sleep(0.2)
        assert [reading.name for reading in devices.motion_sensor.readings()] == ["G1-breathing.displacement"]
        await devices.motion_sensor.close()
        await world.stop()

    clock.run(main(), schedule_seed=3)


@pytest.mark.xdist_group("wires")
def test_over_a_real_broker_it_is_heard_and_its_loss_is_shown() -> None:
    async def main() -> None:
        server = MosquittoServer()
        await server.start()
        client = MqttMessages("127.0.0.1", server.port, "breathing", backoff_s=(0.05, 0.2))
        try:
            await client.start()
            stand = Stand(client, client)
            await stand.sensor.connect()
            await until(lambda: stand.say(4.5) or stand.shown is not None)
            assert stand.shown == (4.5, Quality.GOOD)
            server.kill()
            await until(lambda: stand.shown == (4.5, Quality.DISCONNECTED))
            assert stand.kinds == ["device.up", "device.down"]
            await stand.sensor.close()
        finally:
            await client.close()
            server.close()

    asyncio.run(main())
