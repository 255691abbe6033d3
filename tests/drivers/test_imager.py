"""The imager on messages: asks with an id of its own, takes only that answer, and only six finite numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from drivers.devices.imager import OrthogonalImager
from drivers.hal.capabilities import COUCH_AXES, Imager
from drivers.hal.errors import CommandRejected, CommunicationError, DataError, DeviceError
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality
from drivers.wire.memory import MemoryBroker
from drivers.wire.messages import Message
from simulators import clock

CONFIG = load_facility("asan").devices["G1-imager"].model_copy(update={"identity": "imager 7", "deadline_ms": 30_000.0})
PREFIX = "iongantry/ASAN/G1/images"
GOOD = {axis: 0.5 * i for i, axis in enumerate(COUCH_AXES)}


class FakeSystem:
    """An imaging system written from docs/wires.md, which can be made to misbehave.

    Attributes:
        answers: what it says to a request for images, one after the other: content beside id, or bytes as they are.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self.client = broker.client()
        self.identity, self.boot, self.seq, self.frozen, self.silent = "imager 7", 11, 0, False, False
        self.requests: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any] | bytes] = []
        self.delay_s = 4.0
        self.client.subscribe(f"{PREFIX}/request", self._take, retained=False)

    def status(self, asked: str = "") -> None:
        self.seq += 0 if self.frozen else 1
        content = {"id": asked, "boot": self.boot, "seq": self.seq, "identity": self.identity, "state": "ready", "t_ns": 0}
        self.client.post(f"{PREFIX}/status", json.dumps(content).encode())

    def correction(self, content: dict[str, Any] | bytes, *, retain: bool = False) -> None:
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.client.post(f"{PREFIX}/correction", payload, retain=retain)

    def _take(self, message: Message) -> None:
        request = json.loads(message.payload)
        self.requests.append(request)
        if self.silent:
            return
        if request["want"] == "status":
            self.status(request["id"])
        elif self.answers:
            answer = self.answers.pop(0)
            content = answer if isinstance(answer, bytes) else {"id": request["id"], "seq": 1, "t_ns": 0, **answer}
            asyncio.get_running_loop().call_later(self.delay_s, self.correction, content)


class Stand:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.bus = EventBus()
        self.bus.subscribe(self.events.append)
        self.broker = MemoryBroker()
        self.system = FakeSystem(self.broker)
        self.imager = OrthogonalImager("G1-imager", CONFIG, self.broker.client(), self.bus)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    async def live(self, seconds: float) -> None:
        """The imaging system shows life for a while."""
        for _ in range(round(seconds / 2)):
            self.system.status()
            await asyncio.sleep(2)


def on_the_stand(body: Callable[[Stand], Awaitable[None]], *, connected: bool = True) -> None:
    async def main() -> None:
        stand = Stand()
        if connected:
            await stand.imager.connect()
        try:
            await body(stand)
        finally:
            await stand.imager.close()

    clock.run(main(), schedule_seed=3)


def test_a_correction_is_asked_for_and_comes_back() -> None:
    async def body(stand: Stand) -> None:
        assert isinstance(stand.imager, Imager)
        assert stand.imager.readings() == ()
        stand.system.answers = [GOOD, {**GOOD, "roll_deg": -1.0}]
        assert await stand.imager.registered_correction() == GOOD
        assert (await stand.imager.registered_correction())["roll_deg"] == -1.0
        asked = [r for r in stand.system.requests if r["want"] == "correction"]
        assert len({r["id"] for r in asked}) == 2
        assert {r["boot"] for r in asked} == {11}
        assert stand.kinds() == ["device.up", "images.registered", "images.registered"]
        stand.system.status()
        await asyncio.sleep(0.1)
        assert {r.unit: r.quality for r in stand.imager.readings()} == {"mm": Quality.GOOD, "deg": Quality.GOOD}

    on_the_stand(body)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({**GOOD, "roll_deg": float("nan")}, "no number for roll_deg"),
        ({**GOOD, "roll_deg": float("inf")}, "no number for roll_deg"),
        ({**GOOD, "pitch_deg": "0.5"}, "no number for pitch_deg"),
        ({**GOOD, "pitch_deg": True}, "no number for pitch_deg"),
        ({**GOOD, "lateral_mm": None}, "no number for lateral_mm"),
        ({**GOOD, "lateral_mm": 10**400}, "no number for lateral_mm"),
        ({axis: GOOD[axis] for axis in COUCH_AXES[:5]}, "needed: "),
        ({**GOOD, "yaw_deg": 0.0}, "needed: "),
        ({}, "gives nothing"),
    ],
)
def test_an_answer_that_is_not_six_finite_numbers_is_refused(bad: dict[str, Any], words: str) -> None:
    async def body(stand: Stand) -> None:
        stand.system.answers = [bad]
        with pytest.raises(DataError, match=words):
            await stand.imager.registered_correction()
        assert "images.registered" not in stand.kinds()
        stand.system.answers = [GOOD]
        assert await stand.imager.registered_correction() == GOOD  # and the next one is taken

    on_the_stand(body)


@pytest.mark.parametrize("garbage", [b"", b"\xff\x00", b"[1, 2]", b"null", b"{", b"[" * 100_000, b'{"id": 5}', b'{"id": null}'])
def test_what_cannot_be_read_is_no_answer(garbage: bytes) -> None:
    async def body(stand: Stand) -> None:
        stand.system.answers = [garbage, GOOD]
        alive = asyncio.ensure_future(stand.live(16))
        assert await stand.imager.registered_correction() == GOOD  # to the repeated request
        assert stand.imager.ignored == 1
        ids = [r["id"] for r in stand.system.requests if r["want"] == "correction"]
        assert len(ids) == 2 and ids[0] == ids[1]
        await alive

    on_the_stand(body)


def test_foreign_early_late_doubled_and_retained_answers_are_ignored() -> None:
    async def body(stand: Stand) -> None:
        other = dict.fromkeys(COUCH_AXES, 9.0)
        stand.system.correction({"id": "", **other})  # before anything was asked
        stand.system.correction({"id": "other-1", **other}, retain=True)
        stand.system.answers = [GOOD]
        job = asyncio.ensure_future(stand.imager.registered_correction())
        await asyncio.sleep(1.0)
        first = stand.system.requests[-1]["id"]
        stand.system.correction({"id": "other-2", **other})
        assert await job == GOOD
        stand.system.correction({"id": first, **other})  # doubled
        await asyncio.sleep(0.1)
        assert stand.imager.ignored == 4
        stand.system.answers = [{**GOOD, "lateral_mm": 1.0}]
        job = asyncio.ensure_future(stand.imager.registered_correction())
        await asyncio.sleep(1.0)
        stand.system.correction({"id": first, **other})  # late, while the next is awaited
        assert (await job)["lateral_mm"] == 1.0

    on_the_stand(body)


def test_an_answer_that_the_broker_kept_is_not_taken_for_a_new_one() -> None:
    async def body(stand: Stand) -> None:
        status = {"id": "", "boot": 11, "seq": 99, "identity": "imager 7", "state": "ready"}
        stand.system.client.post(f"{PREFIX}/status", json.dumps(status).encode(), retain=True)
        await asyncio.sleep(0.1)
        stand.system.silent = True
        with pytest.raises(CommunicationError, match="does not answer"):
            await stand.imager.connect()

    on_the_stand(body, connected=False)


def test_no_answer_is_a_named_error_after_the_facility_s_deadline() -> None:
    async def body(stand: Stand) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        alive = asyncio.ensure_future(stand.live(40))
        with pytest.raises(CommunicationError, match="no images within 30 s") as error:
            await stand.imager.registered_correction()
        assert error.value.code == 2201 and error.value.retryable
        assert loop.time() - start_s == pytest.approx(30.0, abs=0.1)
        assert len({r["id"] for r in stand.system.requests[2:]}) == 1  # the same images were asked for again, not others
        await alive

    on_the_stand(body)


def test_two_at_a_time_are_refused_and_an_error_is_told() -> None:
    async def body(stand: Stand) -> None:
        stand.system.answers = [{"error": "generator is too hot"}]
        job = asyncio.ensure_future(stand.imager.registered_correction())
        await asyncio.sleep(1.0)
        with pytest.raises(CommandRejected):
            await stand.imager.registered_correction()
        with pytest.raises(DeviceError, match="generator is too hot"):
            await job

    on_the_stand(body)


def test_a_wrong_a_dead_and_a_missing_imaging_system_are_refused_at_connect() -> None:
    async def body(stand: Stand) -> None:
        stand.system.identity = "imager 8"
        with pytest.raises(DeviceError, match="'imager 8', expected 'imager 7'"):
            await stand.imager.connect()
        stand.system.identity, stand.system.frozen = "imager 7", True
        with pytest.raises(DeviceError, match="counter stands"):
            await stand.imager.connect()
        stand.system.frozen, stand.system.silent = False, True
        with pytest.raises(CommunicationError, match="does not answer within 2 s"):
            await stand.imager.connect()
        stand.broker.stop()
        with pytest.raises(CommunicationError, match="no broker"):
            await stand.imager.connect()
        with pytest.raises(CommunicationError, match="not connected"):
            await stand.imager.registered_correction()
        stand.broker.start()
        stand.system.silent = False
        await stand.imager.connect()
        assert stand.kinds()[-1] == "device.up"

    on_the_stand(body, connected=False)


def test_a_broker_that_comes_back_in_time_costs_no_images() -> None:
    async def body(stand: Stand) -> None:
        stand.system.answers = [GOOD]
        job = asyncio.ensure_future(stand.imager.registered_correction())
        await asyncio.sleep(3.0)
        stand.broker.stop()
        await asyncio.sleep(3.0)  # the answer is lost
        stand.broker.start()
        stand.system.answers = [GOOD]  # a real system keeps it by its id
        alive = asyncio.ensure_future(stand.live(12))
        assert await job == GOOD
        assert stand.kinds() == ["device.up", "device.down", "device.up", "images.registered"]
        await alive

    on_the_stand(body)


def test_a_system_that_dies_is_told_once_and_found_again_once() -> None:
    async def body(stand: Stand) -> None:
        await stand.live(20)
        assert stand.kinds() == ["device.up"]
        stand.system.silent = True
        await asyncio.sleep(20)
        assert stand.kinds() == ["device.up", "device.down"]
        with pytest.raises(CommunicationError):
            await stand.imager.registered_correction()
        stand.system.silent = False
        await asyncio.sleep(6)
        await stand.live(20)
        assert stand.kinds() == ["device.up", "device.down", "device.up"]

    on_the_stand(body)


def test_a_restart_of_the_system_ends_the_images_it_was_taking() -> None:
    async def body(stand: Stand) -> None:
        job = asyncio.ensure_future(stand.imager.registered_correction())
        await asyncio.sleep(1.0)
        stand.system.boot = 12
        stand.system.status()
        with pytest.raises(CommunicationError, match="has been restarted"):
            await job
        await asyncio.sleep(1.0)
        stand.system.answers = [GOOD]
        assert await stand.imager.registered_correction() == GOOD
        assert stand.system.requests[-1]["boot"] == 12

    on_the_stand(body)


def test_no_two_runs_ask_with_the_same_id() -> None:
    """A kept answer to somebody else's images would be a correction for another patient."""
    ids: list[str] = []

    async def body(stand: Stand) -> None:
        for _ in range(3):  # programs that begin anew, each with its clock at zero
            imager = OrthogonalImager("G1-imager", CONFIG, stand.broker.client(), EventBus())
            await imager.connect()
            stand.system.answers = [GOOD, GOOD]
            await imager.registered_correction()
            await imager.registered_correction()
            await imager.close()
        ids.extend(r["id"] for r in stand.system.requests if r["want"] == "correction")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drivers.devices.imager.now_ns", lambda: 0)
        on_the_stand(body, connected=False)
    assert len(set(ids)) == 6
