"""Before anything moves: read the plan, choose the room, hold plan against facility and library, schedule every beam.

Everything that can be refused is refused here, with every reason at once. Not responsible for what was already delivered
(`record.ledger`) nor for the treatment itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivers.hal.errors import BeamlineError
from drivers.hal.facility import Facility, Room, load_facility

if TYPE_CHECKING:
    from controller.beam.library import BeamLibrary
    from controller.plan.errors import Refusal
    from controller.plan.model import Beam, Plan
    from controller.plan.schedule import BeamSchedule


class Refused(Exception):
    """The request was refused before any motion or beam.

    Args:
        reasons: one sentence each: what, where, value, limit, what to do.
        plan: what was refused, when it could be read.
    """

    def __init__(self, reasons: Sequence[str], plan: Plan | None = None):
        self.reasons = tuple(reasons)
        self.plan = plan
        super().__init__("; ".join(self.reasons))


@dataclass(frozen=True, slots=True, eq=False)
class Intake:
    """A plan that can be delivered here, with its schedules in the plan's order of beams."""

    facility: Facility
    room: Room
    plan: Plan
    beams: tuple[Beam, ...]
    schedules: tuple[BeamSchedule, ...]
    library: BeamLibrary
    overridden: tuple[Refusal, ...]


def choose_room(facility: Facility, beams: Sequence[Beam], wanted: str | None) -> Room | str:
    """The room asked for, or the one that the beams name, or the only one there is; else why there is none."""
    if wanted is not None:
        known = ", ".join(facility.rooms)
        return facility.rooms.get(wanted) or f"--room {wanted}: facility {facility.name} has no such room; its rooms: {known}"
    named = {facility.machine_names.get(beam.machine_name) for beam in beams}
    room = named.pop() if len(named) == 1 else None
    if room is None and len(facility.rooms) == 1:
        room = next(iter(facility.rooms))
    if room is not None:
        return facility.room(room)
    machines = ", ".join(sorted({beam.machine_name or "(none)" for beam in beams}))
    return (
        f"the plan's treatment machine {machines} is no room of facility {facility.name} "
        f"(they answer to {', '.join(facility.machine_names)}); name one with --room: {', '.join(facility.rooms)}"
    )


def take_in(
    path: Path,
    facility_name: str,
    room_name: str | None,
    beams: Sequence[int],
    overrides: Mapping[str, str],
    library_path: Path | None = None,
    keys_dir: Path | None = None,
) -> Intake:
    """Read, check and schedule.

    Raises:
        Refused: with every reason.
    """
    from controller.beam.library_file import load_library
    from controller.plan.deliverability import check, overridden
    from controller.plan.errors import PlanRefused
    from controller.plan.schedule import schedule

    facility, plan = _loaded(path, facility_name)
    try:
        numbers = set(beams) or None
        chosen = plan.selected(numbers)
        library = load_library(facility, library_path, keys_dir)
        room = choose_room(facility, chosen or plan.beams, room_name)
        if isinstance(room, str):
            rooms = facility.rooms.values()
            everywhere = shared_refusals([check(plan, facility, each, library, tuple(overrides), numbers) for each in rooms])
            raise Refused([room, *map(str, everywhere)], plan)
        reasons = [str(refusal) for refusal in check(plan, facility, room, library, tuple(overrides), numbers)]
        if not reasons:
            reasons = placement_reasons(chosen, room)
        if reasons:
            raise Refused(reasons, plan)
        schedules = tuple(schedule(beam, facility, room, library) for beam in chosen)
        lifted = tuple(overridden(plan, facility, room, library, tuple(overrides), numbers))
    except PlanRefused as refused:
        raise Refused([str(reason) for reason in refused.reasons]) from None
    except BeamlineError as error:
        raise Refused([str(error)]) from None
    return Intake(facility, room, plan, chosen, schedules, library, lifted)


def _loaded(path: Path, facility_name: str) -> tuple[Facility, Plan]:
    """Facility and plan; what is wrong with both is told together. Raises Refused."""
    from controller.plan.errors import PlanRefused
    from controller.plan.reading import read_plan

    reasons: list[str] = []
    facility: Facility | None = None
    plan: Plan | None = None
    try:
        facility = load_facility(facility_name)
    except BeamlineError as error:
        reasons.append(str(error))
    try:
        plan = read_plan(path)
    except PlanRefused as refused:
        reasons += [str(reason) for reason in refused.reasons]
    if facility is None or plan is None:
        raise Refused(reasons)
    return facility, plan


def shared_refusals(by_room: Sequence[Sequence[Refusal]]) -> list[Refusal]:
    """Of the refusals in every room, those that no choice of a room would lift, in the words of the first room."""
    kinds = [{(refusal.why, refusal.where) for refusal in refusals} for refusals in by_room]
    return [
        refusal
        for refusal in by_room[0]
        if refusal.override != "machine" and all((refusal.why, refusal.where) in kind for kind in kinds)
    ]


def placement_reasons(beams: Sequence[Beam], room: Room) -> list[str]:
    """Why a beam's place cannot be taken up: targets out of reach, nozzle and couch too near each other there, or no free way
    there from the place of the beam before it."""
    from controller.room.collision import check_place
    from controller.room.positioning import Targets, blocked_between_beams, targets_for

    reasons: list[str] = []
    places: list[tuple[int, Targets]] = []
    for beam in beams:
        try:
            targets = targets_for(beam, room)
            check_place(targets.gantry_deg, targets.snout_mm, targets.couch, room=room.name)
        except BeamlineError as error:
            reasons.append(f"beam {beam.number}: {error}")
        else:
            places.append((beam.number, targets))
    return reasons or blocked_between_beams(places, room)


def beam_facts(beam: Beam) -> dict[str, Any]:
    """What a beam is, for people and programs: angle in deg, meterset in its own unit."""
    return {
        "number": beam.number,
        "name": beam.name,
        "species": beam.ion.symbol,
        "gantry_angle_deg": beam.gantry_angle_deg,
        "meterset": beam.meterset,
        "unit": beam.meterset_unit,
        "layers": len(beam.layers),
        "spots": beam.spots,
    }


def report(intake: Intake) -> dict[str, Any]:
    """What `check` prints of a plan that can be delivered."""
    return {
        "status": "deliverable",
        "facility": intake.facility.name,
        "room": intake.room.name,
        "plan": {"uid": intake.plan.uid, "label": intake.plan.label, "kind": intake.plan.kind},
        "notes": list(intake.plan.notes),
        "overridden": [str(refusal) for refusal in intake.overridden],
        "beams": [
            {
                **beam_facts(beam),
                "passes": len(schedule.passes),
                "cycles": schedule.cycles,
                "estimated_s": schedule.duration_s,
            }
            for beam, schedule in zip(intake.beams, intake.schedules, strict=True)
        ],
    }
