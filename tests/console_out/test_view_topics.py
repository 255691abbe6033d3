"""What the console shows is told on topics to whoever listens: progress, first-out, permits, alarms; never a person."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from mosquitto import MosquittoServer
from shown_room import TRIP, alarm, beam, room_view, treatment
from witness import system_program

from controller.console.shown import FIELDS, LISTS
from controller.console.telemetry import HEARTBEAT_S, Telemetry
from drivers.wire.mqtt_messages import MqttMessages
from simulators.leash import leashed

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Told:
    """Telemetry without a broker."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any], bool]] = []
        self.telemetry = Telemetry("asan", "G1", self._publish)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        self.messages.append((topic.removeprefix("iongantry/ASAN/G1/"), json.loads(payload), retain))
        return True

    def now(self, view: dict[str, Any] | None = None) -> dict[str, Any]:
        """What is told at this moment, by topic."""
        self.messages.clear()
        if view is not None:
            self.telemetry.show(view)
        self.telemetry.tell()
        return {topic: content for topic, content, _ in self.messages if topic.startswith("room/")}


def treating() -> dict[str, Any]:
    beams = [beam(1, "complete", meterset_delivered=100.0), beam(2, "current", layer=4, meterset_delivered=12.5)]
    alarms = [alarm("high", "the gantry moved", acknowledged_by="ana.operator"), alarm("low", "x")]
    view = room_view(41, 1.5, state="irradiating.beam_on", treatment=treatment(*beams, current=2), alarms=alarms)
    view["interlocks"] |= {"active_trips": 1, "first_out": TRIP, "trips": [TRIP]}
    view["delivery"] |= {"permit_r": True}
    return view


def test_progress_first_out_permits_and_alarms_have_topics(run_virtual: Run) -> None:
    async def main() -> None:
        told = Told().now(treating())
        values = {topic.removeprefix("room/"): content["value"] for topic, content in told.items()}
        assert (values["treatment.beam"], values["treatment.meterset_delivered"], values["treatment.total_delivered"]) == (
            2,
            12.5,
            112.5,
        )
        assert (values["firstout"], values["firstout.advice"]) == ("DOOR", "close the door and search")
        assert (values["permit.a"], values["permit.b"], values["permit.r"]) == (True, True, True)
        assert (values["alarms.high"], values["alarms.unacknowledged"]) == (1, 1)
        assert [(row["text"], row["acknowledged"]) for row in values["alarms"]] == [("the gantry moved", True), ("x", False)]
        assert values["trips"][0]["advice"] == "close the door and search"
        assert [row["status"] for row in values["beams"]] == ["complete", "current"]
        assert values["checklist"] == [{"name": "plan", "done": False, "detail": "no plan"}]
        assert {*(field.signal for field in FIELDS), *(name for name, _, _ in LISTS)} <= set(values)
        content = told["room/gantry.angle"]
        assert content == {"value": 30.0, "unit": "deg", "quality": "good", "t_ns": 1_500_000_000, "seq": 1, "simulated": True}

    run_virtual(main())


def test_no_person_and_no_plan_is_told_and_nothing_is_retained(run_virtual: Run) -> None:
    async def main() -> None:
        stand = Told()
        stand.now(treating())
        text = repr(stand.messages)
        assert not [s for s in ("4711", "Doe", "Secret", "abcdef", "1.2.3.4", "ana.operator") if s in text]
        assert [topic for topic, _, retain in stand.messages if retain] == ["state"]

    run_virtual(main())


def test_what_does_not_change_is_told_each_second_and_what_is_not_shown_any_more_is_not(run_virtual: Run) -> None:
    async def main() -> None:
        stand = Told()
        view = treating()
        first = stand.now(view)
        assert set(stand.now(view | {"seq": 42})) == {"room/heartbeat"}
        await asyncio.sleep(HEARTBEAT_S)
        assert set(stand.now(view | {"seq": 43})) == set(first)
        await asyncio.sleep(HEARTBEAT_S)
        assert stand.now() == {}, "the room's process shows nothing: nobody pretends that it does"

    run_virtual(main())


@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_angle_that_nobody_knows_is_none(run_virtual: Run, value: float | None) -> None:
    async def main() -> None:
        view = room_view(gantry={"angle_deg": value, "lower_deg": -180.0, "upper_deg": 180.0, "quality": "disconnected"})
        told = Told().now(view)["room/gantry.angle"]
        assert (told["value"], told["quality"]) == (None, "disconnected")

    run_virtual(main())


@pytest.mark.xdist_group("wires")
def test_mosquitto_sub_sees_them_on_a_broker_written_by_others() -> None:
    listen = system_program("mosquitto_sub", "mosquitto-clients")

    async def main() -> None:
        server = MosquittoServer()
        await server.start()
        client = MqttMessages("127.0.0.1", server.port, "room", backoff_s=(0.05, 0.2))
        await client.start()
        topics = ["iongantry/ASAN/G1/room/firstout.advice", "iongantry/ASAN/G1/room/permit.a", "iongantry/ASAN/G1/room/beams"]
        command = [
            listen,
            "-p",
            str(server.port),
            "-C",
            "3",
            "-W",
            "10",
            "-F",
            "%t %p",
            *(a for t in topics for a in ("-t", t)),
        ]
        process = await asyncio.create_subprocess_exec(*leashed(command), stdout=asyncio.subprocess.PIPE)
        ended = asyncio.ensure_future(process.communicate())
        try:
            telemetry = Telemetry("asan", "G1", client.post)
            while not ended.done():
                telemetry.republish()
                telemetry.show(treating())
                telemetry.tell()
                await asyncio.wait({ended}, timeout=0.1)
            said, _ = await ended
        finally:
            await client.close()
            server.close()
        lines = dict(line.split(" ", 1) for line in said.decode().splitlines())
        assert json.loads(lines[topics[0]])["value"] == "close the door and search"
        assert json.loads(lines[topics[1]])["value"] is True
        assert json.loads(lines[topics[2]])["value"][1]["meterset_delivered"] == 12.5

    asyncio.run(main())
