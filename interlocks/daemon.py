"""The loop around the engine: read the room safety node, decide, pulse the relay, keep evidence.

`InterlockNode.step(now_ns)` is called at least every 50 ms by whoever owns time: a simulated world, or `run` in a process of
its own. Dying, hanging, or losing the link needs no code: the pulse stops. Not responsible for the decision (`engine`).
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from interlocks.engine import Decision, Engine, Reset
from interlocks.first_out import Trip
from interlocks.inputs import ImageReader, Sample, gather
from interlocks.matrix import ROLES, SHIPPED, Limits, LimitsError, load
from interlocks.modbus import ModbusTcp
from interlocks.permit import PULSE_REGISTER, RELAY_NODE, PermitPulse

Record = Mapping[str, Any]
SAFETY_NODE = 1


class InterlockNode:
    """One room's interlock system without a clock.

    Args:
        read_image: the register image as `inputs.gather` builds it; OSError when it cannot be read.
        write_permit: takes (pulse, boot id, first-out code, count of trips); OSError when it cannot be written.
        limits: the matrix.
        boot_id: 16-bit number of this start.
        read_pulse: what the relay's pulse register holds; OSError when it cannot be read. Nothing is written before it was.
        latched: ids that were latched before a restart.
        journal: takes one JSON-able record per trip, reset and bypass. What it raises stops the step: the permit then falls.
    """

    def __init__(
        self,
        read_image: Callable[[], Sequence[int]],
        write_permit: Callable[[int, int, int, int], None],
        limits: Limits,
        boot_id: int,
        *,
        read_pulse: Callable[[], int],
        latched: Iterable[str] = (),
        journal: Callable[[Record], None] = lambda _record: None,
    ) -> None:
        self.engine = Engine(limits, latched)
        self.decision: Decision | None = None  # None before the first step
        self.trips: list[Trip] = []  # all since boot, in order
        self.link_faults = 0
        self._boot_id = boot_id
        self._read_image, self._write_permit, self._read_pulse, self._journal = read_image, write_permit, read_pulse, journal
        self._reader = ImageReader()
        self._pulse = PermitPulse(boot_id)
        self._pulse_known = False  # whether the relay holds what we wrote last
        self._pressed_ns: dict[str, int] = {}

    def step(self, now_ns: int) -> int:
        """Read, decide, pulse. Returns the time at which the next step is due at the latest."""
        samples: Mapping[str, Sample]
        try:
            samples = self._reader.decode(self._read_image(), now_ns)
        except OSError:
            self.link_faults += 1  # no news: what is known grows stale
            samples = {}
        decision, wake_at_ns = self.engine.step(now_ns, samples)
        self.decision = decision
        self._tell_relay(decision)
        for trip in decision.new:
            self.trips.append(trip)
            latched = self.engine.latched()
            self._journal({"kind": "trip", "boot_id": self._boot_id, "cause": trip.cause, **trip._asdict(), "latched": latched})
        return wake_at_ns

    def _tell_relay(self, decision: Decision) -> None:
        code = decision.first_out.code if decision.first_out is not None else 0
        try:
            if not self._pulse_known:
                self._pulse.follow(self._read_pulse())
            self._pulse_known = False
            pulse = self._pulse.next(decision.permit)
            self._write_permit(pulse.value, pulse.boot_id, code, len(decision.tripped))
            self._pulse_known = True
        except OSError:
            self.link_faults += 1  # the relay falls by itself

    def reset(self, now_ns: int, role: str, pressed: bool) -> Reset:
        """The reset button (or key) of a role: acts on release, if it was pressed after the trips it is to clear.

        Clears only what is over, for this role, while no beam is requested; never starts anything. Returns what was done.
        """
        if role not in ROLES:
            raise ValueError(f"role {role!r} is unknown; known: {', '.join(ROLES)}")
        if pressed:
            self._pressed_ns.setdefault(role, now_ns)
            return Reset((), ())
        if (pressed_ns := self._pressed_ns.pop(role, None)) is None:
            return Reset((), ())
        reset = self.engine.resettable(role, pressed_ns)
        latched = tuple(name for name in self.engine.latched() if name not in reset.cleared)
        self._journal({"kind": "reset", "t_ns": now_ns, "role": role, **reset._asdict(), "latched": latched})
        self.engine.clear(reset.cleared)
        return reset

    def bypass(self, now_ns: int, interlock: str, owner: str, approver: str, reason: str, duration_ms: float) -> None:
        """Set a bypass (see `bypass.grant` for what is refused)."""
        bypass = self.engine.bypass(now_ns, interlock, owner, approver, reason, duration_ms)
        self._journal({"kind": "bypass", "t_ns": now_ns, **bypass._asdict(), "latched": self.engine.latched()})


def latched_before(journal: Path, limits: Limits) -> tuple[str, ...]:
    """Rows that were latched when the journal ended. A torn last line is passed over: POWER_UP holds the permit anyway."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    for line in reversed(lines):
        try:
            latched = json.loads(line)["latched"]
        except (ValueError, KeyError, TypeError):
            continue
        return tuple(row.id for row in limits.software if row.id in latched)
    return ()


def run(
    link: ModbusTcp,
    limits: Limits,
    buttons: socket.socket,
    journal: Callable[[Record], None],
    latched: Iterable[str] = (),
    speed: float = 1.0,
) -> None:
    """Run for ever against a room's Modbus TCP server, on the monotonic clock times `speed` (1 for anything but a simulation).

    `buttons` is a datagram socket that takes `press ROLE` and `release ROLE`; who may write to it is the file system's affair.
    """
    node = InterlockNode(
        lambda: gather(lambda first, count: link.read(SAFETY_NODE, first, count)),
        lambda *values: link.write(RELAY_NODE, PULSE_REGISTER, values),
        limits,
        boot_id=secrets.randbelow(0xFFFF) + 1,
        read_pulse=lambda: link.read(RELAY_NODE, PULSE_REGISTER, 1)[0],
        latched=latched,
        journal=journal,
    )
    while True:
        wake_at_ns = node.step(round(time.monotonic_ns() * speed))
        while (left_ns := wake_at_ns - round(time.monotonic_ns() * speed)) > 0:
            if not select.select([buttons], [], [], left_ns / 1e9 / speed)[0]:
                continue
            verb, _, role = buttons.recv(64).decode("ascii", "replace").strip().partition(" ")
            if verb in ("press", "release") and role in ROLES:
                node.reset(round(time.monotonic_ns() * speed), role, verb == "press")


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m interlocks.daemon`: the process. Ends only when it is ended."""
    parser = argparse.ArgumentParser(prog="interlocks.daemon", description="Withholds the permit B of one room.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="Modbus TCP port of the room's safety line")
    parser.add_argument("--limits", type=Path, default=SHIPPED)
    parser.add_argument("--buttons", type=Path, required=True, help="path of a socket: 'press ROLE', 'release ROLE'")
    parser.add_argument("--journal", type=Path, required=True, help="file to which trips, resets and bypasses are appended")
    parser.add_argument("--speed", type=float, default=1.0, help="seconds per second of a simulated room; never for a real one")
    given = parser.parse_args(arguments)
    if not 0 < given.speed < float("inf"):
        parser.error(f"--speed {given.speed} must be above 0")
    with ExitStack() as stack:
        try:
            limits = load(given.limits)
            latched = latched_before(given.journal, limits)
            file = stack.enter_context(given.journal.open("a", encoding="utf-8"))
            given.buttons.unlink(missing_ok=True)
            buttons = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            buttons.bind(str(given.buttons))
            given.buttons.chmod(0o600)
        except (LimitsError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            return 2

        def journal(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

        run(ModbusTcp(given.host, given.port), limits, buttons, journal, latched, given.speed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
