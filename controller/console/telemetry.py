"""Tells the world outside what a room does and reads: topics with JSON, from the event bus and the devices' last readings.

Fire and forget: whoever publishes takes a message at once or refuses it, nothing here waits, and what cannot be told is lost
and counted. Losing the broker neither holds nor releases beam. Not responsible for connections: the one who owns the broker's
client calls `republish` when it is back, and gives it `last_will`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from controller.console.shown import View, room_lists, room_signals
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError
from drivers.hal.events import Event, EventBus
from drivers.hal.reading import Quality, Reading

PERIOD_S = 0.1  # no signal is told more often
HEARTBEAT_S = 1.0  # what does not change is told this often, so that its counter shows life; assumed
EVENTS_WAITING = 1000
OFFLINE, ONLINE = "offline", "online"


class Publish(Protocol):
    """Takes a message without waiting; False when it is lost."""

    def __call__(self, topic: str, payload: bytes, *, retain: bool = False) -> bool: ...


class Readable(Protocol):
    """A device, as far as telemetry is concerned."""

    @property
    def name(self) -> str: ...

    def readings(self) -> Sequence[Reading[object]]: ...


class LastWill(NamedTuple):
    """What the broker says when this program is lost."""

    topic: str
    payload: bytes
    retain: bool


def prefix_of(facility: str, room: str) -> str:
    """First levels of a room's topics, for example ``iongantry/ASAN/G1``."""
    return f"iongantry/{facility.upper()}/{room}"


def last_will(facility: str, room: str) -> LastWill:
    """The room is offline, retained. Its counter and time are 0: nobody was there to count."""
    content = {"value": OFFLINE, "unit": "", "quality": Quality.DISCONNECTED.value, "t_ns": 0, "seq": 0}
    return LastWill(f"{prefix_of(facility, room)}/state", json.dumps(content).encode(), True)


class Telemetry:
    """One room's topics: ``state`` (retained), ``event``, ``reading/DEVICE/SIGNAL``, ``room/SIGNAL``.

    Args:
        facility, room: levels of the topics.
        publish: for example `Messages.post`.
        devices: whose readings are told.
        simulated: whether the room as a whole is, for state and events; readings say it themselves.
        period_s: shortest time between two messages of one signal.

    Attributes:
        lost: messages that were refused, and events that waited too long.
    """

    def __init__(
        self,
        facility: str,
        room: str,
        publish: Publish,
        devices: Iterable[Readable] = (),
        *,
        simulated: bool = True,
        period_s: float = PERIOD_S,
    ) -> None:
        self.lost = 0
        self._prefix = prefix_of(facility, room)
        self._publish = publish
        self._devices = tuple(devices)
        self._simulated = simulated
        self._period_s = period_s
        self._events: deque[Event] = deque()
        self._state, self._why, self._state_ns = ONLINE, "", 0
        self._state_due = True
        self._seq: dict[str, int] = {}
        self._view: View | None = None
        self._shown: dict[str, tuple[object, Quality, int]] = {}  # by signal: value, quality, when told
        self._units: dict[str, dict[str, tuple[str, bool]]] = {}  # by device and signal: unit, simulated

    def attach(self, bus: EventBus) -> Callable[[], None]:
        """Listen to a bus from now on; returns the function that ends it."""
        return bus.subscribe(self._take)

    def republish(self) -> None:
        """The broker is back and may have forgotten: tell state and every reading again."""
        self._state_due = True
        self._shown.clear()

    def show(self, view: View) -> None:
        """What the room shows, decoded (`RoomView`, as JSON or dumped): told with the next lot. Who is treated is not told."""
        self._view = view

    async def run(self) -> None:
        """Tell what there is to tell until cancelled; then say that the room is offline."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        try:
            while True:
                self.tell()
                due_s = max(due_s + self._period_s, loop.time())
                await asyncio.sleep(due_s - loop.time())
        finally:
            self.tell()
            self._state, self._why, self._state_ns = OFFLINE, "", now_ns()
            self._tell_state()

    def tell(self) -> None:
        """Tell everything that is new now."""
        if self._state_due:
            self._tell_state()
        while self._events:
            event = self._events.popleft()
            data = {"source": event.source, "kind": event.kind, "data": event.data, "simulated": self._simulated}
            self._send("event", {"seq": event.seq, "t_ns": event.t_ns, **data})
        at_ns = now_ns()
        for device in self._devices:
            try:
                readings = device.readings()
            except BeamlineError:
                self._tell_silence(device.name, at_ns)
                continue
            for reading in readings:
                self._tell_reading(device.name, reading, at_ns)
        view, self._view = self._view, None  # a room that shows nothing new is told of no more
        if view is not None:
            self._tell_view(view, at_ns)

    def _tell_view(self, view: View, at_ns: int) -> None:
        t_ns = int(view["t_ns"])
        for shown in room_signals(view):
            quality = Quality(shown.quality)
            self._tell_signal(f"room/{_level(shown.signal)}", shown.value, quality, shown.unit, t_ns, shown.simulated, at_ns)
        for name, rows in room_lists(view):
            self._tell_signal(f"room/{name}", rows, Quality.GOOD, "", t_ns, bool(view["simulated"]), at_ns)

    def _take(self, event: Event) -> None:
        if event.kind == "room.state":
            self._state, self._why = str(event.data.get("state", "")), str(event.data.get("why") or "")
            self._state_ns, self._state_due = event.t_ns, True
        if len(self._events) >= EVENTS_WAITING:
            self._events.popleft()
            self.lost += 1
        self._events.append(event)

    def _tell_state(self) -> None:
        quality = Quality.DISCONNECTED if self._state == OFFLINE else Quality.GOOD
        content = self._content("state", self._state, "", quality, self._state_ns or now_ns(), self._simulated)
        self._state_due = not self._send("state", {**content, "why": self._why}, retain=True)

    def _tell_reading(self, device: str, reading: Reading[object], at_ns: int) -> None:
        signal = reading.name.removeprefix(f"{device}.")
        topic = f"reading/{_level(device)}/{_level(signal)}"
        self._units.setdefault(device, {})[topic] = reading.unit, reading.simulated
        value = _plain(reading.value)
        quality = reading.quality
        if value is None and quality is Quality.GOOD:
            quality = Quality.ALARM  # not a number: nothing a reader could use
        self._tell_signal(topic, value, quality, reading.unit, reading.t_ns, reading.simulated, at_ns)

    def _tell_silence(self, device: str, at_ns: int) -> None:
        """A device that gives no readings: what it told before holds no longer."""
        for topic, (unit, simulated) in self._units.get(device, {}).items():
            self._tell_signal(topic, None, Quality.DISCONNECTED, unit, at_ns, simulated, at_ns)

    def _tell_signal(
        self, topic: str, value: object, quality: Quality, unit: str, t_ns: int, simulated: bool, at_ns: int
    ) -> None:
        shown = self._shown.get(topic)
        if shown is not None and shown[:2] == (value, quality) and at_ns - shown[2] < HEARTBEAT_S * NS_PER_S:
            return
        if self._send(topic, self._content(topic, value, unit, quality, t_ns, simulated)):
            self._shown[topic] = value, quality, at_ns

    def _content(self, topic: str, value: object, unit: str, quality: Quality, t_ns: int, simulated: bool) -> dict[str, object]:
        seq = self._seq[topic] = self._seq.get(topic, 0) + 1
        return {"value": value, "unit": unit, "quality": quality.value, "t_ns": t_ns, "seq": seq, "simulated": simulated}

    def _send(self, topic: str, content: Mapping[str, object], *, retain: bool = False) -> bool:
        try:
            text = json.dumps(content, allow_nan=False)
        except (TypeError, ValueError):
            text = json.dumps(_plain(content))
        told = self._publish(f"{self._prefix}/{topic}", text.encode(), retain=retain)
        self.lost += not told
        return told


def _level(name: str) -> str:
    """A name as one level of a topic."""
    return "".join("-" if letter in "/+#" else letter for letter in name)


def _plain(value: object) -> Any:
    """What JSON can carry: no NaN, no infinity (None instead), no types of other libraries."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _plain(value.tolist())
    return str(value)
