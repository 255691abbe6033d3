"""A Modbus client on one line: one transaction at a time, by whoever asks, with the errors named.

Reads are tried again after silence or garbage, anything that writes never is. An urgent write (a quick stop) goes before all
that wait. Not responsible for connection policy (`drivers.devices.connect`) or for what registers mean (`drivers.devices`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from drivers.hal.errors import CommunicationError, DataError, DeviceError
from drivers.wire.framing import Answer, ClientFramer, Kind, Query
from drivers.wire.stream import Stream, StreamOpener

NO_ANSWER = 2001
LINE_CLOSED = 2002
GARBAGE = 2003
UNANSWERED_MAX = 6  # assumed: a question and its repetitions, twice
WAITED = 2008  # a command whose time ran out while it waited for the line; it was not sent
REFUSED = 3001
TOO_OLD = 3004  # the device dropped a command by its token: docs/wires.md, "Old commands"

TOO_OLD_EXCEPTION = 7  # "negative acknowledge"

_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal register address",
    3: "illegal value",
    4: "device failure",
    5: "acknowledged, still working",
    6: "device busy",
    TOO_OLD_EXCEPTION: "the command is too old, nothing was changed",
}


@dataclass(slots=True)
class LineCounts:
    """What happened on a line since the start."""

    transactions: int = 0
    retries: int = 0
    silent: int = 0
    garbled: int = 0
    refused: int = 0


class Withheld(Exception):
    """A guarded write was not sent, because its guard said no when its turn came."""


class ModbusLine(Protocol):
    """What devices need of a Modbus line; fulfilled by `ModbusClient` and, for several lines, by `routed.RoutedClient`."""

    @property
    def name(self) -> str:
        """Endpoint, for messages."""
        ...

    @property
    def counts(self) -> LineCounts:
        """What happened since the start."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether the line is open. Says nothing about anyone at the other end."""
        ...

    async def connect(self) -> None:
        """Open the line unless it is open; see `ModbusClient.connect`."""
        ...

    async def close(self) -> None:
        """Let go of the line; it can be opened again."""
        ...

    async def read(self, unit: int, address: int, count: int) -> tuple[int, ...]:
        """Read holding registers of a node; see `ModbusClient.read`."""
        ...

    async def write(
        self, unit: int, address: int, values: Sequence[int], *, urgent: bool = False, within_s: float | None = None
    ) -> None:
        """Write registers of a node, once; see `ModbusClient.write`."""
        ...

    async def read_write(
        self,
        unit: int,
        read: tuple[int, int],
        write_address: int,
        values: Sequence[int],
        *,
        guard: Callable[[], bool] | None = None,
    ) -> tuple[int, ...]:
        """Write, then read, in one transaction, once; see `ModbusClient.read_write`."""
        ...


class ModbusClient:
    """The client's end of one Modbus line, shared by the devices on it.

    Args:
        name: endpoint, for messages.
        open_stream: opens the line; called by `connect`.
        framing: ``"rtu"`` or ``"tcp"``.
        timeout_s: longest wait for an answer. Assumed 50 ms: a status block takes 5 ms at 115,200 baud, and two tries must fit
            into the 200 ms after which a drive stops by itself.
        retries: how often a read is tried again.
    """

    def __init__(
        self,
        name: str,
        open_stream: StreamOpener,
        *,
        framing: Kind = "rtu",
        timeout_s: float = 0.05,
        retries: int = 2,
    ) -> None:
        self.name = name
        self.counts = LineCounts()
        self._open_stream = open_stream
        self._framer = ClientFramer(framing)
        self._timeout_s = timeout_s
        self._retries = retries
        self._stream: Stream | None = None
        self._busy = False
        self._unanswered = 0  # questions since anybody on this line last answered
        self._waiting: deque[asyncio.Future[None]] = deque()
        # An RTU answer carries no number. One that is still under way to somebody who gave up must not answer a like question.
        self._abandoned: tuple[Query, float] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the line is open. Says nothing about anyone at the other end."""
        return self._stream is not None

    async def connect(self) -> None:
        """Open the line unless it is open. One on which nobody has answered for a while is opened anew.

        A network may keep what was written to it for minutes; nothing of that arrives after it was opened again (promise S6).

        Raises:
            CommunicationError: nobody is there.
        """
        await self._acquire(urgent=False)
        try:
            if self._stream is not None and self._unanswered >= UNANSWERED_MAX:
                stream, self._stream = self._stream, None
                await stream.close()
            if self._stream is None:
                self._unanswered = 0
                stream = await self._open_stream()
                stream.discard_input()
                self._stream = stream
        except OSError as error:
            raise CommunicationError(f"cannot open: {error}", code=LINE_CLOSED, device=self.name, retryable=True) from error
        finally:
            self._release()

    async def close(self) -> None:
        """Let go of the line; it can be opened again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def read(self, unit: int, address: int, count: int) -> tuple[int, ...]:
        """Read `count` holding registers of a node, trying again after silence or garbage.

        Raises:
            CommunicationError: no sound answer after all tries, or the line is closed.
            DeviceError: the node refuses.
        """
        tries = self._retries
        while True:
            try:
                return (await self._transact(self._framer.read(unit, address, count))).registers
            except CommunicationError as error:
                if tries == 0 or error.code == LINE_CLOSED:
                    raise
                tries -= 1
                self.counts.retries += 1

    async def write(
        self, unit: int, address: int, values: Sequence[int], *, urgent: bool = False, within_s: float | None = None
    ) -> None:
        """Write registers of a node, once.

        Args:
            unit: node.
            address: first register.
            values: what to write.
            urgent: pass everyone who waits for the line (a quick stop).
            within_s: a command that has waited longer than this for the line is not sent any more.

        Raises:
            CommunicationError: no sound answer; the write may or may not have been taken. Code WAITED: it was not sent.
            DeviceError: the node refuses. Code TOO_OLD: it dropped a command that took too long to arrive.
            DataError: a value does not fit a register.
        """
        try:
            query = self._framer.write(unit, address, values)
        except ValueError as error:
            raise DataError(str(error), code=5001, device=self.name) from None
        if within_s is None:
            await self._transact(query, urgent=urgent)
            return
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        try:
            await self._transact(query, urgent=urgent, guard=lambda: loop.time() - asked_s <= within_s)
        except Withheld:
            raise CommunicationError(
                f"a command to node {unit} waited {(loop.time() - asked_s) * 1000:.0f} ms for the line,"
                f" limit {within_s * 1000:g} ms: not sent",
                code=WAITED,
                device=self.name,
                hint="give the command again; find out who keeps the line busy",
            ) from None

    async def read_write(
        self,
        unit: int,
        read: tuple[int, int],
        write_address: int,
        values: Sequence[int],
        *,
        guard: Callable[[], bool] | None = None,
    ) -> tuple[int, ...]:
        """Write registers, then read `read` = (address, count), in one transaction (function 23), once.

        Args:
            guard: asked when the turn has come, in the same step in which the frame leaves; False withholds the frame. What is
                guarded is a sign of life: it passes everyone who waits for the line.

        Raises:
            Withheld: the guard said no; nothing was sent.
            CommunicationError, DeviceError, DataError: as for `write`.
        """
        try:
            query = self._framer.read_write(unit, read[0], read[1], write_address, values)
        except ValueError as error:
            raise DataError(str(error), code=5001, device=self.name) from None
        return (await self._transact(query, urgent=guard is not None, guard=guard)).registers

    async def _transact(self, query: Query, *, urgent: bool = False, guard: Callable[[], bool] | None = None) -> Answer:
        if self._busy:
            await self._acquire(urgent)
        else:
            self._busy = True
        try:
            stream = self._stream
            if stream is None:
                raise CommunicationError("the line is not open", code=LINE_CLOSED, device=self.name, retryable=True)
            if self._abandoned is not None:
                await self._drain(stream, query)
            if guard is not None and not guard():
                raise Withheld
            answer = await self._ask(stream, query)
        except OSError as error:  # TimeoutError is handled where it can happen
            await self.close()
            raise CommunicationError(f"lost: {error}", code=LINE_CLOSED, device=self.name, retryable=True) from error
        finally:
            self._release()
        if answer.exception:
            self.counts.refused += 1
            why = _EXCEPTIONS.get(answer.exception, f"exception {answer.exception}")
            code = TOO_OLD if answer.exception == TOO_OLD_EXCEPTION else REFUSED
            raise DeviceError(f"node {query.head[0]} refuses function {query.head[1]}: {why}", code=code, device=self.name)
        return answer

    async def _ask(self, stream: Stream, query: Query) -> Answer:
        """Send a question and wait for its answer; the line is ours."""
        framer, timeout_s = self._framer, self._timeout_s
        self.counts.transactions += 1
        stream.discard_input()
        framer.expect(query)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        answered = False
        received = 0
        try:
            await stream.write(query.frame)
            data = await stream.read(512, timeout_s)
            while True:
                if not data:
                    raise ConnectionResetError("the other side closed the line")
                received += len(data)
                answer = framer.feed(data)
                if answer is not None:
                    answered = True
                    self._unanswered = 0
                    self._abandoned = None  # nodes answer in order: what was given up before is past
                    return answer
                data = await stream.read(512, deadline_s - loop.time())
        except TimeoutError:
            if received:
                self.counts.garbled += 1
                message = f"node {query.head[0]} answers garbage ({received} bytes within {timeout_s * 1000:g} ms)"
                raise CommunicationError(message, code=GARBAGE, device=self.name, retryable=True) from None
            self.counts.silent += 1
            message = f"node {query.head[0]} does not answer within {timeout_s * 1000:g} ms"
            raise CommunicationError(message, code=NO_ANSWER, device=self.name, retryable=True) from None
        finally:
            self._unanswered += not answered
            if not answered and self._framer.kind == "rtu":
                self._abandoned = (query, max(deadline_s, loop.time() + timeout_s / 2))

    async def _drain(self, stream: Stream, query: Query) -> None:
        """Wait out the answer to a question that was given up, when it could pass for an answer to this one."""
        if self._abandoned is None or self._abandoned[0].head != query.head:
            return
        (old, until_s), self._abandoned = self._abandoned, None
        loop = asyncio.get_running_loop()
        self._framer.expect(old)
        try:
            while (left_s := until_s - loop.time()) > 0:
                data = await stream.read(512, left_s)
                if not data or self._framer.feed(data) is not None:
                    return
        except TimeoutError:
            return

    async def _acquire(self, urgent: bool) -> None:
        """Wait for the line; in order, but urgent callers first."""
        if not self._busy:
            self._busy = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if urgent:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the line was ours for an instant: pass it on
                self._release()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        """Hand the line to the next who waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
