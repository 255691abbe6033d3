"""The plant's messages: plausible values that live by their counters, and an imaging system that exposes once per request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mosquitto import until

from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.facility import load_facility
from drivers.wire.memory import MemoryBroker
from drivers.wire.messages import Message
from simulators import clock
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.servers.room_messages import EXPOSURE_S, RoomMessages
from simulators.world import World

PREFIX = "iongantry/ASAN/G1"


class Stand:
    def __init__(self, seed: int, breathing_s: float | None) -> None:
        self.plant = FacilityPlant.shipped(Kernel(seed), "asan")
        self.room = self.plant.rooms["G1"]
        self.world = World(self.plant.kernel)
        self.broker = MemoryBroker()
        self.server = RoomMessages(self.room, "ASAN", self.broker.client(), self.world.sync, breathing_s=breathing_s)
        self.ear = self.broker.client()
        self.told: dict[str, list[dict[str, Any]]] = {}
        self.ear.subscribe(f"{PREFIX}/#", self._hear)

    def _hear(self, message: Message) -> None:
        assert not message.retained
        topic = message.topic.removeprefix(f"{PREFIX}/")
        if topic != "images/request":
            self.told.setdefault(topic, []).append(json.loads(message.payload))

    def ask(self, asked: str, want: str = "correction", boot: int | None = None) -> None:
        content = {"id": asked, "want": want, "boot": self.server.boot_id if boot is None else boot}
        self.ear.post(f"{PREFIX}/images/request", json.dumps(content).encode())

    def answers(self) -> list[dict[str, Any]]:
        return self.told.get("images/correction", [])


def on_the_plant(body: Callable[[Stand], Awaitable[None]], seed: int = 1, breathing_s: float | None = None) -> None:
    async def main() -> None:
        stand = Stand(seed, breathing_s)
        stand.world.start()
        await asyncio.sleep(0.01)
        stand.server.start()
        await asyncio.sleep(0.01)
        try:
            await body(stand)
        finally:
            stand.server.stop()
            stand.world.stop()

    clock.run(main(), schedule_seed=5)


def test_every_topic_lives_by_its_counter_in_its_period() -> None:
    async def body(stand: Stand) -> None:
        await asyncio.sleep(60.0)
        for topic, period_s in (("environment", 10.0), ("area-monitor", 2.0), ("images/status", 2.0), ("breathing", 0.04)):
            told = stand.told[topic]
            assert len(told) == round(60.0 / period_s) + 1
            assert [m["seq"] for m in told] == list(range(1, len(told) + 1))
            times = [m["t_ns"] for m in told]
            assert times == sorted(times) and times[-1] > 50e9
        for m in stand.told["environment"]:
            assert 21.5 < m["temperature_c"] < 22.5 and 43 < m["humidity_percent"] < 47 and 1012 < m["pressure_hpa"] < 1014
        assert all(0.0 < m["dose_rate_usv_h"] < 0.2 and m["alarm"] is False for m in stand.told["area-monitor"])
        assert {m["displacement_mm"] for m in stand.told["breathing"]} == {None}  # nobody lies there

    on_the_plant(body, breathing_s=0.04)


def test_breathing_is_that_of_the_patient() -> None:
    async def body(stand: Stand) -> None:
        stand.room.patient.lie_down()
        await asyncio.sleep(8.0)
        told = [m for m in stand.told["breathing"] if m["displacement_mm"] is not None]
        for m in told[:: len(told) // 10]:
            assert m["displacement_mm"] == pytest.approx(stand.room.patient.breathing.at(m["t_ns"] / 1e9), abs=1e-3)
        values = [m["displacement_mm"] for m in told]
        assert max(values) - min(values) > 4.0

    on_the_plant(body, breathing_s=0.04)


def test_beam_in_the_room_shows_on_the_area_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(stand: Stand) -> None:
        monkeypatch.setattr(type(stand.room), "beam_present", True)
        stand.told.clear()
        await asyncio.sleep(10.0)
        assert all(2.0 < m["dose_rate_usv_h"] < 8.0 for m in stand.told["area-monitor"])

    on_the_plant(body)


def test_the_same_seed_says_the_same() -> None:
    said: list[Any] = []

    async def body(stand: Stand) -> None:
        await asyncio.sleep(30.0)
        stand.ask("a")
        await asyncio.sleep(5.0)
        said.append(stand.told)

    on_the_plant(body, seed=4)
    on_the_plant(body, seed=4)
    on_the_plant(body, seed=5)
    assert said[0] == said[1] != said[2]


def test_images_take_their_time_and_answer_with_the_patient_s_correction() -> None:
    async def body(stand: Stand) -> None:
        loop = asyncio.get_running_loop()
        stand.room.patient.lie_down([0.0] * 6)
        asked_s = loop.time()
        stand.ask("a")
        await asyncio.sleep(1.0)
        stand.ask("state", "status")
        await asyncio.sleep(0.1)
        assert stand.told["images/status"][-1]["state"] == "exposing" and stand.told["images/status"][-1]["id"] == "state"
        await until(stand.answers)
        assert loop.time() - asked_s == pytest.approx(EXPOSURE_S, abs=0.05)
        (answer,) = stand.answers()
        assert answer["id"] == "a" and answer["boot"] == stand.server.boot_id
        correction = [answer[axis] for axis in COUCH_AXES]
        assert correction == pytest.approx((-stand.room.patient.residual(stand.world.now_ns)).tolist(), abs=1.5)
        assert stand.server.images_taken == 1

    on_the_plant(body)


def test_one_id_is_exposed_once_however_often_it_is_asked() -> None:
    async def body(stand: Stand) -> None:
        stand.ask("a")
        await asyncio.sleep(1.0)
        stand.ask("a")
        stand.ask("b")
        await asyncio.sleep(4.0)
        assert [(m["id"], m.get("error")) for m in stand.answers()] == [("b", "other images are being taken"), ("a", None)]
        stand.ask("a")
        await asyncio.sleep(1.0)
        first, again = stand.answers()[1:]
        assert {**first, "seq": 0, "t_ns": 0} == {**again, "seq": 0, "t_ns": 0}
        assert stand.server.images_taken == 1

    on_the_plant(body)


def test_requests_of_before_a_restart_retained_and_unreadable_ones_are_nobody_s() -> None:
    async def body(stand: Stand) -> None:
        before = stand.server.boot_id
        stand.ask("under way")
        await asyncio.sleep(1.0)
        stand.server.stop()
        order = json.dumps({"id": "kept", "want": "correction", "boot": before}).encode()
        stand.ear.post(f"{PREFIX}/images/request", order, retain=True)
        await asyncio.sleep(1.0)
        stand.server.start()
        await asyncio.sleep(1.0)
        stand.server.stop()
        question = json.dumps({"id": "kept", "want": "status", "boot": 0}).encode()
        stand.ear.post(f"{PREFIX}/images/request", question, retain=True)
        await asyncio.sleep(1.0)
        stand.server.start()
        assert stand.server.boot_id != before
        for payload in (b"", b"{", b"[]", b'"a"', b"[" * 100_000, b'{"id": 7}', b'{"id": ""}', b"\xff"):
            stand.ear.post(f"{PREFIX}/images/request", payload)
        stand.ask("old", boot=before)
        await asyncio.sleep(10.0)
        assert stand.answers() == [] and stand.server.images_taken == 0
        stand.ask("new")
        await asyncio.sleep(5.0)
        assert [m["id"] for m in stand.answers()] == ["new"]
        assert {m["id"] for m in stand.told["images/status"]} == {""}

    on_the_plant(body)


def test_a_silent_imaging_system_shows_no_life() -> None:
    async def body(stand: Stand) -> None:
        stand.ask("a")
        await asyncio.sleep(1.0)
        stand.server.silent = True
        stand.told.clear()
        stand.ask("b", "status")
        await asyncio.sleep(10.0)
        assert "images/status" not in stand.told and stand.answers() == []
        assert stand.told["environment"]  # others go on
        stand.server.silent = False
        await asyncio.sleep(3.0)
        assert stand.told["images/status"]

    on_the_plant(body)


@pytest.mark.parametrize("facility", ["asan", "qst", "research"])
def test_belief_and_plant_agree_on_topics_and_identity(facility: str) -> None:
    async def main() -> None:
        plant = FacilityPlant.shipped(Kernel(1), facility)
        for name, room in plant.rooms.items():
            broker = MemoryBroker()
            config = load_facility(facility).devices[f"{name}-imager"]
            ear, told = broker.client(), []
            ear.subscribe(f"{config.prefix}/status", lambda message, to=told: to.append(json.loads(message.payload)))  # type: ignore[misc]
            server = RoomMessages(room, plant.truth.prefix, broker.client(), lambda: None)
            await asyncio.sleep(0.1)
            server.start()
            await asyncio.sleep(0.1)
            server.stop()
            assert told[0]["identity"] == config.identity

    clock.run(main())
