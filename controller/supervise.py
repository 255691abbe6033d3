"""One roof for simulators, interlock system and controller: each a process of its own, started in order, stopped in order.

The first that dies unasked takes the others down: a room without one of them is of no use, and what was delivered is in ledger
and record. Not responsible for what the processes do; each is a command that can be started by hand as well.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from controller.cli_common import EXIT_DELIVERED, EXIT_FAULT, EXIT_REFUSED
from controller.early_end import EXIT_SIGNAL, SIGNALS
from controller.record.store import Busy, DiskStore
from drivers.hal.endpoints import load_endpoints
from drivers.hal.errors import ConfigError
from simulators.leash import leashed

READY_S = 60.0  # for the simulators to stand; assumed, a loaded computer included
LOOK_S = 0.1
END_S = 90.0  # for a treatment to end with a record: beam off, brakes set, results fetched, files written
STOP_S = 15.0
SIMULATORS, INTERLOCK, CONTROLLER = "simulators", "interlock", "controller"
LOCK = "up.lock"  # in the directory: one `up` there at a time


@dataclass(frozen=True, slots=True)
class Household:
    """What `up` was asked. `plan`: to treat; None lets the room stand by. `console`: what `serve` is told of its console."""

    facility: str
    room: str
    speed: str
    seed: int
    broker: str
    staff: str
    directory: Path
    plan: Path | None
    state: Path | None
    output: Path | None
    console: tuple[str, ...] = ()

    @property
    def endpoints(self) -> Path:
        """Where the simulators write where they stand."""
        return self.directory / "endpoints.toml"

    def simulators(self) -> list[str]:
        """Command of the plant."""
        command = [
            "simulate",
            "--facility",
            self.facility,
            "--room",
            self.room,
            "--speed",
            self.speed,
            "--seed",
            str(self.seed),
        ]
        command += ["--staff", self.staff, "--directory", str(self.directory), "--no-interlock", "--breathing"]
        return [*command, *(["--broker", self.broker] if self.broker else [])]

    def interlock(self) -> list[str]:
        """Command of the interlock system."""
        journal = self.directory / f"{self.room}-interlock.jsonl"
        plan = ["--plan", str(self.plan)] if self.plan is not None else []
        return ["interlock", *self._room(), "--journal", str(journal), "--unsigned", *plan]

    def controller(self) -> list[str]:
        """Command of the controller."""
        if self.plan is None:
            state = self.state or self.directory / "state"
            return ["serve", *self._room(), "--state", str(state), *self.console]
        command = ["treat", str(self.plan), *self._room()]
        for option, path in (("--state", self.state), ("--output", self.output)):
            command += [option, str(path)] if path is not None else []
        return command

    def _room(self) -> list[str]:
        return ["--facility", self.facility, "--room", self.room, "--endpoints", str(self.endpoints)]


def run_site(site: Household, say: Callable[[str], None]) -> int:
    """Run everything until the controller ends or somebody interrupts; returns the exit code of `up`."""
    try:
        site.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"refused: --directory {site.directory}: {error.strerror or error}")
        return EXIT_REFUSED
    path = site.directory / LOCK
    try:  # before any file of another run is touched: its logs are the words it ends with
        lock = DiskStore().lock(path)
    except Busy:
        who = f"another `up` runs there ({_holder(path)})"
        say(f"refused: --directory {site.directory}: {who}: stop it, or give another --directory")
        return EXIT_REFUSED
    except OSError as error:
        say(f"refused: {path}: {error.strerror or error}")
        return EXIT_REFUSED
    try:
        path.write_text(f"process {os.getpid()}\n", encoding="ascii")
        return asyncio.run(_Roof(site, say).run())
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip() or "its process is not known"
    except (OSError, ValueError):
        return "its process is not known"


class _Roof:
    """The processes while they live."""

    def __init__(self, site: Household, say: Callable[[str], None]) -> None:
        self._site = site
        self._say = say
        self._files = ExitStack()
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._interrupted = asyncio.Event()
        self._found: tuple[int, int] | None = None

    async def run(self) -> int:
        """Start in order, wait, stop in the opposite order."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._interrupted.set)
        try:
            with self._files:
                return await self._live()
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def _live(self) -> int:
        site = self._site
        try:
            self._found = _identity(site.endpoints)  # of another run: `simulate` replaces it if it is dead, and only then
            await self._start(SIMULATORS, site.simulators())
            if not await self._stands():
                return self._not_begun() if self._interrupted.is_set() else self._died(SIMULATORS)
            await self._start(INTERLOCK, site.interlock())
            await self._start(CONTROLLER, site.controller(), own_output=True)
            self._say(f"up: {site.room} of {site.facility}; endpoints {site.endpoints}, logs {site.directory}; Ctrl-C ends it")
            return await self._wait()
        finally:
            for name, patience_s in ((CONTROLLER, END_S), (INTERLOCK, STOP_S), (SIMULATORS, STOP_S)):
                await self._stop(name, patience_s)

    async def _wait(self) -> int:
        """Until the controller has ended, another process has died, or somebody interrupts."""
        ends = {name: asyncio.ensure_future(process.wait()) for name, process in self._running.items()}
        asked = asyncio.ensure_future(self._interrupted.wait())
        try:
            await asyncio.wait({*ends.values(), asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        controller = self._running[CONTROLLER]
        if asked.done() and not asked.cancelled():
            await self._stop(CONTROLLER, END_S)
            if controller.returncode in (-signal.SIGTERM, EXIT_SIGNAL + signal.SIGTERM):
                return self._not_begun()
            return self._code(controller.returncode or EXIT_DELIVERED)
        for name in (SIMULATORS, INTERLOCK):
            if ends[name].done():
                code = self._died(name)
                await self._stop(CONTROLLER, END_S)
                return code
        return self._code(await ends[CONTROLLER])

    def _not_begun(self) -> int:
        """Interrupted before the controller was there: a room that was to stand by has ended, a plan was not given."""
        self._say("stopped before the controller began anything")
        return EXIT_DELIVERED if self._site.plan is None else EXIT_SIGNAL + signal.SIGINT

    def _code(self, code: int) -> int:
        """Exit code for how the controller ended; one that was killed is told."""
        if code < 0:
            self._say(f"fault: the {CONTROLLER} process ended by itself ({_how(code)})")
            return EXIT_FAULT
        return code

    async def _start(self, name: str, arguments: Sequence[str], *, own_output: bool = False) -> None:
        """A process that dies with this one; its words go to a log unless the operator is to read them."""
        log = None
        if not own_output:
            log = self._files.enter_context((self._site.directory / f"{name}.log").open("wb"))
        self._running[name] = await asyncio.create_subprocess_exec(
            *leashed([sys.executable, "-m", "controller", *arguments]),
            stdin=None if own_output else asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    async def _stands(self) -> bool:
        """Wait until the simulators have written where they stand; False when they end before, or somebody interrupts."""
        process = self._running[SIMULATORS]
        deadline_s = asyncio.get_running_loop().time() + READY_S
        while process.returncode is None and not self._interrupted.is_set():
            if _identity(self._site.endpoints) not in (None, self._found):
                try:
                    load_endpoints(self._site.endpoints)
                except ConfigError as error:
                    self._say(f"fault: {error}")
                    return False
                return True
            if asyncio.get_running_loop().time() > deadline_s:
                self._say(f"fault: the simulators do not stand after {READY_S:g} s")
                return False
            await asyncio.sleep(LOOK_S)
        return False

    def _died(self, name: str) -> int:
        """Say that a process has died, and its last words."""
        process = self._running[name]
        log = self._site.directory / f"{name}.log"
        if process.returncode == EXIT_REFUSED:
            self._say(f"refused by the {name}; see {log}")
        elif process.returncode is not None:
            self._say(f"fault: the {name} process ended by itself ({_how(process.returncode)}); see {log}")
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]:
            self._say(f"  {line}")
        return EXIT_REFUSED if process.returncode == EXIT_REFUSED else EXIT_FAULT

    async def _stop(self, name: str, patience_s: float) -> None:
        process = self._running.get(name)
        if process is None or process.returncode is not None:
            return
        process.terminate()  # and no Ctrl-C, which Python tells with a trace while it starts
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
        except TimeoutError:
            self._say(f"fault: the {name} process does not end within {patience_s:g} s: killed")
            process.kill()
            await process.wait()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies there; None when there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _how(code: int | None) -> str:
    if code is None:
        return "it still runs"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
