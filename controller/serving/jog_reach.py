"""How far one press may jog an axis: some way on, to the end of its travel, or to where nozzle and couch would come too near.

Where they are too near already, only a short way that takes them apart is given (hazard M8), and the next one after it.

Not responsible for the motion, nor for the button that is held (`servicing`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from controller.room import collision
from controller.room.positioning import Positioner
from controller.serving.ground import Ground
from drivers.hal.errors import CommandRejected, DataError

HALVINGS = 9  # finds the end of a clear way to a five-hundredth of the travel
APART = 5.0  # deg or mm of one way out of a place that is too near; assumed
TURN_DEG = 360.0
# Of one press: soon judged, and a button that sticks does not turn the ring round. Assumed.
FARTHEST_MM, FARTHEST_DEG = 200.0, 30.0
LEAST = 0.1  # deg or mm: a way that is shorter is none; assumed
TOO_NEAR, UNREADABLE = 4468, 5302

Check = Callable[[float], object]
Gap = Callable[[float], float]


async def jog_target(ground: Ground, axis: str, direction: int) -> float:
    """Where to send an axis that is jogged, deg or mm: the farthest place in `direction` with a clear way to it.

    At most `FARTHEST_DEG` or `FARTHEST_MM` away; whoever wants to go on presses again.

    Args:
        ground: the room.
        axis: ``gantry`` or one of `COUCH_AXES`.
        direction: 1 or -1.

    Raises:
        CommandRejected: 4468, nozzle and couch would come too near at once.
        DataError: 5302, where something stands is not known.
        CommunicationError: a device does not answer.
    """
    devices, belief, room = ground.devices, ground.belief, ground.room
    place = await Positioner(belief, devices.gantry, devices.couch, devices.snout).read()
    unsound = [r.name for r in (place.ring.angle, place.snout, *place.couch.values()) if not r.good]
    if unsound:
        raise DataError(
            f"{', '.join(unsound)}: not known well enough to jog", code=UNREADABLE, device=room, hint="see the device table"
        )
    couch, snout_mm, angle_deg = place.couch_values(), place.snout.value, place.ring.angle.value
    if axis == "gantry":
        if belief.gantry is None:
            raise CommandRejected("this room has a fixed port", code=TOO_NEAR, device=room, hint="choose a couch axis")
        travel, start = belief.gantry.angle_deg, angle_deg
        check: Check = partial(_gantry, angle_deg, snout_mm, couch, room)
        gap: Gap = partial(collision.gap_mm, snout_mm=snout_mm, couch=couch)
    else:
        travel, start = getattr(belief.couch, axis), couch[axis]
        check = partial(_couch, axis, couch, angle_deg, snout_mm, room)
        gap = partial(_gap_at, axis, couch, angle_deg, snout_mm)
    end = travel.maximum if direction > 0 else travel.minimum
    if axis == "gantry" and travel.maximum - travel.minimum >= TURN_DEG:
        # Both ends are one place, to which the drive takes the nearer way: that may be the other direction.
        end = max(start, end - LEAST) if direction > 0 else min(start, end + LEAST)
    farthest = FARTHEST_MM if axis.endswith("_mm") else FARTHEST_DEG
    end = max(start - farthest, min(end, start + farthest))
    # A way is judged at many places: not in the loop that keeps the room.
    find = partial(way_out, gap=gap) if gap(start) < collision.GAP_MIN_MM else partial(clear_end, check=check, gap=gap)
    return await asyncio.get_running_loop().run_in_executor(None, partial(find, start, end, room=room))


def way_out(start: float, end: float, gap: Gap, room: str = "") -> float:
    """A short way towards `end` at which the gap is wider than at `start`. Raises CommandRejected (4468): it is not."""
    stride = max(-APART, min(APART, end - start))
    if gap(start + stride) > gap(start):
        return start + stride
    least_mm = collision.GAP_MIN_MM
    message = f"nozzle and couch are {gap(start):.0f} mm apart (at least {least_mm:.0f} mm), and this brings them no farther"
    raise CommandRejected(message, code=TOO_NEAR, device=room, hint="jog the other way, or another axis first")


def clear_end(start: float, end: float, check: Check, gap: Gap, room: str = "") -> float:
    """The farthest place from `start` towards `end` to which `check` does not object. Raises CommandRejected (4468).

    Where a way is blocked once and not free again behind, places alone find the end of it, and one judgement of the way
    confirms that; otherwise each try judges its whole way.
    """
    refusal = _objection(check, end)
    if refusal is None:
        return end
    share = _last_free(lambda share: gap(start + share * (end - start)) >= collision.GAP_MIN_MM)
    if _objection(check, start + share * (end - start)) is not None:
        share = _last_free(lambda share: _objection(check, start + share * (end - start)) is None)
    if share * abs(end - start) < LEAST:
        hint = "jog the other way, or another axis first"
        raise CommandRejected(refusal.message, code=TOO_NEAR, device=room, hint=hint)
    return start + share * (end - start)


def _last_free(free: Callable[[float], bool]) -> float:
    """By halving: a share of the way that is free, with one that is not a five-hundredth behind it."""
    clear, blocked = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (clear + blocked) / 2.0
        if free(middle):
            clear = middle
        else:
            blocked = middle
    return clear


def _objection(check: Check, target: float) -> CommandRejected | None:
    try:
        check(target)
    except CommandRejected as error:
        return error
    return None


def _gantry(from_deg: float, snout_mm: float, couch: Mapping[str, float], room: str, to_deg: float) -> None:
    collision.check_gantry_path(from_deg, to_deg, snout_mm, couch, room=room)


def _couch(axis: str, start: Mapping[str, float], gantry_deg: float, snout_mm: float, room: str, to: float) -> None:
    collision.check_couch_path(start, {**start, axis: to}, gantry_deg, snout_mm, room=room)


def _gap_at(axis: str, couch: Mapping[str, float], gantry_deg: float, snout_mm: float, value: float) -> float:
    return collision.gap_mm(gantry_deg, snout_mm, {**couch, axis: value})
