"""The smallest Modbus TCP client that can read and write holding registers, on a plain socket with time limits.

Not responsible for what the registers mean (`inputs`, `permit`). It never retries: the caller runs in a loop, and a lost link
is just what has to be noticed. Any fault closes the connection and raises OSError; the next call opens a new one.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

READ_HOLDING, WRITE_MULTIPLE = 3, 16


class ModbusError(OSError):
    """The other side answered something that is not an answer to what was asked."""


class ModbusTcp:
    """One connection to a Modbus TCP server.

    Args:
        host, port: where it listens.
        timeout_s: longest wait for connecting and for each answer; must be well inside the time after which the relay drops.
    """

    def __init__(self, host: str, port: int, timeout_s: float = 0.04) -> None:
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._transaction = 0

    def close(self) -> None:
        """Close; the next request opens again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def read(self, node: int, register: int, count: int) -> list[int]:
        """Read `count` (at most 125) holding registers."""
        answer = self._ask(node, struct.pack(">BHH", READ_HOLDING, register, count))
        if len(answer) != 2 + 2 * count or answer[1] != 2 * count:
            self.close()
            raise ModbusError(f"node {node}: {len(answer)} bytes instead of {count} registers from {register}")
        return list(struct.unpack(f">{count}H", answer[2:]))

    def write(self, node: int, register: int, values: Sequence[int]) -> None:
        """Write consecutive holding registers."""
        request = struct.pack(f">BHHB{len(values)}H", WRITE_MULTIPLE, register, len(values), 2 * len(values), *values)
        if self._ask(node, request) != request[:5]:
            self.close()
            raise ModbusError(f"node {node}: write of {len(values)} registers at {register} was not confirmed")

    def _ask(self, node: int, request: bytes) -> bytes:
        self._transaction = (self._transaction + 1) & 0xFFFF
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, self._timeout_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(struct.pack(">HHHB", self._transaction, 0, len(request) + 1, node) + request)
            transaction, protocol, length, unit = struct.unpack(">HHHB", self._receive(self._socket, 7))
            if (transaction, protocol, unit) != (self._transaction, 0, node) or not 3 <= length <= 254:
                raise ModbusError(f"node {node}: answer {transaction} of node {unit} to request {self._transaction}")
            answer = self._receive(self._socket, length - 1)
            if answer[0] != request[0]:
                raise ModbusError(f"node {node}: refused function {request[0]} with exception {answer[1]}")
        except OSError:
            self.close()
            raise
        return answer

    @staticmethod
    def _receive(connection: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = connection.recv(size - len(data))
            if not chunk:
                raise ModbusError("connection closed by the other side")
            data += chunk
        return data
