"""One client context of libca: its settings, its one thread of our own, and the hand-over from its threads to the loop.

The library's threads call `tell` and nothing else. What may wait (making and clearing channels, ending) is given to `do`, and
done one after the other in the thread. The loop's thread makes only calls that never wait, and then `flush`.

Each context is for itself, so clients of different servers live side by side in one process. Not responsible for channels,
requests and monitors (`epics_channels`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from drivers.hal.clock import NS_PER_S
from drivers.hal.errors import ConfigError
from drivers.wire import ca_library as ca

CONNECTION_TIMEOUT_S = 2  # the library asks a silent server after this time, and gives it up some 5 s later
ARRAY_BYTES_MAX = 1_000_000  # a whole grant is 80 kB, a reference detector's answer 224 kB
CLOSE_S = 5.0

_log = logging.getLogger(__name__)


class CaContext:
    """A context, begun by `start` in a running loop and ended by `close`.

    Args:
        library: `ca_library.load()`, made in the main thread.
        addresses: ``host:port`` of the servers.
    """

    def __init__(self, library: Any, addresses: Sequence[str]) -> None:
        self._lib = library
        self._addresses = tuple(addresses)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: int | None = None
        self._user: object = None
        self._repeater: ca.QuietRepeater | None = None
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._on_exception = ca.EXCEPTION_CALLBACK(self._hear_exception)  # the library keeps its address
        self._lock = threading.Lock()  # guards what follows: the library's threads write it
        self._said: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake_planned = False
        self._deaf = False

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._loop is not None

    def start(self, user: object) -> None:
        """Begin, in the running loop; `user` lives until `close`, because the library calls back to it.

        Raises:
            ConfigError: the library has no context to give.
        """
        self._user = user
        self._loop = loop = asyncio.get_running_loop()
        self._repeater = ca.QuietRepeater(loop.add_reader)
        self._make()
        self._thread = threading.Thread(target=self._work, name="epics", daemon=True)
        self._thread.start()
        atexit.register(self._leave)

    async def close(self) -> None:
        """End the library's threads; afterwards none of them calls."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._detach()
        ended = asyncio.Event()
        self.do(self._lib.ca_context_destroy)
        self.do(lambda: self.tell(ended.set))
        self._jobs.put(None)
        try:
            async with asyncio.timeout(CLOSE_S):
                await ended.wait()
        except TimeoutError:
            _log.warning("the EPICS library did not end within %g s; its threads are left behind", CLOSE_S)
        else:
            thread.join()
        with self._lock:
            self._deaf = True
            self._said.clear()
        if self._repeater is not None:
            self._repeater.close(loop.remove_reader)
        atexit.unregister(self._leave)
        self._user = None

    # --- the loop's thread -----------------------------------------------------------------------------------------------

    def do(self, job: Callable[[], object]) -> None:
        """Run a job in the thread, after those given before."""
        self._jobs.put(job)

    def flush(self) -> None:
        """Send what was asked. The library knows whose requests are meant by the context the thread is attached to."""
        current = self._lib.ca_current_context()
        if current != self._context:
            if current is not None:
                self._lib.ca_detach_context()
            self._lib.ca_attach_context(self._context)
        self._lib.ca_flush_io()

    def _detach(self) -> None:
        """This thread belongs to nobody again, so that the context may end."""
        if self._context is not None and self._lib.ca_current_context() == self._context:
            self._lib.ca_detach_context()

    def _make(self) -> None:
        """Make the context: 0.1 ms. In the main thread: elsewhere the library's threads get no valid priority and say so."""
        previous = self._lib.ca_current_context()
        if previous is not None:
            self._lib.ca_detach_context()
        with ca.environment(self._settings()):
            status = self._lib.ca_context_create(1)  # callbacks come by themselves
        if status != ca.NORMAL:
            raise ConfigError(f"no EPICS client context: {ca.message(self._lib, status)}", code=1062)
        self._context = self._lib.ca_current_context()
        self._lib.ca_add_exception_event(self._on_exception, None)
        self._lib.ca_detach_context()
        if previous is not None:
            self._lib.ca_attach_context(previous)

    def _drain(self) -> None:
        with self._lock:
            self._wake_planned = False
            said, self._said = self._said, deque()
        for function, arguments in said:
            function(*arguments)

    # --- the library's threads: hand over, never wait, never raise -------------------------------------------------------

    def tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function(*arguments)` in the loop, after what was told before; silently not once the context has ended."""
        with self._lock:
            if self._deaf or self._loop is None:
                return
            self._said.append((function, arguments))
            if self._wake_planned:
                return
            self._wake_planned = True
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._drain)

    def now_ns(self) -> int:
        """The loop's time in ns, in any thread."""
        return round(self._loop.time() * NS_PER_S) if self._loop is not None else 0

    def _hear_exception(self, event: ca.ExceptionArguments) -> None:
        where = (event.ctx or b"").decode(errors="replace")
        _log.info("EPICS says: %s: %s", ca.message(self._lib, event.stat), where)

    # --- the thread of our own -------------------------------------------------------------------------------------------

    def make_channel(self, name: bytes, callback: Any, number: int, chid: Any) -> int:
        """ca_create_channel; in the thread only. The first channel of a context reads the list of addresses."""
        with ca.environment(self._settings()):
            status = int(self._lib.ca_create_channel(name, callback, number, 0, chid))
        self._lib.ca_flush_io()
        return status

    def _work(self) -> None:
        self._lib.ca_attach_context(self._context)
        while (job := self._jobs.get()) is not None:
            job()

    def _settings(self) -> dict[str, str]:
        return {
            "EPICS_CA_ADDR_LIST": " ".join(self._addresses),
            "EPICS_CA_AUTO_ADDR_LIST": "NO",
            "EPICS_CA_NAME_SERVERS": "",
            "EPICS_CA_CONN_TMO": str(CONNECTION_TIMEOUT_S),
            "EPICS_CA_MAX_ARRAY_BYTES": str(ARRAY_BYTES_MAX),
            "EPICS_CA_REPEATER_PORT": str(self._repeater.port if self._repeater is not None else 5065),
        }

    def _leave(self) -> None:
        """The interpreter ends and nobody closed the context: no callback may come any more.

        pyepics has a way out of its own, which ends the context that the main thread is attached to. This one was registered
        later, so it runs before.
        """
        self._detach()
        with self._lock:
            self._deaf = True
        if self._thread is not None and self._thread.is_alive():
            self.do(self._lib.ca_context_destroy)
            self._jobs.put(None)
            self._thread.join(CLOSE_S)


def parse_addresses(addresses: str | Sequence[str]) -> list[str]:
    """``host:port`` of each address. Raises ConfigError (1063) for anything else, or when there is none."""
    texts = addresses.split() if isinstance(addresses, str) else [part for text in addresses for part in text.split()]
    found = []
    for text in texts:
        parts = urlsplit(text if "://" in text else f"ca://{text}")
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "ca" or not parts.hostname or port is None:
            raise ConfigError(f"{text!r} is no address of an IOC", code=1063, hint="for example ca://127.0.0.1:5064")
        found.append(f"{parts.hostname}:{port}")
    if not found:
        raise ConfigError("no address of an IOC is given", code=1063, hint="for example ca://127.0.0.1:5064")
    return list(dict.fromkeys(found))
