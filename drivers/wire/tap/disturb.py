"""Spoils wires on purpose: a tap that silences, garbles, delays, doubles, reorders and cuts what travels, by schedule and seed.

A fault begins and ends by loop time or by what passes the tap (the first grant that is started, the N-th that is sent). Drivers
notice nothing of the tap itself. What each kind does to variables and messages is in `disturb_channels`, `disturb_messages`.

Not responsible for faults of the equipment (those are planted in the plant) nor for what must follow.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Protocol

from drivers.wire.channels import Channels
from drivers.wire.framing import READ_HOLDING, Request, crc16
from drivers.wire.messages import Messages
from drivers.wire.stream import Stream, StreamOpener
from drivers.wire.tap import Answers
from drivers.wire.tap.faults import WireFault
from drivers.wire.tap.words import request_of

DELAY_S = 0.5  # longer than any time-out of a query (50 ms) and any liveness limit of a node (100 to 500 ms)
IDENTITY_WORDS = 4  # docs/wires.md: registers 0 to 3 of every node
LOST_S = 0.3  # how long a line is lost before somebody else answers on it

Tell = Callable[[WireFault, bool], None]


class Disturbed(Protocol):
    """An end of a wire that wants to know."""

    def struck(self, fault: WireFault) -> None:
        """A fault of its wire has begun."""
        ...

    def healed(self, fault: WireFault) -> None:
        """A fault of its wire is over."""
        ...


class Disturber:
    """A `Tap` that plants wire faults.

    Args:
        faults: each with its start and duration.
        tell: called with a fault and whether it begins (True) or ends (False).
    """

    def __init__(self, faults: Iterable[WireFault] = (), tell: Tell = lambda _fault, _begins: None) -> None:
        self._waiting = list(faults)
        self._tell = tell
        self._active: dict[str, list[WireFault]] = {}
        self._ends: dict[str, list[Disturbed]] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._grants = 0
        self._begun = False
        self._armed = False

    # --- the tap --------------------------------------------------------------------------------------------------------

    def stream(self, name: str, opener: StreamOpener) -> StreamOpener:
        """A stream that suffers the faults of its wire."""
        self.arm()
        state = StreamState(self, name)

        async def opened() -> Stream:
            self.arm()
            if state.lost:
                raise ConnectionRefusedError(f"{name}: nobody answers")
            return DisturbedStream(state, await opener())

        return opened

    def channels(self, name: str, channels: Channels) -> Channels:
        """Variables that suffer the faults of their wire."""
        from drivers.wire.tap.disturb_channels import DisturbedChannels

        self.arm()
        return DisturbedChannels(self, name, channels)

    def messages(self, name: str, messages: Messages) -> Messages:
        """Messages that suffer the faults of their wire."""
        from drivers.wire.tap.disturb_messages import DisturbedMessages

        self.arm()
        return DisturbedMessages(self, name, messages)

    def operator(self, port: Answers) -> Answers:
        """People are not disturbed here."""
        return port

    # --- what is wrong now ----------------------------------------------------------------------------------------------

    def active(self, wire: str, name: str | None = None) -> dict[str, WireFault]:
        """The faults of a wire (that touch variable, topic or node `name`) that are on now, by kind."""
        return {
            fault.kind: fault
            for fault in self._active.get(wire, ())
            if name is None or fault.part == "*" or fnmatchcase(name, fault.part)
        }

    def attach(self, wire: str, end: Disturbed) -> None:
        """Tell an end of the faults of its wire."""
        self._ends.setdefault(wire, []).append(end)

    def strike(self, fault: WireFault) -> None:
        """Begin a fault now; it ends by itself when it has a duration."""
        self._active.setdefault(fault.wire, []).append(fault)
        self._tell(fault, True)
        for end in tuple(self._ends.get(fault.wire, ())):
            end.struck(fault)
        if fault.duration_s is not None:
            self.later(fault.duration_s, self.heal, fault)

    def heal(self, fault: WireFault) -> None:
        """End a fault now."""
        if fault not in self._active.get(fault.wire, ()):
            return
        self._active[fault.wire].remove(fault)
        self._tell(fault, False)
        for end in tuple(self._ends.get(fault.wire, ())):
            end.healed(fault)

    def later(self, delay_s: float, function: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Do something later, unless the tap is stopped before."""
        timer = asyncio.get_running_loop().call_later(delay_s, function, *args)
        self._timers = [kept for kept in self._timers if not kept.cancelled() and kept.when() > timer.when() - 3600.0]
        self._timers.append(timer)
        return timer

    def stop(self) -> None:
        """No fault begins or ends any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def arm(self) -> None:
        """Begin to count time: faults that begin at once do so, those of a time get their timer."""
        if self._armed:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # built before its loop runs: the first use arms it
        self._armed = True
        for fault in [f for f in self._waiting if f.start.kind in ("start", "t")]:
            self._waiting.remove(fault)
            if fault.start.kind == "start":
                self.strike(fault)
            else:
                self.later(max(0.0, fault.start.number - loop.time()), self.strike, fault)

    def passes(self, name: str) -> None:
        """A variable is put: grants and their starts begin faults."""
        if name.endswith(":GRANT:SP"):
            self._grants += 1
            for fault in [f for f in self._waiting if f.start.kind == "grant" and f.start.number <= self._grants]:
                self._waiting.remove(fault)
                self.strike(fault)
        elif name.endswith(":START:SP") and not self._begun:
            self._begun = True
            for fault in [f for f in self._waiting if f.start.kind == "beam"]:
                self._waiting.remove(fault)
                self.later(fault.start.number, self.strike, fault)


class StreamState:
    """What outlives one opening of a line: its faults, and whether it is lost."""

    def __init__(self, tap: Disturber, wire: str) -> None:
        self.tap = tap
        self.wire = wire
        self.lost = "disconnect" in tap.active(wire)
        self.drop = 0  # rises each time the line is lost: a stream opened before is gone
        self._rng: dict[int, random.Random] = {}
        tap.attach(wire, self)

    def struck(self, fault: WireFault) -> None:
        """A line that is lost, for good or until somebody else answers."""
        if fault.kind in ("disconnect", "identity"):
            self.drop += 1
            self.lost = True
        if fault.kind == "identity":
            self.tap.later(LOST_S, self._found)

    def healed(self, fault: WireFault) -> None:
        """The line can be opened again; after a wrong identity it is lost once more, or nobody would ask again."""
        if fault.kind == "disconnect":
            self.lost = False
        elif fault.kind == "identity":
            self.drop += 1

    def rng(self, fault: WireFault) -> random.Random:
        """The generator of a fault."""
        return self._rng.setdefault(id(fault), random.Random(fault.seed))

    def _found(self) -> None:
        self.lost = False


class DisturbedStream:
    """The client's end of a line, with the faults of its wire: requests may be lost, answers anything."""

    def __init__(self, state: StreamState, stream: Stream) -> None:
        self._state = state
        self._stream = stream
        self._drop = state.drop
        self._ready = bytearray()
        self._late: deque[tuple[float, bytes]] = deque()  # when it may be read, and what
        self._held: bytes | None = None  # waits until the next answer has overtaken it
        self._asked: Request | None = None
        self._identity = bytearray()  # of an answer that names a device

    @property
    def name(self) -> str:
        """Endpoint, for messages."""
        return self._stream.name

    async def read(self, n: int = 4096, timeout_s: float | None = None) -> bytes:
        """What arrives, with the faults of now; see `Stream.read`."""
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        while True:
            if self._gone():
                return b""
            while self._late and self._late[0][0] <= loop.time() + 1e-9:
                self._ready += self._late.popleft()[1]
            if self._ready:
                data = bytes(self._ready[:n])
                del self._ready[:n]
                return data
            until_s = min((at for at in (deadline_s, self._late[0][0] if self._late else None) if at is not None), default=None)
            try:
                data = await self._stream.read(n, None if until_s is None else until_s - loop.time())
            except TimeoutError:
                if deadline_s is not None and loop.time() >= deadline_s - 1e-9 and not self._late_by(deadline_s):
                    if self._gone():
                        return b""
                    raise
                continue
            if not data:
                return b""
            self._arrive(data)

    async def write(self, data: bytes) -> None:
        """Send, unless a fault swallows it; see `Stream.write`."""
        if self._gone():
            raise ConnectionResetError(f"{self.name}: the line is lost")
        self._asked = request_of(data)
        self._identity.clear()
        if "silence" not in self._faults():
            await self._stream.write(data)

    def discard_input(self) -> int:
        """Throw away what has arrived unread; what is late has not arrived."""
        count = len(self._ready) + self._stream.discard_input()
        self._ready.clear()
        return count

    async def close(self) -> None:
        """Let go of the line."""
        await self._stream.close()

    def _gone(self) -> bool:
        return self._state.lost or self._state.drop != self._drop

    def _late_by(self, deadline_s: float) -> bool:
        return bool(self._late) and self._late[0][0] <= deadline_s + 1e-9

    def _faults(self) -> dict[str, WireFault]:
        return self._state.tap.active(self._state.wire, str(self._asked.unit) if self._asked is not None else None)

    def _arrive(self, data: bytes) -> None:
        faults = self._faults()
        if "silence" in faults:
            return
        if "identity" in faults:
            data = self._other_device(data)
        if (fault := faults.get("garbage")) is not None:
            data = self._state.rng(fault).randbytes(len(data))
        if "truncation" in faults:
            data = data[: len(data) // 2]
        if "checksum" in faults and data:
            data = damaged(data)
        if "duplicate" in faults:
            data = data + data
        if "reorder" in faults and data:
            data, self._held = (data + self._held, None) if self._held is not None else (b"", data)
        if "delay" in faults:
            self._late.append((asyncio.get_running_loop().time() + DELAY_S, data))
        else:
            self._ready += data

    def _other_device(self, data: bytes) -> bytes:
        """The answer of a device that is not the one expected: its vendor is another. Waits until the whole answer is there."""
        asked = self._asked
        if asked is None or asked.function != READ_HOLDING or (asked.read_address, asked.read_count) != (0, IDENTITY_WORDS):
            return data
        rtu = not asked.transaction and (self._identity or data)[0] == asked.unit
        start, size = (3, 5 + 2 * IDENTITY_WORDS) if rtu else (9, 9 + 2 * IDENTITY_WORDS)
        self._identity += data
        if len(self._identity) < size:
            return b""
        answer, rest = self._identity[:size], bytes(self._identity[size:])
        self._identity.clear()
        answer[start] ^= 0x55
        if rtu:
            answer[-2:] = crc16(answer[:-2]).to_bytes(2, "little")
        return bytes(answer) + rest


def damaged(data: bytes) -> bytes:
    """One bit turned where it makes the frame unsound: in the protocol number of a TCP header, else in the last byte."""
    tcp = len(data) >= 8 and data[2:4] == b"\x00\x00" and int.from_bytes(data[4:6], "big") == len(data) - 6
    place = 2 if tcp else len(data) - 1
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
