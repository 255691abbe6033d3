"""`simulate`: a simulator process from its arguments to its end, and what it says at the terminal.

Not responsible for the simulators (`simulators.site`).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from controller.cli_common import EXIT_DELIVERED, EXIT_FAULT
from simulators.clock import SteerableLoop
from simulators.site import Site
from simulators.site_options import SiteOptions

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, `kill`, the terminal was closed
FILES_MAX = 1000  # the loop waits by select(), which takes no more than 1024: who comes after that is told to come later
Say = Callable[[str], None]


def parse_speed(text: str) -> float:
    """Plant seconds per second of ``real`` or a factor. Raises ValueError."""
    if text == "real":
        return 1.0
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--speed {text!r}: expected real or a factor") from None


def run_simulators(options: SiteOptions, say: Say) -> int:
    """Simulate until Ctrl-C or SIGTERM; a second one ends the process at once, and its children with it.

    Returns the exit code.

    Raises:
        SiteRefused: every reason; nothing is left running.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, FILES_MAX) if soft >= 0 else FILES_MAX, hard))
    with asyncio.Runner(loop_factory=SteerableLoop) as runner:
        return runner.run(_live(options, say))


async def _live(options: SiteOptions, say: Say) -> int:
    loop, ended, failed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    listened = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` is respected

    def end() -> None:
        for number in listened:
            loop.remove_signal_handler(number)
        ended.set()

    def unforeseen(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A plant in which a callback has failed is not to be trusted any more; what clients do to sockets is nothing."""
        error = context.get("exception")
        if isinstance(error, OSError):
            site.tell(f"trouble with a client: {context.get('message')}: {error}")
        else:
            site.tell(f"fault of the program: {context.get('message')}: {type(error).__name__}: {error}")
            failed.set()
            ended.set()

    site = Site(options, say)
    for number in listened:
        loop.add_signal_handler(number, end)
    loop.set_exception_handler(unforeseen)
    waiting = asyncio.ensure_future(ended.wait())
    starting = asyncio.ensure_future(site.start())
    try:
        await asyncio.wait({waiting, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _show(site, say)
            await waiting
            say("stopping")
            await site.stop()
        else:  # interrupted on the way: what was started is taken down by the start itself
            say("stopped before the plant stood")
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
    finally:
        waiting.cancel()
        for number in listened:
            loop.remove_signal_handler(number)
    return EXIT_FAULT if failed.is_set() else EXIT_DELIVERED


def _show(site: Site, say: Say) -> None:
    """The table of what answers where."""
    options = site.options
    table = Table(
        title=f"simulated: {', '.join(options.served)} of {options.facility.name}, speed {site.speed:g}", pad_edge=False
    )
    for column in ("server", "what", "answers at", "process"):
        table.add_column(column, overflow="fold")
    for name, server in site.servers.items():
        table.add_row(name, server.kind, server.endpoint, str(server.pid or ""))
    if options.broker:
        table.add_row("broker", "MQTT broker", f"mqtt://{options.broker}", "not ours")
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as drawn:
        console.print(table)
    say(drawn.get().rstrip("\n"))
    file = options.endpoints_file
    say(f"endpoints: {file}   (treat: iongantry treat PLAN --endpoints {file}; look: iongantry backdoor {file} state)")
    say("Ctrl-C ends it")
