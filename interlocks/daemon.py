"""The loop around the engine: read the room safety node, decide, pulse the relay, keep evidence.

`InterlockNode.step(now_ns)` is called at least every 50 ms by whoever owns time: a simulated world, or `run` in a process of
its own. Dying, hanging, or losing the link needs no code: the pulse stops. Waking up again does: what was decided before is not
sent any more, and the time without a pulse is an input of its own. Not responsible for the decision (`engine`).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import secrets
import select
import signal
import socket
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from interlocks.conditions import NS_PER_MS
from interlocks.engine import Decision, Engine, Reset
from interlocks.first_out import NO_INPUT, NOT_KNOWN, Trip
from interlocks.inputs import OWN_FIRST, WIRE_SIZE, ImageReader, Sample, gather
from interlocks.matrix import ROLES, SHIPPED, Limits, LimitsError, load
from interlocks.modbus import ModbusTcp
from interlocks.permit import PULSE_REGISTER, PULSES_SPAN, RELAY_MS, RELAY_NODE, PermitPulse, words32
from interlocks.plan_ceilings import PlanNotUnderstood
from interlocks.plan_watch import PlanWatch
from interlocks.proof import ProofTest
from interlocks.signature import SHIPPED_KEY, verifier

Record = Mapping[str, Any]
Journal = Callable[[Record], None]
SAFETY_NODE = 1
BETWEEN = (0,) * (OWN_FIRST - WIRE_SIZE)  # registers of nobody
LOOPBACK = ("127.0.0.1", "::1", "localhost")
REPEATS_NS = 5_000_000_000  # a row that trips again sooner is counted in the journal, not written; assumed
TRIPS_KEPT = 1000
WAITED = "it waited while the interlock system stood still, and nobody knows since when: press again"
PULSE_NS = 20_000_000  # between two pulses, with or without a step: two late wake-ups in a row cost no permit; assumed


class InterlockNode:
    """One room's interlock system without a clock.

    Args:
        read_image: the register image as `inputs.gather` builds it; OSError when it cannot be read.
        write_permit: takes the relays' registers from the pulse on (docs/wires.md); OSError when it cannot be written.
        limits: the matrix.
        boot_id: 16-bit number of this start.
        read_pulses: what the registers from the pulse of beam to that of motion hold; OSError when they cannot be read.
            Nothing is written before they were.
        latched: ids that were latched before a restart.
        journal: takes one JSON-able record per trip, reset and bypass. What it raises stops the step: the permit then falls.
        clock: this system's time, ns, where time passes while it works; None: it is what `step` was told last.
    """

    def __init__(
        self,
        read_image: Callable[[], Sequence[int]],
        write_permit: Callable[..., None],
        limits: Limits,
        boot_id: int,
        *,
        read_pulses: Callable[[], Sequence[int]],
        latched: Iterable[str] = (),
        journal: Journal = lambda _record: None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.engine = Engine(limits, latched)
        self.decision: Decision | None = None  # None before the first step
        self.trips: list[Trip] = []  # the latest since boot, in order
        self.link_faults = 0
        self.clock: Callable[[], int] = clock or (lambda: self._told_ns)
        self._told_ns = self._decided_ns = 0
        self._given_ns: int | None = None  # the last pulse of beam; None: it is withheld, and its relay falls as it is to
        self._boot_id = boot_id & 0xFFFF
        self._read_image, self._write_permit, self._read_pulses, self._journal = read_image, write_permit, read_pulses, journal
        self._reader, self._proof = ImageReader(), ProofTest(limits)
        self._plan = PlanWatch(limits.conversion, limits.plan_required)
        self._beam, self._motion = PermitPulse(), PermitPulse()
        self._pulses_known = False  # whether the relays hold what we wrote last
        self._latches = self.engine.latched()  # as the journal knows them
        self._pressed_ns: dict[str, int] = {}
        self._latest: dict[str, Trip] = {}  # of each row that has tripped
        self._repeats: dict[str, int] = {}  # trips since the journal's last that are only counted there
        self._status = b""  # what is told of the last step; empty until somebody asks

    def step(self, now_ns: int) -> int:
        """Read, decide, pulse. Returns the time at which the next step is due at the latest."""
        self._told_ns = now_ns
        samples = self._ask()
        if self.clock() - now_ns > RELAY_MS * NS_PER_MS:  # stood still over the answer: it tells of a room as it was
            samples = self._ask()
        now_ns = self.clock()
        decision, wake_at_ns = self.engine.step(now_ns, samples)
        self.decision, self._decided_ns, self._status = decision, now_ns, b""
        proof = self._proof.step(now_ns, samples, decision.permit)
        self.pulse()
        if proof is not None:
            self._journal({"t_ns": now_ns, **proof})
        before, self._latches, written = self._latches, self.engine.latched(), False
        for trip in decision.new:
            last = self._latest.get(trip.id, trip)
            self._latest[trip.id] = trip
            self.trips = [*self.trips, trip][-TRIPS_KEPT:]
            repeats = last is not trip and last.what == trip.what and trip.t_ns - last.t_ns < REPEATS_NS
            if repeats and not trip.first_out and (self._latches == before or trip.what == NOT_KNOWN[0]):
                self._repeats[trip.id] = self._repeats.get(trip.id, 0) + 1
                continue
            told = {"boot_id": self._boot_id, "cause": trip.cause, **trip._asdict(), "latched": self._latches}
            self._journal({"kind": "trip", **told, "repeats": self._repeats})
            self._repeats, written = {}, True
        if self._latches != before and not written:  # of a row that had tripped before, and latches only now
            self._journal({"kind": "latch", "t_ns": now_ns, "latched": self._latches})
        return wake_at_ns

    def _ask(self) -> Mapping[str, Sample]:
        """What the room shows. It is as old as the question, whenever the answer is looked at."""
        asked_ns = self.clock()
        try:
            image = self._read_image()
        except OSError:
            self.link_faults += 1  # no news: what is known grows stale
            self._pulses_known = False  # the next write needs no new connection behind its look at the clock
            return {}
        return self._reader.decode(self._whole(image, self.clock()), asked_ns)

    def pulse(self) -> None:
        """Tell the relays what was decided last; also between two steps, so that one late wake-up costs no permit.

        Nothing is given by a decision that is older than the relays hold, nor beam after so long without a pulse: its relay
        has fallen, and who stood still closes it no more before the engine has heard of it.
        """
        if (decision := self.decision) is None:
            return
        late = self.gap_ms(now_ns := self.clock()) > RELAY_MS
        permit = decision.permit and not self._proof.withholds
        if not (permit and late):
            self._given_ns = now_ns if permit else None
        code, (index, value, limit) = (first.code, first.shown) if (first := decision.first_out) is not None else (0, NO_INPUT)
        try:
            if not self._pulses_known:
                held = self._read_pulses()
                self._beam.follow(held[0])
                self._motion.follow(held[-1])
            self._pulses_known = False
            young = 0 <= self.clock() - self._decided_ns <= RELAY_MS * NS_PER_MS
            beam = self._beam.next(permit and young and not late)
            motion = self._motion.next(decision.motion_code == 0 and young and not self._proof.withholds)
            shown = code, len(decision.tripped), *words32(value), *words32(limit), index
            self._write_permit(beam, self._boot_id, *shown, motion, decision.motion_code)
            self._pulses_known = True
        except OSError:
            self.link_faults += 1  # the relays fall by themselves

    def _whole(self, image: Sequence[int], now_ns: int) -> Sequence[int]:
        """The image with what this system worked out by itself; what is not of registers stays as it is, to be refused."""
        try:
            words = array("H", image)
        except (OverflowError, TypeError):
            return image
        return image if len(words) != WIRE_SIZE else [*words, *BETWEEN, *self.own_registers(words, now_ns)]

    def own_registers(self, image: Sequence[int], now_ns: int) -> list[int]:
        """Registers from OWN_FIRST on: the plan's ceilings, the age of the last proof test, the time without a pulse."""
        age_s = self._proof.age_s(now_ns)
        return [*self._plan.registers(image), age_s >> 16, age_s & 0xFFFF, self.gap_ms(now_ns)]

    def gap_ms(self, now_ns: int) -> int:
        """How long ago the last pulse of beam was made, ms, rounded up; 0 while beam is withheld."""
        return 0 if self._given_ns is None else max(0, min(-((self._given_ns - now_ns) // NS_PER_MS), 0xFFFF))

    def status(self, now_ns: int) -> bytes:
        """What stands, as JSON; worked out once for each step at most, however often somebody asks. Changes nothing.

        `by`: the role whose reset would clear a row now. Nothing before the first step.
        """
        if not self._status and (decision := self.decision) is not None:
            told: dict[str, Any] = {"boot_id": self._boot_id, "t_ns": now_ns, "withheld": decision.withheld}
            told |= {"latched": self.engine.latched(), "proof_age_s": self._proof.age_s(now_ns)}
            told["rows"] = [trip._asdict() for name, trip in self._latest.items() if name in decision.tripped]
            for row in told["rows"]:  # POWER_UP is one as well, of an episode of its own: the one that is shown is on top
                row["first_out"] = row["first_out"] and row["seq"] == getattr(decision.first_out, "seq", 0)
            told["by"] = {row: role for role in ROLES for row in self.engine.resettable(role, now_ns).cleared}
            self._status = json.dumps({**told, "bypasses": [b._asdict() for b in self.engine.bypasses.values()]}).encode()
        return self._status

    def give_plan(self, now_ns: int, data: bytes | None, sha256: str = "") -> bool:
        """Take the plan to hold grants against (None: back, so that there is none).

        False: it was refused (`plan_refused` and the journal say why). Nothing is known of one that could not be read.
        """
        try:
            if not self.engine.idle:
                raise PlanNotUnderstood(["a treatment is armed, or not known not to be: the plan it has stays"])
            self._plan.give(data, sha256)
            self.plan_refused: tuple[str, ...] = ()
        except PlanNotUnderstood as refused:
            self.plan_refused = refused.reasons
        digest = hashlib.sha256(data).hexdigest() if data is not None else "none: taken back"
        self._journal({"kind": "plan", "t_ns": now_ns, "sha256": digest, "refused": self.plan_refused})
        return not self.plan_refused

    def proof(self, now_ns: int, owner: str) -> None:
        """Begin a proof test, or with nobody's name end the open one."""
        if (record := self._proof.begin(owner) if owner.strip() else self._proof.end()) is not None:
            self._journal({"t_ns": now_ns, **record})

    def reset(self, now_ns: int, role: str, pressed: bool) -> Reset:
        """The reset button (or key) of a role: acts on release, if it was pressed after the trips it is to clear.

        Clears only what is over, for this role, while no beam is requested; never starts anything. Returns what was done.
        """
        if role not in ROLES:
            raise ValueError(f"role {role!r} is unknown; known: {', '.join(ROLES)}")
        if pressed:
            self._pressed_ns.setdefault(role, now_ns)
        if pressed or (pressed_ns := self._pressed_ns.pop(role, None)) is None:
            return Reset((), ())
        reset = self.engine.resettable(role, pressed_ns)
        latched = tuple(name for name in self.engine.latched() if name not in reset.cleared)
        self._journal({"kind": "reset", "t_ns": now_ns, "role": role, **reset._asdict(), "latched": latched})
        self.engine.clear(reset.cleared)
        self._latches = latched
        return reset

    def forget(self, now_ns: int, role: str) -> None:
        """A button was moved nobody knows when: that is no press, and the end of none."""
        self._pressed_ns.pop(role, None)
        self._journal({"kind": "not taken", "t_ns": now_ns, "role": role, "why": WAITED})

    def bypass(self, now_ns: int, interlock: str, owner: str, approver: str, reason: str, duration_ms: float) -> None:
        """Set a bypass (see `bypass.grant` for what is refused)."""
        bypass = self.engine.bypass(now_ns, interlock, owner, approver, reason, duration_ms)
        self._journal({"kind": "bypass", "t_ns": now_ns, **bypass._asdict(), "latched": self.engine.latched()})


def latched_before(journal: Path, limits: Limits) -> tuple[str, ...]:
    """Rows that were latched when the journal ended. A torn last line is passed over: POWER_UP holds the permit anyway."""
    for line in reversed(journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []):
        with suppress(ValueError, KeyError, TypeError):
            latched = json.loads(line)["latched"]
            return tuple(row.id for row in limits.software if row.id in latched)
    return ()


def obey(node: InterlockNode, message: bytes, now_ns: int, waited_ns: int = 0) -> bytes:
    """What came over the socket: `press ROLE`, `release ROLE`, `plan PATH SHA256`, `proof begin NAME`, `proof end`.

    `plan back` takes the plan away: its rows sleep then, where no plan is required. Two persons' bypass is `bypass ID OWNER
    APPROVER DURATION_MS REASON`, names without spaces; `end-bypass ID` ends it. `status WORD` asks what stands and changes
    nothing. Returns what is answered to whoever has an address: what became of a plan or a bypass, that a button was not taken,
    or the word and what stands. `waited_ns`: for how long at most the message waited. A button counts as pressed at
    the earliest time it may have been, and not at all where that is longer ago than a relay holds: nobody knows what was first.
    """
    verb, _, rest = message.decode("utf-8", "replace").strip().partition(" ")
    if verb in ("press", "release") and rest in ROLES:
        if waited_ns > RELAY_MS * NS_PER_MS:
            node.forget(now_ns, rest)
            return f"{verb} {rest} not taken: {WAITED}".encode()
        node.reset(now_ns if verb == "release" else now_ns - waited_ns, rest, verb == "press")
    elif verb == "proof" and rest.partition(" ")[0] in ("begin", "end"):
        node.proof(now_ns, rest.partition(" ")[2] if rest.startswith("begin ") else "")
    elif verb == "plan":
        path, _, sha256 = rest.rpartition(" ")
        data = b"" if rest != "back" else None
        with suppress(OSError, ValueError):  # no such file, or no path: as a plan that cannot be read
            data = Path(path).read_bytes()
        taken = node.give_plan(now_ns, data, sha256 or "none told")
        return f"plan {'taken' if taken else 'refused'} {sha256} {'; '.join(node.plan_refused)}".encode()
    elif verb == "bypass":
        try:
            interlock, owner, approver, duration_ms, reason = rest.split(" ", 4)
            node.bypass(now_ns, interlock, owner, approver, reason, float(duration_ms))
        except (ValueError, KeyError) as refused:
            return f"bypass refused: {refused}".encode()
    elif verb == "end-bypass":
        node.engine.end_bypass(rest)
    elif verb == "status":
        return b"status %s %s" % (rest[:32].encode(), node.status(now_ns))
    return f"{verb} taken".encode() if verb in ("bypass", "end-bypass") else b""


def wired(link: ModbusTcp, limits: Limits, journal: Journal, latched: Iterable[str], clock: Callable[[], int]) -> InterlockNode:
    """The interlock system of a room that answers on Modbus TCP."""
    image, held = partial(gather, partial(link.read, SAFETY_NODE)), partial(link.read, RELAY_NODE, PULSE_REGISTER, PULSES_SPAN)
    write, boot_id = lambda *values: link.write(RELAY_NODE, PULSE_REGISTER, values), secrets.randbelow(0xFFFF) + 1
    return InterlockNode(image, write, limits, boot_id, read_pulses=held, latched=latched, journal=journal, clock=clock)


def claim(host: str, port: int) -> socket.socket:
    """A name that one process of this computer has at a time, for who serves that address; the system frees it at any end.

    Raises OSError: another has it. Two interlock systems would hold each other's relays open.
    """
    name, at = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "127.0.0.1" if host in LOOPBACK else host
    try:
        name.bind(f"\0iongantry interlock {at}:{port}")
    except OSError:
        name.close()
        raise OSError(f"another interlock system on this computer serves {host}:{port}: stop it first") from None
    return name


def run(node: InterlockNode, buttons: socket.socket, speed: float, plan: bytes | None) -> None:
    """Run for ever, on the node's clock: the monotonic one times `speed` (1 for anything but a simulation).

    `buttons` is a datagram socket that takes what `obey` obeys; who may write to it is the file system's affair.
    """
    now_ns = node.clock
    empty_ns = now_ns()  # nothing has tripped yet; later: when a look found nobody waiting, so that who waits now came after
    if plan is not None:
        node.give_plan(now_ns(), plan)
    while True:
        wake_at_ns = node.step(now_ns())
        pulse_at_ns = now_ns() + PULSE_NS
        while (t_ns := now_ns()) < wake_at_ns:  # a step that is due comes first: it sees how late it is
            if t_ns >= pulse_at_ns:
                node.pulse()
                pulse_at_ns = t_ns + PULSE_NS
            elif select.select([buttons], [], [], (min(wake_at_ns, pulse_at_ns) - t_ns) / 1e9 / speed)[0]:
                message, sender = buttons.recvfrom(4096)
                t_ns = now_ns()
                answer = obey(node, message, t_ns, t_ns - empty_ns)
                # Who asked may be gone, or have no address. Answers that nobody reads fill no socket but their own.
                with suppress(OSError, TypeError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                    line.sendto(answer, socket.MSG_DONTWAIT, sender)
            else:
                empty_ns = t_ns


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m interlocks.daemon`: the process. Ends only when it is ended."""
    parser = argparse.ArgumentParser(prog="interlocks.daemon", description="Withholds the permit B of one room.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="Modbus TCP port of the room's safety line")
    parser.add_argument("--limits", type=Path, default=SHIPPED)
    parser.add_argument("--overlay", type=Path, help="a facility's overlay: tightens the limits, gives its figures")
    parser.add_argument("--trust", type=Path, action="append", help="public key of signatures; default: the shipped one")
    parser.add_argument("--unsigned", action="store_true", help="development, on a loopback host: verify no signature")
    parser.add_argument("--plan", type=Path, help="plan to hold grants against; the socket takes others")
    parser.add_argument("--buttons", type=Path, required=True, help="path of a socket: 'press ROLE', 'release ROLE'")
    parser.add_argument("--journal", type=Path, required=True, help="file to which trips, resets and bypasses are appended")
    parser.add_argument("--speed", type=float, default=1.0, help="seconds per second of a simulated room; never for a real one")
    given = parser.parse_args(arguments)
    if not 0 < given.speed < float("inf"):
        parser.error(f"--speed {given.speed} must be above 0")
    if given.unsigned and given.host not in LOOPBACK:
        parser.error(f"--unsigned is for development on a loopback host, not for {given.host}")
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # who became this process may have held Ctrl-C back
        try:
            verify = None if given.unsigned else verifier([SHIPPED_KEY, *(given.trust or ())])
            limits = load(given.limits, verify, given.overlay)
            stack.enter_context(claim(given.host, given.port))
            plan = given.plan.read_bytes() if given.plan is not None else None
            latched = latched_before(given.journal, limits)
            file = stack.enter_context(given.journal.open("a", buffering=1, encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one interlock system keeps a journal
            buttons = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            given.buttons.unlink(missing_ok=True)
            buttons.bind(str(given.buttons))
            given.buttons.chmod(0o600)
        except (LimitsError, ValueError, OSError) as error:
            kept = f"{given.journal} is kept by another interlock system: " if isinstance(error, BlockingIOError) else ""
            told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
            sys.stderr.write(f"{kept}{told}\n")
            return 2

        def journal(record: Record) -> None:
            file.write(json.dumps(record) + "\n")  # line by line to the system
            os.fsync(file.fileno())

        link, clock = ModbusTcp(given.host, given.port), lambda: round(time.monotonic_ns() * given.speed)
        run(wired(link, limits, journal, latched, clock), buttons, given.speed, plan)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
