"""A TCP connection as a `Stream`: what answers immediately is sent immediately, and a dead peer is found out.

Not responsible for frames (Modbus TCP, or RTU over TCP to a serial server), nor for which device answers where.
"""

from __future__ import annotations

import asyncio
import socket

from drivers.wire.stream import Stream, StreamOpener
from drivers.wire.transport_stream import STALL_S, TransportStream

CONNECT_S = 1.0  # assumed: equipment on a local network answers in milliseconds
RECEIVE_BYTES = 4096  # per receive; asyncio's own 256 KiB is allocated each time and makes a round trip three times as long
SEND_BUFFER_BYTES = 65536  # what may wait in the operating system for a peer that does not read
KEEPALIVE_IDLE_S, KEEPALIVE_PAUSE_S, KEEPALIVE_PROBES = 1, 1, 3  # assumed: a peer that has vanished is found out in 4 s
UNACKNOWLEDGED_MS = 3000  # assumed: bytes that the peer's system does not acknowledge for so long end the connection


def tcp_opener(host: str, port: int, *, connect_s: float = CONNECT_S, stall_s: float = STALL_S) -> StreamOpener:
    """What opens a TCP connection anew each time it is called.

    Args:
        host: name or address.
        port: TCP port.
        connect_s: longest wait for the connection.
        stall_s: how long a write waits while no byte leaves.

    The opener raises ConnectionError when nobody answers there within `connect_s`.
    """
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def open_stream() -> Stream:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_s):
                transport, stream = await loop.create_connection(lambda: TransportStream(name, stall_s), host, port)
        except TimeoutError as error:
            raise ConnectionError(f"{name}: no connection within {connect_s:g} s") from error
        except (socket.gaierror, UnicodeError) as error:
            raise ConnectionError(f"{name}: this host name is not known ({error})") from error
        except ConnectionRefusedError as error:
            raise ConnectionRefusedError(f"{name}: nobody answers on this port") from error
        except OSError as error:
            raise ConnectionError(f"{name}: {error.strerror or error}") from error
        if transport.get_extra_info("sockname") == transport.get_extra_info("peername"):
            # On loopback a port without a server may be handed out as our own, and TCP then connects it to itself.
            await stream.close()
            raise ConnectionRefusedError(f"{name}: nobody answers on this port")
        try:
            settle(transport)
        except OSError as error:  # it was reset in the meantime
            await stream.close()
            raise ConnectionError(f"{name}: lost at once: {error.strerror or error}") from error
        return stream

    return open_stream


def settle(transport: asyncio.BaseTransport) -> None:
    """Set a connection up: no waiting for more to send, small receives, bounded sending, a dead peer found out in seconds."""
    transport.max_size = RECEIVE_BYTES  # type: ignore[attr-defined]  # of asyncio's own selector transport
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_PAUSE_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_MS),
    ):
        if hasattr(socket, option):  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
