"""Can this plan be delivered in this room? Every reason why not, each with place, value, limit and what to do.

Pure: a plan, the facility's belief about itself and the beam library go in, refusals come out. `check` leaves out what the
given overrides lift; `overridden` returns exactly those, for the record. Here: who, where and with what. Energies and spots
are in `deliverability_spots`. Not responsible for the integrity of the file (`dicom`, `rst`), nor for whether overrides are
allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from controller.plan.counting import LibraryView
from controller.plan.deliverability_spots import spot_refusals
from controller.plan.errors import Refusal, Why
from controller.plan.model import Beam, Plan
from controller.plan.schedule import schedule
from drivers.hal.facility import Facility, Range, Room
from drivers.hal.frames import wrap_angle_deg

OVERRIDES = ("machine", "approval")
_ANGLE_TOLERANCE_DEG = 1e-6  # rounding of decimals only


def check(
    plan: Plan,
    facility: Facility,
    room: Room,
    library: LibraryView,
    overrides: Collection[str] = (),
    beams: Collection[int] | None = None,
) -> list[Refusal]:
    """Every reason why the plan cannot be delivered in the room; empty when it can.

    Args:
        plan: a plan whose integrity was checked.
        facility: the facility of the room.
        room: where to deliver.
        library: the beam library, or `nominal.NominalLibrary`.
        overrides: names of overrides in force (`OVERRIDES`); reasons they lift are left out.
        beams: beam numbers to treat; None for all.
    """
    return [r for r in _all(plan, facility, room, library, beams) if r.override not in overrides or not r.override]


def overridden(
    plan: Plan,
    facility: Facility,
    room: Room,
    library: LibraryView,
    overrides: Collection[str],
    beams: Collection[int] | None = None,
) -> list[Refusal]:
    """The reasons that the overrides lift: what the record must say was overridden. `Refusal.override` names which."""
    return [r for r in _all(plan, facility, room, library, beams) if r.override and r.override in overrides]


def machine_angle_deg(room: Room, gantry_angle_deg: float) -> float | None:
    """The angle the room goes to for a plan's gantry angle, or None where it cannot.

    A rotating gantry gets the angle in (-180, 180], or its other name at the limit; a fixed room the port it has there.
    """
    wrapped = wrap_angle_deg(gantry_angle_deg)
    if room.kind == "fixed" or room.gantry is None:
        return next((p for p in room.ports_deg if abs(wrap_angle_deg(gantry_angle_deg - p)) <= room.port_tolerance_deg), None)
    reach = room.gantry.angle_deg
    for angle in (wrapped, wrapped - 360.0, wrapped + 360.0):
        if reach.minimum - _ANGLE_TOLERANCE_DEG <= angle <= reach.maximum + _ANGLE_TOLERANCE_DEG:
            return min(max(angle, reach.minimum), reach.maximum)
    return None


def _all(
    plan: Plan,
    facility: Facility,
    room: Room,
    library: LibraryView,
    beams: Collection[int] | None,
) -> Iterator[Refusal]:
    """Every reason, overridable or not, in the order of the plan."""
    if facility.require_approval and plan.approval != "APPROVED":
        yield Refusal(
            Why.APPROVAL,
            "the plan is not approved",
            value=plan.approval or "no approval status",
            limit="APPROVED",
            hint="have it approved; in a simulated world --override approval=REASON",
            override="approval",
        )
    if facility.purpose == "clinical-like" and plan.kind == "dicom" and not plan.patient.id:
        yield Refusal(
            Why.MISSING,
            "PatientID is missing or empty",
            hint="nobody can tell whose plan this is; no override lifts that. Give a phantom an identity of its own",
        )
    if beams is not None:
        have = {beam.number for beam in plan.beams}
        for number in sorted(set(beams) - have):
            yield Refusal(
                Why.NO_SUCH_BEAM,
                "the plan has no treatment beam of this number",
                value=str(number),
                limit=", ".join(map(str, sorted(have))),
            )
    for beam in plan.selected(beams):
        yield from _beam(beam, facility, room)
        in_spots = list(spot_refusals(beam, facility, room, library, machine_angle_deg(room, beam.gantry_angle_deg)))
        yield from in_spots
        if not in_spots and beam.layers:
            yield from _duration(beam, facility, room, library)


def _beam(beam: Beam, facility: Facility, room: Room) -> Iterator[Refusal]:
    where = f"beam {beam.number}"
    if beam.machine_name not in room.machine_names:
        other = facility.machine_names.get(beam.machine_name)
        yield Refusal(
            Why.MACHINE,
            "the plan was made for another machine",
            where,
            beam.machine_name or "no TreatmentMachineName",
            ", ".join(room.machine_names),
            f"treat it in room {other}" if other else "in a simulated world --override machine=REASON",
            "machine",
        )
    yield from _technique(beam, where)
    yield from _changes(beam, where)
    yield from _gantry(beam, room, where)
    yield from _couch(beam, room, where)
    yield from _nozzle(beam, room, where)
    yield from _accessories(beam, room, where)


def _technique(beam: Beam, where: str) -> Iterator[Refusal]:
    """What kind of beam it is."""
    if beam.delivery_type != "TREATMENT":
        yield Refusal(Why.DELIVERY_TYPE, "the delivery type is not supported", where, beam.delivery_type, "TREATMENT")
    if beam.beam_type != "STATIC":
        yield Refusal(Why.BEAM_TYPE, "the beam type is not supported", where, beam.beam_type or "absent", "STATIC")
    if beam.scan_mode != "MODULATED":
        yield Refusal(Why.SCAN_MODE, "the scan mode is not supported", where, beam.scan_mode or "absent", "MODULATED")
    if beam.patient_support_type not in ("TABLE", ""):
        yield Refusal(Why.SUPPORT, "the patient support is not supported", where, beam.patient_support_type, "TABLE")
    if beam.fixation:
        yield Refusal(Why.FIXATION, "eye fixation is not supported", where, beam.fixation, "none")
    if beam.charge_state != beam.ion.atomic_number:
        yield Refusal(
            Why.SPECIES,
            "the machine delivers bare nuclei",
            where,
            f"{beam.ion.symbol}{beam.charge_state}+",
            f"{beam.ion.symbol}{beam.ion.atomic_number}+",
        )


def _changes(beam: Beam, where: str) -> Iterator[Refusal]:
    for change in beam.changes:
        yield Refusal(
            Why.CHANGES,
            f"{change.what} changes within the beam",
            f"{where}, control point {change.control_point}",
            f"{change.first} to {change.value}",
            "constant",
            "split the beam",
        )


def _gantry(beam: Beam, room: Room, where: str) -> Iterator[Refusal]:
    if machine_angle_deg(room, beam.gantry_angle_deg) is not None:
        return
    if room.gantry is None:
        limit = "ports " + ", ".join(f"{port:g}" for port in room.ports_deg) + " deg"
    else:
        limit = _interval(room.gantry.angle_deg, "deg")
    yield Refusal(Why.GANTRY, f"room {room.name} cannot reach the gantry angle", where, f"{beam.gantry_angle_deg:g} deg", limit)


def _couch(beam: Beam, room: Room, where: str) -> Iterator[Refusal]:
    for axis, target in beam.couch.given().items():
        reach: Range = getattr(room.couch, axis)
        value = wrap_angle_deg(target) if axis.endswith("_deg") else target
        if not reach.minimum - _ANGLE_TOLERANCE_DEG <= value <= reach.maximum + _ANGLE_TOLERANCE_DEG:
            name, unit = axis.rsplit("_", 1)
            yield Refusal(
                Why.COUCH, f"the couch cannot reach its {name} position", where, f"{target:g} {unit}", _interval(reach, unit)
            )


def _nozzle(beam: Beam, room: Room, where: str) -> Iterator[Refusal]:
    """Snout and range shifters. A research room takes a foreign plan's own range shifters by name."""
    reach = room.nozzle.snout_mm
    if beam.snout_mm is not None and not reach.holds(beam.snout_mm):
        yield Refusal(Why.SNOUT, "the snout cannot reach its position", where, f"{beam.snout_mm:g} mm", _interval(reach, "mm"))
    installed = {shifter.id for shifter in room.nozzle.range_shifters}
    offered = ", ".join(sorted(installed)) or "none installed"
    lifts = _lifts(room)
    for shifter in beam.range_shifters:
        if shifter.setting not in ("IN", "OUT"):
            yield Refusal(
                Why.RANGE_SHIFTER,
                f"the plan does not say whether range shifter {shifter.id or shifter.number} is in",
                where,
                shifter.setting or "no RangeShifterSetting",
                "IN or OUT",
                override=lifts,
            )
        elif shifter.is_in and shifter.id not in installed:
            yield Refusal(
                Why.RANGE_SHIFTER, "the range shifter is not installed", where, shifter.id or "unnamed", offered, override=lifts
            )
        elif shifter.is_in and shifter.kind == "ANALOG":
            yield Refusal(
                Why.RANGE_SHIFTER, "range shifters of variable thickness are not supported", where, shifter.id, "BINARY"
            )


def _accessories(beam: Beam, room: Room, where: str) -> Iterator[Refusal]:
    """Beam modifiers that nobody could put into this nozzle. Plans list the scanners as lateral spreading devices: ignored."""
    counts = (
        ("wedges", beam.accessories.wedges),
        ("compensators", beam.accessories.compensators),
        ("boli", beam.accessories.boli),
        ("blocks", beam.accessories.blocks),
        ("range modulators", beam.accessories.range_modulators),
    )
    for name, count in counts:
        if count:
            yield Refusal(
                Why.ACCESSORY,
                f"{name} are not supported",
                where,
                str(count),
                "0",
                override=_lifts(room),
            )


def _lifts(room: Room) -> str:
    """The override that lifts a foreign machine's own beam modifiers: a research room takes them by name, on record."""
    return "machine" if room.nozzle.range_shifters_any else ""


def _duration(beam: Beam, facility: Facility, room: Room, library: LibraryView) -> Iterator[Refusal]:
    """A backup timer that would end the beam before its dose. A foreign machine's timer is lifted with its name."""
    if not beam.duration_limit_s:
        return
    expected_s = schedule(beam, facility, room, library).duration_s
    if expected_s > beam.duration_limit_s:
        yield Refusal(
            Why.DURATION,
            "the beam would outlast its BeamDeliveryDurationLimit",
            f"beam {beam.number}",
            f"{expected_s:.0f} s expected",
            f"{beam.duration_limit_s:g} s",
            "raise the limit of the plan",
            "machine",
        )


def _interval(reach: Range, unit: str) -> str:
    return f"{reach.minimum:g} to {reach.maximum:g} {unit}"
