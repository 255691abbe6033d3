"""Object-level stand-ins for a room's devices, for unit tests of the room alone. The wires have their own tests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controller.plan.model import Beam, CouchTargets, Layer, RangeShifterUse, ToleranceTable
from controller.room.machine import Room, StateChange
from controller.room.ports import Confirm, DeliveryContext, DeliveryResult, Job, Tuned
from controller.room.session import Session, SessionResult
from controller.room.states import State
from controller.room.supervision import Timing
from drivers.hal.capabilities import (
    COUCH_AXES,
    AcceleratorState,
    AcceleratorStatus,
    DoseMonitorStatus,
    EndReason,
    Hold,
    InterlockStatus,
    RingState,
    RoomDevices,
    RoomStatus,
    UnitState,
    UnitStatus,
)
from drivers.hal.clock import now_ns
from drivers.hal.events import Event, EventBus
from drivers.hal.facility import Room as RoomBelief
from drivers.hal.ions import CARBON
from drivers.hal.reading import Quality, Reading

ALL_HEALTHY = 511


def belief(kind: str = "gantry") -> RoomBelief:
    name = "G1" if kind == "gantry" else "F1"
    span = {"minimum": -180.0, "maximum": 180.0}
    raw: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "machine_names": [name],
        "route_switch_s": 30.0,
        "couch": {
            "lateral_mm": {"minimum": -250, "maximum": 250},
            "longitudinal_mm": {"minimum": -1000, "maximum": 1000},
            "vertical_mm": {"minimum": -500, "maximum": 300},
            "angle_deg": {"minimum": -110, "maximum": 110},
            "pitch_deg": {"minimum": -3, "maximum": 3},
            "roll_deg": {"minimum": -3, "maximum": 3},
            "correction_max_mm": 20.0,
            "correction_max_deg": 3.0,
        },
        "nozzle": {
            "sad_x_mm": 8000.0,
            "sad_y_mm": 8000.0,
            "monitor_distance_mm": 1000.0,
            "field_x_mm": 200.0,
            "field_y_mm": 200.0,
            "snout_mm": {"minimum": 50, "maximum": 500},
            "range_shifters": [{"id": "RS30", "wet_mm": 30.0}, {"id": "RS60", "wet_mm": 60.0}],
            "scan_speed_x_mm_ms": 100.0,
            "scan_speed_y_mm_ms": 50.0,
            "spot_settle_us": 100.0,
            "beam_on_distance_max_mm": 10.0,
        },
    }
    if kind == "gantry":
        raw["gantry"] = {
            "angle_deg": span,
            "speed_deg_s": 3.0,
            "acceleration_deg_s2": 0.5,
            "jerk_deg_s3": 0.5,
            "in_position_deg": 0.1,
            "settle_s": 2.0,
        }
    else:
        raw["ports_deg"] = [0.0, 90.0]
    return RoomBelief.model_validate(raw)


def beam(
    number: int = 1,
    gantry_deg: float = 30.0,
    *,
    couch: CouchTargets | None = None,
    snout_mm: float | None = 300.0,
    shifters: tuple[RangeShifterUse, ...] = (),
    tolerance: ToleranceTable | None = None,
) -> Beam:
    spots = np.zeros(2)
    layer = Layer(0, 0, 0.0, 1.0, 200.0, spots, spots, np.ones(2))
    return Beam(
        number=number,
        name=f"B{number}",
        description="",
        machine_name="G1",
        radiation_type="ION",
        ion=CARBON,
        charge_state=6,
        meterset_unit="MU",
        meterset=2.0,
        final_cumulative_weight=1.0,
        gantry_angle_deg=gantry_deg,
        layers=(layer,),
        control_points=2,
        couch=couch or CouchTargets(),
        snout_mm=snout_mm,
        range_shifters=shifters,
        tolerance=tolerance,
    )


def job(of: Beam | None = None) -> Job:
    return Job("1.2.3", "plan", 77, "patient", 1, of or beam())


def reading(name: str, value: float, unit: str, quality: Quality = Quality.GOOD) -> Reading[float]:
    return Reading(name, value, unit, now_ns(), quality)


@dataclass
class Device:
    """What all have in common: a name, a log of calls, and a fault that the next call of a method raises or hangs on."""

    name: str
    log: list[str]
    faults: dict[str, BaseException] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    silent: bool = False

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    def readings(self) -> tuple[Reading[object], ...]:
        return ()

    async def call(self, what: str, duration_s: float = 0.0) -> None:
        self.log.append(f"{self.name}.{what}")
        if what in self.faults:
            raise self.faults[what]
        if what in self.hangs:
            await asyncio.Event().wait()
        if duration_s:
            await asyncio.sleep(duration_s)


@dataclass
class FakeRing(Device):
    angle_deg: float = 0.0
    error_deg: float = 0.0  # how wrong it arrives
    motor_error_deg: float = 0.0
    standstill: bool = True
    enabled: bool = False
    brake: bool = True
    moving: bool = False
    stops: int = 0
    quality: Quality = Quality.GOOD

    async def read_state(self) -> RingState:
        await self.call("read_state")
        return RingState(
            reading(f"{self.name}.angle", self.angle_deg, "deg", self.quality),
            reading(f"{self.name}.motor_angle", self.angle_deg + self.motor_error_deg, "deg"),
            0.0,
            self.enabled,
            self.brake,
            self.standstill,
            0,
        )

    async def move_to(self, angle_deg: float) -> RingState:
        self.moving, self.enabled, self.brake, self.standstill = True, True, False, False
        await self.call(f"move_to {angle_deg:g}", abs(angle_deg - self.angle_deg) / 3.0)
        self.angle_deg = angle_deg + self.error_deg
        self.moving, self.enabled, self.brake, self.standstill = False, False, True, True
        return await self.read_state()

    async def stop(self) -> None:
        self.stops += 1
        await self.call("stop")
        self.moving, self.enabled, self.brake, self.standstill = False, False, True, True


@dataclass
class FakeCouch(Device):
    axes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUCH_AXES, 0.0))
    stops: int = 0

    async def read_axes(self) -> dict[str, Reading[float]]:
        await self.call("read_axes")
        return {axis: reading(f"{self.name}.{axis}", value, axis[-3:].strip("_")) for axis, value in self.axes.items()}

    async def move_to(self, targets: dict[str, float]) -> dict[str, Reading[float]]:
        await self.call("move_to", 5.0)
        self.axes.update(targets)
        return await self.read_axes()

    async def stop(self) -> None:
        self.stops += 1
        await self.call("stop")


@dataclass
class FakeSnout(Device):
    snout_mm: float = 400.0
    shifters: tuple[str, ...] = ()

    async def set_up(self, snout_mm: float | None, range_shifters: tuple[str, ...]) -> None:
        await self.call(f"set_up {snout_mm}", 2.0)
        self.snout_mm = snout_mm if snout_mm is not None else self.snout_mm
        self.shifters = tuple(range_shifters)

    async def read_set_up(self) -> tuple[Reading[float], tuple[str, ...]]:
        return reading(f"{self.name}.snout", self.snout_mm, "mm"), self.shifters


@dataclass
class FakeSource(Device):
    route: str = "none"
    arrived: Any = None

    @property
    def status(self) -> AcceleratorStatus:
        return AcceleratorStatus(now_ns(), AcceleratorState.FLATTOP, 200000, 1, 6012, True, 1e9, 0)

    async def select_route(self, route: str) -> None:
        await self.call(f"select_route {route}", 30.0)
        self.route = route
        if self.arrived is not None:
            self.arrived(route)


@dataclass
class FakeAccess(Device):
    """The room as its safety I/O shows it; the request is answered at once when A and B permit."""

    door_closed: bool = False
    searched: bool = False
    estop_healthy: bool = True
    chain: int = ALL_HEALTHY
    b: bool = True
    r: bool = False
    answers: bool = True
    service: bool = False
    presets: list[tuple[int, float, int, bool]] = field(default_factory=list)
    requests: list[bool] = field(default_factory=list)
    _last: RoomStatus | None = None

    def look(self) -> RoomStatus:
        chain = self.chain
        if not (self.door_closed and self.searched):
            chain &= ~2
        if not self.estop_healthy:
            chain &= ~1
        a = chain == ALL_HEALTHY
        r = self.r and self.answers
        return RoomStatus(
            now_ns(),
            self.door_closed,
            self.searched,
            2 if self.searched else 0,
            self.estop_healthy,
            True,
            False,
            False,
            a,
            self.b,
            r,
            a and self.b and r,
            chain,
            self.service,
        )

    @property
    def status(self) -> RoomStatus:
        if self._last is None:
            self._last = self.look()
        return self._last

    async def refresh(self) -> RoomStatus:
        await self.call("refresh")
        if not self.silent:
            self._last = self.look()
        return self.status

    async def preset(
        self, room_token: int, angle_deg: float, species_token: int, armed: bool, plan_hash: int = 0, beam_number: int = 0
    ) -> None:
        await self.call("preset")
        self.presets.append((room_token, angle_deg, species_token, armed))

    def request_beam(self, on: bool) -> None:
        if "request_beam" in self.faults:
            raise self.faults["request_beam"]
        self.r = on
        self.requests.append(on)

    def gate(self, fed: Any) -> None:
        self.fed = fed

    @property
    def armed(self) -> bool:
        return bool(self.presets) and self.presets[-1][3]

    def secure(self) -> None:
        self.searched = self.door_closed = True

    def open_door(self) -> None:
        self.door_closed = self.searched = False


@dataclass
class FakeInterlock(Device):
    relay_closed: bool = True
    code: int = 0
    _last: InterlockStatus | None = None

    def look(self) -> InterlockStatus:
        return InterlockStatus(now_ns(), self.relay_closed, 1 if self.code else 0, self.code, 1)

    @property
    def status(self) -> InterlockStatus:
        if self._last is None:
            self._last = self.look()
        return self._last

    async def refresh(self) -> InterlockStatus:
        await self.call("refresh")
        if not self.silent:
            self._last = self.look()
        return self.status


@dataclass
class FakeUnit(Device):
    """Counts up while its grant is open, beam is enabled and the gate is open; enough to show what the room does to it."""

    access: FakeAccess | None = None
    state: UnitState = UnitState.IDLE
    open_grant: int = 0
    last_grant: int = 0
    counts: int = 0
    latched: bool = False
    gate_open: bool = False
    aborts: int = 0

    @property
    def status(self) -> UnitStatus:
        t_ns = 0 if self.silent else now_ns()
        return UnitStatus(
            t_ns,
            5,
            self.state,
            self.last_grant,
            self.open_grant,
            0,
            EndReason.NONE,
            Hold(0),
            self.counts,
            self.counts,
            0,
            self.latched,
        )

    async def set_gate(self, open_: bool) -> None:
        await self.call(f"gate {open_}")
        self.gate_open = open_

    async def abort(self) -> None:
        await self.call("abort")
        self.aborts += 1
        self.open_grant = 0


@dataclass
class FakeDose(Device):
    tripped: bool = False
    hv_good: bool = True
    age_s: int = -1
    ceilings: list[tuple[int, int]] = field(default_factory=list)

    @property
    def status(self) -> DoseMonitorStatus:
        t_ns = 0 if self.silent else now_ns()
        return DoseMonitorStatus(t_ns, 5, 2 if self.tripped else 1, 0, self.hv_good, True, 0, self.age_s)

    async def start_field(self, field_counts_max: int, spot_counts_max: int) -> None:
        await self.call("start_field")
        self.ceilings.append((field_counts_max, spot_counts_max))

    async def self_test(self) -> None:
        await self.call("self_test", 3.0)
        self.age_s = 0


@dataclass
class FakeImager(Device):
    """Sees the patient displaced by `offset` from where the couch stood at first."""

    couch: FakeCouch | None = None
    offset: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUCH_AXES, 0.0))
    start: dict[str, float] | None = None

    async def registered_correction(self) -> dict[str, float]:
        await self.call("image", 10.0)
        assert self.couch is not None
        if self.start is None:
            self.start = dict(self.couch.axes)
        moved = {axis: self.couch.axes[axis] - self.start[axis] for axis in COUCH_AXES}
        return {axis: self.offset[axis] - moved[axis] for axis in COUCH_AXES}


class FakeMagnets(Device):
    magnet_names = ("BM01",)


@dataclass
class FakeLease:
    token: int


class FakeBeam:
    """The beam supervisor with one room."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.lease: FakeLease | None = None
        self.given = 0

    async def request(self, room: str) -> FakeLease:
        self.log.append(f"beam.request {room}")
        self.given += 1
        self.lease = FakeLease(self.given)
        return self.lease

    def release(self, lease: FakeLease) -> None:
        self.log.append("beam.release")
        self.lease = None

    def holds(self, lease: FakeLease) -> bool:
        return self.lease is lease


class FakeTuner:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.fault: BaseException | None = None
        self.calls = 0

    async def tune(self, job: Job, devices: RoomDevices, placement: Any) -> Tuned:
        self.calls += 1
        self.log.append("tuner.tune")
        await asyncio.sleep(8.0)
        if self.fault is not None:
            raise self.fault
        return Tuned(6012, 200_000, 5000, 900)


class FakeOperator:
    """Says yes after a while; `answers` overrides. On accepting the position leaves, searches and closes the door."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.answers: dict[str, bool] = {}
        self.never: set[str] = set()
        self.asked: list[str] = []
        self.hooks: dict[str, Any] = {}

    async def confirm(self, kind: str, facts: dict[str, Any]) -> bool:
        self.asked.append(kind)
        if kind in self.never:
            await asyncio.Event().wait()
        await asyncio.sleep(2.0)
        if kind in self.hooks:
            self.hooks[kind]()
        answer = self.answers.get(kind, True)
        if kind == Confirm.POSITIONED and answer and self.world.searches:
            asyncio.get_running_loop().call_later(self.world.search_s, self.world.access.secure)
        return answer


class World:
    """One room with everything around it."""

    def __init__(self, kind: str = "gantry", of: Beam | None = None, timing: Timing | None = None) -> None:
        self.log: list[str] = []
        self.bus = EventBus()
        self.events: list[Event] = []
        self.bus.subscribe(self.events.append)
        log = self.log
        self.gantry = FakeRing("gantry", log)
        self.couch = FakeCouch("couch", log)
        self.snout = FakeSnout("snout", log)
        self.source = FakeSource("source", log)
        self.access = FakeAccess("access", log)
        self.interlock = FakeInterlock("interlock", log)
        self.unit = FakeUnit("unit", log, access=self.access)
        self.dose = FakeDose("dose", log)
        self.imager = FakeImager("imager", log, couch=self.couch)
        self.magnets = FakeMagnets("magnets", log)
        self.beam = FakeBeam(log)
        self.tuner = FakeTuner(log)
        self.operator = FakeOperator(self)
        self.searches = True
        self.search_s = 30.0
        self.slices = 4
        self.delivered = 0
        self.context: DeliveryContext | None = None
        self.belief = belief(kind)
        self.devices = RoomDevices(
            gantry=self.gantry,
            couch=self.couch,
            snout=self.snout,
            magnets=self.magnets,  # type: ignore[arg-type]
            accelerator=self.source,  # type: ignore[arg-type]
            unit=self.unit,  # type: ignore[arg-type]
            dose_monitor=self.dose,
            access=self.access,
            interlock=self.interlock,
            imager=self.imager,
        )
        self.room = Room(self.belief.name, self.access, self.bus)
        self.session = Session(
            self.room,
            self.belief,
            self.devices,
            self.operator,
            self.beam,
            self.tuner,
            self.deliver,
            job(of),
            self.bus,
            timing=timing,
        )

    async def deliver(self, context: DeliveryContext) -> DeliveryResult:
        """Slices of 1 s, each a grant that counts only while beam is truly enabled; held for 0.5 s between them."""
        from controller.room.ports import BeamEnded

        self.context = context
        unit = self.unit
        try:
            while self.delivered < self.slices:
                await context.control.permission()
                unit.last_grant += 1
                unit.open_grant = unit.last_grant
                context.control.beam_on()
                for _ in range(20):
                    await asyncio.sleep(0.05)
                    if unit.open_grant != unit.last_grant or unit.latched:
                        break
                    if self.access.look().beam_enabled and unit.gate_open:
                        unit.counts += 5
                else:
                    self.delivered += 1
                    unit.open_grant = 0
                context.control.held("energy step")
                await asyncio.sleep(0.5)
        except BeamEnded as ended:
            return DeliveryResult(False, counts1=unit.counts, counts2=unit.counts, reason=str(ended))
        return DeliveryResult(True, counts1=unit.counts, counts2=unit.counts)

    async def run(self) -> SessionResult:
        return await self.session.run()

    def on_entering(self, state: State, action: Any) -> None:
        """Run `action` once, in the loop, just after the room first entered a state (a state may last no time at all)."""
        done = []

        def listener(change: StateChange) -> None:
            if change.dest is state and not done:
                done.append(True)
                asyncio.get_running_loop().call_soon(action)

        self.room.subscribe(listener)

    def states(self) -> list[str]:
        return [str(e.data["state"]) for e in self.events if e.kind == "room.state"]

    def kinds(self) -> list[str]:
        return [e.kind for e in self.events]

    def safe(self) -> list[str]:
        """Everything that is not as it must be after a session; empty when all is well."""
        wrong = []
        if self.access.r:
            wrong.append("request line up")
        if self.access.armed:
            wrong.append("still preset as armed")
        if self.unit.open_grant:
            wrong.append("a grant is open")
        if self.beam.lease is not None:
            wrong.append("token held")
        if not self.gantry.brake or self.gantry.enabled:
            wrong.append("gantry not braked")
        return wrong


async def until(condition: Any, limit_s: float = 2000.0) -> None:
    """Wait in loop time until a condition of the test holds."""
    async with asyncio.timeout(limit_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)
