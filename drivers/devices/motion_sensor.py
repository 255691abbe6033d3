"""The breathing signal on messages: how far the surrogate on the patient has moved. For display, supervision and record only.

The gate goes from the sensor to the delivery unit on a wire of its own (docs/wires.md); nothing that is read here holds or
releases beam, and a room without this signal treats all the same. So connecting waits for nobody: what is silent is shown as
silent. What is old, kept by the broker from before, unreadable or no number is not a value. Not responsible for gating.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from drivers.devices.connect import Liveness, silent
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns
from drivers.hal.errors import CommunicationError
from drivers.hal.events import EventBus
from drivers.hal.reading import Quality, Reading
from drivers.wire.messages import Message, Messages

DEADLINE_MS = 200.0  # five samples at 25 Hz; assumed
SILENT_S = 2.0  # after which its silence is told; assumed
RANGE_MM = 500.0  # further than any surrogate moves; assumed
NO_LIFE = 2203
SIGNAL = "displacement"


class BreathingSensor:
    """`MotionSensor` of a room.

    Args:
        name: device, for example ``"G1-breathing"``.
        topic: where it speaks, for example ``"iongantry/ASAN/G1/breathing"``.
        messages: the wire.
        bus: where ``device.up`` is told when it is first heard, ``device.down`` when it has been silent for `SILENT_S`.
        deadline_ms: how old a value may get.
        simulated: whether it comes from a simulator.

    Attributes:
        ignored: messages that were no value.
    """

    def __init__(
        self,
        name: str,
        topic: str,
        messages: Messages,
        bus: EventBus,
        *,
        deadline_ms: float = DEADLINE_MS,
        simulated: bool = True,
    ) -> None:
        self.ignored = 0
        self._name = name
        self._topic = topic
        self._messages = messages
        self._bus = bus
        self._simulated = simulated
        self._liveness = Liveness(round(deadline_ms * NS_PER_MS))
        self._value_mm = math.nan  # NaN: nobody lies there
        self._t_ns = 0
        self._up = False
        self._endings: list[Callable[[], None]] = []
        self._look: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    async def connect(self) -> None:
        """Listen from now on. Waits for nobody and refuses nothing: a room treats without this signal."""
        await self.close()
        self._endings = [
            self._messages.subscribe(self._topic, self._take, retained=False),
            self._messages.watch(self._broker_changed),
        ]

    async def close(self) -> None:
        """Listen no longer."""
        for ending in self._endings:
            ending()
        self._endings = []
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._liveness.forget()
        self._up = False

    def readings(self) -> Sequence[Reading[object]]:
        """The last value, NaN where nobody lies on the couch; empty before the first."""
        return [self._reading()] if self._t_ns else []

    async def read_amplitude(self) -> Reading[float]:
        """The last value, mm from the patient's first exhale, with its quality; NaN where nobody lies on the couch.

        Raises:
            CommunicationError: it was never heard (2004).
        """
        if not self._t_ns:
            raise silent(self._name)
        return self._reading()

    def _reading(self) -> Reading[Any]:
        quality = self._liveness.quality(now_ns())
        if quality is Quality.GOOD and math.isnan(self._value_mm):
            quality = Quality.ALARM  # it lives, and says itself that there is nothing to measure
        return Reading(f"{self._name}.{SIGNAL}", self._value_mm, "mm", self._t_ns, quality, self._simulated)

    def _take(self, message: Message) -> None:
        value = None if message.retained else _value(message.payload)
        if value is None or not self._liveness.see(value[0], message.t_ns):
            self.ignored += 1
            return
        self._value_mm, self._t_ns = value[1], message.t_ns
        if not self._up:
            self._up = True
            self._bus.emit(self._name, "device.up")
            self._watch_life()

    def _broker_changed(self, up: bool) -> None:
        if not up:
            self._lost("its broker is gone")

    def _watch_life(self) -> None:
        """Look again when it would have been silent for too long."""
        due_ns = self._t_ns + round(SILENT_S * NS_PER_S)
        left_s = (due_ns - now_ns()) / NS_PER_S
        if left_s <= 0.0:
            self._lost(f"nothing was heard of it for {SILENT_S:g} s")
        elif self._up:
            self._look = asyncio.get_running_loop().call_later(left_s, self._watch_life)

    def _lost(self, why: str) -> None:
        self._liveness.forget()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._up:
            self._up = False
            error = CommunicationError(why, code=NO_LIFE, device=self._name, hint="it is only shown; beam does not need it")
            self._bus.emit(self._name, "device.down", error=str(error), code=error.code)


def _value(payload: bytes) -> tuple[int, float] | None:
    """Counter and displacement in mm (NaN: nobody lies there); None when it is not that."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or type(content.get("seq")) is not int or "displacement_mm" not in content:
        return None
    value = content["displacement_mm"]
    if value is None:
        return content["seq"], math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= RANGE_MM:
        return None  # neither text nor true nor NaN nor out of this world
    return content["seq"], float(value)
