"""What is done in a room beside treating: resets, service mode, jogging while a button is held, bypasses by two persons, tests.

Not responsible for who may (the desk), nor for treatments (`treating`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from controller.commands import Actor, Command, CommandDesk, Control
from controller.console.alarms import AlarmList
from controller.roles import Role
from controller.room.motion_permit import require_motion_permit
from controller.room.states import SERVICE, State, Trigger
from controller.serving.ground import Ground
from controller.serving.interlock_book import KEY, Bypassed, InterlockBook
from controller.serving.jog_reach import jog_target
from controller.surroundings import Hearing
from drivers.hal.capabilities import COUCH_AXES
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError, CommandRejected

NOT_YOURS, NOTHING_STANDS, BAD_ARGUMENT, KEY_STANDS, BYPASS, IN_OTHER_HANDS, MOVING = 4461, 4462, 4463, 4464, 4465, 4466, 4467
LET_GO, UNHEARD, NOT_NOW = 4469, 4473, 4474
ENABLE_NS = 200 * NS_PER_MS  # design: without a fresh enable for so long the drive stops
JOG_LOOK_S = 0.02
KEY_LOOKS, KEY_LOOK_S = 50, 0.1  # for the plant to show the key that was turned; assumed
SHOWN_S = 0.6  # for the status line to show a reset: its period, and some more
SERVICE_STATES = {"qa": Trigger.TO_QA, "beam_tuning": Trigger.TO_BEAM_TUNING, "physics": Trigger.TO_PHYSICS}
SHELVED_MAX_S = 8 * 3600.0


@runtime_checkable
class Acknowledges(Protocol):
    """A device whose drives keep a fault until somebody has seen it."""

    async def acknowledge(self) -> object:
        """Clear it; never starts motion."""
        ...


class Servicing:
    """One per room.

    Args:
        ground: the room.
        interlocks: what stands.
        alarms: the alarm list.
        busy: whether a treatment is under way.
        clock_ns: by which a held button is fresh (the wall's, where the room's time runs faster).
    """

    def __init__(
        self,
        ground: Ground,
        interlocks: InterlockBook,
        alarms: AlarmList,
        busy: Callable[[], bool],
        clock_ns: Callable[[], int],
    ) -> None:
        self.desk: CommandDesk | None = None  # the one whose commands these are
        self._ground = ground
        self._interlocks = interlocks
        self._alarms = alarms
        self._busy = busy
        self._clock_ns = clock_ns
        self._jog: asyncio.Task[None] | None = None
        self._unsent: asyncio.Future[None] | None = None  # a jog whose clear way is still sought
        self._jogged: tuple[str, int] = ("", 0)
        self._enabled_ns = 0  # the button was down last; 0 after a stop
        self._heard_ns = 0  # the same, whatever was stopped: who goes on pressing begins nothing new
        self._pressing = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()

    # --- motion -----------------------------------------------------------------------------------------------------------

    @property
    def jogging(self) -> str:
        """Axis that is jogged; empty when none is."""
        return self._jogged[0] if self._jog is not None and not self._jog.done() else ""

    def jog(self, command: Command) -> dict[str, Any]:
        """`jog{axis, direction}`: moves while it is repeated at least every 200 ms; stops when it is not."""
        axis, direction = str(command.arguments.get("axis", "")), command.arguments.get("direction")
        if axis not in ("gantry", *COUCH_AXES) or direction not in (1, -1):
            raise self._no(
                BAD_ARGUMENT, f"jog {axis or '?'} {direction}", f"axis: gantry, {', '.join(COUCH_AXES)}; direction: 1, -1"
            )
        wanted = axis, int(direction)
        held = wanted == self._jogged and self._clock_ns() - self._heard_ns <= ENABLE_NS
        self._enabled_ns = self._heard_ns = self._clock_ns()
        if self.jogging:
            if wanted != self._jogged:
                self._enabled_ns = 0  # the other button: the axis stops first
                raise self._no(MOVING, f"{self._jogged[0]} is being jogged", "let it stop first")
            return {"axis": axis, "moving": True}
        if held:  # it has ended while the button was down: a new motion takes a new press
            return {"axis": axis, "moving": False}
        self._jogged = wanted
        self._jog = asyncio.create_task(self._hold_to_run(*wanted), name="jog")
        return {"axis": axis, "moving": True}

    def stop(self, why: str) -> None:
        """Quick stop of gantry and couch, whatever they do. Never refused, never waited for."""
        self._enabled_ns = 0
        if self._unsent is not None:
            self._unsent.cancel()
        self._ground.bus.emit(f"room.{self._ground.room}", "motion.stopped", why=why)
        for device in (self._ground.devices.gantry, self._ground.devices.couch):
            task = asyncio.create_task(self._quick_stop(device.stop), name="stop")
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _quick_stop(self, stop: Callable[[], Any]) -> None:
        try:
            await stop()
        except BeamlineError as error:
            self._ground.bus.emit(f"room.{self._ground.room}", "stop.failed", error=str(error))

    def _held(self) -> bool:
        """Whether the button is down: it was heard of lately enough."""
        return self._clock_ns() - self._enabled_ns <= ENABLE_NS

    async def _hold_to_run(self, axis: str, direction: int) -> None:
        """Move while the button is held. A motion that was let go of before it was sent is never sent."""
        device = self._ground.devices.gantry if axis == "gantry" else self._ground.devices.couch
        moving = self._unsent = asyncio.ensure_future(self._move(axis, direction))
        try:
            while not moving.done() and self._held():
                await asyncio.wait({moving}, timeout=JOG_LOOK_S)
            if not moving.done():
                if self._unsent is moving:
                    moving.cancel()  # before anything is waited for: a new press meanwhile must not revive it
                    self._say_ended(axis, "the button was let go of before the clear way was found; nothing moved")
                await self._quick_stop(device.stop)
                await asyncio.wait({moving})  # what was sent ends by the stop
        finally:
            self._unsent = None
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)

    async def _move(self, axis: str, direction: int) -> None:
        """Towards the end of the clear way; stopped on the way it says so, which is what was wanted."""
        devices, room = self._ground.devices, self._ground.room
        try:
            await require_motion_permit(devices.interlock, room)
            target = await jog_target(self._ground, axis, direction)
            if not self._held():
                raise self._no(LET_GO, "the button was let go of before the clear way was found", "hold it longer")
            self._unsent = None  # from here on a stop ends it: the device has begun before anybody else can run
            if axis == "gantry":
                await devices.gantry.move_to(target)
            else:
                await devices.couch.move_to({axis: target})
        except BeamlineError as error:
            self._say_ended(axis, str(error))

    def _say_ended(self, axis: str, reason: str) -> None:
        self._ground.bus.emit(f"room.{self._ground.room}", "jog.ended", axis=axis, reason=reason)

    async def reset_drives(self, command: Command) -> dict[str, Any]:
        """`reset_drives`: clear what the drives keep of a fault whose cause is gone. Raises CommandRejected with what stays."""
        if self._busy() or self.jogging:
            raise self._no(MOVING, "a plan is loaded, or an axis is jogged", "end that first")
        said, stays = [], []
        for device in (self._ground.devices.gantry, self._ground.devices.couch):
            if not isinstance(device, Acknowledges):
                continue  # a fixed port has no drives
            try:
                await device.acknowledge()
            except BeamlineError as error:
                stays.append(str(error))
            else:
                said.append(device.name)
        if stays:
            raise self._no(NOTHING_STANDS, "; ".join(stays), "remove the cause, then try again")
        self._ground.bus.emit(f"room.{self._ground.room}", "drives.reset", devices=said, by=command.actor.name)
        return {"devices": said}

    def _drive_faults(self) -> list[str]:
        """Axes that keep a fault, in words; as last read."""
        found = []
        for device in (self._ground.devices.gantry, self._ground.devices.couch):
            for reading in device.readings():
                if reading.name.endswith(".error_code") and isinstance(reading.value, int) and reading.value:
                    found.append(f"{device.name} keeps fault {reading.value:#06x}: remove its cause, then reset_drives")
        return found

    # --- interlocks -------------------------------------------------------------------------------------------------------

    async def reset_interlock(self, command: Command) -> dict[str, Any]:
        """`reset_interlock`: press the button of the actor's role; what only the key resets, a person at the key does."""
        role, by_role = command.actor.role.value, self._interlocks.roles()
        if not by_role and self._ground.devices.interlock.status.relay_closed:
            raise self._no(NOTHING_STANDS, "nothing stands that could be reset", "")
        if by_role and role not in by_role and KEY not in by_role:
            stands = "; ".join(_whose(ids, who) for who, ids in by_role.items())
            raise self._no(NOT_YOURS, f"{stands}; {_signed_in(command.actor)}", "have it reset by that role")
        async with self._pressing:
            await self._require_heard("nothing was pressed")
            commands = self._another_commands(command)
            if commands is not None:
                by_role = self._beside(commands, role, by_role)
            if role in by_role or not by_role:
                if commands is not None:
                    self._tell_commander(command, commands, by_role[role])
                await self._ground.world.bodies.press(role)
                await asyncio.sleep(SHOWN_S)
            if KEY in by_role:
                await self._require_heard("the key was not turned")
                await self._ground.world.bodies.press(KEY)
                await asyncio.sleep(SHOWN_S)
        left = self._interlocks.standing()
        return {
            "relay_closed": self._ground.devices.interlock.status.relay_closed,
            "standing": [{"id": t.id, "cause": t.cause, "reset_role": t.reset_role, "advice": t.advice} for t in left],
        }

    def _beside(self, commands: Control, role: str, by_role: dict[str, list[str]]) -> dict[str, list[str]]:
        """What another console may press beside the one that commands: for a role that is not there, which is needed.

        The key is turned for who commands. Raises CommandRejected.
        """
        who = commands.actor
        if role not in by_role or role == who.role.value:
            raise self._no(
                NOT_NOW,
                f"{who.name} ({who.role.value}) commands this room from {commands.console}, and nothing stands that needs"
                " the reset of a role that is not there",
                f"have it reset from {commands.console}",
            )
        return {role: by_role[role]}

    def _another_commands(self, command: Command) -> Control | None:
        """Who commands the room from another console that lives."""
        control = self.desk.control if self.desk is not None else None
        if self.desk is None or control is None or control.console == command.console or not self.desk.console_alive():
            return None
        return control

    def _tell_commander(self, command: Command, commands: Control, ids: list[str]) -> None:
        """Whoever commands hears whose hand is at the panel, before anything changes."""
        self._ground.bus.emit(
            f"room.{self._ground.room}",
            "interlock.pressed",
            by=command.actor.name,
            role=command.actor.role.value,
            console=command.console,
            ids=ids,
            commander=commands.actor.name,
            commands_from=commands.console,
        )

    async def _require_heard(self, undone: str) -> None:
        """What is sent to a process that stands still waits there, and is obeyed when nobody looks. Raises CommandRejected."""
        world = self._ground.world
        why = self._interlocks.another() or (await world.unheard() if isinstance(world, Hearing) else "")
        if why:
            raise self._no(
                UNHEARD, f"{why}: {undone}", "see that the interlock system runs, look at what stands, then ask again"
            )

    def request_bypass(self, command: Command) -> dict[str, Any]:
        """`request_bypass{interlock, reason, duration_s}`: the first of two persons."""
        arguments = command.arguments
        name, reason = str(arguments.get("interlock", "")), str(arguments.get("reason", ""))
        row = self._interlocks_row(name)
        if not row.bypassable:
            raise self._no(BYPASS, f"{name} is never bypassed", "its row allows none, or it protects people")
        if not reason.strip():
            raise self._no(BAD_ARGUMENT, "a bypass needs a reason", "say why")
        duration_s = _seconds(arguments.get("duration_s"), row.longest_bypass_s)
        if duration_s is None:
            raise self._no(BAD_ARGUMENT, f"duration_s: above 0, at most {row.longest_bypass_s:g} s", "say for how long")
        if name in self._interlocks.bypasses:
            raise self._no(BYPASS, f"a bypass of {name} is asked for or active already", "end it first")
        self._interlocks.bypasses[name] = Bypassed(name, command.actor.name, reason.strip(), duration_s)
        return {"interlock": name, "waits_for": "a physicist"}

    async def approve_bypass(self, command: Command) -> dict[str, Any]:
        """`approve_bypass{interlock}`: the second person; now the interlock system is told."""
        name = str(command.arguments.get("interlock", ""))
        bypass = self._interlocks.bypasses.get(name)
        if bypass is None or bypass.approver:
            raise self._no(BYPASS, f"no bypass of {name or 'what?'} waits for approval", "see the interlocks")
        if bypass.owner.strip().casefold() == command.actor.name.strip().casefold():
            raise self._no(BYPASS, f"{bypass.owner} asked for it and cannot approve it", "another person does")
        await self._require_heard("the bypass was not begun")
        await self._ground.world.bypass(name, bypass.owner, command.actor.name, bypass.duration_s, bypass.reason)
        bypass.approver, bypass.until_ns = command.actor.name, now_ns() + round(bypass.duration_s * NS_PER_S)
        self._ground.bus.emit(
            f"room.{self._ground.room}",
            "bypass.begun",
            interlock=name,
            owner=bypass.owner,
            approver=bypass.approver,
            reason=bypass.reason,
            duration_s=bypass.duration_s,
        )
        return {"interlock": name, "remaining_s": bypass.duration_s}

    async def end_bypass(self, command: Command) -> None:
        """`end_bypass{interlock?}`: one, or all of them; a request is withdrawn."""
        wanted = command.arguments.get("interlock")
        known = [bypass.interlock for bypass in self._interlocks.shown_bypasses()]
        names = [str(wanted)] if wanted is not None else known
        if not names or names[0] not in known:
            raise self._no(BYPASS, f"no bypass of {wanted or 'anything'} is active", "")
        for name in names:
            await self._ground.world.end_bypass(name)
            self._interlocks.forget_bypass(name)
            self._ground.bus.emit(f"room.{self._ground.room}", "bypass.ended", interlock=name, by=command.actor.name)

    def _interlocks_row(self, name: str) -> Any:
        row = self._ground.world.rows.get(name)
        if row is None:
            raise self._no(BAD_ARGUMENT, f"there is no interlock {name!r}", "see docs/interlocks.md")
        return row

    # --- service mode -----------------------------------------------------------------------------------------------------

    async def enter_service(self, command: Command) -> dict[str, Any]:
        """`enter_service{mode}`: with the plant's key; whoever enters commands the room."""
        mode = str(command.arguments.get("mode", "physics"))
        trigger = SERVICE_STATES.get(mode)
        if trigger is None:
            raise self._no(BAD_ARGUMENT, f"mode {mode!r}", f"one of {', '.join(SERVICE_STATES)}")
        if mode == "qa" and command.actor.role is Role.SERVICE and self._ground.machine.state not in SERVICE:
            raise self._no(BAD_ARGUMENT, "QA is a physicist's", "enter beam_tuning or physics")
        self._free_for(command)
        if self._busy():
            raise self._no(MOVING, "a plan is loaded", "put it back first")
        await self._turn_key(service=True)
        if not self._ground.machine.fire(trigger, why=command.actor.name):
            raise self._ground.machine.refusal or self._no(KEY_STANDS, "the room does not enter service", "")
        return {"token": self._entrust(command), "mode": mode}

    async def leave_service(self, command: Command) -> None:
        """`leave_service`: only without bypasses; then the key is turned back."""
        if self._interlocks.active_bypasses():
            names = ", ".join(b.interlock for b in self._interlocks.active_bypasses())
            raise self._no(BYPASS, f"bypassed: {names}", "end the bypasses first: nothing is treated with one")
        self.stop("service ends")
        self._interlocks.bypasses.clear()
        await self._turn_key(service=False)
        room = self._ground.machine
        if room.state in SERVICE and not room.fire(Trigger.LEAVE_SERVICE, why=command.actor.name):
            raise room.refusal or self._no(KEY_STANDS, "the room stays in service", "")

    def look(self) -> None:
        """A key that was turned back by hand ends service; called often, costs nothing."""
        room = self._ground.machine
        if room.state in SERVICE and not self._ground.devices.access.status.service_mode:
            self._enabled_ns = 0
            room.fire(Trigger.LEAVE_SERVICE, why="the mode key was turned back")

    async def _turn_key(self, *, service: bool) -> None:
        access = self._ground.devices.access
        if access.status.service_mode is service:
            return
        await self._ground.world.bodies.turn_key(service)
        for _ in range(KEY_LOOKS):
            if (await access.refresh()).service_mode is service:
                return
            await asyncio.sleep(KEY_LOOK_S)
        raise self._no(KEY_STANDS, "the plant does not show the key as turned", "see the room's safety node")

    def _free_for(self, command: Command) -> None:
        control = self.desk.control if self.desk is not None else None
        if control is None or (control.console, control.actor) == (command.console, command.actor):
            return
        if self.desk is not None and self.desk.console_alive():
            raise self._no(IN_OTHER_HANDS, f"{control.actor.name} commands this room from {control.console}", "ask there")

    def _entrust(self, command: Command) -> int:
        if self.desk is None:
            return 0
        control = self.desk.control
        if control is not None and (control.console, control.actor) == (command.console, command.actor):
            return control.token
        return self.desk.entrust(command.console, Actor(command.actor.name, command.actor.role))

    # --- the rest ---------------------------------------------------------------------------------------------------------

    async def self_test(self, command: Command) -> dict[str, Any]:
        """`self_test`: both dose channels."""
        if self._busy():
            raise self._no(MOVING, "a plan is loaded", "the room tests by itself before it arms")
        await self._ground.devices.dose_monitor.self_test()
        return {"age_s": self._ground.devices.dose_monitor.status.self_test_age_s, "by": command.actor.name}

    def acknowledge_alarm(self, command: Command) -> None:
        """`acknowledge_alarm{id}`."""
        self._alarms.acknowledge(str(command.arguments.get("id", "")), command.actor.name)

    def shelve_alarm(self, command: Command) -> None:
        """`shelve_alarm{id, duration_s}`."""
        duration_s = _seconds(command.arguments.get("duration_s"), SHELVED_MAX_S)
        if duration_s is None:
            raise self._no(BAD_ARGUMENT, f"duration_s: above 0, at most {SHELVED_MAX_S:g} s", "say for how long")
        self._alarms.shelve(str(command.arguments.get("id", "")), command.actor.name, duration_s)

    async def close(self) -> None:
        """Nothing moves on."""
        self._enabled_ns = 0
        tasks = [*self._stopping, *([self._jog] if self._jog is not None else [])]
        if tasks:
            await asyncio.wait(tasks)

    def obstacles(self) -> list[str]:
        """Why nothing may be loaded."""
        found = []
        if self._interlocks.active_bypasses():
            found.append(f"bypassed: {', '.join(b.interlock for b in self._interlocks.active_bypasses())}; end it first")
        if self._ground.devices.access.status.service_mode:
            found.append("the mode key stands on service; turn it to treatment")
        if self.jogging:
            found.append(f"{self.jogging} is being jogged; let it stop")
        found += self._drive_faults()
        if self._ground.machine.state is not State.STANDBY:
            found.append(f"the room is {self._ground.machine.state.value}, not standby")
        return found

    def _no(self, code: int, why: str, hint: str) -> CommandRejected:
        return CommandRejected(why, code=code, device=self._ground.room, hint=hint)


def _whose(ids: list[str], role: str) -> str:
    named = f"{', '.join(ids[:-1])} and {ids[-1]} are" if len(ids) > 1 else f"{ids[0]} is"
    return f"{named} reset by the role {role}"


def _signed_in(actor: Actor) -> str:
    role = actor.role.value
    return f"who asks is signed in as {role}" if actor.name == role else f"{actor.name} is signed in as {role}"


def _seconds(value: object, longest_s: float) -> float | None:
    """A duration as a client sent it; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= longest_s:
        return None
    return float(value)
