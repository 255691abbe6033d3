"""Where couch, gantry and nozzle belong for a beam, in which order they go there, and whether they arrived.

Targets and the order of motions are pure; `Positioner` carries them out through capabilities. Not responsible for images
(`imaging`), for looking after the position while beam is on (`supervision`), or for the motion itself (the drives' firmware).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np

from controller.plan.model import Beam, ToleranceTable
from controller.room import collision
from controller.room.motion_permit import MoveOn, move_permitted
from drivers.hal.capabilities import COUCH_AXES, Axis, AxisGroup, InterlockView, RingState, Snout
from drivers.hal.errors import CommandRejected, CommunicationError, DataError, DeviceError
from drivers.hal.facility import Room as RoomBelief
from drivers.hal.frames import wrap_angle_deg
from drivers.hal.reading import Quality, Reading

# Set-up position of the axes a plan leaves to the room, mm and deg: the table top's origin at the isocentre (assumed).
SETUP_COUCH: Mapping[str, float] = dict.fromkeys(COUCH_AXES, 0.0)
# What the room allows beside the plan's tolerance table, whichever is narrower: gantry from the design's limits,
# couch 1.0 mm / 1.0 deg (assumed), snout assumed.
GANTRY_TOLERANCE_DEG = 0.2
COUCH_TOLERANCE_MM = 1.0
COUCH_TOLERANCE_DEG = 1.0
SNOUT_TOLERANCE_MM = 1.0
IN_PLACE_DEG = 0.02  # nearer than this is not worth releasing the brake (assumed)
IN_PLACE_MM = 0.1


def _couch_tolerances() -> Mapping[str, float]:
    return {axis: COUCH_TOLERANCE_MM if axis.endswith("_mm") else COUCH_TOLERANCE_DEG for axis in COUCH_AXES}


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far from its target each part may stand, mm and deg."""

    gantry_deg: float = GANTRY_TOLERANCE_DEG
    snout_mm: float = SNOUT_TOLERANCE_MM
    couch: Mapping[str, float] = field(default_factory=_couch_tolerances)

    @classmethod
    def of(cls, table: ToleranceTable | None) -> Tolerances:
        """The room's tolerances, narrowed by the plan's table. A zero there counts as silence: nothing stands exactly."""
        room = cls()
        if table is None:
            return room
        given = {
            "lateral_mm": table.couch_lateral_mm,
            "longitudinal_mm": table.couch_longitudinal_mm,
            "vertical_mm": table.couch_vertical_mm,
            "angle_deg": table.couch_angle_deg,
            "pitch_deg": table.couch_pitch_deg,
            "roll_deg": table.couch_roll_deg,
        }
        return cls(
            gantry_deg=_narrower(room.gantry_deg, table.gantry_deg),
            snout_mm=_narrower(room.snout_mm, table.snout_mm),
            couch={axis: _narrower(room.couch[axis], given[axis]) for axis in COUCH_AXES},
        )


def _narrower(room: float, plan: float | None) -> float:
    return min(room, plan) if plan is not None and plan > 0.0 else room


@dataclass(frozen=True, slots=True)
class Targets:
    """Where everything belongs for one beam, IEC 61217, gantry within [-180, 180].

    `planned_couch` is the couch before any image correction, `couch` where it shall stand now.
    """

    gantry_deg: float
    couch: Mapping[str, float]
    planned_couch: Mapping[str, float]
    snout_mm: float
    range_shifters: tuple[str, ...]
    tolerances: Tolerances
    port_deg: float | None = None  # a fixed room's port; None on a gantry
    notes: tuple[str, ...] = ()

    def corrected(self, correction: Mapping[str, float]) -> Targets:
        """The same with the couch displaced by a correction, mm and deg per axis."""
        return replace(self, couch={axis: self.couch[axis] + correction.get(axis, 0.0) for axis in COUCH_AXES})


def targets_for(beam: Beam, room: RoomBelief) -> Targets:
    """Targets of a beam in a room, checked against what the room can reach.

    Raises:
        CommandRejected: 4302, with every reason, each with value and limit.
    """
    reasons: list[str] = []
    notes: list[str] = []
    where = f"beam {beam.number}"
    angle = wrap_angle_deg(beam.gantry_angle_deg)
    port: float | None = None
    if room.kind == "fixed":
        ports = [p for p in room.ports_deg if abs(wrap_angle_deg(p - angle)) <= room.port_tolerance_deg]
        if ports:
            port = angle = ports[0]
        else:
            known = ", ".join(f"{p:g}" for p in room.ports_deg)
            reasons.append(f"{where}: gantry angle {angle:g} deg is not a port of {room.name} ({known} deg)")
    elif room.gantry is not None and not room.gantry.angle_deg.holds(angle):
        limits = room.gantry.angle_deg
        reasons.append(f"{where}: gantry angle {angle:g} deg is outside {limits.minimum:g} to {limits.maximum:g} deg")
    given = beam.couch.given()
    couch = {axis: given.get(axis, SETUP_COUCH[axis]) for axis in COUCH_AXES}
    for axis in ("angle_deg", "pitch_deg", "roll_deg"):
        couch[axis] = wrap_angle_deg(couch[axis])
    if missing := [axis for axis in COUCH_AXES if axis not in given]:
        notes.append(f"the plan leaves {', '.join(missing)} to the room: set-up position")
    reasons += [f"{where}: couch {reason}" for reason in couch_out_of_reach(couch, room)]
    snout = beam.snout_mm if beam.snout_mm is not None else room.nozzle.snout_mm.maximum
    if not room.nozzle.snout_mm.holds(snout):
        limits = room.nozzle.snout_mm
        reasons.append(f"{where}: snout {snout:g} mm is outside {limits.minimum:g} to {limits.maximum:g} mm")
    installed = {shifter.id for shifter in room.nozzle.range_shifters}
    wanted = tuple(use.id for use in beam.range_shifters if use.is_in)
    unknown = [name for name in wanted if name not in installed]
    if unknown and room.nozzle.range_shifters_any:
        notes.append(f"range shifter {', '.join(unknown)} is the plan's own, mounted by hand")
    elif unknown:
        there = ", ".join(sorted(installed)) or "none"
        reasons.append(f"{where}: range shifter {', '.join(unknown)} is not installed in {room.name} (there: {there})")
    if reasons:
        raise CommandRejected("; ".join(reasons), code=4302, device=room.name, hint="choose another room or change the plan")
    return Targets(
        gantry_deg=angle,
        couch=couch,
        planned_couch=couch,
        snout_mm=snout,
        range_shifters=tuple(name for name in wanted if name in installed),
        tolerances=Tolerances.of(beam.tolerance),
        port_deg=port,
        notes=tuple(notes),
    )


def couch_out_of_reach(couch: Mapping[str, float], room: RoomBelief) -> list[str]:
    """Every axis that would leave its limits, with value and limits."""
    reasons = []
    for axis in COUCH_AXES:
        limits = getattr(room.couch, axis)
        if not limits.holds(couch[axis]):
            unit = axis.rsplit("_", 1)[1]
            name = axis.rsplit("_", 1)[0]
            reasons.append(f"{name} {couch[axis]:.1f} {unit} is outside {limits.minimum:g} to {limits.maximum:g} {unit}")
    return reasons


@dataclass(frozen=True, slots=True)
class Placement:
    """Where everything stands, as read back."""

    ring: RingState
    couch: Mapping[str, Reading[float]]
    snout: Reading[float]
    range_shifters: tuple[str, ...]

    def couch_values(self) -> dict[str, float]:
        """The couch axes, mm and deg."""
        return {axis: self.couch[axis].value for axis in COUCH_AXES}


def deviations(placement: Placement, targets: Targets, *, with_gantry: bool = True) -> list[str]:
    """Everything that is not where it belongs or cannot be trusted, with value, target and tolerance; empty when all is well.

    Args:
        placement: as read.
        targets: as wanted.
        with_gantry: False while a fixed room's port is not chosen yet: its angle is that of the route.
    """
    tolerances = targets.tolerances
    checks = [(axis, placement.couch[axis], targets.couch[axis], tolerances.couch[axis]) for axis in COUCH_AXES]
    checks.append(("snout_mm", placement.snout, targets.snout_mm, tolerances.snout_mm))
    if with_gantry:
        checks.append(("gantry_deg", placement.ring.angle, targets.gantry_deg, tolerances.gantry_deg))
    found = []
    for name, reading, target, tolerance in checks:
        label, unit = name.rsplit("_", 1)
        if not reading.good or not np.isfinite(reading.value):
            found.append(f"{label} reads {reading.value:g} {unit} with quality {reading.quality.value}")
            continue
        error = reading.value - target
        if unit == "deg":
            error = wrap_angle_deg(error)
        if abs(error) > tolerance:
            found.append(f"{label} {reading.value:.3f} {unit}, target {target:.3f} {unit}, tolerance {tolerance:g} {unit}")
    if placement.range_shifters != targets.range_shifters and set(placement.range_shifters) != set(targets.range_shifters):
        found.append(f"range shifters {_names(placement.range_shifters)}, wanted {_names(targets.range_shifters)}")
    if with_gantry and not (placement.ring.standstill and placement.ring.brake_applied and not placement.ring.enabled):
        ring = placement.ring
        found.append(f"gantry is not at rest: standstill {ring.standstill}, brake {ring.brake_applied}, torque {ring.enabled}")
    return found


def _names(items: tuple[str, ...]) -> str:
    return ", ".join(items) or "none"


@dataclass(frozen=True, slots=True)
class Motions:
    """What has to move, in order, every step checked for collision beforehand.

    `couch` holds one place for each "couch" in `order`: more than one when the couch has to wait aside for the gantry.
    """

    order: tuple[str, ...]  # of "retract", "couch", "gantry", "snout"
    gantry_deg: float
    couch: tuple[Mapping[str, float], ...] = ()


Way = tuple[Mapping[str, float] | None, ...]  # places of the couch in order; None: here the gantry turns


def plan_motions(placement: Placement, targets: Targets, room: RoomBelief) -> Motions:
    """The order of motions from where everything stands to the targets: see `motions_between`.

    Raises:
        CommandRejected: 4301 with gap and place.
    """
    ring = placement.ring
    at_rest = ring.standstill and ring.brake_applied and not ring.enabled
    return motions_between(ring.angle.value, placement.couch_values(), targets, room, at_rest=at_rest)


def motions_between(
    angle_now_deg: float, couch_now: Mapping[str, float], targets: Targets, room: RoomBelief, *, at_rest: bool = True
) -> Motions:
    """The order of motions from one place of gantry and couch to the targets.

    The snout is retracted before couch or gantry move and extended last. The couch goes before the gantry, unless only the
    other order keeps the gap; where neither does, the couch turns aside, waits for the gantry, and goes to its place after it.
    Nothing moves before every step was found free.

    Args:
        angle_now_deg: gantry angle where it starts; a fixed room has none, its port's is taken.
        couch_now: couch axes where they start, mm and deg.
        targets: where everything belongs.
        room: what is believed of the room.
        at_rest: whether the ring stands braked and without torque; otherwise it is moved to be brought to rest.

    Raises:
        CommandRejected: 4301 with gap and place, of the way that is tried first.
    """
    couch_then = targets.couch
    fixed = targets.port_deg is not None
    angle_now = targets.gantry_deg if fixed else angle_now_deg
    angle_then = targets.gantry_deg if fixed else collision.turn(angle_now, targets.gantry_deg)
    collision.check_place(angle_then, targets.snout_mm, couch_then, room=room.name)
    moves_couch = _far(couch_now, couch_then)
    moves_gantry = not fixed and (abs(angle_now - angle_then) > IN_PLACE_DEG or not at_rest)
    if not moves_couch and not moves_gantry:
        return Motions(("snout",), angle_then)
    blocked: CommandRejected | None = None
    for way in _ways(couch_now, couch_then, room, gantry=moves_gantry, couch=moves_couch):
        try:
            _check_way(way, angle_now, angle_then, couch_now, room)
        except CommandRejected as found:
            blocked = blocked or found
            continue
        places = tuple(place for place in way if place is not None)
        return Motions(("retract", *("gantry" if place is None else "couch" for place in way), "snout"), angle_then, places)
    raise blocked or CommandRejected("there is no way", code=4301, device=room.name)


def _far(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return any(abs(a[axis] - b[axis]) > (IN_PLACE_MM if axis.endswith("_mm") else IN_PLACE_DEG) for axis in COUCH_AXES)


def _ways(now: Mapping[str, float], then: Mapping[str, float], room: RoomBelief, *, gantry: bool, couch: bool) -> Iterator[Way]:
    """Ways to try, the shortest first; aside means along the gantry's axis and level, where a gantry passes most easily."""
    if couch:
        yield (then, None) if gantry else (then,)
    if gantry:
        yield (None, then) if couch else (None,)
    aside_now, aside_then = _aside(now), _aside(then)
    by_way_of: tuple[Way, ...] = (
        (aside_now, None, aside_then, then),
        (aside_now, aside_then, None, then),
        (dict(SETUP_COUCH), None, then),
    )
    for way in by_way_of:
        stands, steps = now, list[Mapping[str, float] | None]()
        for place in way:
            if place is None:
                steps += [None] if gantry else []
            elif _far(stands, place):
                steps.append(place)
                stands = place
        if not any(couch_out_of_reach(place, room) for place in steps if place is not None):
            yield tuple(steps)


def _aside(couch: Mapping[str, float]) -> Mapping[str, float]:
    return {**couch, "angle_deg": 0.0, "pitch_deg": 0.0, "roll_deg": 0.0}


def _check_way(way: Way, angle_now: float, angle_then: float, couch_now: Mapping[str, float], room: RoomBelief) -> None:
    """Every step of a way with the snout retracted. Raises CommandRejected (4301) at the first that is not free."""
    retracted, angle, stands = room.nozzle.snout_mm.maximum, angle_now, couch_now
    for place in way:
        if place is None:
            collision.check_gantry_path(angle, angle_then, retracted, stands, room=room.name)
            angle = angle_then
        else:
            collision.check_couch_path(stands, place, angle, retracted, room=room.name)
            stands = place


def blocked_between_beams(targets: Sequence[tuple[int, Targets]], room: RoomBelief) -> list[str]:
    """Why the room could not go from one beam's place to the next one's, as `motions_between` would find it there.

    Corrections by image are not in it: they displace the couch by what nobody knows beforehand.

    Args:
        targets: beam number and targets, in the order of treatment.
        room: what is believed of the room.
    """
    reasons = []
    angle_deg = collision.turn(0.0, targets[0][1].gantry_deg) if targets else 0.0  # half a turn is reached from either side
    for (before, stood), (number, wanted) in pairwise(targets):
        start_deg, angle_deg = angle_deg, collision.turn(angle_deg, wanted.gantry_deg)
        try:
            motions_between(start_deg, stood.couch, wanted, room)
        except CommandRejected as blocked:
            reasons.append(
                f"beam {number} after beam {before}: no free way from gantry {stood.gantry_deg:g} deg, couch angle "
                f"{stood.couch['angle_deg']:g} deg to gantry {wanted.gantry_deg:g} deg, couch angle "
                f"{wanted.couch['angle_deg']:g} deg: {blocked.message} [{blocked.code}]; another couch position or order of "
                f"beams, or one beam at a time (--beam) with the couch driven clear by hand in between"
            )
    return reasons


class Positioner:
    """Carries motions out and reads back.

    Args:
        room: what is believed of the room.
        gantry, couch, snout: its moving parts.
        interlock: whose motion permit is asked before each motion; None: there is nobody to ask.
        move_on: asks a person whether to go on with a motion that was stopped; None: it has failed then.
    """

    def __init__(
        self,
        room: RoomBelief,
        gantry: Axis,
        couch: AxisGroup,
        snout: Snout,
        interlock: InterlockView | None = None,
        move_on: MoveOn | None = None,
    ) -> None:
        self._room = room
        self._gantry = gantry
        self._couch = couch
        self._snout = snout
        self._interlock = interlock
        self._move_on = move_on

    async def read(self) -> Placement:
        """Read everything now. Raises DataError (5301) when a device leaves an axis out."""
        ring = await self._gantry.read_state()
        couch = await self._couch.read_axes()
        snout, shifters = await self._snout.read_set_up()
        if missing := [axis for axis in COUCH_AXES if axis not in couch]:
            raise DataError(f"the couch does not report {', '.join(missing)}", code=5301, device=self._couch.name)
        return Placement(ring, couch, snout, shifters)

    async def drive_to(self, targets: Targets) -> Placement:
        """Bring couch, gantry and nozzle to their targets.

        Raises:
            CommandRejected: 4301, a motion would come too near; nothing has moved then. 4309, the motion permit is withheld.
            DeviceError: 3301, something is not where it was sent.
        """
        before = await self.read()
        self._refuse_unreadable(before)
        motions = plan_motions(before, targets, self._room)
        places = iter(motions.couch)
        for part in motions.order:
            motion: Callable[[], Awaitable[object]]
            match part:
                case "retract":
                    motion = partial(self._snout.set_up, self._room.nozzle.snout_mm.maximum, targets.range_shifters)
                case "couch":
                    motion = partial(self._couch.move_to, next(places))
                case "gantry":
                    motion = partial(self._gantry.move_to, motions.gantry_deg)
                case _:
                    motion = partial(self._snout.set_up, targets.snout_mm, targets.range_shifters)
            await move_permitted(self._interlock, self._room.name, motion, self._move_on)
        return await self.verify(targets)

    async def correct_couch(self, targets: Targets) -> Placement:
        """Move the couch alone by a small correction, with gantry and snout where they are.

        Raises:
            CommandRejected: 4302 beyond the couch's limits, 4301 too near the nozzle, 4309 the motion permit is withheld;
                nothing has moved then.
            DeviceError: 3301, it is not where it was sent.
        """
        if reasons := couch_out_of_reach(targets.couch, self._room):
            raise CommandRejected(
                f"corrected couch {'; '.join(reasons)}", code=4302, device=self._room.name, hint="set up again"
            )
        before = await self.read()
        self._refuse_unreadable(before)
        angle = targets.gantry_deg if targets.port_deg is not None else before.ring.angle.value
        collision.check_couch_path(before.couch_values(), targets.couch, angle, before.snout.value, room=self._room.name)
        to_place = partial(self._couch.move_to, targets.couch)
        await move_permitted(self._interlock, self._room.name, to_place, self._move_on)
        return await self.verify(targets)

    async def verify(self, targets: Targets, *, with_gantry: bool | None = None) -> Placement:
        """Read everything and compare. A fixed room's angle counts only when `with_gantry` says so (its route is open).

        Raises:
            CommunicationError: 2107, something is not heard of now: where it is nobody knows.
            DeviceError: 3301 with every deviation.
        """
        placement = await self.read()
        gantry = targets.port_deg is None if with_gantry is None else with_gantry
        if unheard := _unheard(placement, with_gantry=gantry):
            raise CommunicationError(
                f"no news of {', '.join(unheard)}",
                code=2107,
                device=self._room.name,
                hint="check the connection",
                retryable=True,
            )
        if found := deviations(placement, targets, with_gantry=gantry):
            raise DeviceError(
                "; ".join(found), code=3301, device=self._room.name, hint="position again; if it repeats, call service"
            )
        return placement

    async def stop(self) -> None:
        """Stop gantry and couch. Both are tried even when one fails; the first error is raised after that."""
        failed: Exception | None = None
        for part in (self._gantry, self._couch):
            try:
                await part.stop()
            except Exception as error:  # noqa: BLE001 - the other part must be stopped too
                failed = failed or error
        if failed is not None:
            raise failed

    def _refuse_unreadable(self, placement: Placement) -> None:
        bad = [f"couch {axis}" for axis, reading in placement.couch.items() if not _usable(reading)]
        bad += ["snout"] if not _usable(placement.snout) else []
        bad += ["gantry angle"] if self._room.kind == "gantry" and not _usable(placement.ring.angle) else []
        if bad:
            raise DeviceError(
                f"{', '.join(bad)} cannot be read: nothing was moved",
                code=3302,
                device=self._room.name,
                hint="check the encoder",
            )


def _unheard(placement: Placement, *, with_gantry: bool) -> list[str]:
    """What a position depends on and is not connected or stands still."""
    readings = {**placement.couch, "snout": placement.snout}
    if with_gantry:
        readings["gantry"] = placement.ring.angle
    lost = (Quality.STALE, Quality.DISCONNECTED)
    return [f"{name} ({reading.quality.value})" for name, reading in readings.items() if reading.quality in lost]


def _usable(reading: Reading[float]) -> bool:
    return reading.good and bool(np.isfinite(reading.value))
