"""Two X-ray images registered to the plan's references: the couch correction that would bring the patient to the planned place.

Images and their registration are the imaging system's, which answers on messages (docs/wires.md). A request carries an id of
its own and is repeated with the same id until its answer comes, because messages may be lost; the imaging system exposes once
per id. What arrives late, twice, from before, for somebody else or unreadable is not an answer. Not responsible for whether
a correction is allowed or made.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from drivers.devices.connect import NOT_ALIVE, Connection, Liveness, check_named_identity, deadline_ns, silent
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError, CommandRejected, CommunicationError, DataError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Quality, Reading
from drivers.wire.messages import Message, Messages

BAD_CORRECTION = 5201
NO_ANSWER = 2201
NO_LIFE = 2202
REFUSED = 3201
BUSY = 4002

STATUS_TIMEOUT_S = 2.0  # for an answer to "who are you"; assumed: a loaded machine answers in tens of ms
SILENT_S = 7.0  # three heartbeats of 2 s and a margin
REPEAT_S = 10.0  # a request without an answer is repeated


class _Status(NamedTuple):
    identity: str
    boot: int
    seq: int


class OrthogonalImager:
    """`Imager` of a room.

    Args:
        name: device, for example ``"G1-imager"``.
        config: its entry in the facility file; `prefix` is for example ``"iongantry/ASAN/G1/images"``, `deadline_ms` is how
            long images and registration may take.
        messages: the wire.
        bus: where ``images.registered``, ``device.up`` and ``device.down`` are told.

    Attributes:
        ignored: messages on its topics that were nobody's answer: unreadable, late, doubled or foreign.
    """

    def __init__(self, name: str, config: Device, messages: Messages, bus: EventBus) -> None:
        self.ignored = 0
        self._name = name
        self._config = config
        self._messages = messages
        self._bus = bus
        self._connection = Connection(name, bus, self._establish)
        self._liveness = Liveness(round(SILENT_S * NS_PER_S))
        self._boot = 0
        self._session = "new"
        self._numbers = itertools.count(1)
        self._asked: dict[str, asyncio.Future[_Status]] = {}
        self._wanted: tuple[str, asyncio.Future[dict[str, Any]]] | None = None
        self._endings: list[Any] = []
        self._look: asyncio.TimerHandle | None = None
        self._last: tuple[int, dict[str, float]] | None = None

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    async def connect(self) -> None:
        """Check that the imaging system is there, is the right one, and is alive.

        Raises:
            CommunicationError: no broker, or no answer (2201).
            DeviceError: another device answers (3002), or its counter stands still (3003).
        """
        await self.close()
        prefix = self._config.prefix
        self._endings = [
            self._messages.subscribe(f"{prefix}/status", self._take_status, retained=False),
            self._messages.subscribe(f"{prefix}/correction", self._take_correction, retained=False),
            self._messages.watch(self._broker_changed),
        ]
        try:
            await self._connection.open()
        except BeamlineError:
            await self.close()
            raise
        self._watch_life()

    async def close(self) -> None:
        """End the subscriptions; images that are awaited will not come."""
        for ending in self._endings:
            ending()
        self._endings = []
        if self._look is not None:
            self._look.cancel()
            self._look = None
        await self._connection.close()
        self._fail("the imager was closed")

    def readings(self) -> Sequence[Reading[object]]:
        """The last correction; empty before the first."""
        if self._last is None:
            return ()
        t_ns, correction = self._last
        quality = self._liveness.quality(now_ns()) if self._connection.up else Quality.DISCONNECTED
        return [
            Reading(f"{self._name}.{axis}", value, axis.rsplit("_", 1)[1], t_ns, quality, self._config.simulated)
            for axis, value in correction.items()
        ]

    async def registered_correction(self) -> Mapping[str, float]:
        """Take two images and register them.

        Raises:
            CommunicationError: not connected (2004), or no answer within the facility's deadline (2201).
            CommandRejected: images are being taken already (4002).
            DeviceError: the imaging system refuses (3201).
            DataError: the answer is not six finite numbers (5201).
        """
        if self._wanted is not None:
            raise CommandRejected("images are being taken already", code=BUSY, device=self._name)
        if not self._connection.up:
            raise silent(self._name)
        asked = self._fresh_id()
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._wanted = asked, answer
        try:
            correction = self._checked(await self._until_answered(asked, answer))
        finally:
            self._wanted = None
        self._last = (now_ns(), correction)
        self._bus.emit(self._name, "images.registered", **{axis: round(value, 3) for axis, value in correction.items()})
        return correction

    async def _until_answered(self, asked: str, answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        """Ask, and ask again with the same id: a message may be lost, a broker may be away for a while."""
        end_ns = now_ns() + deadline_ns(self._config)
        while True:
            with contextlib.suppress(CommunicationError):
                await self._send(asked, "correction", self._boot)
            left_s = (end_ns - now_ns()) / NS_PER_S
            if left_s > 0:
                await asyncio.wait([answer], timeout=min(left_s, REPEAT_S))
            if answer.done():
                return answer.result()
            if now_ns() >= end_ns:
                raise CommunicationError(
                    f"no images within {deadline_ns(self._config) / NS_PER_S:g} s",
                    code=NO_ANSWER,
                    device=self._name,
                    hint="check the imaging system and the broker, then take the images again",
                    retryable=True,
                )

    async def _establish(self) -> None:
        """Ask twice who is there: identity, and a counter that moves."""
        first = await self._ask_status()
        check_named_identity(self._name, self._config, first.identity)
        second = await self._ask_status()
        if second.boot != first.boot or second.seq == first.seq:
            raise DeviceError(
                f"answers, but its counter stands at {second.seq}",
                code=NOT_ALIVE,
                device=self._name,
                hint="restart the imaging system",
            )
        self._boot = second.boot
        self._session = f"{second.boot}-{second.seq}"
        self._liveness.forget()
        self._liveness.see(second.seq, now_ns())

    async def _ask_status(self) -> _Status:
        asked = f"{self._fresh_id()}-{now_ns()}"
        answer: asyncio.Future[_Status] = asyncio.get_running_loop().create_future()
        self._asked[asked] = answer
        try:
            await self._send(asked, "status", 0)
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise CommunicationError(
                f"the imaging system does not answer within {STATUS_TIMEOUT_S:g} s",
                code=NO_ANSWER,
                device=self._name,
                hint="check that it runs and speaks to the same broker",
                retryable=True,
            ) from None
        finally:
            del self._asked[asked]

    async def _send(self, asked: str, want: str, boot: int) -> None:
        request = json.dumps({"id": asked, "boot": boot, "want": want}).encode()
        try:
            await self._messages.publish(f"{self._config.prefix}/request", request)
        except CommunicationError as error:
            raise CommunicationError(
                error.message, code=error.code, device=self._name, hint=error.hint, retryable=True
            ) from None

    def _fresh_id(self) -> str:
        """Never used before, not even by an earlier run: no other client was ever answered with this count of this boot."""
        return f"{self._name}-{self._session}-{next(self._numbers)}"

    def _take_status(self, message: Message) -> None:
        status = _status(message.payload)
        if status is None:
            self.ignored += 1
            return
        asked, found = status
        if (waiting := self._asked.get(asked)) is not None and not waiting.done():
            waiting.set_result(found)
        if not self._connection.up:
            return
        if found.boot != self._boot:
            self._lost("the imaging system has been restarted")
        else:
            self._liveness.see(found.seq, now_ns())

    def _take_correction(self, message: Message) -> None:
        answer = _object(message.payload)
        if answer is None or self._wanted is None or answer.get("id") != self._wanted[0] or self._wanted[1].done():
            self.ignored += 1
            return
        self._wanted[1].set_result(answer)

    def _checked(self, answer: Mapping[str, Any]) -> dict[str, float]:
        """The six axes of an answer."""
        if "error" in answer:
            raise DeviceError(f"no images: {answer['error']}", code=REFUSED, device=self._name, retryable=True)
        given = [key for key in answer if key not in ("id", "boot", "seq", "t_ns")]
        if sorted(given) != sorted(COUCH_AXES):
            raise DataError(
                f"registration gives {', '.join(given) or 'nothing'}; needed: {', '.join(COUCH_AXES)}",
                code=BAD_CORRECTION,
                device=self._name,
                hint="take the images again",
            )
        bad = [axis for axis in COUCH_AXES if not _is_number(answer[axis])]
        if bad:
            raise DataError(
                f"registration gives no number for {', '.join(bad)}",
                code=BAD_CORRECTION,
                device=self._name,
                hint="take the images again",
            )
        return {axis: float(answer[axis]) for axis in COUCH_AXES}

    def _broker_changed(self, up: bool) -> None:
        if not up:
            self._connection.lost(
                CommunicationError("the broker of the imaging system is gone", code=NO_LIFE, device=self._name, retryable=True)
            )

    def _watch_life(self) -> None:
        """Look when the counter would have stood still too long; a timer each time, because nothing else may happen then."""
        loop = asyncio.get_running_loop()
        due_ns = (self._liveness.moved_ns or now_ns()) + self._liveness.deadline_ns
        if self._connection.up and now_ns() > due_ns:
            self._lost(f"no life from the imaging system for {SILENT_S:g} s")
        self._look = loop.call_later(max((due_ns - now_ns()) / NS_PER_S, SILENT_S / 4), self._watch_life)

    def _lost(self, why: str) -> None:
        self._connection.lost(CommunicationError(why, code=NO_LIFE, device=self._name, retryable=True))
        self._fail(why)

    def _fail(self, why: str) -> None:
        if self._wanted is not None and not self._wanted[1].done():
            self._wanted[1].set_exception(
                CommunicationError(
                    f"no images: {why}", code=NO_LIFE, device=self._name, hint="take the images again", retryable=True
                )
            )


def _object(payload: bytes) -> dict[str, Any] | None:
    """A JSON object, or None."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _status(payload: bytes) -> tuple[str, _Status] | None:
    """Whose question it answers (empty for a heartbeat) and the status; None when it is none."""
    content = _object(payload)
    if content is None:
        return None
    asked, identity = content.get("id"), content.get("identity")
    boot, seq = content.get("boot"), content.get("seq")
    if not isinstance(asked, str) or not isinstance(identity, str) or type(boot) is not int or type(seq) is not int:
        return None
    return asked, _Status(identity, boot, seq)


def _is_number(value: object) -> bool:
    """A finite number: neither text nor true nor NaN nor too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
