"""Modbus frames as values, for both ends of a line: bytes in, requests or answers out. No I/O, no time, nothing else of ours.

Servers use `ServerFramer`, clients `ClientFramer`; both speak RTU (serial, CRC-16) and TCP (MBAP header). Parts of frames,
frames glued together and garbage between them are expected: the framers hunt for the next sound frame and count what they
threw away.

The function codes of our devices (3, 6, 16, 23) are packed and parsed here, because a pulse every 50 ms and every position
poll goes through this module; pymodbus sizes every other request, so that it can be answered with "illegal function", and
witnesses our frames in the tests.

Not responsible for what registers mean, for time-outs, retries or sharing a line (`drivers.wire.modbus`).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

Kind = Literal["rtu", "tcp"]

READ_HOLDING = 3
WRITE_SINGLE = 6
WRITE_MULTIPLE = 16
READ_WRITE = 23

ILLEGAL_FUNCTION = 1
ILLEGAL_ADDRESS = 2
ILLEGAL_VALUE = 3
DEVICE_FAILURE = 4

# Limits of the Modbus application protocol V1.1b3, sections 6.3, 6.12 and 6.17.
MAX_READ = 125
MAX_WRITE = 123
MAX_READ_WRITE_WRITE = 121
MAX_RTU_FRAME = 256
_ADDRESSES = 0x10000
_BUFFER_MAX = 2048
READS_KNOWN = 64

_HEADER = struct.Struct(">HHHB")  # MBAP: transaction, protocol 0, length, unit
_TWO = struct.Struct(">HH")
_WRITE_HEAD = struct.Struct(">HHB")
_READ_WRITE_HEAD = struct.Struct(">HHHHB")


class Request(NamedTuple):
    """What a client asks of a node.

    A pure read has no `write_values`, a pure write has `read_count` 0; function 23 writes first, then reads.
    `fault` is 0, or the exception code with which the request must be answered without being executed.
    """

    unit: int
    function: int
    read_address: int
    read_count: int
    write_address: int
    write_values: tuple[int, ...]
    transaction: int
    fault: int = 0


class Answer(NamedTuple):
    """What a node answers: registers (empty for a write), or the code of an exception."""

    registers: tuple[int, ...]
    exception: int = 0


class Query(NamedTuple):
    """A request ready to be sent, with what its answer must look like."""

    frame: bytes
    head: bytes  # unit, function and what else of the answer is known beforehand
    refusal: bytes  # unit and function of an exception answer
    body: int  # bytes of the answer's unit, function and data
    registers: int
    transaction: int
    begins: bytes  # first bytes of the answer's frame
    size: int  # of the answer's frame


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc16(data: bytes | bytearray) -> int:
    """CRC-16/MODBUS of `data`: polynomial 0x8005 reflected, start 0xFFFF; sent low byte first."""
    crc, table = 0xFFFF, _CRC_TABLE
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc


def _sound(buffer: bytes | bytearray, start: int, size: int) -> bool:
    """Whether the RTU frame of `size` bytes at `start` has a good checksum."""
    end = start + size - 2
    return crc16(buffer[start:end]) == buffer[end] | buffer[end + 1] << 8


@lru_cache(maxsize=256)
def _words(count: int) -> struct.Struct:
    return struct.Struct(f">{count}H")


def _pack(values: Sequence[int], limit: int) -> bytes:
    if not 1 <= len(values) <= limit:
        raise ValueError(f"{len(values)} registers in one frame, allowed 1 to {limit}")
    try:
        return _words(len(values)).pack(*values)
    except struct.error:
        raise ValueError(f"register values {list(values)} are not all in 0..65535") from None


def _span(address: int, count: int, limit: int) -> None:
    if not 1 <= count <= limit or not 0 <= address <= _ADDRESSES - count:
        raise ValueError(f"registers {address}..{address + count - 1} ({count}); allowed 1 to {limit} inside 0..65535")


def _wrap(kind: Kind, body: bytes, transaction: int) -> bytes:
    """Add checksum or header to unit, function and data."""
    if kind == "rtu":
        return body + crc16(body).to_bytes(2, "little")
    return _HEADER.pack(transaction, 0, len(body), body[0]) + body[1:]


class ClientFramer:
    """The client's side of one line: one question at a time, and the answer that belongs to it.

    Args:
        kind: ``"rtu"`` or ``"tcp"``.

    Attributes:
        garbage: bytes thrown away since the start, because they were no answer to the question asked.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.garbage = 0
        self._transaction = 0
        self._buffer = bytearray()
        self._query: Query | None = None
        self._reads: dict[tuple[int, int, int], Query] = {}

    def read(self, unit: int, address: int, count: int) -> Query:
        """Function 3: read `count` holding registers. ValueError when out of the protocol's range."""
        known = self._reads.get((unit, address, count))
        if known is None:
            _span(address, count, MAX_READ)
            body = bytes((unit, READ_HOLDING)) + _TWO.pack(address, count)
            known = self._query_of(body, bytes((unit, READ_HOLDING, 2 * count)), 3 + 2 * count, count)
            self._reads[unit, address, count] = known
        return self._numbered(known)

    def write(self, unit: int, address: int, values: Sequence[int]) -> Query:
        """Function 16: write holding registers. ValueError when a value or the span is out of range."""
        _span(address, len(values), MAX_WRITE)
        span = _TWO.pack(address, len(values))
        body = bytes((unit, WRITE_MULTIPLE)) + span + bytes((2 * len(values),)) + _pack(values, MAX_WRITE)
        return self._numbered(self._query_of(body, bytes((unit, WRITE_MULTIPLE)) + span, 6, 0))

    def read_write(self, unit: int, read_address: int, read_count: int, write_address: int, values: Sequence[int]) -> Query:
        """Function 23: write, then read, in one transaction. ValueError when a value or a span is out of range."""
        _span(read_address, read_count, MAX_READ)
        _span(write_address, len(values), MAX_READ_WRITE_WRITE)
        head = _READ_WRITE_HEAD.pack(read_address, read_count, write_address, len(values), 2 * len(values))
        body = bytes((unit, READ_WRITE)) + head + _pack(values, MAX_READ_WRITE_WRITE)
        return self._numbered(self._query_of(body, bytes((unit, READ_WRITE, 2 * read_count)), 3 + 2 * read_count, read_count))

    def expect(self, query: Query) -> None:
        """From now on look for the answer to `query`; what came before belongs to nobody."""
        self.garbage += len(self._buffer)
        self._buffer.clear()
        self._query = query

    def feed(self, data: bytes) -> Answer | None:
        """Take what arrived; the answer once it is complete and sound, None until then."""
        query = self._query
        if query is None:
            self.garbage += len(data)
            return None
        buffer = self._buffer
        if not buffer and len(data) == query.size and data.startswith(query.begins):  # nearly always: the answer alone
            if self.kind == "tcp":
                self._query = None
                return _answer(data, 6, query, refused=False)
            if _sound(data, 0, len(data)):
                self._query = None
                return _answer(data, 0, query, refused=False)
        buffer += data
        found = self._find(buffer, query)
        if found is None:
            if len(buffer) > _BUFFER_MAX:
                self.garbage += len(buffer) - MAX_RTU_FRAME
                del buffer[:-MAX_RTU_FRAME]
            return None
        start, end, answer = found
        self.garbage += start + len(buffer) - end
        buffer.clear()
        self._query = None
        return answer

    def _query_of(self, body: bytes, head: bytes, answer_body: int, registers: int) -> Query:
        refusal = bytes((body[0], body[1] | 0x80))
        if self.kind == "rtu":
            return Query(_wrap("rtu", body, 0), head, refusal, answer_body, registers, 0, head, answer_body + 2)
        begins = b"\0\0" + answer_body.to_bytes(2, "big") + head
        return Query(body, head, refusal, answer_body, registers, 0, begins, answer_body + 6)

    def _numbered(self, query: Query) -> Query:
        """Give a TCP query its transaction number; RTU has none."""
        if self.kind == "rtu":
            return query
        self._transaction = number = self._transaction % 0xFFFF + 1
        body, head, refusal, answer_body, registers, _, begins, size = query
        frame = _wrap("tcp", body, number)
        return Query(frame, head, refusal, answer_body, registers, number, frame[:2] + begins, size)

    def _find(self, buffer: bytearray, query: Query) -> tuple[int, int, Answer] | None:
        """Where the answer lies in the buffer, and what it says."""
        if self.kind == "rtu":
            for head, body in ((query.head, query.body), (query.refusal, 3)):
                start = buffer.find(head)
                while 0 <= start <= len(buffer) - body - 2:
                    end = start + body
                    if _sound(buffer, start, body + 2):
                        return start, end + 2, _answer(buffer, start, query, refused=head is query.refusal)
                    start = buffer.find(head, start + 1)
            return None
        number = query.transaction.to_bytes(2, "big") + b"\0\0"
        for head, body in ((query.head, query.body), (query.refusal, 3)):
            start = buffer.find(number + body.to_bytes(2, "big") + head)
            if 0 <= start <= len(buffer) - body - 6:
                return start, start + 6 + body, _answer(buffer, start + 6, query, refused=head is query.refusal)
        return None


def _answer(buffer: bytes | bytearray, start: int, query: Query, *, refused: bool) -> Answer:
    if refused:
        return Answer((), buffer[start + 2])
    if not query.registers:
        return Answer(())
    return Answer(_words(query.registers).unpack_from(buffer, start + 3))


class ServerFramer:
    """The server's side of one line: requests out of bytes, and the frames that answer them.

    Args:
        kind: ``"rtu"`` or ``"tcp"``.
        units: nodes that answer here; frames for others are passed over in silence (RTU: they belong to another
            device on the bus). None takes all.

    Attributes:
        garbage: bytes thrown away since the start.
    """

    def __init__(self, kind: Kind, units: Collection[int] | None = None) -> None:
        self.kind: Kind = kind
        self.garbage = 0
        self._units = frozenset(units) if units is not None else None
        self._buffer = bytearray()
        self._reads: dict[bytes, Request] = {}  # requests to read that were understood before: RTU repeats them bit by bit

    def feed(self, data: bytes) -> list[Request]:
        """Take what arrived; every complete and sound request in it, in order."""
        if not self._buffer and (request := self._single(data)) is not None:
            return [request]
        buffer = self._buffer
        buffer += data
        requests: list[Request] = []
        start = 0
        overhead = 2 if self.kind == "rtu" else 0
        while True:
            size = self._size(buffer, start)
            if size is None:  # nothing can begin here
                start += 1
                self.garbage += 1
                continue
            if size and start + size <= len(buffer):
                if overhead and not _sound(buffer, start, size):
                    start += 1
                    self.garbage += 1
                    continue
                request = self._parse(bytes(buffer[start : start + size - overhead]))
                if self._units is None or request.unit in self._units or request.unit == 0:
                    requests.append(request)
                start += size
                continue
            # Too few bytes: either the rest comes later, or this is garbage in front of a sound frame.
            later = self._next_sound(buffer, start + 1)
            if later is None:
                break
            self.garbage += later - start
            start = later
        del buffer[:start]
        if len(buffer) > _BUFFER_MAX:
            self.garbage += len(buffer)
            buffer.clear()
        return requests

    def _single(self, data: bytes) -> Request | None:
        """The request when `data` is one sound frame for us and nothing else, as nearly always; None sends it the long way."""
        known = self._reads.get(data)
        if known is not None:
            return known
        if self._size(data, 0) != len(data) or not data:
            return None
        rtu = self.kind == "rtu"
        if rtu and not _sound(data, 0, len(data)):
            return None
        request = self._parse(data[:-2] if rtu else data)
        if self._units is not None and request.unit not in self._units:
            return None
        if rtu and request.function == READ_HOLDING and len(self._reads) < READS_KNOWN:
            self._reads[bytes(data)] = request
        return request

    def idle(self) -> None:
        """The line was silent for longer than a frame allows: an unfinished frame will never be finished."""
        self.garbage += len(self._buffer)
        self._buffer.clear()

    def answer(self, request: Request, registers: Sequence[int] = ()) -> bytes:
        """The frame that answers `request` with what was read (empty after a write); empty for a broadcast (unit 0)."""
        if request.unit == 0:
            return b""
        if request.read_count:
            if len(registers) != request.read_count:
                raise ValueError(f"{len(registers)} registers for a request of {request.read_count}")
            body = bytes((request.unit, request.function, 2 * request.read_count)) + _pack(registers, MAX_READ)
        elif request.function == WRITE_SINGLE:
            body = bytes((request.unit, WRITE_SINGLE)) + _TWO.pack(request.write_address, request.write_values[0])
        else:
            body = bytes((request.unit, request.function)) + _TWO.pack(request.write_address, len(request.write_values))
        return _wrap(self.kind, body, request.transaction)

    def refuse(self, request: Request, exception: int) -> bytes:
        """The frame that answers `request` with an exception code; empty for a broadcast (unit 0)."""
        if request.unit == 0:
            return b""
        return _wrap(self.kind, bytes((request.unit, request.function | 0x80, exception)), request.transaction)

    def _size(self, buffer: bytes | bytearray, start: int) -> int | None:
        """Size of the frame that begins at `start`; 0 when too few bytes are there to tell, None when none can begin here."""
        return self._rtu_size(buffer, start) if self.kind == "rtu" else _tcp_size(buffer, start)

    def _rtu_size(self, buffer: bytes | bytearray, start: int) -> int | None:
        left = len(buffer) - start
        if left < 2:
            return 0
        if self._units is not None and buffer[start] not in self._units and buffer[start] != 0:
            return None
        function = buffer[start + 1]
        if function in (READ_HOLDING, WRITE_SINGLE):
            return 8
        if function == WRITE_MULTIPLE:
            size = 9 + buffer[start + 6] if left > 6 else 0
        elif function == READ_WRITE:
            size = 13 + buffer[start + 10] if left > 10 else 0
        else:
            return _foreign_size(bytes(buffer[start : start + MAX_RTU_FRAME]))
        return size if size <= MAX_RTU_FRAME else None

    def _next_sound(self, buffer: bytearray, start: int) -> int | None:
        """Offset of the first complete frame with a good checksum at or after `start`."""
        for offset in range(start, len(buffer) - 7):
            size = self._size(buffer, offset)
            if not size or offset + size > len(buffer):
                continue
            if self.kind == "tcp" or _sound(buffer, offset, size):
                return offset
        return None

    def _parse(self, frame: bytes) -> Request:
        """Read a sound frame, without its checksum."""
        transaction, body = (0, frame) if self.kind == "rtu" else (int.from_bytes(frame[:2], "big"), frame[6:])
        unit, function, data = body[0], body[1], body[2:]
        if function == READ_HOLDING and len(data) == 4:
            address, count = _TWO.unpack(data)
            return Request(unit, function, address, count, 0, (), transaction, _fault(address, count, MAX_READ))
        if function == WRITE_SINGLE and len(data) == 4:
            address, value = _TWO.unpack(data)
            return Request(unit, function, 0, 0, address, (value,), transaction)
        if function == WRITE_MULTIPLE and len(data) >= 5:
            address, count, size = _WRITE_HEAD.unpack_from(data)
            values = _values(data, 5, count, size)
            fault = _fault(address, count, MAX_WRITE) or (0 if values else ILLEGAL_VALUE)
            return Request(unit, function, 0, 0, address, values, transaction, fault)
        if function == READ_WRITE and len(data) >= 9:
            read_address, read_count, address, count, size = _READ_WRITE_HEAD.unpack_from(data)
            values = _values(data, 9, count, size)
            fault = _fault(read_address, read_count, MAX_READ) or _fault(address, count, MAX_READ_WRITE_WRITE)
            fault = fault or (0 if values else ILLEGAL_VALUE)
            return Request(unit, function, read_address, read_count, address, values, transaction, fault)
        return Request(unit, function, 0, 0, 0, (), transaction, ILLEGAL_FUNCTION)


def _values(data: bytes, offset: int, count: int, size: int) -> tuple[int, ...]:
    """Register values of a write; empty when the byte count contradicts the register count."""
    if size != 2 * count or len(data) != offset + size:
        return ()
    return _words(count).unpack_from(data, offset)


def _fault(address: int, count: int, limit: int) -> int:
    if not 1 <= count <= limit:
        return ILLEGAL_VALUE
    return ILLEGAL_ADDRESS if address + count > _ADDRESSES else 0


def _tcp_size(buffer: bytes | bytearray, start: int) -> int | None:
    """Size of a TCP frame at `start`; 0 when too few bytes are there, None when none can begin here.

    Out of step (away from the start) only frames of our functions with consistent lengths are believed: TCP has no checksum.
    """
    if len(buffer) - start < 8:
        return 0
    _, protocol, length, _ = _HEADER.unpack_from(buffer, start)
    if protocol or not 2 <= length <= MAX_RTU_FRAME - 2:
        return None
    function = buffer[start + 7]
    if function in (READ_HOLDING, WRITE_SINGLE):
        return 6 + length if length == 6 else None
    if function == WRITE_MULTIPLE:
        return None if len(buffer) - start > 12 and length != 7 + buffer[start + 12] else 6 + length
    if function == READ_WRITE:
        return None if len(buffer) - start > 16 and length != 11 + buffer[start + 16] else 6 + length
    return 6 + length if start == 0 and 0 < function < 0x80 else None


@lru_cache(maxsize=1)
def _foreign_decoder() -> Any:
    from pymodbus.pdu import DecodePDU  # 60 ms of import that our own function codes never need

    return DecodePDU(is_server=True)


def _foreign_size(data: bytes) -> int | None:
    """Size of an RTU request of a function code outside ours, by pymodbus; None when it knows no such request."""
    from pymodbus.exceptions import ModbusException

    if data[1] & 0x80:
        return None
    try:
        request_class = _foreign_decoder().lookupPduClass(data)
        size = int(request_class.calculateRtuFrameSize(data)) if request_class is not None else None
    except IndexError:
        return 0
    except ModbusException:
        return None
    return size if size is None or size <= MAX_RTU_FRAME else None
