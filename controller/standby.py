"""The room process: one room that stands by for its consoles, in a world of its own or on real wires, until it is ended.

It holds the room (one process per room and state), keeps its devices connected, serves the line to the consoles, and keeps the
console process running. Not responsible for what the room does (`controller.serving`), nor for what consoles show.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.console_keeper import ConsoleKeeper
from controller.endpoints import Whereabouts
from controller.record.store import Busy, DiskStore, Lock
from drivers.hal.errors import BeamlineError
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import Facility

if TYPE_CHECKING:
    from controller.console.link import LinkServer
    from controller.serving.desk import ServedRoom
    from controller.surroundings import ServedSurroundings
    from simulators.faults import TimedFault

TOLD = (
    *("device.up", "device.down", "device.fault", "treatment.ended", "program.exception"),
    *("interlock.trip", "interlock.reset", "interlock.stands", "interlock.silent", "interlock.heard"),
)
PLACE_S = 5.0  # for the console of a room that was killed a moment ago to let go of its port; wall time, assumed
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIVES = 2**29  # boot ids are 31 bits on the wire
EXAMPLE = Path(__file__).parents[1] / "examples" / "carbon_sphere.dcm"
EXAMPLE_FACILITY = "asan"


@dataclass(frozen=True, slots=True)
class Serving:
    """What `serve` was asked.

    Attributes:
        called: facility, as on the command line; `facility` as it was read, `where` as it was found.
        where, endpoints: the room on real wires; None: a simulated world in this process.
        speed: of that world, seconds per second.
        staff: pace of its people.
        faults: planted in it, each at its time; checked before.
        state: directory of the facility's state.
        console: whether a console process is kept; with `host`, `port` and a certificate of it.
        epics_port: where that process publishes the room as process variables; None: nowhere.
    """

    called: str
    facility: Facility
    room: str
    state: Path
    where: Whereabouts | None = None
    endpoints: Path | None = None
    speed: float = 1.0
    seed: int = 0
    staff: str = "real"
    faults: tuple[TimedFault, ...] = ()
    console: bool = True
    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    epics_port: int | None = None

    @property
    def pace(self) -> float:
        """Seconds of the room per second of a wall clock."""
        return self.where.endpoints.speed if self.where is not None else self.speed


def serve_room(asked: Serving, say: Callable[[str], None]) -> list[str]:
    """Serve until interrupted. Returns why it could not; empty when it did."""
    from controller.assembly import loop_factory, unhurried_loop

    if asked.console:
        from controller.console.process import check_place

        try:  # before anything of the room: a room that nobody can command is of no use
            check_place(asked.host, asked.port, asked.tls_cert, asked.tls_key, PLACE_S)
        except BeamlineError as error:
            return error.as_reasons
    made = loop_factory(asked.pace) if asked.where is not None else unhurried_loop(asked.speed)
    try:
        lock = _hold(asked)
    except BeamlineError as error:
        return [str(error)]
    except OSError as error:
        return [f"--state {asked.state}: {error.strerror or error}"]
    try:
        with asyncio.Runner(loop_factory=made) as runner:
            return runner.run(_serve(asked, say))
    except KeyboardInterrupt:  # before the room listened to signals: what had begun is put away already
        return []
    finally:
        lock.release()


def _hold(asked: Serving) -> Lock:
    """One process per room of a state. Raises Busy with words, OSError."""
    run = asked.state / "run"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run / f"{asked.room}.lock"
    try:
        lock = DiskStore().lock(path)
    except Busy:
        raise Busy(
            f"room {asked.room} of {asked.state} is served already by {_holder(path)}",
            code=4193,
            device=asked.room,
            hint="one process serves a room; end the other one first",
        ) from None
    path.write_text(f"process {os.getpid()}\n", encoding="ascii")
    return lock


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii").strip() or "another process"
    return "another process"


async def _serve(asked: Serving, say: Callable[[str], None]) -> list[str]:
    from controller.console.link import LinkServer
    from controller.serving.desk import ServedRoom, ground_of
    from controller.serving.plan_inspection import inspect_apart
    from controller.surroundings import served_surroundings

    bus = EventBus()
    bus.subscribe(lambda event: _tell(event, say))
    early: list[Event] = []  # what stands from the start is told while the room is not there yet to list it
    heard = bus.subscribe(early.append)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, ended.set)
    refused: list[str] = []

    def no_console(why: str) -> None:
        refused.append(why)
        ended.set()

    life = 1 + secrets.randbelow(LIVES)  # nothing that an earlier process knew is known by this one's dose units
    world: ServedSurroundings = served_surroundings(asked.facility, asked.where, asked.seed, bus, asked.room, asked.staff, life)
    room: ServedRoom | None = None
    link: LinkServer | None = None
    keeper: asyncio.Task[None] | None = None
    try:
        await world.start()
        if asked.faults:
            await world.inject(asked.faults)
        facility = asked.where.facility if asked.where is not None else asked.facility
        more: dict[str, Any] = {
            "where": asked.where,
            "endpoints": asked.endpoints,
            "seed": asked.seed,
            "speed": asked.pace,
            "virtual": asked.where is None,
            "limits_unsigned": _unsigned(asked),
        }
        ground = ground_of(world, asked.called, facility, asked.room, bus, asked.state.resolve(), **more)
        room = ServedRoom(ground, inspect_apart, say)
        heard()
        for event in early:
            room.alarms.take(event)
        room.open()
        _watch_failures(loop, room)
        link = LinkServer(asked.state.resolve() / "run" / f"{asked.room}.sock", room, speed=asked.pace)
        await link.start()
        room.publish_event, room.publish_spots = link.publish_event, link.publish_spots
        gc.collect()
        gc.freeze()  # what stands now stands until the end: no need to look at it again and again
        room.start()
        kind = "SIMULATED, " if ground.simulated else ""
        say(f"{asked.room} of {facility.name} stands by: {kind}{len(ground.devices.all())} devices; Ctrl-C ends it")
        if ground.limits_unsigned:
            say(f"limits unsigned: {ground.limits_unsigned}; a simulated room goes on with them, a real one does not start")
            bus.emit(f"{asked.room}-interlocks", "limits.unsigned", error=ground.limits_unsigned)
        if ground.simulated:
            await _example(asked, room, say)
        if asked.console:
            keeper = asyncio.create_task(ConsoleKeeper(asked, say, no_console).run(), name="console process")
        await ended.wait()
        return refused
    except BeamlineError as error:
        return error.as_reasons
    except OSError as error:
        return [f"{error.filename or asked.state}: {error.strerror or error}"]
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
        if room is not None:
            await room.close()
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        if link is not None:
            await link.close()
        await world.stop()


def _unsigned(asked: Serving) -> str:
    """Where anything is real the interlock system has a process of its own, which says so itself and does not start."""
    from controller.interlock_rows import unsigned_limits

    return "" if asked.where is not None and asked.where.real else unsigned_limits(asked.facility.name)


async def _example(asked: Serving, room: ServedRoom, say: Callable[[str], None]) -> None:
    """A new state of a simulated facility gets a plan that can be treated at once."""
    try:
        data, name = await asyncio.to_thread(_example_file, asked)
        view = await room.plans.add_example(data, name)
    except (BeamlineError, OSError) as error:
        say(f"no example plan: {error}")
        return
    if view is not None:
        say(f"example plan {view.id} ({view.label}) is in the store, approved for this simulated room")


def _example_file(asked: Serving) -> tuple[bytes, str]:
    """The shipped plan where it fits; elsewhere one that is made for the facility."""
    if asked.called == EXAMPLE_FACILITY and EXAMPLE.is_file():
        return EXAMPLE.read_bytes(), EXAMPLE.name
    from controller.plan.make import PlanSpec, make_plan

    return make_plan(PlanSpec(), asked.facility), "example.dcm"


def _watch_failures(loop: asyncio.AbstractEventLoop, room: ServedRoom) -> None:
    """What nobody awaits has failed: it is told, and a treatment ends."""
    listening = loop.get_exception_handler()

    def unforeseen(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if listening is not None:
            listening(loop, context)
        room.treating.unforeseen(context.get("exception") or RuntimeError(str(context.get("message"))))

    loop.set_exception_handler(unforeseen)


def _tell(event: Event, say: Callable[[str], None]) -> None:
    if event.kind not in TOLD:
        return
    data = event.data
    if event.kind in ("interlock.trip", "interlock.stands"):
        details = f"{data.get('id')}: {data.get('cause')}. {data.get('advice')}"
    elif event.kind == "interlock.reset":
        by, refused = data.get("role"), data.get("refused")
        details = f"{', '.join(map(str, data.get('cleared', ()))) or 'nothing'}{f' by {by}' if by else ''}"
        details += f"; still there: {', '.join(f'{name} ({why})' for name, why in refused)}" if refused else ""
    else:
        shown = {name: value for name, value in data.items() if value not in ("", None, []) and name != "trace"}
        details = ", ".join(f"{name} {value}" for name, value in shown.items())
    say(f"{event.t_ns / 1e9:10.1f} s  {event.source}  {event.kind}{f'  {details}' if details else ''}")
