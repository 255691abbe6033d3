"""Frames on a Modbus line: what is sent is what is understood, whatever else is on the wire."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU
from pymodbus.pdu.exceptionresponse import ExceptionResponse
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadHoldingRegistersResponse,
    ReadWriteMultipleRegistersRequest,
    ReadWriteMultipleRegistersResponse,
    WriteMultipleRegistersRequest,
    WriteMultipleRegistersResponse,
    WriteSingleRegisterRequest,
)

from drivers.wire import framing
from drivers.wire.framing import ClientFramer, Kind, Query, ServerFramer

KINDS: tuple[Kind, ...] = ("rtu", "tcp")
WITNESS = {"rtu": FramerRTU, "tcp": FramerSocket}


def queries(client: ClientFramer) -> list[tuple[Query, list[int]]]:
    """One question of each kind with the registers a node would answer."""
    return [
        (client.read(3, 32, 4), [1, 0xFFFF, 0, 40000]),
        (client.write(2, 16, [6, 0xFFFF, 7]), []),
        (client.read_write(1, 8, 3, 128, [17, 4]), [9, 8, 7]),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_server_understands_what_the_client_asks_and_the_client_what_it_answers(kind: Kind) -> None:
    client, server = ClientFramer(kind), ServerFramer(kind)
    for query, registers in queries(client):
        client.expect(query)
        (request,) = server.feed(query.frame)
        answer = client.feed(server.answer(request, registers))
        assert answer is not None
        assert (list(answer.registers), answer.exception) == (registers, 0)
    assert client.garbage == server.garbage == 0


@pytest.mark.parametrize("kind", KINDS)
def test_requests_carry_addresses_and_values_unchanged(kind: Kind) -> None:
    client, server = ClientFramer(kind), ServerFramer(kind)
    (read,) = server.feed(client.read(3, 32, 4).frame)
    (write,) = server.feed(client.write(2, 16, [6, 0xFFFF, 7]).frame)
    (both,) = server.feed(client.read_write(1, 8, 3, 128, [17, 4]).frame)
    assert read[:6] == (3, 3, 32, 4, 0, ())
    assert write[:6] == (2, 16, 0, 0, 16, (6, 0xFFFF, 7))
    assert both[:6] == (1, 23, 8, 3, 128, (17, 4))
    assert read.fault == write.fault == both.fault == 0


@pytest.mark.parametrize("kind", KINDS)
def test_pymodbus_reads_our_requests(kind: Kind) -> None:
    client = ClientFramer(kind)
    witness = WITNESS[kind](DecodePDU(is_server=True))
    (read, _), (write, _), (both, _) = queries(client)
    _, pdu = witness.handleFrame(read.frame, 0, 0)
    assert isinstance(pdu, ReadHoldingRegistersRequest)
    assert (pdu.dev_id, pdu.address, pdu.count) == (3, 32, 4)
    _, pdu = witness.handleFrame(write.frame, 0, 0)
    assert isinstance(pdu, WriteMultipleRegistersRequest)
    assert (pdu.dev_id, pdu.address, list(pdu.registers)) == (2, 16, [6, 0xFFFF, 7])
    _, pdu = witness.handleFrame(both.frame, 0, 0)
    assert isinstance(pdu, ReadWriteMultipleRegistersRequest)
    assert (pdu.dev_id, pdu.read_address, pdu.read_count) == (1, 8, 3)
    assert (pdu.write_address, list(pdu.write_registers)) == (128, [17, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_our_client_reads_answers_written_by_pymodbus(kind: Kind) -> None:
    client = ClientFramer(kind)
    witness = WITNESS[kind](DecodePDU(is_server=True))
    responses = [
        ReadHoldingRegistersResponse(registers=[1, 0xFFFF, 0, 40000], dev_id=3),
        WriteMultipleRegistersResponse(address=16, count=3, dev_id=2),
        ReadWriteMultipleRegistersResponse(registers=[9, 8, 7], dev_id=1),
    ]
    for (query, registers), response in zip(queries(client), responses, strict=True):
        client.expect(query)
        response.transaction_id = query.transaction
        answer = client.feed(witness.buildFrame(response))
        assert answer is not None
        assert list(answer.registers) == registers
        client.expect(query)
        refusal = ExceptionResponse(query.head[1], 2, device_id=query.head[0])
        refusal.transaction_id = query.transaction
        answer = client.feed(witness.buildFrame(refusal))
        assert answer is not None
        assert answer.exception == 2


@pytest.mark.parametrize("kind", KINDS)
def test_pymodbus_reads_our_answers(kind: Kind) -> None:
    client, server = ClientFramer(kind), ServerFramer(kind)
    witness = WITNESS[kind](DecodePDU(is_server=False))
    for query, registers in queries(client):
        (request,) = server.feed(query.frame)
        _, pdu = witness.handleFrame(server.answer(request, registers), request.unit, request.transaction)
        assert pdu is not None
        assert not pdu.isError()
        if registers:
            assert list(pdu.registers) == registers
        _, pdu = witness.handleFrame(server.refuse(request, framing.ILLEGAL_ADDRESS), request.unit, request.transaction)
        assert pdu is not None
        assert pdu.isError()
        assert pdu.exception_code == 2


@pytest.mark.parametrize("kind", KINDS)
def test_server_understands_requests_written_by_pymodbus(kind: Kind) -> None:
    witness = WITNESS[kind](DecodePDU(is_server=False))
    server = ServerFramer(kind)
    (single,) = server.feed(
        witness.buildFrame(WriteSingleRegisterRequest(address=16, registers=[6], dev_id=1, transaction_id=9))
    )
    assert (single.write_address, single.write_values, single.fault) == (16, (6,), 0)
    (read,) = server.feed(witness.buildFrame(ReadHoldingRegistersRequest(address=32, count=10, dev_id=2)))
    assert (read.unit, read.read_address, read.read_count) == (2, 32, 10)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=12))
def test_frames_may_arrive_in_pieces_or_glued(kind: Kind, cuts: list[int]) -> None:
    client, server = ClientFramer(kind), ServerFramer(kind, units=(1, 2, 3))
    stream = b"".join(query.frame for query, _ in queries(client))
    edges = sorted({0, len(stream), *(min(c, len(stream)) for c in cuts)})
    requests = [r for a, b in itertools.pairwise(edges) for r in server.feed(stream[a:b])]
    assert [(r.unit, r.function) for r in requests] == [(3, 3), (2, 16), (1, 23)]
    assert server.garbage == 0


@settings(max_examples=200, deadline=None)
@given(before=st.binary(max_size=80), kind=st.sampled_from(KINDS))
def test_server_finds_a_sound_request_behind_garbage(before: bytes, kind: Kind) -> None:
    server = ServerFramer(kind, units=(1, 2, 3))
    query = ClientFramer(kind).write(2, 16, [6, 7])
    requests = server.feed(before)
    requests += server.feed(query.frame)
    if not any((r.unit, r.write_address, r.write_values) == (2, 16, (6, 7)) for r in requests):
        # Garbage whose header promises more bytes than have come may hide it until the line falls silent.
        server.idle()
        requests = server.feed(query.frame)
    assert requests[-1].write_values == (6, 7)


@settings(max_examples=200, deadline=None)
@given(before=st.binary(max_size=80), after=st.binary(max_size=20), kind=st.sampled_from(KINDS))
def test_client_finds_its_answer_between_garbage(before: bytes, after: bytes, kind: Kind) -> None:
    client, server = ClientFramer(kind), ServerFramer(kind)
    query = client.read(3, 32, 4)
    (request,) = server.feed(query.frame)
    client.expect(query)
    answer = client.feed(before) or client.feed(server.answer(request, [5, 6, 7, 8]) + after)
    assert answer is not None
    assert answer.registers == (5, 6, 7, 8)


def test_a_flipped_bit_is_never_an_answer() -> None:
    client, server = ClientFramer("rtu"), ServerFramer("rtu")
    query = client.read(3, 32, 4)
    (request,) = server.feed(query.frame)
    frame = server.answer(request, [5, 6, 7, 8])
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        client.expect(query)
        assert client.feed(bytes(damaged)) is None


def test_a_flipped_bit_is_never_a_motion_command() -> None:
    query = ClientFramer("rtu").write(1, 16, [0x1F])
    for bit in range(8 * len(query.frame)):
        damaged = bytearray(query.frame)
        damaged[bit // 8] ^= 1 << bit % 8
        assert ServerFramer("rtu").feed(bytes(damaged)) == []


def test_answers_of_other_nodes_and_of_older_questions_are_not_taken() -> None:
    client, server = ClientFramer("tcp"), ServerFramer("tcp")
    old, new = client.read(1, 8, 2), client.read(1, 8, 2)
    (first, second) = server.feed(old.frame + new.frame)
    client.expect(new)
    assert client.feed(server.answer(first, [1, 1])) is None
    answer = client.feed(server.answer(second, [2, 2]))
    assert answer is not None
    assert answer.registers == (2, 2)
    other = ClientFramer("rtu")
    other.expect(other.read(1, 32, 1))
    (request,) = ServerFramer("rtu").feed(ClientFramer("rtu").read(2, 32, 1).frame)
    assert other.feed(ServerFramer("rtu").answer(request, [7])) is None


def test_a_node_is_silent_about_requests_for_others() -> None:
    server = ServerFramer("rtu", units=(1, 2))
    assert server.feed(ClientFramer("rtu").read(7, 0, 1).frame) == []
    assert [r.unit for r in server.feed(ClientFramer("rtu").read(2, 0, 1).frame)] == [2]


def test_requests_outside_the_protocol_carry_the_exception_that_answers_them() -> None:
    server = ServerFramer("rtu")
    body = bytes((1, 3, 0, 0, 0, 200))
    (too_many,) = server.feed(body + framing.crc16(body).to_bytes(2, "little"))
    assert too_many.fault == framing.ILLEGAL_VALUE
    body = bytes((1, 3, 0xFF, 0xFF, 0, 2))
    (past_the_end,) = server.feed(body + framing.crc16(body).to_bytes(2, "little"))
    assert past_the_end.fault == framing.ILLEGAL_ADDRESS
    body = bytes((1, 1, 0, 0, 0, 2))  # read coils: we have none
    (coils,) = server.feed(body + framing.crc16(body).to_bytes(2, "little"))
    assert coils.fault == framing.ILLEGAL_FUNCTION
    assert server.refuse(coils, coils.fault)[1:3] == bytes((0x81, 1))
    body = bytes((1, 16, 0, 16, 0, 2, 2, 0, 1))  # two registers promised, one sent
    (short,) = server.feed(body + framing.crc16(body).to_bytes(2, "little"))
    assert short.fault == framing.ILLEGAL_VALUE


def test_a_broadcast_is_executed_and_never_answered() -> None:
    server = ServerFramer("rtu", units=(1,))
    (request,) = server.feed(ClientFramer("rtu").write(0, 16, [0]).frame)
    assert request.write_values == (0,)
    assert server.answer(request) == b""
    assert server.refuse(request, 1) == b""


@pytest.mark.parametrize(
    ("address", "values"), [(16, [70000]), (16, [-1]), (65535, [1, 2]), (-1, [1]), (0, []), (0, [0] * 124)]
)
def test_what_does_not_fit_a_frame_is_refused_before_it_is_sent(address: int, values: list[int]) -> None:
    with pytest.raises(ValueError, match="register"):
        ClientFramer("rtu").write(1, address, values)


def test_noise_without_end_does_not_grow_memory() -> None:
    noise = random.Random(1)
    client, server = ClientFramer("rtu"), ServerFramer("rtu", units=(1,))
    client.expect(client.read(1, 0, 125))
    for _ in range(300):
        chunk = noise.randbytes(64)
        client.feed(chunk)
        server.feed(chunk)
    assert len(client._buffer) < 4096
    assert len(server._buffer) < 4096
    assert client.garbage > 10_000
