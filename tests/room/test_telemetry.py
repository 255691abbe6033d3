"""Telemetry says what a room does and reads, no more often than promised, and never holds anything up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from controller.console.telemetry import EVENTS_WAITING, Telemetry, last_will
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommunicationError
from drivers.hal.events import EventBus
from drivers.hal.reading import Quality, Reading
from drivers.wire.memory import MemoryBroker
from drivers.wire.messages import Message, Notice
from simulators import clock

PREFIX = "iongantry/ASAN/G1"


class FakeDevice:
    name = "G1-gantry"

    def __init__(self) -> None:
        self.values: dict[str, object] = {"angle": 12.5}
        self.quality = Quality.GOOD
        self.gone = False
        self.asked = 0

    def readings(self) -> Sequence[Reading[object]]:
        self.asked += 1
        if self.gone:
            raise CommunicationError("gone")
        return [Reading(f"{self.name}.{s}", v, "deg", now_ns(), self.quality) for s, v in self.values.items()]


class Stand:
    """Telemetry of a room on a broker, and somebody who listens."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.device = FakeDevice()
        self.bus = EventBus()
        self.client = self.broker.client(Notice(*last_will("asan", "G1")))
        self.telemetry = Telemetry("asan", "G1", self.client.post, [self.device])
        self.client.watch(lambda up: self.telemetry.republish() if up else None)
        self.telemetry.attach(self.bus)
        self.told: list[tuple[str, dict[str, Any], bool]] = []
        self.listener = self.broker.client()
        self.listener.subscribe(f"{PREFIX}/#", self._hear)
        self.task: asyncio.Task[None] | None = None

    def _hear(self, message: Message) -> None:
        self.told.append((message.topic.removeprefix(f"{PREFIX}/"), json.loads(message.payload), message.retained))

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [content for name, content, _ in self.told if name == topic]

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


def on_the_stand(body: Callable[[Stand], Awaitable[None]]) -> None:
    async def main() -> None:
        stand = Stand()
        stand.task = asyncio.ensure_future(stand.telemetry.run())
        await asyncio.sleep(0.01)
        try:
            await body(stand)
        finally:
            await stand.end()

    clock.run(main(), schedule_seed=3)


def test_state_is_retained_and_ends_offline() -> None:
    async def body(stand: Stand) -> None:
        assert [s["value"] for s in stand.of("state")] == ["online"]
        stand.bus.emit("room.G1", "room.state", state="irradiating.beam_on", why="because")
        await asyncio.sleep(0.2)
        (state,) = stand.of("state")[1:]
        assert (state["value"], state["why"], state["quality"], state["simulated"]) == (
            "irradiating.beam_on",
            "because",
            "good",
            True,
        )
        assert state["t_ns"] == 10_000_000
        late: list[Message] = []
        stand.broker.client().subscribe(f"{PREFIX}/state", late.append)
        await asyncio.sleep(0.1)
        assert late[0].retained and json.loads(late[0].payload) == state
        await stand.end()
        await asyncio.sleep(0.1)
        assert [s["value"] for s in stand.of("state")][-1] == "offline"
        assert [s["seq"] for s in stand.of("state")] == [1, 2, 3]

    on_the_stand(body)


def test_the_last_will_says_offline_when_the_program_is_lost() -> None:
    async def body(stand: Stand) -> None:
        stand.bus.emit("room.G1", "room.state", state="ready", why="")
        await asyncio.sleep(0.2)
        stand.broker.lose(stand.client)
        await asyncio.sleep(0.1)
        assert stand.of("state")[-1]["value"] == "offline"
        assert stand.of("state")[-1]["quality"] == "disconnected"

    on_the_stand(body)


def test_every_event_is_told_once_and_in_order() -> None:
    async def body(stand: Stand) -> None:
        for i in range(20):
            stand.bus.emit("G1-delivery-unit", "grant.finished", grant=i, bad=float("nan"), array=np.arange(2), odd={1: {2}})
        await asyncio.sleep(0.2)
        events = stand.of("event")
        assert [e["data"]["grant"] for e in events] == list(range(20))
        assert [e["seq"] for e in events] == list(range(1, 21))
        assert events[0]["data"] == {"grant": 0, "bad": None, "array": [0, 1], "odd": {"1": [2]}}
        assert events[0]["kind"] == "grant.finished" and events[0]["source"] == "G1-delivery-unit"

    on_the_stand(body)


def test_a_signal_is_told_at_most_ten_times_a_second_and_at_least_once() -> None:
    async def body(stand: Stand) -> None:
        for i in range(500):  # 500 changes in 5 s
            stand.device.values["angle"] = float(i)
            await asyncio.sleep(0.01)
        angles = stand.of("reading/G1-gantry/angle")
        assert 45 <= len(angles) <= 51
        assert [a["seq"] for a in angles] == list(range(1, len(angles) + 1))
        assert {(a["unit"], a["quality"], a["simulated"]) for a in angles} == {("deg", "good", True)}
        stand.told.clear()
        await asyncio.sleep(5.0)  # and then it stands still
        angles = stand.of("reading/G1-gantry/angle")
        assert 4 <= len(angles) <= 6
        assert angles[-1]["value"] == 499.0

    on_the_stand(body)


def test_a_value_that_is_no_number_is_told_as_none_with_its_quality() -> None:
    async def body(stand: Stand) -> None:
        stand.device.values = {"angle": float("nan"), "state/of+it": "braked", "flag": True, "limits": (1, np.float64(2.5))}
        await asyncio.sleep(0.2)
        assert stand.of("reading/G1-gantry/angle")[-1] | {"t_ns": 0, "seq": 0} == {
            "value": None,
            "unit": "deg",
            "quality": "alarm",
            "t_ns": 0,
            "seq": 0,
            "simulated": True,
        }
        assert stand.of("reading/G1-gantry/state-of-it")[-1]["value"] == "braked"
        assert stand.of("reading/G1-gantry/flag")[-1]["value"] is True
        assert stand.of("reading/G1-gantry/limits")[-1]["value"] == [1, 2.5]

    on_the_stand(body)


@pytest.mark.parametrize("how", ["quality", "error"])
def test_a_lost_device_is_told_at_once(how: str) -> None:
    async def body(stand: Stand) -> None:
        await asyncio.sleep(0.3)
        stand.device.quality, stand.device.gone = Quality.STALE, how == "error"
        await asyncio.sleep(0.15)
        assert stand.of("reading/G1-gantry/angle")[-1]["quality"] == ("disconnected" if how == "error" else "stale")
        stand.device.quality, stand.device.gone = Quality.GOOD, False
        await asyncio.sleep(0.15)
        assert stand.of("reading/G1-gantry/angle")[-1] | {"t_ns": 0, "seq": 0} == {
            "value": 12.5,
            "unit": "deg",
            "quality": "good",
            "t_ns": 0,
            "seq": 0,
            "simulated": True,
        }

    on_the_stand(body)


def test_without_a_broker_nothing_waits_and_afterwards_everything_is_told_again() -> None:
    async def body(stand: Stand) -> None:
        stand.bus.emit("room.G1", "room.state", state="ready", why="")
        await asyncio.sleep(0.2)
        stand.broker.stop()
        asked = stand.device.asked
        for _ in range(3 * EVENTS_WAITING):
            stand.bus.emit("x", "y")
        stand.bus.emit("room.G1", "room.state", state="irradiating.beam_on", why="")
        assert len(stand.telemetry._events) == EVENTS_WAITING
        await asyncio.sleep(3.0)
        assert stand.device.asked - asked == pytest.approx(30, abs=2)  # as ever
        assert len(stand.telemetry._events) == 0
        lost = stand.telemetry.lost
        assert lost > 3 * EVENTS_WAITING
        stand.told.clear()
        stand.broker.start()
        await asyncio.sleep(0.2)
        assert [s["value"] for s in stand.of("state")] == ["irradiating.beam_on"]
        assert stand.of("reading/G1-gantry/angle") and stand.of("event") == []
        assert stand.telemetry.lost == lost

    on_the_stand(body)


def test_a_broker_that_was_away_for_a_moment_is_told_everything_again() -> None:
    async def body(stand: Stand) -> None:
        await asyncio.sleep(0.3)
        stand.told.clear()
        stand.broker.stop()
        stand.broker.start()
        await asyncio.sleep(0.15)
        assert stand.of("state") and stand.of("reading/G1-gantry/angle")

    on_the_stand(body)
