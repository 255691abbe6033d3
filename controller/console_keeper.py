"""Keeps the console process of a facility running: started again with patience when it dies, told once, ended with the room.

Nothing of the room depends on it: a console that is gone is a commanding console lost, which pauses the beam. Not responsible
for what it does (`controller.console.process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulators.leash import leashed

if TYPE_CHECKING:
    from controller.standby import Serving

MODULE = "controller.console.process"
FIRST_S, LONGEST_S = 0.5, 30.0  # wall time before it is started again, doubled each time; assumed
STEADY_S = 60.0  # one that lived so long has earned a quick start again
STOP_S = 5.0
LOOK_S = 0.1
REFUSED = 2
CONSOLE_JSON, PASSWORDS = "console.json", "first-passwords.txt"


class ConsoleKeeper:
    """Of one room process.

    Args:
        asked: what `serve` was asked.
        say: told where the console is, and once that it died.
        refused: told why, where it refuses before it ever stood: whoever keeps the room has nobody to command it.
    """

    def __init__(self, asked: Serving, say: Callable[[str], None], refused: Callable[[str], None]) -> None:
        self._asked = asked
        self._say = say
        self._port = asked.port
        self._refused = refused
        self._stood = False
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Keep it, until cancelled; then end it."""
        wait_s, told = FIRST_S, False
        try:
            while True:
                begun_s = time.monotonic()
                code = await self._one()
                if code == REFUSED and not self._stood:
                    self._refused("the console process refuses to start, see above")
                    return
                if code == REFUSED:
                    self._say("the console process refuses to start, see above; the room stands by without it")
                    return
                if not told:
                    self._say(f"fault: the console process ended by itself ({_how(code)}); it is started again")
                told = True
                if time.monotonic() - begun_s > STEADY_S:
                    wait_s, told = FIRST_S, False
                await asyncio.sleep(wait_s * self._asked.pace)
                wait_s = min(2.0 * wait_s, LONGEST_S)
        finally:
            await self._end()

    async def _one(self) -> int:
        asked = self._asked
        command = [sys.executable, "-P", "-m", MODULE, "--state", str(asked.state.absolute()), "--facility", asked.called]
        command += ["--rooms", asked.room, "--host", asked.host, "--port", str(self._port), "--kept"]
        for option, path in (("--tls-cert", asked.tls_cert), ("--tls-key", asked.tls_key)):
            command += [option, str(path)] if path is not None else []
        command += ["--epics-port", str(asked.epics_port)] if asked.epics_port is not None else []
        file = asked.state / "run" / CONSOLE_JSON
        file.unlink(missing_ok=True)
        process = self._process = await asyncio.create_subprocess_exec(
            *leashed(command),
            stdin=asyncio.subprocess.PIPE,  # never written to: its end says that this process is gone, on any system
            start_new_session=True,
        )
        ready = asyncio.create_task(self._tell_ready(file, process.pid), name="console ready")
        try:
            return await process.wait()
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)

    async def _tell_ready(self, file: Path, pid: int) -> None:
        told = _read(file)
        while told is None or told.get("pid") != pid:
            await asyncio.sleep(LOOK_S * self._asked.pace)
            told = _read(file)
        self._stood = True
        port = int(told["port"])
        again, self._port = self._port == port and self._asked.port != port, port  # browsers find it again where it was
        if not again:
            passwords = self._asked.state / PASSWORDS
            hint = f"  (first start: users and one-time passwords in {passwords}, mode 0600)" if passwords.exists() else ""
            self._say(f"console: {told.get('url')}{hint}")

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S * self._asked.pace):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError):
        return None


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
