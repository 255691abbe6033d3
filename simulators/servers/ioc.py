"""The IOC: EPICS base's Channel Access server over the variables of a plant that lives in another process.

Run as ``python -m simulators.servers.ioc --fd N`` by `ioc_link.IocServer`, which tells it over the socket N what there is and
what the values are (`ioc_frames`). A process of its own because an IOC cannot be started twice, and because a client's
library does not work beside it. A client's put is passed to the plant, and completes when the plant has processed it.

Every variable is an output record, which takes a new value at once (an input record would take it in its own time, after
the completion of the put that caused it). Read-backs belong to an access security group that nobody may write.

Not responsible for what a variable means. It ends with its socket, and with its parent.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simulators.servers.ioc_frames import (
    Frame,
    FrameReader,
    Value,
    decode_done,
    decode_posts,
    encode_put,
    frame,
)

ACCESS = "ASG(DEFAULT) { RULE(1, WRITE) }\nASG(READBACK) { RULE(1, READ) }\n"
NO_ALARM, INVALID = 0, 3
WRITE_ALARM = 2  # EPICS alarm status of a value that could not be written
PR_SET_PDEATHSIG = 1
RECEIVE_BYTES = 1 << 18
SWITCH_S = 0.0005  # how long one thread of this process may make another wait


class Variable:
    """One record.

    `device` is softioc's device support of the record. While a client's put is with the plant the record is busy (EPICS:
    PACT), and what the plant posts meanwhile is shown when the put completes.
    """

    def __init__(self, name: str, kind: str, elements: int, writable: bool) -> None:
        self.name = name
        self.kind = kind
        self.elements = elements
        self.writable = writable
        self.device: Any = None
        self.busy = 0

    def build(self, builder: Any, initial: Value) -> None:
        """Make the record, before the IOC starts."""
        common: dict[str, Any] = {"initial_value": initial, "ASG": "DEFAULT" if self.writable else "READBACK"}
        if self.writable:
            common |= {"on_update": _passed_on, "always_update": True, "blocking": True}
        if self.kind == "int":
            builder.longOut(self.name, MDEL=-1, ADEL=-1, **common)
        elif self.kind == "double":
            builder.aOut(self.name, MDEL=-1, ADEL=-1, PREC=15, **common)
        elif self.kind == "string":
            builder.stringOut(self.name, MPST="Always", APST="Always", **common)
        else:
            datatype = np.int32 if self.kind == "int[]" else np.float64
            builder.WaveformOut(self.name, length=self.elements, datatype=datatype, **common)

    def show(self, value: Value, severity: int, put_field: Callable[..., None]) -> None:
        """Take a value from the plant and tell the clients. Never raises: what does not fit makes the record invalid."""
        device = self.device
        status = WRITE_ALARM if severity else NO_ALARM
        try:
            if isinstance(value, np.ndarray) and value.size > self.elements:
                raise ValueError(f"{value.size} elements, the record holds {self.elements}")
            epics = device._value_to_epics(value)
        except (ValueError, TypeError, OverflowError, AssertionError) as error:
            print(f"{self.name}: not shown: {error}", file=sys.stderr)
            epics, severity, status = device._value[0], INVALID, WRITE_ALARM
        device._value = (epics, severity, status)
        dbf, length, data, _alive = device._value_to_dbr(epics)
        if self.busy:
            device._record.NSEV, device._record.NSTA = severity, status
        put_field(self.name, dbf, data, length, not self.busy)


def _passed_on(_value: object) -> None:
    """The update handler that softioc asks for; the dispatcher below sends the value on instead of calling it."""


class Ioc:
    """The process: builds the records, shows what the plant posts, passes on what clients write."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._reader = FrameReader()
        self._variables: list[Variable] = []
        self._numbers: dict[int, int] = {}  # number by address of the record
        self._puts: dict[int, tuple[Variable, Callable[[], None]]] = {}
        self._last_put = 0
        self._sending = threading.Lock()
        self._posting = threading.get_ident()
        self._put_field: Callable[..., None] = lambda *_: None

    def run(self) -> None:
        """Serve until the plant closes the socket."""
        while True:
            data = self._link.recv(RECEIVE_BYTES)
            if not data:
                return
            for kind, body in self._reader.feed(data):
                if kind is Frame.POST:
                    self._show(body)
                elif kind is Frame.DONE:
                    self._complete(*decode_done(body))
                elif kind is Frame.CONFIGURE:
                    self._configure(json.loads(bytes(body)))

    def _configure(self, variables: list[list[Any]]) -> None:
        self._variables = [Variable(*entry) for entry in variables]

    def _show(self, body: memoryview) -> None:
        if self._numbers:
            for number, severity, value in decode_posts(body):
                self._variables[number].show(value, severity, self._put_field)
            return
        self._start({number: value for number, _, value in decode_posts(body)})

    def _start(self, initial: dict[int, Value]) -> None:
        """Build the records with the values that the first frame carries, and start serving."""
        from epicscorelibs.ioc import dbCore  # type: ignore[import-untyped]
        from softioc import builder, device_core, imports, softioc  # type: ignore[import-untyped]

        for number, variable in enumerate(self._variables):
            variable.build(builder, initial[number])
        builder.LoadDatabase()
        with tempfile.NamedTemporaryFile("w", suffix=".acf") as access:
            access.write(ACCESS)
            access.flush()
            dbCore.asSetFilename.argtypes = (ctypes.c_char_p,)
            dbCore.asSetFilename(access.name.encode())
            softioc.iocInit(self._dispatch, enable_pva=False)
        for number, variable in enumerate(self._variables):
            variable.device = device_core.LookupRecord(variable.name)
            self._numbers[variable.device._record.record.value] = number
        self._put_field = imports.db_put_field_process
        self._send(frame(Frame.READY))

    def _dispatch(
        self, _handler: object, func_args: tuple[Any, ...], completion: Callable[..., None], completion_args: tuple[Any, ...]
    ) -> None:
        """A record is processed (softioc calls this in the thread that writes to it, while it holds the record).

        Written by the plant: the record is done. Written by a client: the plant is asked, and the record waits.
        """
        (record,) = completion_args
        if threading.get_ident() == self._posting:
            record.PACT = 0
            return
        number = self._numbers[record.record.value]
        variable = self._variables[number]
        value = func_args[0]
        if isinstance(value, np.ndarray) and value.dtype != np.float64:
            value = value.astype(np.int32)
        with self._sending:
            self._last_put = put = (self._last_put + 1) & 0xFFFFFFFF
            variable.busy += 1
            self._puts[put] = variable, lambda: completion(record)
            self._link.sendall(encode_put(put, number, value))

    def _complete(self, put: int, _taken: bool) -> None:
        """The plant has processed a put; what it changed was shown before (one socket, in order)."""
        variable, completion = self._puts.pop(put)
        variable.busy -= 1
        completion()

    def _send(self, data: bytes) -> None:
        with self._sending:
            self._link.sendall(data)


def main() -> None:
    """Serve the variables told on the socket until it is closed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fd", type=int, required=True, help="the socket to the plant")
    parser.add_argument("--parent", type=int, required=True, help="its process id: this process ends with it")
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # a stopped process sees no end of its socket
    if os.getppid() != given.parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the socket
    sys.setswitchinterval(SWITCH_S)
    link = socket.socket(fileno=given.fd)
    code = 0
    try:
        Ioc(link).run()
    except (OSError, ValueError, AssertionError, KeyError) as error:
        code = 1
        try:
            link.sendall(frame(Frame.FAILED, f"{type(error).__name__}: {error}".encode()))
        except OSError:
            code = 2
    sys.stderr.flush()
    os._exit(code)  # EPICS base's own way out waits for its threads


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
