"""The broker of a simulated facility: amqtt in a process of its own, or one that is there already (Mosquitto, for example).

`python -m simulators.servers.broker --port N` serves on the loopback, says READY with its port, and ends with its parent (whose
end of its standard input closes). amqtt is a convenience, not a witness: it keeps no persistent sessions, lets two clients of
one name stay, and sends the last will of a client that is lost but never of one that hangs. Not responsible for what is
published.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from simulators.leash import leashed

LOOPBACK = "127.0.0.1"
START_S = 15.0  # assumed: an interpreter and its imports on a busy machine
REACH_S = 3.0
READY, FAILED = "READY", "FAILED"
LINE_MAX = 500
# MQTT 3.1.1: CONNECT with a clean session and no name, the CONNACK that accepts it, DISCONNECT.
CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00"
ACCEPTED = b"\x20\x02\x00\x00"
DISCONNECT = b"\xe0\x00"


class BrokerError(RuntimeError):
    """A broker does not start or does not answer; the message says where."""


class Broker(Protocol):
    """A broker that can be started and stopped."""

    @property
    def endpoint(self) -> str: ...

    async def start(self, timeout_s: float = ..., /) -> None: ...

    async def stop(self) -> None: ...


class ExternalBroker:
    """A broker that somebody else runs.

    Args:
        host, port: where it listens.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    @property
    def endpoint(self) -> str:
        """Its address, for an endpoint map."""
        return f"mqtt://{self.host}:{self.port}"

    async def start(self, timeout_s: float = REACH_S) -> None:
        """Check that it takes clients. Raises BrokerError."""
        await greet(self.host, self.port, timeout_s)

    async def stop(self) -> None:
        """Leave it running."""


class BrokerServer:
    """amqtt in a child process, on the loopback.

    Args:
        port: 0 takes a free one at the first start; it is kept over restarts.
        lost: called in the loop when the process has gone without being asked to.

    Attributes:
        port: known after the first start.
    """

    def __init__(self, port: int = 0, *, lost: Callable[[], None] | None = None) -> None:
        self.port = port
        self._lost = lost
        self._process: subprocess.Popen[bytes] | None = None
        self._ear: _Ear | None = None

    @property
    def endpoint(self) -> str:
        """Its address, for an endpoint map."""
        return f"mqtt://{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id; None when it does not live."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process lives (a suspended one lives)."""
        return self._process is not None

    async def start(self, timeout_s: float = START_S) -> None:
        """Start it and wait until it takes clients.

        Raises:
            BrokerError: it cannot be started; the message says why.
            TimeoutError: it does not serve within `timeout_s`.
        """
        if self._process is not None:
            raise BrokerError(f"the broker at {self.endpoint} runs already")
        self.port = self.port or free_port()
        loop = asyncio.get_running_loop()
        process = self._process = self._spawn()
        ear = self._ear = _Ear(loop.create_future(), self._gone)
        try:
            await loop.connect_read_pipe(lambda: ear, process.stdout)
            word, _, rest = (await asyncio.wait_for(ear.said, timeout_s)).partition(" ")
            if word != READY:
                raise BrokerError(f"the broker does not start at {self.endpoint}: {rest or 'it ended without a word'}")
            await greet(LOOPBACK, self.port, timeout_s)
        except BaseException:
            self.kill()
            raise

    async def stop(self) -> None:
        """End it in good order, or with force when it takes longer than 2 s."""
        process = self._release()
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        for _ in range(200):
            if process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        process.kill()
        process.wait()

    def kill(self) -> None:
        """SIGKILL: clients see the connection break, and what it kept is lost."""
        process = self._release()
        if process is not None:
            process.kill()
            process.wait()

    async def restart(self, timeout_s: float = START_S) -> None:
        """Kill it if it lives, and start it on the same port."""
        self.kill()
        await self.start(timeout_s)

    def suspend(self) -> None:
        """SIGSTOP: connected, silent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _spawn(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-m", "simulators.servers.broker", "--port", str(self.port)]
        return subprocess.Popen(
            leashed(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the simulator, which ends its servers in order
        )

    def _release(self) -> subprocess.Popen[bytes] | None:
        """Let go of the pipes; the end of the process is told to nobody any more."""
        process, self._process = self._process, None
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.shut()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        return process

    def _gone(self) -> None:
        """Its end of the pipe was closed: it is dead, and nobody here wanted that."""
        process = self._release()
        if process is not None:
            process.wait()
            if self._lost is not None:
                self._lost()


class _Ear(asyncio.Protocol):
    """Hears the first line that the process says, and its end."""

    def __init__(self, said: asyncio.Future[str], gone: Callable[[], None]) -> None:
        self.said = said
        self._gone: Callable[[], None] | None = gone
        self._heard = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard = (self._heard + data)[:LINE_MAX]
        line, end, _ = self._heard.partition(b"\n")
        if end and not self.said.done():
            self.said.set_result(line.decode("utf-8", "replace").strip())

    def eof_received(self) -> None:
        if not self.said.done():
            self.said.set_result("")
        elif self._gone is not None:
            self._gone()

    def shut(self) -> None:
        """Hear nothing more."""
        self._gone = None
        if self._transport is not None:
            self._transport.close()


async def greet(host: str, port: int, timeout_s: float = REACH_S) -> None:
    """Shake hands with a broker as a client without a name. Raises BrokerError when it does not accept in time."""
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(CONNECT)
                answer = await reader.readexactly(len(ACCEPTED))
                writer.write(DISCONNECT)
                await writer.drain()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        raise BrokerError(f"{where} does not answer as a broker within {timeout_s:g} s") from None
    except asyncio.IncompleteReadError:
        raise BrokerError(f"{where} hangs up on a client: is it an MQTT broker?") from None
    except OSError as error:
        raise BrokerError(f"no broker at {where}: {error.strerror or error}") from None
    if answer != ACCEPTED:
        raise BrokerError(f"the broker at {where} refuses clients without a name and password (answer {answer.hex(' ')})")


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


async def _serve(port: int) -> int:
    """The child's work: serve until the parent is gone or asks to end."""
    from amqtt.broker import Broker as Amqtt
    from amqtt.errors import BrokerError as NotStarted

    logging.disable(logging.CRITICAL)  # it tells of every client that breaks off; so do the clients
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)

    def parent_spoke() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, parent_spoke)
    port = port or free_port()
    broker = Amqtt(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{LOOPBACK}:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    try:
        await broker.start()
    except (NotStarted, OSError) as error:
        _say(FAILED, " ".join(str(error.__cause__ or error).split()))
        return 1
    _say(READY, str(port))
    await ended.wait()
    with contextlib.suppress(Exception):  # the process ends anyway
        async with asyncio.timeout(1.0):
            await broker.shutdown()
    return 0


def _say(word: str, rest: str) -> None:
    sys.stdout.write(f"{word} {rest}\n")
    sys.stdout.flush()


def main() -> None:
    """Entry of the child process. Ctrl-C is the parent's business."""
    parser = argparse.ArgumentParser(prog="simulators.servers.broker", description="An MQTT broker on the loopback (amqtt).")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one and says which")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = asyncio.run(_serve(given.port))
    os._exit(code)  # clients that hang must not keep it


if __name__ == "__main__":
    main()
