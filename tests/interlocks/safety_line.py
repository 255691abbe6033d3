"""One room's safety node and permit relay on real time, on Modbus TCP, for tests of the interlock system as a process."""

import socket
import struct
import threading
import time

from safety_room import SafetyRoom


class SafetyLine:
    """A Modbus TCP server for one room on real time: nodes 1 and 2 of docs/wires.md, one connection at a time."""

    def __init__(self) -> None:
        self.room = SafetyRoom()
        self.answer = True
        self.spoil = lambda frame: frame
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.2)
        while True:
            try:
                head = connection.recv(7, socket.MSG_WAITALL)
            except TimeoutError:
                continue
            except OSError:
                return
            if len(head) < 7:
                connection.close()
                return
            transaction, _, length, node = struct.unpack(">HHHB", head)
            request = connection.recv(length - 1, socket.MSG_WAITALL)
            reply = self._reply(node, request)
            if self.answer:
                connection.sendall(self.spoil(struct.pack(">HHHB", transaction, 0, len(reply) + 1, node) + reply))

    def _reply(self, node: int, request: bytes) -> bytes:
        function, register, count = struct.unpack(">BHH", request[:5])
        self.room.now_ns = time.monotonic_ns()
        if function == 3:
            if register + count > 138:
                return bytes([0x83, 2])
            registers = list(self.room.read_image()) if node == 1 else [*[0] * 16, *self.room.read_pulses(), *[0] * 112]
            return struct.pack(f">BB{count}H", 3, 2 * count, *registers[register : register + count])
        values = struct.unpack(f">{count}H", request[6:])
        assert (function, node, register) == (16, 2, 16)
        self.room.write_permit(*values)
        return request[:5]


def wait_until(holds, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.005)
    return False
