"""The 'hardware' of CI: CiA 402 drives by another hand, served by pymodbus on ptys, in a process of their own.

Written from docs/wires.md and the profile, with none of the project's code: other state names, other physics (a trapezoid in
steps of a millisecond), pymodbus's framing. Each drive may carry one planted misbehaviour.

    python foreign_drive.py NAME...      NAME is "sound", "plain" (it knows no command tokens), "pair" (two drives and a load
                                         encoder on one ring) or one of BUGS

Prints one line of JSON: the tty of each. Ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import tty

from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice

BUGS = (
    "other-product",
    "no-torque-register",
    "counter-stands",
    "forgets-acceleration",
    "takes-old-commands",
    "no-limits",
    "moves-when-enabled",
    "brake-before-torque",
    "never-there",
    "early-reached",
    "overshoots",
    "too-fast",
    "lags",
    "drops-on-disable",
    "long-quick-stop",
    "ignores-quick-stop",
    "runs-unpolled",
    "starts-again",
    "resets-by-level",
    "slow-answers",
    "odd-statusword",
)

STEP = 0.001
PROVE, RELEASE, SET = 0.03, 0.03, 0.03  # s
WATCHDOG = 0.2
RAMP = 30.0  # deg/s2, quick stop and halt
CYCLE = 0.01
SETTLE = 0.03
PATTERN = {"off": 0x240, "ready": 0x221, "on": 0x233, "run": 0x237, "quick": 0x217, "reacting": 0x20F, "fault": 0x208}


def pair(value: float) -> list[int]:
    """Thousandths as two registers."""
    number = round(value * 1000) & 0xFFFFFFFF
    return [number >> 16, number & 0xFFFF]


def value_of(high: int, low: int) -> float:
    number = high << 16 | low
    return (number - (1 << 32) if number >> 31 else number) / 1000


class Ring:
    """What turns, and the drives on it."""

    def __init__(self, count: int, bug: str) -> None:
        self.bug = bug
        self.at = self.born = time.monotonic()
        self.angle = 0.0
        self.rate = 0.0
        self.goal: float | None = None
        self.final = 0.0
        self.top = 1.0
        self.ramp = 1.0
        self.stopping = 0.0  # deceleration of a stop under way
        self.rested = 0.0
        self.drives = [Drive(self, i) for i in range(count)]

    def advance(self) -> float:
        now = time.monotonic()
        idle = self.rate == 0.0 and self.goal is None and not any(d.torque or d.phase for d in self.drives)
        if idle:  # nothing can happen: no need to go through it step by step
            self.rested += now - self.at
            self.at = now
        while self.at + STEP <= now:
            self.at += STEP
            for drive in self.drives:
                drive.step()
            self.move()
        return now

    def move(self) -> None:
        if self.stopping:
            self.rate -= max(-self.stopping * STEP, min(self.rate, self.stopping * STEP))
            if self.rate == 0.0:
                self.goal = None
        elif self.goal is not None:
            left = self.goal - self.angle
            wanted = min(self.top, (2 * self.ramp * abs(left)) ** 0.5) * (1 if left > 0 else -1)
            change = self.ramp * STEP
            self.rate += max(-change, min(wanted - self.rate, change))
            if abs(left) < 0.002 and abs(self.rate) < 3 * change + 0.1:
                self.angle, self.rate = self.goal, 0.0
                self.goal = self.final if self.goal != self.final else None
        self.angle += self.rate * STEP
        self.rested = self.rested + STEP if self.rate == 0.0 and self.goal is None else 0.0

    def start(self, drive: Drive) -> bool:
        """Take a target: all drives must run, and hold the same one."""
        if any(d.state != "run" or d.target != drive.target for d in self.drives):
            return False
        if abs(drive.target) > 180.0 and self.bug != "no-limits":
            drive.limited = True
            drive.fail(0x6320)
            return False
        self.final = self.goal = drive.target
        self.top, self.ramp, self.stopping = drive.speed, drive.accel, 0.0
        if self.bug == "too-fast":
            self.top *= 1.4
        elif self.bug == "lags":
            self.top *= 0.5
        elif self.bug == "overshoots" and abs(self.final - self.angle) > 1.0:
            self.goal = self.final + (0.2 if self.final > self.angle else -0.2)
        elif self.bug == "never-there":
            self.goal = self.final = drive.target + (0.3 if drive.target > self.angle else -0.3)
        return True

    def stop(self, ramp: float) -> None:
        self.stopping = ramp


class Drive:
    """One drive: state machine, brake, torque, watchdog."""

    def __init__(self, ring: Ring, index: int) -> None:
        self.ring = ring
        self.index = index
        self.state = "off"
        self.word = 0
        self.error = 0
        self.brake = True  # applied
        self.proven = False
        self.torque = False
        self.since = 0.0
        self.phase = ""  # "", proving, releasing, stopping, setting
        self.after = "off"
        self.taken = False
        self.limited = False
        self.target = 0.0
        self.speed = 1.0
        self.accel = 1.0
        self.heard = time.monotonic()
        self.gap = 0.0

    # --- time ---

    def step(self) -> None:
        ring = self.ring
        self.since += STEP
        unheard = ring.at - self.heard > WATCHDOG and ring.bug != "runs-unpolled"
        if self.torque and unheard and not self.error:
            self.fail(0x8700)
        if self.phase == "proving" and self.since >= PROVE:
            self.proven = True
            self.go("releasing")
            if ring.bug == "brake-before-torque":
                self.go("")
                self.state = "run"
        elif self.phase == "releasing" and self.since >= RELEASE:
            self.brake = False
            if all(not d.brake or d.phase == "" for d in ring.drives):
                self.go("")
                self.state = "run"
                if ring.bug == "moves-when-enabled":
                    ring.angle += 0.3
        elif self.phase == "stopping" and ring.rate == 0.0:
            self.go("setting")
            if ring.bug == "drops-on-disable":
                self.torque = self.proven = False
                self.finish()
        elif self.phase == "setting" and self.since >= SET:
            self.brake = True
            self.finish()

    def go(self, phase: str) -> None:
        self.phase, self.since = phase, 0.0

    def finish(self) -> None:
        self.go("")
        self.torque = self.proven = self.taken = False
        self.ring.stopping = 0.0
        self.state = self.after

    # --- causes ---

    def fail(self, code: int) -> None:
        self.error = self.error or code
        self.state = "reacting"
        self.leave("fault", RAMP)

    def leave(self, after: str, ramp: float) -> None:
        """Stop, brake, torque off, then be somewhere; the others on the ring come along."""
        self.after = after
        if not self.torque:
            self.finish()
            return
        self.ring.stop(ramp)
        if self.phase not in ("stopping", "setting"):
            self.go("stopping")
        for other in self.ring.drives:
            if other is not self and other.torque and other.phase not in ("stopping", "setting"):
                other.state = "quick"
                other.after = "off"
                other.go("stopping")

    def control(self, word: int) -> None:
        rising, self.word = word & ~self.word, word
        ring = self.ring
        if self.state == "fault":
            if rising & 0x80:
                self.error, self.limited, self.state = 0, False, "off"
            return
        asked = "kill" if not word & 2 else "stop" if not word & 4 else "ready" if not word & 1 else "run" if word & 8 else "on"
        if self.state == "reacting":
            return
        if self.state == "quick":
            if asked == "kill" and not self.phase:
                self.leave("off", RAMP)
        elif self.state == "run":
            if asked == "stop":
                if ring.bug == "ignores-quick-stop":
                    return
                self.state = "quick"
                self.leave("off", RAMP / 12 if ring.bug == "long-quick-stop" else RAMP)
            elif asked != "run":
                self.leave({"kill": "off"}.get(asked, asked), RAMP)
            else:
                if rising & 0x10:
                    self.taken = ring.start(self)
                if not word & 0x10:
                    self.taken = False
        elif self.state == "off":
            if asked == "ready":
                self.state = "ready"
        elif self.phase and asked != "run":
            self.leave({"kill": "off", "stop": "off"}.get(asked, asked), RAMP)
        elif asked in ("kill", "stop"):
            self.state = "off"
        elif asked in ("ready", "on"):
            self.state = asked
        elif not self.phase:
            self.state = "on"
            self.torque = True
            self.heard = ring.at
            self.go("proving")
            if ring.bug == "brake-before-torque":
                self.brake = False

    # --- wire ---

    def hear(self) -> None:
        now = self.ring.advance()
        gap, self.heard = now - self.heard, now
        if self.ring.bug == "starts-again" and self.error == 0x8700 and gap > 1.2:
            self.error, self.torque, self.proven, self.brake, self.state = 0, True, True, False, "run"
            self.ring.goal = self.ring.final
        if self.ring.bug == "resets-by-level" and self.state == "fault" and self.word & 0x80:
            self.error, self.state = 0, "off"

    def cycles(self) -> int:
        return int((time.monotonic() - self.ring.born) / CYCLE) & 0xFFFFFFFF

    def status(self) -> list[int]:
        ring = self.ring
        word = PATTERN[self.state]
        there = self.state == "run" and ring.rested > SETTLE and abs(ring.angle - self.target) < 0.05
        if ring.bug == "never-there":
            there = self.state == "run" and ring.rested > SETTLE
        if ring.bug == "early-reached" and self.state == "run":
            there = True
        word |= 0x400 * there | 0x800 * self.limited | 0x1000 * self.taken
        if ring.bug == "odd-statusword":
            word &= ~0x10
        safety = 4 * self.brake | 16 * (ring.rate == 0.0 and not self.torque) | 32 * self.proven
        count = 7 if ring.bug == "counter-stands" else self.cycles()
        torque = 100 if self.torque else 0
        return [
            word,
            1,
            *pair(ring.angle),
            *pair(ring.rate),
            torque,
            self.error,
            safety,
            count & 0xFFFF,
            count >> 16 & 0xFFFF,
            count & 0xFFFF,
        ]

    def write(self, address: int, values: list[int], registers: list[int]) -> ExcCodes | None:
        """A frame of set-points; `registers` is the block from 14 on, as it would be afterwards."""
        end = address + len(values)
        word = registers[2] if address <= 16 < end else None
        stops = end == 17 and word is not None and (not word & 2 or not word & 4 or (self.state == "run" and not word & 8))
        token = registers[0] << 16 | registers[1]
        age = (self.cycles() - token) & 0xFFFFFFFF
        if not stops and self.ring.bug not in ("takes-old-commands", "plain") and (address != 14 or age > 19):
            return ExcCodes.NEGATIVE_ACKNOWLEDGE
        if end > 20 and (value_of(*registers[6:8]) <= 0 or value_of(*registers[8:10]) <= 0):
            return ExcCodes.ILLEGAL_VALUE
        self.target, self.speed, self.accel = (value_of(*registers[i : i + 2]) for i in (4, 6, 8))
        if word is not None:
            self.control(word)
        return None


def drive_node(drive: Drive, unit: int) -> SimDevice:
    bug = drive.ring.bug
    block = [0, 0, 0, 1, *pair(0.0), *pair(1.0), *pair(1.0)]

    async def action(function, start, address, count, current, values):
        if bug == "slow-answers":
            await asyncio.sleep(0.02)
        drive.hear()
        if values is not None:
            after = list(block)
            after[address - 14 : address - 14 + len(values)] = values
            if address < 14 or address + len(values) > 24:
                return ExcCodes.ILLEGAL_ADDRESS
            refused = drive.write(address, values, after)
            if refused:
                return refused
            if bug == "forgets-acceleration" and address + len(values) == 24:
                after[9] = values[-1] = 1
            block[:] = after
            return None
        current[14 - start : 24 - start] = block
        length = 10 if bug == "plain" else 12
        current[32 - start : 32 + length - start] = drive.status()[:length]
        return None

    product = 0xD7 if bug == "other-product" else 0xD1
    status = [SimData(32, values=[0] * 12, datatype=DataType.REGISTERS)]
    if bug == "no-torque-register":
        status = [
            SimData(32, values=[0] * 6, datatype=DataType.REGISTERS),
            SimData(39, values=[0] * 5, datatype=DataType.REGISTERS),
        ]
    set_points = SimData(14, values=[0] * 10, datatype=DataType.REGISTERS)
    if bug == "plain":
        set_points = SimData(16, values=[0] * 8, datatype=DataType.REGISTERS)
        status = [SimData(32, values=[0] * 10, datatype=DataType.REGISTERS)]
    return SimDevice(
        id=unit,
        simdata=[
            SimData(0, values=[0x1009, product, 3, 4711 + unit], datatype=DataType.REGISTERS),
            set_points,
            *status,
        ],
        action=action,
    )


def encoder_node(ring: Ring, unit: int) -> SimDevice:
    async def action(function, start, address, count, current, values):
        if values is not None:
            return ExcCodes.ILLEGAL_ADDRESS
        now = ring.advance()
        counter = int((now - ring.born) / CYCLE) & 0xFFFF
        current[32 - start : 42 - start] = [1, 0, *pair(ring.angle + 0.004), 0, 0, 0, 0, 0, counter]
        return None

    return SimDevice(
        id=unit,
        simdata=[
            SimData(0, values=[0x1009, 0xE1, 3, 99], datatype=DataType.REGISTERS),
            SimData(32, values=[0] * 10, datatype=DataType.REGISTERS),
        ],
        action=action,
    )


def cable() -> tuple[str, str]:
    """Two ptys with their far ends joined: the client's tty and the server's."""
    ends = [os.openpty() for _ in range(2)]
    for master, slave in ends:
        tty.setraw(slave)
        os.set_blocking(master, True)
    (one, client), (two, server) = ends

    loop = asyncio.get_running_loop()
    loop.add_reader(one, lambda: os.write(two, os.read(one, 512)))
    loop.add_reader(two, lambda: os.write(one, os.read(two, 512)))
    return os.ttyname(client), os.ttyname(server)


async def main(names: list[str]) -> None:
    paths = {}
    for name in names:
        bug = name if name in (*BUGS, "plain") else ""
        if not bug and name not in ("sound", "pair"):
            sys.exit(f"no drive {name}; there are sound, plain, pair, {', '.join(BUGS)}")
        ring = Ring(2 if name == "pair" else 1, bug)
        nodes = [drive_node(drive, unit) for unit, drive in enumerate(ring.drives, 1)]
        if name == "pair":
            nodes.append(encoder_node(ring, 3))
        paths[name], port = cable()
        server = ModbusSerialServer(nodes, framer=FramerType.RTU, port=port, baudrate=115200, ignore_missing_devices=True)
        await server.serve_forever(background=True)
    sys.stdout.write(json.dumps(paths) + "\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
