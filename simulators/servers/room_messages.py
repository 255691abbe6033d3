"""The plant's messages about one room: environment, area monitor, breathing, and the imaging system that answers requests.

Written from docs/wires.md, on any client of a broker that fits `MessageClient`: the memory twin or MQTT. Every message carries
a counter (`seq`) of its topic and plant time (`t_ns`). Images take their time here, and the same request is never exposed
twice. Not responsible for the broker, nor for anything that lets beam through: nothing here does.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from simulators.plant.room import RoomPlant

NS_PER_S = 1_000_000_000
STATUS_S = 2.0  # heartbeat of the imaging system
ENVIRONMENT_S = 10.0
AREA_S = 2.0
BREATHING_S = 0.04  # 25 Hz, a camera's rate (assumed)
EXPOSURE_S = 4.0  # assumed: two exposures and their registration
ANSWERS_KEPT = 16
# A treatment room, assumed: set-points of its ventilation, and what instruments of that kind scatter.
TEMPERATURE_C, TEMPERATURE_SD_C = 22.0, 0.05
HUMIDITY_PERCENT, HUMIDITY_SD_PERCENT = 45.0, 0.3
PRESSURE_HPA, PRESSURE_SD_HPA = 1013.0, 0.1
# Area monitor at the door of the maze, assumed: background, and what beam in the room adds.
BACKGROUND_USV_H, BEAM_USV_H, AREA_SD_REL = 0.08, 4.0, 0.1
AREA_ALARM_USV_H = 25.0


class Arrived(Protocol):
    """What the server needs of a message."""

    @property
    def payload(self) -> bytes: ...


class MessageClient(Protocol):
    """What the server needs of a broker's client: post without waiting, subscribe to commands (never retained ones)."""

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool: ...

    def subscribe(self, pattern: str, callback: Callable[[Any], None], *, retained: bool = True) -> Callable[[], None]: ...


def room_prefix(facility_prefix: str, room: str) -> str:
    """First levels of a room's topics."""
    return f"iongantry/{facility_prefix}/{room}"


class RoomMessages:
    """One room's side of the messages.

    Args:
        room: the plant's room.
        facility_prefix: second level of its topics, for example ``"ASAN"``.
        client: of a broker.
        before: called before the plant is looked at; advances it to now.
        breathing_s: period of the breathing signal; None for none (where nobody listens it only costs time).

    Attributes:
        silent: the imaging system neither answers nor shows life (a planted fault).
        boot_id: of the imaging system; another one after each start.
        images_taken: exposures since the plant was made.
    """

    def __init__(
        self,
        room: RoomPlant,
        facility_prefix: str,
        client: MessageClient,
        before: Callable[[], None],
        *,
        breathing_s: float | None = None,
    ) -> None:
        self.silent = False
        self.boot_id = 0
        self.images_taken = 0
        self._room = room
        self._prefix = room_prefix(facility_prefix, room.name)
        self._client = client
        self._before = before
        self._breathing_s = breathing_s
        self._identity = f"iongantry simulated imager {room.name}"
        self._rng = room.kernel.rng(f"{room.name}-messages", "noise")
        self._seq: dict[str, int] = {}
        self._answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._exposing = ""
        self._starts = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._unsubscribe is not None

    def start(self) -> None:
        """Say everything once, then each in its period, and answer requests. Again after `stop`: as a rebooted system."""
        if self.running:
            return
        self._starts += 1
        self.boot_id = int(self._room.kernel.rng(f"{self._room.name}-imager", "boot", self._starts).integers(1, 0x7FFF_FFFF))
        self._answers.clear()
        self._exposing = ""
        self._unsubscribe = self._client.subscribe(f"{self._prefix}/images/request", self._take_request, retained=False)
        self._repeat("images/status", STATUS_S, self._tell_status)
        self._repeat("environment", ENVIRONMENT_S, self._tell_environment)
        self._repeat("area-monitor", AREA_S, self._tell_area)
        if self._breathing_s is not None:
            self._repeat("breathing", self._breathing_s, self._tell_breathing)

    def stop(self) -> None:
        """Say nothing more; an exposure under way gives no answer."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _repeat(self, name: str, period_s: float, tell: Callable[[], None]) -> None:
        """Call now and then at absolute times, so that periods do not drift."""
        loop = asyncio.get_running_loop()

        def beat(due_s: float) -> None:
            tell()
            next_s = max(due_s + period_s, loop.time())
            self._timers[name] = loop.call_at(next_s, beat, next_s)

        beat(loop.time())

    def _post(self, name: str, content: dict[str, Any]) -> None:
        seq = self._seq[name] = self._seq.get(name, 0) + 1
        message = {"seq": seq, "t_ns": self._room.kernel.now_ns, **content}
        self._client.post(f"{self._prefix}/{name}", json.dumps(message).encode())

    def _tell_environment(self) -> None:
        noise = self._rng.normal(size=3)
        self._post(
            "environment",
            {
                "temperature_c": round(TEMPERATURE_C + TEMPERATURE_SD_C * float(noise[0]), 3),
                "humidity_percent": round(HUMIDITY_PERCENT + HUMIDITY_SD_PERCENT * float(noise[1]), 2),
                "pressure_hpa": round(PRESSURE_HPA + PRESSURE_SD_HPA * float(noise[2]), 2),
            },
        )

    def _tell_area(self) -> None:
        rate = BACKGROUND_USV_H + (BEAM_USV_H if self._room.beam_present else 0.0)
        rate *= max(1.0 + AREA_SD_REL * float(self._rng.normal()), 0.0)
        self._post("area-monitor", {"dose_rate_usv_h": round(rate, 4), "alarm": rate > AREA_ALARM_USV_H})

    def _tell_breathing(self) -> None:
        self._before()
        patient = self._room.patient
        displacement = patient.breathing.at(self._room.kernel.now_ns / NS_PER_S) if patient.on_couch else None
        self._post("breathing", {"displacement_mm": None if displacement is None else round(displacement, 3)})

    def _tell_status(self, asked: str = "") -> None:
        if self.silent:
            return
        state = "exposing" if self._exposing else "ready"
        self._post("images/status", {"id": asked, "boot": self.boot_id, "identity": self._identity, "state": state})

    def _take_request(self, message: Arrived) -> None:
        request = _parsed(message.payload)
        if self.silent or request is None:
            return
        asked = request["id"]
        if request.get("want") == "status":
            self._tell_status(asked)
        elif request.get("boot") != self.boot_id or asked == self._exposing:
            return  # meant for the system before it was restarted, or under way already
        elif asked in self._answers:
            self._post("images/correction", self._answers[asked])
        elif self._exposing:
            self._post("images/correction", {"id": asked, "boot": self.boot_id, "error": "other images are being taken"})
        else:
            self._exposing = asked
            self._timers["exposure"] = asyncio.get_running_loop().call_later(EXPOSURE_S, self._answer, asked)

    def _answer(self, asked: str) -> None:
        self._exposing = ""
        if self.silent:
            return
        self._before()
        self.images_taken += 1
        answer = {"id": asked, "boot": self.boot_id, **self._room.patient.registered_correction()}
        self._answers[asked] = answer
        while len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)
        self._post("images/correction", answer)


def _parsed(payload: bytes) -> dict[str, Any] | None:
    """A request with an id, or None: what cannot be read is nobody's request."""
    try:
        request = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) and isinstance(request.get("id"), str) and request["id"] else None
