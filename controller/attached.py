"""A room on real wires: its devices answer at endpoints, in other processes or as hardware; time is the wall clock's.

Where a simulator process answers, its own door (the backdoor) stands for what is not on any wire: people, faults, the oracle,
the invariants' verdict. Where anything is real there is no such door to people: a person answers at the terminal. Not
responsible for which endpoints are right (`drivers.hal.endpoints`), nor for what is done with the room (`fraction`).
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from controller.bodies import PanelButtons, RealPeople, RemoteBodies, bypass_line
from controller.console.prompts import ConsoleOperator
from controller.console.telemetry import Telemetry, last_will
from controller.endpoints import SCRIPTED, Whereabouts
from controller.interlock_plan import entrust_plan, take_back
from controller.interlock_rows import facility_rows
from controller.interlock_standing import StandingWatch
from controller.room_devices import room_devices
from controller.room_lock import RoomLock
from controller.surroundings import Bodies, Standing
from controller.wires import RoomWires
from drivers.hal.capabilities import RoomDevices
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError, CommandRejected
from drivers.hal.events import Event, EventBus
from drivers.wire.messages import Notice
from drivers.wire.tap import Answers, NoTap, Tap
from interlocks.first_out import NO_INPUT, UNBELIEVED, told_of
from interlocks.matrix import Interlock, Limits
from interlocks.matrix import load as load_limits

if TYPE_CHECKING:
    from drivers.hal.endpoints import EndpointMap
    from simulators.backdoor_client import BackdoorClient
    from simulators.faults import TimedFault
    from simulators.invariants import Prescription, RecordProbe, Violation

LOOK_S = 1.0  # how often the simulator is asked whether an invariant broke
SHADOW_S = 0.05

T = TypeVar("T")


class Operator(Protocol):
    """Who answers, and stops when the run ends."""

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool: ...

    async def stop(self) -> None: ...


class RemoteOperator:
    """The scripted operator of a simulator process: a person there answers and presses the plant's buttons."""

    def __init__(self, door: BackdoorClient, room: str) -> None:
        self._door = door
        self._room = room

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Ask that person, who does what a person does at that moment."""
        return await self._door.confirm(self._room, kind)

    async def stop(self) -> None:
        """Let nobody there go on."""
        with contextlib.suppress(BeamlineError):
            await self._door.stop_people(self._room)


class AttachedRoom:
    """The surroundings of a treatment on real wires; fulfils the same role as `assembly.SimulatedWorld`.

    Args:
        where: the room's devices, where they answer, and who is asked.
        bus: events of the devices.
        room: the room in use.
        tap: what every wire goes through.
        commands: False only looks: the room is not held, nobody is told, no session begins.
        breathing: the breathing signal is listened to, for those who show it.
        panel: the interlock system is asked what stands, for those who show it.
    """

    def __init__(
        self,
        where: Whereabouts,
        bus: EventBus,
        room: str,
        tap: Tap | None = None,
        *,
        commands: bool = True,
        breathing: bool = False,
        panel: bool = False,
    ) -> None:
        self._breathing = breathing
        self.facility = where.facility
        self.bus = bus
        self.room = room
        self.violation: Violation | None = None
        self._tap: Tap = tap or NoTap()
        name = where.facility.name
        self._wires = RoomWires(where.facility, room, tap=self._tap, will=Notice(*last_will(name, room)) if commands else None)
        self._lock = RoomLock(where.facility, room, "iongantry") if commands else None
        self._silent = False
        self._telemetry: asyncio.Task[None] | None = None
        self._teller: Telemetry | None = None
        self._simulated = where.simulated
        self._door = _door(where.endpoints)
        self._real = where.real
        self._prescription: Prescription | None = None
        self._devices: RoomDevices | None = None
        self._told: Callable[[], None] = InterlockNews(bus, room, load_limits()).attach()
        if where.operator == SCRIPTED and self._door is not None:
            self._person: Operator = RemoteOperator(self._door, room)
            self.operator_name = "scripted operator"
        else:
            self._person = ConsoleOperator(sys.stdin, _print)
            self.operator_name = getpass.getuser()
        self.operator: Answers = self._tap.operator(self._person)
        self.rows = facility_rows(where.facility.name)
        self._buttons = PanelButtons(where.endpoints.interlock_buttons.get(room, ""))
        self._standing = StandingWatch(self._buttons.path, room, bus) if panel else None
        staffed = self._door is not None and where.facility.devices[f"{room}-safety"].simulated
        self.bodies: Bodies = (
            RemoteBodies(self._door, room, self._buttons)
            if staffed and self._door is not None
            else RealPeople(room, self._buttons)
        )

    def watch(self, prescription: Prescription, record: RecordProbe | None = None) -> None:
        """Let the simulator's invariants know what may be delivered. The record is judged where it is written: not here."""
        self._prescription = prescription
        self.violation = None

    async def start(self) -> None:
        """Hold the room and open the wires.

        Raises:
            BeamlineError: somebody else holds the room, a client cannot start, the simulator's door does not answer.
        """
        if self._lock is not None:
            self._lock.take()
        await self._wires.open()
        if self._standing is not None:
            self._standing.start()
        await self._prescribe()

    async def _prescribe(self) -> None:
        """Tell the simulator of a session that it has not heard of."""
        prescription, self._prescription = self._prescription, None
        if self._door is not None and prescription is not None:
            await self._door.prescribe(prescription)

    def devices(self) -> RoomDevices:
        """The drivers of the room, not yet connected."""
        self._devices = room_devices(self.facility, self.room, self._wires, self.bus, breathing=self._breathing)
        if self._lock is not None:
            self._tell_the_world(self._devices)
        return self._devices

    async def inject(self, faults: Iterable[TimedFault]) -> None:
        """Plant faults in the simulator process, each at its time. Raises BeamlineError where none can be planted."""
        for timed in faults:
            if self._door is not None:
                await self._door.plant(self.room, timed.text)

    async def until_violated(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` beside what the simulator needs to hear of; a violated invariant cancels it and is raised.

        Raises:
            InvariantViolated: see `assembly`.
        """
        from controller.assembly import InvariantViolated

        try:
            await self._prescribe()
        except BeamlineError:
            work.close()
            raise
        job = asyncio.ensure_future(work)
        watcher = asyncio.create_task(self._look(), name="invariants of the simulator")
        shadow = asyncio.create_task(self._follow(), name="shadow of what is real")
        try:
            await asyncio.wait({job, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if job.done() and self._door is not None and self.violation is None:
                await self._ask_violations()
        finally:
            for task in (watcher, shadow):
                task.cancel()
            if not job.done():
                job.cancel()
            await asyncio.gather(watcher, shadow, return_exceptions=True)
            await asyncio.wait({job})
        if self.violation is not None:
            if not job.cancelled():
                job.exception()
            raise InvariantViolated(self.violation)
        return job.result()

    async def machine_limited_s(self, beam_number: int) -> float | None:
        """What an oracle in the simulator would have needed for a beam, s; None where there is none to ask."""
        if self._door is None:
            return None
        try:
            return await self._door.machine_limited_s(self.room, beam_number)
        except BeamlineError as error:
            self.bus.emit("treatment", "oracle.silent", error=str(error))
            return None

    async def stop(self) -> None:
        """Let go of everything: of the wires first, and of no one for long who does not answer."""
        if self._telemetry is not None:
            self._telemetry.cancel()
            await asyncio.wait([self._telemetry])
        if self._standing is not None:
            await self._standing.stop()
        await self._wires.close()
        if self._lock is not None:
            await self._person.stop()
            self._lock.release()
        if self._door is not None:
            await self._door.close()
        self._told()

    def standing(self) -> Standing | str:
        """As the interlock system told last; over the wire only the first-out is seen."""
        return self._standing.standing() if self._standing is not None else "nobody asks the interlock system"

    async def give_plan(self, plan: Path, sha256: str) -> None:
        """Name the plan to the interlock system, which reads it by itself. Raises CommandRejected with its reasons."""
        if reason := await entrust_plan(self._buttons.path, plan, sha256, self.room, self.bus):
            raise CommandRejected(reason, code=4435, device=self.room)

    async def take_plan_back(self) -> None:
        """No plan is treated any more."""
        if self._buttons.path:
            await take_back(Path(self._buttons.path), self.room)

    async def bypass(self, interlock: str, owner: str, approver: str, duration_s: float, reason: str) -> None:
        """Hand a bypass over. Raises CommandRejected when nobody takes it, or with the interlock system's own reason."""
        await self._buttons.ask(bypass_line(interlock, owner, approver, duration_s, reason))
        self._look_again()

    async def end_bypass(self, interlock: str) -> None:
        """End a bypass early."""
        await self._buttons.ask(f"end-bypass {interlock}")
        self._look_again()

    async def unheard(self) -> str:
        """Empty when the interlock system answers now, or was never to be asked; else why not, in words."""
        return await self._standing.unheard() if self._standing is not None and self._buttons.path else ""

    def _look_again(self) -> None:
        if self._standing is not None:
            self._standing.look()

    def show(self, view: Callable[[], Mapping[str, Any]]) -> None:
        """What the room shows its consoles, asked for only where there is a broker: for those who listen there."""
        if self._teller is not None:
            self._teller.show(view())

    def _tell_the_world(self, devices: RoomDevices) -> None:
        """Publish what the room does and reads, as far as there is a broker: nobody waits for it, nothing depends on it."""
        broker = self._wires.broker
        if broker is None:
            return
        told = Telemetry(self.facility.name, self.room, broker.post, devices.all(), simulated=self._simulated)
        told.attach(self.bus)
        self._teller = told
        broker.watch(lambda up: told.republish() if up else None)
        self._telemetry = asyncio.create_task(told.run(), name="telemetry")

    async def _look(self) -> None:
        """Ends when an invariant broke; where there is nobody to ask it never does."""
        while self._door is None or self.violation is None:
            await asyncio.sleep(LOOK_S)
            if self._door is not None:
                await self._ask_violations()

    async def _ask_violations(self) -> None:
        if self._door is None:
            return
        try:
            found = await self._door.violations()
        except BeamlineError as error:
            if not self._silent:
                self.bus.emit("invariants", "simulator.silent", error=str(error))
            self._silent = True
            return
        self._silent = False
        if found:
            self.violation = found[0]
            self.bus.emit("invariants", "violation", name=found[0].name, message=found[0].message)

    async def _follow(self) -> None:
        """Tell the simulator what real devices read, so that its model follows them."""
        if self._door is None or not self._real:
            return
        from drivers.devices.shadowed import shadow_values

        while True:
            await asyncio.sleep(SHADOW_S)
            if self._devices is not None:
                payload = shadow_values(self.facility, self._devices.all(), now_ns())
                if payload:
                    with contextlib.suppress(BeamlineError):
                        await self._door.shadow(payload)


class InterlockNews:
    """What the permit relay shows of the interlock system, in its own words, for record and operator.

    The daemon keeps its evidence in its own journal; over the wire the first-out is seen, with its value and limit in the same
    answer, and the number of trips.
    """

    def __init__(self, bus: EventBus, room: str, limits: Limits) -> None:
        self._bus = bus
        self._source = f"{room}-interlocks"
        self._device = f"{room}-interlock"
        self._rows = {row.code: row for row in limits.software}
        self._shown = 0
        self._number = 0  # of rows that were tripped

    def attach(self) -> Callable[[], None]:
        """Listen; returns what ends it."""
        return self._bus.subscribe(self.take)

    def take(self, event: Event) -> None:
        """Turn a change of the first-out code into a trip or a reset."""
        if event.kind != "interlock.status" or event.source != self._device:
            return
        code, number = int(event.data["first_out_code"]), int(event.data.get("active_trips", 0))
        fewer, self._number = number < self._number, number
        if code == self._shown:
            return
        before, self._shown = self._rows.get(self._shown), code
        if before is not None:
            self._bus.emit(self._source, "interlock.reset", cleared=[before.id], refused=[], role="")
        if code:
            row = self._rows.get(code)
            name, what, advice = f"code {code}", "a first-out code that this program does not know", "see the interlock daemon"
            if row is not None:
                shown = [int(event.data[f"first_out_{part}"]) for part in ("input", "value", "limit")]
                name, (what, advice) = row.id, told_of(row, shown[0])
                what = f"{what}: {shown_words(row, *shown)}"
            # Of those that are left after a reset the oldest is shown: it tripped when it did, and not now.
            kind = "interlock.stands" if before is not None and fewer else "interlock.trip"
            self._bus.emit(self._source, kind, id=name, code=code, cause=what, advice=advice, first_out=True)


def shown_words(row: Interlock, index: int, value: int, limit: int) -> str:
    """What the status line says of a first-out: which input, its value, and what is allowed (docs/wires.md, node 2)."""
    believed, at = not index & UNBELIEVED, index & ~UNBELIEVED
    if index == NO_INPUT[0]:
        return "internal"
    name = row.inputs[at] if at < len(row.inputs) else f"input {at}"
    unit = f" {row.unit}" if row.unit else ""
    if not believed:
        return f"{name} missing, stale or of bad quality (last {value}{unit})"
    return f"{name} {value}{unit}; limit {limit}{unit}"


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _door(endpoints: EndpointMap) -> BackdoorClient | None:
    if not endpoints.backdoor:
        return None
    from simulators.backdoor_client import BackdoorClient

    return BackdoorClient(endpoints.backdoor, endpoints.token)
