"""The plant on Modbus: answers requests on a byte stream from a set of nodes.

Frames are the only thing shared with the drivers (`drivers.wire.framing`). Not responsible for registers (`room_nodes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from drivers.wire.framing import DEVICE_FAILURE, Request, ServerFramer
from simulators.servers.modbus_node import ModbusNode, ModbusRefusal
from simulators.servers.room_nodes import motion_nodes, safety_nodes

__all__ = ["ByteStream", "ModbusNodes", "answer", "motion_nodes", "responder", "safety_nodes", "serve_stream"]

ModbusNodes = Mapping[int, ModbusNode]


class ByteStream(Protocol):
    """What the server needs of a stream: bytes in (empty when the other side is gone), bytes out."""

    async def read(self, n: int = ...) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


def answer(framer: ServerFramer, nodes: ModbusNodes, request: Request) -> bytes:
    """The frame that answers one request; empty when nobody answers."""
    node = nodes.get(request.unit)
    if node is None or node.silent:
        return b""
    if request.fault:
        return framer.refuse(request, request.fault)
    try:
        if request.write_values:
            node.write(request.write_address, request.write_values)
        registers = node.read(request.read_address, request.read_count) if request.read_count else ()
    except ModbusRefusal as refusal:
        return framer.refuse(request, refusal.code)
    except ArithmeticError:  # a planted fault made a value that no register holds
        return framer.refuse(request, DEVICE_FAILURE)
    return framer.answer(request, registers)


def responder(
    nodes: ModbusNodes, before: Callable[[], None], kind: Literal["rtu", "tcp"] = "rtu"
) -> Callable[[bytes], list[bytes]]:
    """What a line says to bytes that arrive: a frame for each request in them that somebody answers.

    Args:
        nodes: who answers here, by node number.
        before: called before each request; advances the plant to now.
        kind: framing of the line.
    """
    framer = ServerFramer(kind, tuple(nodes))

    def respond(data: bytes) -> list[bytes]:
        replies = []
        for request in framer.feed(data):
            before()
            reply = answer(framer, nodes, request)
            if reply:
                replies.append(reply)
        return replies

    return respond


async def serve_stream(
    stream: ByteStream, nodes: ModbusNodes, before: Callable[[], None], kind: Literal["rtu", "tcp"] = "rtu"
) -> None:
    """Answer requests on one connection until the other side is gone; arguments as for `responder`."""
    respond = responder(nodes, before, kind)
    while data := await stream.read():
        for reply in respond(data):
            try:
                await stream.write(reply)
            except ConnectionError:  # the client has gone while it waited; what it asked for has happened
                break
