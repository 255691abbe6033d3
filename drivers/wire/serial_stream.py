"""A serial line as a `Stream`: a tty (RS-485, RS-232, USB adapter) or a pty, by pyserial on asyncio.

A tty says nothing about who is at its other end: "gone" means that the tty itself has gone (adapter pulled out, pty closed).
Not responsible for frames, nor for which device answers where.
"""

from __future__ import annotations

import asyncio
import errno
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import serial
from serial_asyncio_fast import SerialTransport

from drivers.wire.stream import Stream, StreamOpener
from drivers.wire.transport_stream import STALL_S, TransportStream

_PTYS = "/dev/pts"
_REASONS = {
    errno.ENOENT: "there is no such serial line; is the adapter plugged in?",
    errno.ENODEV: "there is no device behind this serial line; is the adapter plugged in?",
    errno.ENXIO: "there is no device behind this serial line; is the adapter plugged in?",
    errno.EIO: "there is no device behind this serial line; is the adapter plugged in?",
    errno.EACCES: "this user may not use it; join the group that owns the device (often dialout)",
    errno.EPERM: "this user may not use it; join the group that owns the device (often dialout)",
    errno.EAGAIN: "another program uses this serial line",
    errno.EBUSY: "another program uses this serial line",
    errno.ENOTTY: "this is not a serial line",
}


def serial_opener(
    path: str,
    baudrate: int = 19200,
    parity: str = "E",
    stopbits: int = 1,
    *,
    exclusive: bool = True,
    stall_s: float = STALL_S,
) -> StreamOpener:
    """What opens a serial line anew each time it is called. Defaults are those of Modbus over Serial Line V1.02, section 2.

    Args:
        path: tty, for example ``"/dev/ttyUSB0"``; a symbolic link is followed anew at each opening.
        baudrate: bits per second; a pty ignores it.
        parity: ``"N"``, ``"E"`` or ``"O"``.
        stopbits: 1 or 2.
        exclusive: lock the line against other programs that ask for the lock, a second run of this one among them.
        stall_s: how long a write waits while no byte leaves.

    The opener raises ConnectionError, saying what to do, when the line does not exist, is in use or is not permitted.
    """

    def open_port() -> Any:
        # A pty carries no parity bit, and the C library refuses to change nothing else than the parity of one.
        bit = "N" if Path(path).resolve().is_relative_to(_PTYS) else parity
        return serial.Serial(path, baudrate, parity=bit, stopbits=stopbits, timeout=0, exclusive=exclusive or None)

    async def open_stream() -> Stream:
        try:
            port = await _in_thread(open_port)
            stream = SerialStream(path, port, stall_s)
            try:
                transport = _Transport(asyncio.get_running_loop(), stream, port)
            except BaseException:
                port.close()
                raise
        except (OSError, ValueError, termios.error) as error:
            raise ConnectionError(f"{path}: {_reason(error)}") from error
        stream.connection_made(transport)  # which the transport will say again in the next turn; the line is open now
        return stream

    return open_stream


class SerialStream(TransportStream):
    """A `TransportStream` on an open pyserial port."""

    def __init__(self, name: str, port: Any, stall_s: float) -> None:
        super().__init__(name, stall_s)
        self._port = port

    def connection_lost(self, error: Exception | None) -> None:
        """The tty is gone: pyserial's own words speak of its inside."""
        super().connection_lost(ConnectionResetError("the serial line has gone; is the adapter plugged in?") if error else None)

    def discard_input(self) -> int:
        """Throw away what has arrived, also what the operating system still holds: a stale answer carries no number."""
        count = super().discard_input()
        try:
            waiting = int(self._port.in_waiting)
            if waiting:
                self._port.reset_input_buffer()
        except (OSError, TypeError, termios.error):  # the tty is gone or closed; reading and writing will say so
            return count
        return count + waiting


class _Transport(SerialTransport):
    """The library's transport, which would tell the loop's exception handler of every adapter that is pulled out.

    A lost line is nothing unforeseen: the stream remembers it, and reads and writes say it.
    """

    def _fatal_error(self, exc: BaseException, message: str = "") -> None:
        self._abort(exc)


async def _in_thread(open_port: Callable[[], Any]) -> Any:
    """Open in a thread (an adapter may take its time); a port that was opened for nobody is closed."""
    opening = asyncio.get_running_loop().run_in_executor(None, open_port)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unwanted)
        raise


def _reason(error: BaseException) -> str:
    """What went wrong, in words that help; pyserial hides the system's error behind its own."""
    if isinstance(error.__context__, termios.error):
        error = error.__context__
    number = error.args[0] if error.args else None
    return _REASONS.get(number, str(error)) if isinstance(number, int) else str(error)


def _close_unwanted(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
