"""A process that publishes the telemetry of a room until it is killed: `telemetry_process.py PORT`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from controller.console.telemetry import Telemetry, last_will
from drivers.hal.clock import now_ns
from drivers.hal.events import EventBus
from drivers.hal.reading import Reading
from drivers.wire.messages import Notice
from drivers.wire.mqtt_messages import MqttMessages


class Ring:
    """A device that turns."""

    name = "G1-gantry"

    def readings(self) -> Sequence[Reading[object]]:
        return [Reading("G1-gantry.angle", (now_ns() // 10_000_000) % 360 / 2, "deg", now_ns())]


async def main(port: int) -> None:
    messages = await MqttMessages.open("127.0.0.1", port, "room-G1", will=Notice(*last_will("asan", "G1")))
    bus = EventBus()
    telemetry = Telemetry("asan", "G1", messages.post, [Ring()])
    telemetry.attach(bus)
    messages.watch(lambda up: telemetry.republish() if up else None)
    bus.emit("room.G1", "room.state", state="ready", why="")
    await telemetry.run()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
