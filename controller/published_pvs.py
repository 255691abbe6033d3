"""The process that serves rooms as EPICS process variables, read-only: `python -m controller.published_pvs`.

One IOC a process (EPICS base starts once), so it is a child of the console and told by JSON lines on its standard input what
there is and what to show: first `{"have": [variables]}`, then `{"room": name, "set": [[number, value, severity, status, t_s]]}`
and `{"gone": name}`. It says `{"ready": true}` on the same socket. Every record belongs to an access security group that nobody
may write. When a room is silent for longer than `SILENT_S`, all it shows becomes invalid, whatever became of the console.

Not responsible for which variables there are (`published_pvs_table`). It ends with its socket, and with its parent.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from controller.published_pvs_table import (
    COMM_ALARM,
    INT_MAX,
    INVALID,
    TEXT_MAX,
    Sent,
    Variable,
)

ACCESS = "ASG(DEFAULT) { RULE(1, READ) }\n"
SILENT_S = 2.0  # views come ten times a second
RECEIVE_BYTES = 1 << 18
PR_SET_PDEATHSIG = 1  # linux/prctl.h
QUEUE_SIZE = 65_536  # records that EPICS base processes later; its own 2,000 lose some where many change at once
NOTHING = {"bool": 0, "int": 0, "double": float("nan"), "string": "", "text": "", "double[]": []}  # where nothing is known


class PublishedIoc:
    """The records, and what they are told.

    Args:
        link: the socket to the console.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._rest = b""
        self._variables: list[Variable] = []
        self._records: list[Any] = []
        self._posts: dict[str, dict[int, list[Any]]] = {}  # by room and number: what was told last
        self._heard_s: dict[str, float] = {}  # rooms that are told of

    def run(self) -> None:
        """Serve until the console closes the socket."""
        while True:
            for line in self._lines():
                self._take(json.loads(line))
            now_s = time.monotonic()  # no loop here: this process only waits for its socket
            for room, heard_s in tuple(self._heard_s.items()):
                if now_s - heard_s > SILENT_S:
                    self._gone(room)

    def _lines(self) -> Iterator[bytes]:
        """Whole lines that came within a moment; SystemExit when the console is gone."""
        if not select.select([self._link], [], [], SILENT_S / 4)[0]:
            return
        data = self._link.recv(RECEIVE_BYTES)
        if not data:
            raise SystemExit(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        yield from lines

    def _take(self, told: dict[str, Any]) -> None:
        if "have" in told:
            self._start([Variable(*entry) for entry in told["have"]])
            self._link.sendall(b'{"ready": true}\n')
        elif "set" in told:
            room, news = told["room"], {post[0]: post[1:] for post in told["set"]}
            posts = self._posts.setdefault(room, {})
            posts |= news
            due = news if room in self._heard_s else posts  # back again: what has not changed holds again, too
            for number, post in due.items():
                self._show(number, *post)
            self._heard_s[room] = time.monotonic()
        elif "gone" in told:
            self._gone(told["gone"])

    def _show(self, number: int, value: Sent | None, severity: int, status: int, t_s: float) -> None:
        shown: Any = NOTHING[self._variables[number].kind] if value is None else value
        if isinstance(shown, list):
            shown = [float("nan") if element is None else element for element in shown]
        self._records[number].set(shown, severity=severity, alarm=status, timestamp=t_s)

    def _gone(self, room: str) -> None:
        """Nobody tells of a room any more: its values stay to be read, and hold no longer."""
        self._heard_s.pop(room, None)
        for number in self._posts.get(room, ()):
            self._records[number].set_alarm(INVALID, COMM_ALARM)

    def _start(self, variables: Sequence[Variable]) -> None:
        """Build the records and serve them."""
        from epicscorelibs.ioc import dbCore  # type: ignore[import-untyped]
        from softioc import builder, softioc  # type: ignore[import-untyped]

        self._variables = list(variables)
        self._records = [_built(builder, variable) for variable in variables]
        builder.LoadDatabase()
        with tempfile.NamedTemporaryFile("w", suffix=".acf") as access:
            access.write(ACCESS)
            access.flush()
            dbCore.asSetFilename.argtypes = (ctypes.c_char_p,)
            dbCore.asSetFilename(access.name.encode())
            dbCore.callbackSetQueueSize(QUEUE_SIZE)
            softioc.iocInit(_nothing_to_dispatch, enable_pva=False)


def _built(builder: Any, variable: Variable) -> Any:
    """One input record: what is shown is shown with its own time (TSE) and whenever it changes."""
    common: dict[str, Any] = {"DESC": variable.meaning, "TSE": -2, "ASG": "DEFAULT"}
    if variable.kind == "bool":
        return builder.boolIn(variable.name, ZNAM="no", ONAM="yes", **common)
    if variable.kind == "int":
        return builder.longIn(variable.name, EGU=variable.unit, LOPR=-INT_MAX, HOPR=INT_MAX, **common)
    if variable.kind == "double":
        return builder.aIn(variable.name, EGU=variable.unit, PREC=6, **common)
    if variable.kind == "string":
        return builder.stringIn(variable.name, **common)
    if variable.kind == "text":
        return builder.longStringIn(variable.name, length=TEXT_MAX + 1, **common)
    return builder.WaveformIn(variable.name, length=variable.elements, datatype=float, EGU=variable.unit, **common)


def _nothing_to_dispatch(*_: object, **__: object) -> None:
    """Asked only when a client has written, and nobody may."""


def main() -> None:
    """Serve what the standard input tells of until it is closed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parent", type=int, required=True, help="its process id: this process ends with it")
    given = parser.parse_args()
    if sys.platform == "linux":  # a stopped process sees no end of its socket
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != given.parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the socket
    code = 0
    try:
        PublishedIoc(socket.socket(fileno=sys.stdin.fileno())).run()
    except SystemExit:
        pass
    except (OSError, ValueError, AssertionError, KeyError, IndexError, TypeError) as error:
        sys.stderr.write(f"published variables: {type(error).__name__}: {error}\n")
        code = 1
    sys.stderr.flush()
    os._exit(code)  # EPICS base's own way out waits for its threads


if __name__ == "__main__":
    main()
