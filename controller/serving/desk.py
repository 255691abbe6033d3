"""One room that is served: its machine, its commands, what it shows, and what may be asked. What the link speaks to.

Assembles the parts of this package around one ground. Not responsible for the world it stands in (`controller.surroundings`),
for transport (`controller.console.link`), nor for the process (`controller.serve`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.beam.sharing import BeamSupervisor
from controller.commands import TOLD, Answer, Command, CommandDesk
from controller.console.alarms import AlarmList
from controller.console.views import EventView, RoomView, SpotsView
from controller.loop_lag import tell_lag
from controller.record.store import DiskStore, Store
from controller.roles import Mode
from controller.room.machine import Room
from controller.room.proofs import Proofs
from controller.room.states import RoomFacts, State
from controller.room.supervision import Timing
from controller.room.watch import Watch
from controller.serving.arguments import EDITS, LOADS, checked
from controller.serving.asking import Asking
from controller.serving.audit import Audit
from controller.serving.console_words import reconciled
from controller.serving.cut_off import CutOff, LedgerBook
from controller.serving.devices_book import DevicesBook
from controller.serving.disk_watch import DiskWatch
from controller.serving.fraction_book import FractionBook
from controller.serving.ground import Ground
from controller.serving.interlock_book import InterlockBook
from controller.serving.plans import Inspect, PlanStore
from controller.serving.questions import Questions
from controller.serving.room_view import RoomViewer
from controller.serving.servicing import Servicing
from controller.serving.treating import QA_INTENTS, Treating
from controller.surroundings import ServedSurroundings, Telling
from drivers.hal.capabilities import Connectable
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError, CommandRejected
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import Facility

BOOT_BITS = 48  # a number that every client's language keeps
LOOK_S = 0.1
CUT_OFF_LOOK_S = 2.0  # costs one look at a file's date; assumed


class ServedRoom:
    """One room; fulfils `controller.console.link.RoomDesk`.

    Args:
        ground: the room, with its devices not yet connected.
        inspect: reads plan files.
        say: told in words what the operator of the process should read.
        store: of the audit.
    """

    def __init__(
        self, ground: Ground, inspect: Inspect, say: Callable[[str], None] = lambda _line: None, store: Store | None = None
    ) -> None:
        self.ground = ground
        self.publish_event: Callable[[EventView], None] = lambda _event: None
        self.publish_spots: Callable[[SpotsView], None] = lambda _spots: None
        self._say = say
        self.audit = Audit(store or DiskStore(), ground.state, ground.room, ground.boot_id)
        self._disk = DiskWatch(store or DiskStore(), ground.treatments, f"room.{ground.room}", ground.bus)
        self.audit.refused = self._disk.refused
        self.plans = PlanStore(ground.state, ground.called, inspect)
        self.alarms = AlarmList()
        self.devices = DevicesBook(ground.devices.all(), say, self._connected)
        self.interlocks = InterlockBook(ground.world.rows, lambda: ground.devices.interlock.status, ground.world.standing)
        self.questions = Questions(ground.room, ground.world.bodies)
        self.desk = CommandDesk(
            ground.room,
            ground.boot_id,
            lambda: ground.machine.state,
            self.mode,
            self.audit.note,
            {},
            mode_for=self._mode_for,
            clock_ns=self._wall_ns,
        )
        ledger = self._ledger = LedgerBook(ground.state, ground.boot_id)
        self.treating = Treating(
            ground,
            self.plans,
            self.questions,
            self.desk.console_alive,
            self._obstacles,
            self._spots,
            FractionBook(ground, ledger),
        )
        self.servicing = Servicing(ground, self.interlocks, self.alarms, lambda: self.treating.under_way, self._wall_ns)
        self.servicing.desk = self.desk
        self.desk.offer(self._handlers())
        self._watch = Watch(ground.devices, Timing())
        self._proofs = Proofs()
        ground.machine.attach(self._standing_facts)
        self._viewer = RoomViewer(
            ground,
            self.desk,
            self.mode,
            self._facts,
            self.questions,
            self.treating,
            self.interlocks,
            self.alarms,
            self.devices,
        )
        self._cut_off = CutOff(ground, ledger, say)
        self._asking = Asking(ground, self.plans, self.audit, self.interlocks, ledger)
        self._tasks: list[asyncio.Task[None]] = []
        listeners = (self.alarms.take, self.devices.take, self.interlocks.take, self._viewer.take, self._event, self._disk.take)
        for take in listeners:
            ground.bus.subscribe(take)

    # --- life -------------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open what is on disk. Raises Busy, DataError, StorageError, OSError."""
        self.ground.treatments.mkdir(parents=True, exist_ok=True)
        self.plans.open()
        self.audit.open()

    def start(self) -> None:
        """Connect the devices, and look after the room."""
        self.devices.start()
        self._tasks = [
            asyncio.create_task(self._look_after(), name="room"),
            asyncio.create_task(self._look_for_cut_off(), name="cut off"),
            asyncio.create_task(self.audit.run(), name="audit"),
            asyncio.create_task(self._disk.run(), name="disk"),
            asyncio.create_task(tell_lag(self.ground.bus, f"room.{self.ground.room}"), name="lag"),
        ]

    async def close(self) -> None:
        """End what is under way, with a record; let go of the devices."""
        await self.treating.close()
        await self.servicing.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.devices.close()
        self.audit.close()

    # --- the console's side -----------------------------------------------------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """Who this is."""
        ground = self.ground
        return {
            "room": ground.room,
            "facility": ground.facility.name,
            "boot_id": ground.boot_id,
            "speed": ground.speed,
            "simulated": ground.simulated,
        }

    def view(self) -> RoomView:
        """Everything, now; told to the facility's broker, too, where the room has one."""
        view = self._viewer.view()
        if isinstance(self.ground.world, Telling):
            self.ground.world.show(view.model_dump)
        return view

    async def submit(self, command: Command) -> Answer:
        """Judge and execute a command."""
        return await self.desk.submit(command)

    def heartbeat(self, console: str, token: int) -> bool:
        """The commanding console lives."""
        return self.desk.heartbeat(console, token)

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        """A question that changes nothing. Raises CommandRejected."""
        return await self._asking.answer(what, arguments)

    def spots(self) -> Sequence[SpotsView]:
        """Layers of the current beam."""
        return self.treating.spots()

    # --- judging ----------------------------------------------------------------------------------------------------------

    def mode(self) -> Mode:
        """What the room is used for now."""
        state = self.ground.machine.state
        if state is State.QA or self.treating.is_qa:
            return Mode.QA
        return Mode.SERVICE if state in (State.BEAM_TUNING, State.PHYSICS) else Mode.TREAT

    def _mode_for(self, command: Command) -> Mode | None:
        """A plan for quality assurance is loaded by a physicist."""
        if command.name != "load_plan" or self.mode() is not Mode.TREAT:
            return None
        with contextlib.suppress(CommandRejected):
            if self.plans.get(command.arguments.get("plan_id")).about.get("intent") in QA_INTENTS:
                return Mode.QA
        return None

    def _wall_ns(self) -> int:
        """Time by which people and buttons live, ns: the room's, at the pace of a wall clock."""
        return round(now_ns() / self.ground.speed)

    def _obstacles(self) -> list[str]:
        return [*self.devices.missing(), *self.servicing.obstacles(), *self._disk.obstacles()]

    def _handlers(self) -> dict[str, Callable[[Command], Any]]:
        treating, servicing = self.treating, self.servicing
        return {
            "stop": self._stop,
            "pause": treating.pause,
            **dict.fromkeys(("identify", "move_on", "accept_position", "beam_on", "resume", "decline"), self._answer),
            **dict.fromkeys(("terminate", "cancel"), treating.terminate),
            "import_plan": self._import_plan,
            "approve_plan": lambda c: self.plans.approve(c.arguments.get("plan_id"), c.actor.name).model_dump(mode="json"),
            "load_plan": checked(self.ground.room, LOADS, self._load),
            "unload_plan": treating.unload,
            "edit": checked(self.ground.room, EDITS, treating.edit),
            "acknowledge": self._acknowledge,
            "reconcile": self._reconcile,
            "reset_dose_trip": treating.reset_dose,
            "reset_drives": servicing.reset_drives,
            "reset_interlock": self._reset_interlock,
            "request_bypass": servicing.request_bypass,
            "approve_bypass": servicing.approve_bypass,
            "end_bypass": servicing.end_bypass,
            "enter_service": servicing.enter_service,
            "leave_service": servicing.leave_service,
            "jog": servicing.jog,
            "self_test": servicing.self_test,
            "acknowledge_alarm": servicing.acknowledge_alarm,
            "shelve_alarm": servicing.shelve_alarm,
        }

    def _stop(self, command: Command) -> None:
        """Beam off, motion off, the field ended: all begun before this returns."""
        why = f"stop by {command.actor.name} at {command.console}"
        self.treating.stop(why)
        self.servicing.stop(why)

    def _answer(self, command: Command) -> str:
        if self.servicing.jogging:
            raise CommandRejected(
                f"{self.servicing.jogging} is being jogged", code=4471, device=self.ground.room, hint="let it stop, then answer"
            )
        return self.treating.answer(command)

    async def _load(self, command: Command) -> dict[str, Any]:
        await self._disk.look()
        return await self.treating.load(command)

    async def _reset_interlock(self, command: Command) -> dict[str, Any]:
        before = [trip.id for trip in self.interlocks.standing()]
        value = await self.servicing.reset_interlock(command)
        return {**value, TOLD: self.interlocks.reset_words(before)}

    async def _import_plan(self, command: Command) -> dict[str, Any]:
        arguments, held = command.arguments, {plan.id for plan in self.plans.plans()}
        view = await self.plans.take(arguments.get("file"), arguments.get("name"), command.actor.name)
        if view.id in held:
            told = f"this plan is held already, as {view.file}, received {view.received_utc}: nothing was added"
            return {**view.model_dump(mode="json"), TOLD: told}
        self.ground.bus.emit("plans", "plan.received", plan_id=view.id, label=view.label, by=command.actor.name)
        return view.model_dump(mode="json")

    async def _acknowledge(self, command: Command) -> None:
        if self.treating.session is None:
            await self._watch.refresh()
        await self.treating.acknowledge(command)
        self.ground.machine.attach(self._standing_facts)

    async def _reconcile(self, command: Command) -> dict[str, Any]:
        value = reconciled(await self.treating.reconcile(command))
        await self._cut_off.look()
        return value

    # --- looking after ----------------------------------------------------------------------------------------------------

    def _facts(self) -> RoomFacts:
        """As the checklist shows them."""
        session = self.treating.session
        return session.facts() if session is not None and self.treating.under_way else self._standing_facts()

    def _standing_facts(self) -> RoomFacts:
        """Of a room that stands by: nothing is proven but what the plant shows."""
        return self._proofs.facts(self._watch.seen(), self._watch.timing, lambda _lease: False, armed_or_later=False)

    async def _look_after(self) -> None:
        show = getattr(self.ground.world, "show", None)
        while True:
            await asyncio.sleep(LOOK_S)
            self.servicing.look()
            if show is not None:
                show(self._viewer.view().model_dump(mode="json"))

    async def _look_for_cut_off(self) -> None:
        """At the start, and whenever the ledger has changed while nothing is treated here: another tool may settle it, too."""
        while True:
            if not self.treating.under_way:
                await self._cut_off.look()
                await self.treating.look_back(self._ledger.stamp())
            await asyncio.sleep(CUT_OFF_LOOK_S)

    def _connected(self, device: Connectable) -> None:
        """A controller that died may have left the room armed; nothing armed may move."""
        if device is self.ground.devices.access and self.ground.where is not None and not self.treating.under_way:
            task = asyncio.create_task(self._disarm(), name="disarm")
            self._tasks.append(task)

    async def _disarm(self) -> None:
        try:
            await self.ground.devices.access.preset(0, 0.0, 0, False)
        except BeamlineError as error:
            self._say(str(error))

    def _spots(self, spots: SpotsView) -> None:
        self.publish_spots(spots)

    def _event(self, event: Event) -> None:
        self.publish_event(
            EventView(seq=event.seq, t_ns=event.t_ns, source=event.source, kind=event.kind, data=dict(event.data))
        )


def ground_of(
    world: ServedSurroundings, called: str, facility: Facility, room: str, bus: EventBus, state: Path, **more: Any
) -> Ground:
    """The ground of a room in a world whose wires are open."""
    devices = world.devices()
    return Ground(
        facility=facility,
        called=called,
        belief=facility.room(room),
        world=world,
        devices=devices,
        machine=Room(room, devices.access, bus),
        supervisor=BeamSupervisor(facility.rooms, bus),
        bus=bus,
        state=state,
        boot_id=secrets.randbits(BOOT_BITS) | 1,
        **more,
    )
