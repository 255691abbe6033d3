"""HTTP for clients that may never finish what they begin: a request whose head does not come in time is hung up.

Without it a few thousand connections that say nothing would leave none for those who have something to say, stop among them.
Not responsible for bodies (`guard`, `uploads`) nor for WebSockets (`stream`).
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # from the connection, or from a request's first byte, to the end of its head; assumed


class PatientProtocol(H11Protocol):
    """For `uvicorn.Config(http=...)`."""

    _waiting: asyncio.TimerHandle | None = None
    _upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Part of a head, a head, or what follows one."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before or (self.cycle is not None and not self.cycle.response_complete):
            self._stop_waiting()  # a request has come, or its body is coming
        elif self._waiting is None and not self.transport.is_closing():
            self._wait()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """From now on it is another protocol's."""
        self._stop_waiting()
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    def _wait(self) -> None:
        if not self._upgraded:
            self._waiting = self.loop.call_later(HEAD_S, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _hang_up(self) -> None:
        self._waiting = None
        self.transport.abort()
