"""Puts the pieces together: facility and endpoints become a running room. The only module that knows all four packages.

With no real endpoint the room stands in a simulated world: plant, servers and interlock nodes in this process, on memory wires.
Not responsible for what is done with the room (`fraction`) nor for the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from controller.intake import Intake
from controller.interlock_rows import rows_of
from controller.interlock_standing import ToldApart
from controller.plan.schedule import planned_counts
from controller.record.ledger import Received
from controller.room_devices import room_devices
from controller.surroundings import Standing
from controller.wires import MemoryEnds, RoomWires
from drivers.hal.capabilities import RoomDevices
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected
from drivers.hal.events import EventBus
from drivers.hal.facility import Facility
from drivers.wire.memory import MemoryBroker, MemoryChannels, MemoryLine
from drivers.wire.tap import Answers, NoTap, Tap
from interlocks.daemon import SAFETY_NODE, InterlockNode
from interlocks.inputs import gather
from interlocks.matrix import Limits
from interlocks.matrix import load as load_limits
from interlocks.overlay import overlay_of
from interlocks.permit import PULSE_REGISTER, PULSES_SPAN, RELAY_NODE
from simulators.clock import PacedLoop, VirtualLoop
from simulators.faults import TimedFault, inject, read_faults
from simulators.invariants import CATALOGUE as INVARIANTS
from simulators.invariants import InvariantMonitor, PrescribedLayer, Prescription, RecordProbe, Violation
from simulators.people import OperatorFailed, ScriptedOperator
from simulators.plant import oracle
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.plant.truth import TruthError, load_truth
from simulators.servers.modbus import ModbusNodes, responder
from simulators.servers.process_variables import PvTable, facility_pvs
from simulators.servers.room_messages import BREATHING_S, RoomMessages
from simulators.servers.room_nodes import motion_nodes, safety_nodes
from simulators.staff import Staff, pace_of
from simulators.unhurried import UnhurriedLoop
from simulators.world import World

__all__ = [
    "InvariantViolated",
    "SimulatedWorld",
    "TimedFault",
    "loop_factory",
    "prescription_of",
    "read_faults",
    "unhurried_loop",
    "unsuited_faults",
]


T = TypeVar("T")


def loop_factory(factor: float | None) -> Callable[[], asyncio.AbstractEventLoop]:
    """A multiple of the wall clock, or virtual time (None; a `Pacer` may slow it down)."""
    return VirtualLoop if factor is None else partial(PacedLoop, factor)


def unhurried_loop(factor: float) -> Callable[[], asyncio.AbstractEventLoop]:
    """For a simulated world in a process that other processes speak to: see `simulators.unhurried`."""
    return partial(UnhurriedLoop, factor)


def unsuited_faults(faults: Iterable[TimedFault], facility: str, room: str) -> list[str]:
    """Why there is no such simulated room, or which faults cannot be planted in it: tried on a spare plant."""
    found = []
    try:
        if room not in load_truth(facility).rooms:
            return [f"facility {facility}: its simulated plant has no room {room}"]
        for timed in faults:
            plant = FacilityPlant.shipped(Kernel(0), facility)
            try:
                timed.fault.plant(plant, plant.rooms[room], timed.value)
            except (ValueError, IndexError, OverflowError) as error:
                found.append(f"fault {timed.fault.name} cannot be planted in {room}: {error}")
    except TruthError as error:
        found.append(f"facility {facility}: it has no simulated plant: {error}")
    return found


def prescription_of(intake: Intake, before: Mapping[int, Received] | None = None) -> Prescription:
    """What may be delivered, as the invariants hold it against the plant: from plan and library, not from any grant.

    `before` is what the ledger says of earlier sessions, by beam number; its upper bounds count.
    """
    given = {n: received.upper for n, received in (before or {}).items()}
    layers: dict[tuple[int, int], PrescribedLayer] = {}
    for beam in intake.beams:
        counts = planned_counts(beam, intake.facility, intake.room, intake.library)
        for layer, (counts1, _) in zip(beam.layers, counts, strict=True):
            layers[beam.number, layer.index] = PrescribedLayer(
                beam.ion.token, layer.energy_mev_u, layer.x_mm, layer.y_mm, counts1.astype(np.float64)
            )
    return Prescription(
        plan_hash=intake.plan.plan_hash,
        room=intake.room.name,
        gantry_angle_deg={beam.number: beam.gantry_angle_deg for beam in intake.beams},
        layers=layers,
        received_before={n: float(upper.sum()) for n, upper in given.items()},
        spots_before={
            (beam.number, layer.index): upper.astype(np.float64)
            for beam in intake.beams
            if beam.number in given
            for layer, upper in zip(
                beam.layers, np.split(given[beam.number], np.cumsum([la.spots for la in beam.layers])[:-1]), strict=True
            )
        },
    )


class InvariantViolated(RuntimeError):
    """The plant's truth broke an invariant: the run is over, and its name says which."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


class SimulatedOperator:
    """`OperatorPort` of a simulated world: the scripted operator answers, and does what a person does at that moment.

    Args:
        script: the person.
        interlock: whose reset button this person presses after a search.
        clock: loop time in ns.
    """

    def __init__(self, script: ScriptedOperator, interlock: InterlockNode, clock: Callable[[], int]) -> None:
        self.script = script
        self._staff = Staff(script, lambda role, pressed: interlock.reset(clock(), role, pressed))

    async def confirm(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Answer a prompt, and do what goes with it (`simulators.staff`)."""
        answer, _why = await self._staff.confirm(kind)
        return answer

    async def attend(self, kind: str) -> None:
        """Do what bodies do once the console has said yes. Raises CommandRejected."""
        try:
            await self._staff.attend(kind)
        except (OperatorFailed, ValueError) as error:
            raise CommandRejected(f"the staff could not: {error}", code=4431, hint="see the room, then ask again") from None

    async def turn_key(self, service: bool) -> None:
        """Turn the mode key."""
        await self._staff.turn_key(service)

    async def press(self, role: str) -> None:
        """Press and release the reset button of a role."""
        await self._staff.press(role)

    async def stop(self) -> None:
        """Let nothing go on."""
        await self._staff.stop()


def _bytes_of(file: Path) -> bytes:
    """What is in a file; nothing where it cannot be read, which the interlock system refuses as a plan."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@dataclass(slots=True, eq=False)
class SimulatedRoom:
    """The servers and processes around one room of the plant."""

    motion: MemoryLine
    safety: MemoryLine
    safety_nodes: ModbusNodes
    interlock: InterlockNode
    operator: SimulatedOperator


class SimulatedWorld:
    """A simulated facility in one event loop, with the servers and the interlock system of the room in use.

    Args:
        facility: belief; the plant of the same name is the truth.
        seed: root of every random stream.
        bus: events of the devices.
        room: the room in use.
        plant: another plant, for tests that plant bugs in it.
        tap: what every wire of the drivers goes through.
        plan: file that the interlock system reads by itself; None: it has none to hold anything against.
        breathing: the patient's breathing is told and listened to, for those who show it.
        life: of the plant, see `FacilityPlant.begin_life`; 0: that of the shipped one.
        staff: pace of the people, as of `simulators.staff.pace_of`; empty: that of the scripted operator.
    """

    def __init__(
        self,
        facility: Facility,
        seed: int,
        bus: EventBus,
        room: str,
        plant: FacilityPlant | None = None,
        tap: Tap | None = None,
        plan: Path | None = None,
        *,
        breathing: bool = False,
        staff: str = "",
        life: int = 0,
    ) -> None:
        self._breathing = breathing
        self.facility = facility
        self.bus = bus
        self.room = room
        self.plant = plant or FacilityPlant.shipped(Kernel(seed), facility.name)
        if life:
            self.plant.begin_life(life)
        self.world = World(self.plant.kernel)
        self.variables: PvTable = facility_pvs(self.plant)
        self.channels = MemoryChannels(self.variables, self.world.sync)
        self.broker = MemoryBroker()
        self.messages = self.broker.client()
        self.spoken = RoomMessages(
            self.plant.rooms[room],
            self.plant.truth.prefix,
            self.broker.client(),
            self.world.sync,
            breathing_s=BREATHING_S if breathing else None,
        )
        self.limits: Limits = load_limits(overlay=overlay_of(facility.name))
        self.rows = rows_of(self.limits)
        self._plan = plan
        self._staff = staff
        self._monitor: InvariantMonitor | None = None
        self._session_ns = 0  # plant time at which the session began that is watched
        self.simulated = self._build_room(room)
        self._told = ToldApart()
        ends = MemoryEnds(
            {line.name: line.connect for line in (self.simulated.motion, self.simulated.safety)}, self.channels, self.messages
        )
        tap = tap or NoTap()
        self.wires = RoomWires(facility, room, ends, tap)
        self.operator: Answers = tap.operator(self.simulated.operator)
        self.operator_name = "scripted operator"
        self.violation: Violation | None = None
        self._violated: asyncio.Event | None = None

    def watch(self, prescription: Prescription | None = None, record: RecordProbe | None = None) -> InvariantMonitor:
        """Judge every truth event from now on by the invariants; a session that follows another begins with a clean slate."""
        if self._monitor is None:
            self._monitor = InvariantMonitor(self.plant, self._take_violation, INVARIANTS, prescription, record)
        elif prescription is not None:
            self.world.sync()
            self._monitor.begin(prescription, record)
            self._session_ns, self.violation = self.plant.kernel.now_ns, None
            if self._violated is not None:
                self._violated.clear()
        return self._monitor

    async def inject(self, faults: Iterable[TimedFault]) -> None:
        """Plant faults, each at its time."""
        self.world.sync()
        inject(
            self.plant,
            self.plant.rooms[self.room],
            faults,
            self._tell_planted,
        )

    async def start(self) -> None:
        """Attach to the loop: the plant lives, servers answer, the interlock system runs."""
        await self.wires.open()
        self._violated = asyncio.Event()
        if self.violation is not None:
            self._violated.set()
        self.world.start()
        room = self.simulated
        plant = self.plant.rooms[self.room]
        room.motion.server.serve(responder(motion_nodes(plant), self.world.sync, "rtu"))
        room.safety.server.serve(responder(room.safety_nodes, self.world.sync, "tcp"))
        self.spoken.start()
        if self._plan is not None:
            room.interlock.give_plan(now_ns(), _bytes_of(self._plan))
        self.world.add(f"{self.room}-interlocks", room.interlock.step)

    async def stop(self) -> None:
        """Take everything down; no task is left."""
        await self.simulated.operator.stop()
        for line in (self.simulated.motion, self.simulated.safety):
            line.server.shut()
        self.spoken.stop()
        await self.wires.close()
        await self.messages.close()
        await self.channels.close()
        self.world.stop()

    async def until_violated(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`; a violated invariant cancels it and is raised. Raises InvariantViolated."""
        if self._violated is None:
            raise RuntimeError("start the world first")
        job = asyncio.ensure_future(work)
        alarm = asyncio.ensure_future(self._violated.wait())
        try:
            await asyncio.wait({job, alarm}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
            if not job.done():
                job.cancel()
                await asyncio.gather(job, return_exceptions=True)
        if self.violation is not None:
            if not job.cancelled():
                job.exception()  # what the run made of it is secondary
            raise InvariantViolated(self.violation)
        return job.result()

    async def machine_limited_s(self, beam_number: int) -> float | None:
        """What an oracle would have needed for a beam, s."""
        return oracle.machine_limited_s(self.plant.log, self.room, beam_number, self._session_ns)

    def devices(self) -> RoomDevices:
        """The drivers of the room, not yet connected."""
        return room_devices(self.facility, self.room, self.wires, self.bus, breathing=self._breathing)

    @property
    def bodies(self) -> SimulatedOperator:
        """The plant's staff."""
        return self.simulated.operator

    def standing(self) -> Standing | str:
        """What stands in the interlock system, as it would tell another process."""
        return self._told.of(self.simulated.interlock.status(now_ns()), now_ns())

    async def give_plan(self, plan: Path, sha256: str) -> None:
        """Let the interlock system read another plan by itself; it says in its own words what it makes of it."""
        self.simulated.interlock.give_plan(now_ns(), _bytes_of(plan), sha256)

    async def take_plan_back(self) -> None:
        """No plan is treated any more."""
        self.simulated.interlock.give_plan(now_ns(), None)

    async def bypass(self, interlock: str, owner: str, approver: str, duration_s: float, reason: str) -> None:
        """Set a bypass. Raises CommandRejected with the reason of the interlock system."""
        try:
            self.simulated.interlock.bypass(now_ns(), interlock, owner, approver, reason, duration_s * 1000.0)
        except KeyError:
            raise CommandRejected(f"there is no interlock {interlock}", code=4432) from None
        except ValueError as error:
            raise CommandRejected(str(error), code=4432, hint="see docs/interlocks.md") from None

    async def end_bypass(self, interlock: str) -> None:
        """End a bypass early."""
        self.simulated.interlock.engine.end_bypass(interlock)

    def _tell_planted(self, timed: TimedFault) -> None:
        self.bus.emit("faults", "fault.planted", name=timed.fault.name, value=timed.value)

    def _take_violation(self, violation: Violation) -> None:
        self.violation = violation
        self.bus.emit("invariants", "violation", name=violation.name, message=violation.message)
        if self._violated is not None:
            self._violated.set()

    def _build_room(self, name: str) -> SimulatedRoom:
        plant = self.plant.rooms[name]
        nodes = safety_nodes(plant)
        line = next((d for d in self.facility.devices_of(name).values() if d.room == name and d.baud), None)
        boot_id = int(self.plant.kernel.rng(f"{name}-interlocks", "boot").integers(1, 0x10000))

        def read_image() -> list[int]:
            return gather(nodes[SAFETY_NODE].read)

        def write_permit(*registers: int) -> None:
            nodes[RELAY_NODE].write(PULSE_REGISTER, registers)

        def read_pulses() -> list[int]:
            return nodes[RELAY_NODE].read(PULSE_REGISTER, PULSES_SPAN)

        def tell(record: Mapping[str, Any]) -> None:
            """What the interlock system keeps as evidence, on the bus: the room learns it from nowhere else."""
            data = {key: value for key, value in record.items() if key not in ("kind", "t_ns", "states", "latched")}
            self.bus.emit(f"{name}-interlocks", f"interlock.{record['kind']}", **data)

        interlock = InterlockNode(read_image, write_permit, self.limits, boot_id, read_pulses=read_pulses, journal=tell)
        pace = pace_of(self._staff) if self._staff else None
        sync = self.world.sync
        script = ScriptedOperator(plant, sync) if pace is None else ScriptedOperator(plant, sync, pace=pace)
        return SimulatedRoom(
            motion=MemoryLine(f"{name}-motion", baud=line.baud if line is not None else None),
            safety=MemoryLine(f"{name}-safety"),
            safety_nodes=nodes,
            interlock=interlock,
            operator=SimulatedOperator(script, interlock, now_ns),
        )
