"""The console as a process of its own: `python -m controller.console.process --state DIR --facility NAME --rooms G1 --port 0`.

Pages, interface, users, archive and metrics live here, apart from the process that treats: whatever happens to HTTP does not
happen to a treatment. It listens on the loopback, or elsewhere with TLS, or not at all. Not responsible for being started again
(`serve` does that) nor for anything in a room.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from controller.record.whole_file import whole_file
from drivers.hal.errors import BeamlineError, ConfigError

if TYPE_CHECKING:
    import uvicorn

    from controller.console.outward import Outward

EXIT_REFUSED, EXIT_ORPHAN = 2, 3
BACKLOG = 2048
FILES_MAX = 8192  # connections are files
GRACE_S = 2
SEND_BUFFER_BYTES = 256 * 1024
MESSAGE_BYTES_MAX = 64 * 1024
PING_S = 20.0
PORT_MAX = 65_535
PLACE_LOOK_S = 0.1  # between two tries of an address that is taken; assumed


@dataclass(frozen=True, slots=True)
class Options:
    """What the console process is told.

    Attributes:
        state: directory of the facility's state.
        facility: name or file.
        rooms: whose processes it listens to.
        host, port: where; port 0 is any.
        tls_cert, tls_key: PEM files, both or none.
        epics_port: where rooms are published as process variables, on the loopback; None: nowhere.
        kept: by a process that holds the other end of the standard input, and without which nothing is served.
    """

    state: Path
    facility: str
    rooms: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    epics_port: int | None = None
    kept: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when it was told to end, 2 when it refused to start."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what strangers send is not worth a line each
    options = _options(arguments)
    if options.kept:
        threading.Thread(target=_end_with_keeper, name="keeper", daemon=True).start()
    _may_open_files()
    _end_in_order()
    try:
        asyncio.run(run(options))
    except BeamlineError as error:
        sys.stderr.write(f"the console does not start: {error}\n")
        return EXIT_REFUSED
    return 0


async def run(options: Options) -> None:
    """Serve until SIGINT or SIGTERM. Raises BeamlineError: it does not start."""
    async with _started(options) as server:
        await server


@contextlib.asynccontextmanager
async def _started(options: Options) -> AsyncIterator[asyncio.Task[None]]:
    from drivers.hal.facility import load_facility

    remote = check_exposure(options.host, options.tls_cert, options.tls_key)
    facility = load_facility(options.facility)
    if unknown := [room for room in options.rooms if room not in facility.rooms]:
        hint = f"rooms: {', '.join(facility.rooms)}"
        raise ConfigError(f"{facility.name} has no room {', '.join(unknown)}", code=1081, hint=hint)
    import uvicorn  # what follows takes a second: first it is known whether anything is served at all

    from controller.console.api import make_app
    from controller.console.http_patience import PatientProtocol
    from controller.console.hub import Exposure, Hub
    from controller.console.room_link import RoomLink
    from controller.console.users import Users

    users = Users(options.state)
    links = {room: RoomLink(room, options.state / "run" / f"{room}.sock") for room in options.rooms}
    hub = Hub(options.state, facility, links, users, Exposure(remote, options.host))
    async with contextlib.AsyncExitStack() as stack:
        await hub.start()  # first of all: it finds out whether another process has this state
        stack.push_async_callback(hub.close)
        users.open()
        if options.epics_port is not None:
            await stack.enter_async_context(_published(hub.outward, options.epics_port))
        listening = stack.enter_context(listen(options.host, options.port))
        config = uvicorn.Config(
            make_app(hub),
            loop="asyncio",
            http=PatientProtocol,
            ws="websockets-sansio",
            ws_max_size=MESSAGE_BYTES_MAX,
            ws_per_message_deflate=False,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(_serve(server, listening), name="console-server")
        try:
            await _until_up(server, serving)
            _tell(options, listening, remote)
            yield serving
        finally:
            server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            _untell(options)


@contextlib.asynccontextmanager
async def _published(outward: Outward, port: int) -> AsyncIterator[None]:
    from controller.published_pvs_feed import PublishedVariables

    variables = PublishedVariables(port)
    await variables.start()
    outward.variables = variables
    try:
        yield
    finally:
        outward.variables = None
        await variables.close()


def check_exposure(host: str, cert: Path | None, key: Path | None) -> bool:
    """Whether `host` can be reached from other computers. Raises ConfigError unless that is safe to do."""
    remote = not _is_loopback(host)
    if remote and (cert is None or key is None):
        hint = "give --tls-cert and --tls-key, or leave --host away"
        raise ConfigError(f"{host} can be reached from other computers: that needs TLS", code=1082, hint=hint)
    if (cert is None) != (key is None):
        raise ConfigError("TLS needs both a certificate and its key", code=1083, hint="give --tls-cert and --tls-key")
    if cert is not None and key is not None:
        _check_certificate(cert, key)
    return remote


def check_place(host: str, port: int, cert: Path | None, key: Path | None, patience_s: float = 0.0) -> None:
    """Whether a console could stand there; nothing stays behind.

    Args:
        host, port, cert, key: see `Options`.
        patience_s: wall time for which an address that is taken is tried again: a console that was killed lets go of it.

    Raises:
        ConfigError: not safe, taken, or not ours.
    """
    check_exposure(host, cert, key)
    end_s = time.monotonic() + patience_s
    while True:
        try:
            listen(host, port).close()
            return
        except ConfigError as error:
            taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if not taken or time.monotonic() >= end_s:
                raise
        time.sleep(PLACE_LOOK_S)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError: the address is taken or not ours."""
    if not 0 <= port <= PORT_MAX:
        raise ConfigError(f"{port} is no port: expected 0 to {PORT_MAX}", code=1084, hint="choose another --port, or 0 for any")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Every connection inherits it: what waits in the system's own buffer can no longer be replaced by a newer view.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return listening
    except OSError as error:
        hint = "choose another --port, or 0 for any"
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror or error}", code=1084, hint=hint) from error


def _check_certificate(cert: Path, key: Path) -> None:
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(cert.read_bytes())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        hint = "PEM files; the key belongs to the certificate and has no password"
        raise ConfigError(f"{cert} and {key} do not do: {error}", code=1085, hint=hint) from None
    now = datetime.now(UTC)
    for certificate in certificates:
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= now <= last:
            what = f"{cert} is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, now is {now:%Y-%m-%d %H:%M}"
            raise ConfigError(what, code=1086, hint="nothing is served without TLS instead: renew the certificate")


def _no_password() -> str:
    """Instead of a question on the terminal, where nobody is."""
    return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    await server.serve(sockets=[listening])


async def _until_up(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    while not server.started:
        if serving.done():
            await serving
            hint = "see the lines above"
            raise ConfigError("the server ended before it was up", code=1087, hint=hint)
        await asyncio.sleep(0.01)


def _tell(options: Options, listening: socket.socket, remote: bool) -> None:
    """`STATE/run/console.json`: where it is."""
    host, port = listening.getsockname()[:2]
    scheme = "https" if options.tls_cert is not None else "http"
    name = f"[{host}]" if ":" in host else host
    content = {"url": f"{scheme}://{name}:{port}", "pid": os.getpid(), "port": port, "remote": remote}
    directory = options.state / "run"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(directory / "console.json") as draft:
            draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {directory}: {error.strerror}", code=1088, hint="is the state yours?") from error


def _untell(options: Options) -> None:
    with contextlib.suppress(OSError, ValueError):
        path = options.state / "run" / "console.json"
        if json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid():
            path.unlink()


def _end_in_order() -> None:
    """The server catches these signals, ends, and raises them again for whoever was there before: us, and we are ending."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)


def _end_with_keeper() -> None:
    """The end of the input is the end of whoever keeps this process, however it died: its port is free at once.

    A thread, because a loop that is busy would let the port wait; nothing here has to be put away.
    """
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    os._exit(EXIT_ORPHAN)


def _may_open_files() -> None:
    """Every client is a file: the usual 1024 are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="console", description="The operator console of one facility.")
    parser.add_argument("--state", type=Path, required=True, help="directory of the facility's state")
    parser.add_argument("--facility", default="asan", help="name or file of the facility")
    parser.add_argument("--rooms", required=True, help="rooms that are served, with commas")
    parser.add_argument("--host", default="127.0.0.1", help="anything but the loopback needs TLS")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, told in STATE/run/console.json")
    parser.add_argument("--tls-cert", type=Path, help="certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, help="its key, PEM, without a password")
    parser.add_argument("--epics-port", type=int, help="publish the rooms as EPICS process variables there, to be read only")
    parser.add_argument("--kept", action="store_true", help="end at once when the standard input ends")
    given = parser.parse_args(arguments)
    rooms = tuple(room.strip() for room in given.rooms.split(",") if room.strip())
    place = given.host, given.port, given.tls_cert, given.tls_key
    return Options(given.state, given.facility, rooms, *place, given.epics_port, given.kept)


if __name__ == "__main__":
    sys.exit(main())
