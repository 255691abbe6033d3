"""HTTP for clients that may never finish what they begin: a request whose head does not come in time is hung up.

Without it a few thousand connections that say nothing would leave none for those who have something to say, stop among them.
What is no HTTP is answered as everything else is, in words, and hung up. Not responsible for bodies (`guard`, `uploads`) nor
for WebSockets (`stream`).
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from controller.console.refused import Refused

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

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as HTTP, also in the middle of a body: nothing of it is done."""
        self._stop_waiting()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer to it is on its way already
            self.transport.close()
            return
        body = Refused(400, "this is no HTTP request", "see docs/console-api.md").body
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

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
