"""Starts the foreign drives in their process and checks each by the rig procedure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from controller.hil.run import HilResult, check_target
from controller.hil.target import find_target
from drivers.hal.endpoints import EndpointMap
from drivers.hal.facility import load_facility
from drivers.hal.register_map import AGED_COMMANDS

PROGRAM = Path(__file__).with_name("foreign_drive.py")
RIG = {
    "local_stop": "red button beside the drive",
    "travel_deg": 2.0,
    "speed_deg_s": 3.0,
    "acceleration_deg_s2": 30.0,
    "jerk_deg_s3": 0.0,
    "quick_stop_deg_s2": 30.0,
    "following_deg": 0.3,
}
AT_ONCE = 6
# A foreign drive answers within 10 ms, the slow one in 20. What took longer shows that this computer stood still, and what a
# computer does to a drive that it does not ask for 200 ms is no fault of the drive: such a run says nothing.
STALL_S = 0.05


class Ttys(dict[str, str]):
    """The ttys by name, and the process behind them."""

    def __init__(self, paths: Mapping[str, str], process: subprocess.Popen[str]) -> None:
        super().__init__(paths)
        self.process = process


def kill_drives(ttys: Ttys) -> None:
    """The hardware vanishes."""
    ttys.process.kill()
    ttys.process.wait(5)


@contextlib.contextmanager
def foreign_drives(names: Sequence[str]) -> Iterator[Ttys]:
    """The ttys of foreign drives, by name."""
    command = [sys.executable, str(PROGRAM), *names]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, f"the foreign drives did not start: exit {process.wait()}"
            yield Ttys(json.loads(line), process)
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def overlay_of(tty: str, device: str = "G1-drive-A") -> EndpointMap:
    """An overlay with one drive on a tty."""
    endpoint = f"serial://{tty}?baudrate=115200"
    return EndpointMap.model_validate({"devices": {device: {"endpoint": endpoint}}, "rig": RIG})


def check_all(ttys: Mapping[str, str], at_once: int = AT_ONCE) -> dict[str, HilResult]:
    """Check every drive, some at once: most of a check is waiting."""
    facility = load_facility("asan")
    drive = {key: at for key, at in facility.registers["drive"].items() if key not in AGED_COMMANDS}
    plain = facility.model_copy(update={"registers": {**facility.registers, "drive": drive}})

    async def one(name: str, tty: str, turn: asyncio.Semaphore) -> tuple[str, HilResult]:
        async with turn:
            return name, await check_target(find_target(plain if name == "plain" else facility, overlay_of(tty)))

    async def all_of_them() -> dict[str, HilResult]:
        turn = asyncio.Semaphore(at_once)
        return dict(await asyncio.gather(*(one(name, tty, turn) for name, tty in ttys.items())))

    return asyncio.run(all_of_them())


def stalled(result: HilResult) -> bool:
    """Whether this computer, not the drive, may have spoiled a run: an answer was very late, or never came."""
    silent = any("does not answer within" in check.reason or "waited" in check.reason for check in result.checks)
    return silent or max(result.answers_s, default=0.0) > STALL_S
