"""What must be true of the plant, whatever the controller believes: named invariants, judged at every truth event of every run.

Each invariant is a function of `Truth` (the plant's objects, what its events have said so far, the prescription as a table of
its own, and what the disk holds of the record) and the event that just happened; it returns a sentence when it is violated.
Names are those of the hazard table (docs/invariants.md). Limits are hardware limits and the bounds of the interlocks' limits
file, widened by what a measured value may differ from the true one.

Not responsible for when they are judged (`invariant_monitor`), nor for stopping anything.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simulators.invariant_monitor import (
    ELEMENT,
    MONITOR,
    NS_PER_MS,
    TICK,
    Check,
    Invariant,
    InvariantMonitor,
    PrescribedLayer,
    Prescription,
    RecordProbe,
    RoomTruth,
    Truth,
    Violation,
    sound_counts1_per_ion,
)
from simulators.plant.beam_off import Level
from simulators.plant.kernel import TruthEvent
from simulators.plant.room import RoomPlant

__all__ = [
    "CATALOGUE",
    "Invariant",
    "InvariantMonitor",
    "PrescribedLayer",
    "Prescription",
    "RecordProbe",
    "RoomTruth",
    "Truth",
    "Violation",
]

RELAY_HOLD_NS = 100 * NS_PER_MS
TWO_FAILED_NS = 2 * NS_PER_MS  # RF-KO and chopper do nothing: measured after 1 ms, dumped, and what the logic needs
HARDWARE_GRACE_NS = 250_000  # 200 us of beam-off hardware and 50 us of its logic
# What flows until the unit latches when its first answer fails: 500 us until the next element fires and that element's time,
# or 1 ms until monitors that differ at once are believed to (limits of the interlocks' file, hardware rows).
OVERRUN_S = 1.5e-3
MONITORS_NS = 5 * NS_PER_MS
OFF_PLACE_NS = 2 * NS_PER_MS

CATALOGUE: dict[str, Invariant] = {}


def invariant(name: str, hazard: str, *kinds: str, grace_ns: int = 0) -> Callable[[Check], Check]:
    """Register a check under its name, to be judged at these kinds of event."""

    def register(check: Check) -> Check:
        CATALOGUE[name] = Invariant(name, hazard, frozenset(kinds), grace_ns, check)
        return check

    return register


# --- beam and dose ------------------------------------------------------------------------------------------------------


@invariant("B1", "beam despite trip", "beam.on", "permit", TICK, grace_ns=HARDWARE_GRACE_NS)
def beam_needs_permits(truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam implies the contributions A, B and R, 250 us after one fell; with two elements failed P5 judges."""
    chain = room.chain
    lines = {"A": chain.permit_a, "B": chain.permit_b, "R": chain.permit_r}
    missing = [name for name, line in lines.items() if not line.value]
    judged = known.beam_on and not truth.plant.synchrotron.uncut
    return f"beam without contribution {', '.join(missing)}" if judged and missing else None


@invariant("B2", "open interlock", "beam.on", ELEMENT, TICK, grace_ns=NS_PER_MS)
def beam_needs_whole_chain(truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam implies that no element of chain A is open, 1 ms after it opened; with two elements failed P5 judges."""
    open_elements = [name for name, line in room.chain.elements.items() if not line.value]
    judged = known.beam_on and not truth.plant.synchrotron.uncut
    return f"beam with open chain elements: {', '.join(open_elements)}" if judged and open_elements else None


@invariant("B3", "spot overdose", "delivery.segment", grace_ns=NS_PER_MS)
def spot_within_plan(truth: Truth, event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """A spot's counts over all sessions stay within plan + max(2 %, a reaction quantum per grant), and what its ions were worth
    within 10 % of that; beyond, by no more than 1.5 ms of beam, only when the unit latches within 1 ms."""
    layer = _prescribed(truth, event)
    if layer is None or truth.prescription is None:
        return None
    data, key = event.data, (int(event.data["beam"]), int(event.data["layer"]))
    sums = known.spots[key]
    counted, true, quanta = sums.counts1, sums.true, sums.quanta
    before = truth.prescription.spots_before.get(key)
    if before is not None:
        earlier = before[: counted.size]
        counted, true = counted + earlier, true + earlier
        quanta = quanta + np.where(earlier > 0, float(data["quantum_counts"]), 0.0)
    planned = layer.counts1[: counted.size]
    allowed = planned + np.maximum(0.02 * planned, quanta) + 2.0
    overrun = _overrun_counts1(event, room)
    for what, got, limit in (("counts", counted, allowed), ("counts worth of ions", true, allowed * 1.10 + 60.0)):
        over = got - limit
        worst = int(np.argmax(over)) if over.size else 0
        if over.size and over[worst] > (overrun if room.unit.latched else 0.0):
            where = f"beam {key[0]} layer {key[1]} spot {worst}"
            return f"{where}: {got[worst]:.0f} {what}, planned {planned[worst]:.0f}, limit {limit[worst]:.0f}"
    return None


@invariant("B4", "one monitor lies", "delivery.segment")
def monitors_agree(_truth: Truth, event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """Once the monitors have drifted apart by 10 % and 60 counts (twice and thrice their limits), beam ends within 5 ms."""
    data = event.data
    if not data["spot_index"].size:
        return None
    species, energy = int(data["species"]), float(data["energy_mev_u"])
    ratio = room.unit.monitor.sound_counts_per_ion(species, energy) / room.unit2.monitor.sound_counts_per_ion(species, energy)
    sum1 = np.cumsum(data["counts1"]).astype(np.float64)
    sum2 = np.cumsum(data["counts2"]) * ratio
    difference, limit = np.abs(sum1 - sum2), np.maximum(0.10 * np.maximum(sum1, sum2), 60.0)
    apart = np.flatnonzero(difference > limit)
    if not apart.size:
        return None
    k = int(apart[0])
    # Within a row both count evenly: when the difference passed the limit.
    before = float(difference[k - 1]) if k else 0.0
    part = min(max((float(limit[k]) - before) / max(float(difference[k]) - before, 1e-9), 0.0), 1.0)
    crossed_ns = int(data["t_start_ns"][k]) + part * (int(data["t_end_ns"][k]) - int(data["t_start_ns"][k]))
    late_ns = int(data["t_end_ns"][-1]) - crossed_ns
    if late_ns <= MONITORS_NS:
        return None
    return f"monitors differ ({sum1[k]:.0f} and {sum2[k]:.0f} counts) and beam went on for {late_ns / 1e6:.1f} ms"


@invariant("B5", "overdose over all attempts", "delivery.segment", grace_ns=NS_PER_MS)
def field_within_plan(truth: Truth, event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """What a beam received over all grants and earlier sessions stays within its plan and a reaction quantum per grant (2 % of
    what earlier sessions gave); beyond, by no more than 1.5 ms of beam, only when the unit latches within 1 ms."""
    if truth.prescription is None:
        return None
    beam = int(event.data["beam"])
    planned, before = truth.prescription.planned_counts1(beam), truth.prescription.received_before.get(beam, 0.0)
    got = before + known.beam_counts1(beam)
    allowed = planned + known.quanta.get(beam, 0.0) + 0.02 * before + 2.0
    if got <= allowed + (_overrun_counts1(event, room) if room.unit.latched else 0.0):
        return None
    return f"beam {beam} received {got:.0f} of {planned:.0f} counts, limit {allowed:.0f}"


@invariant("B6", "dose between spots", "stray", grace_ns=HARDWARE_GRACE_NS)
def stray_counts_latch(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """More than 20 counts with no active spot, however they add up, latch the unit within 250 us."""
    counts = known.stray1
    return f"{counts} stray counts and the unit did not latch" if counts > 20 and not room.unit.latched else None


@invariant("B7", "wrong place", "delivery.segment")
def spots_in_place(truth: Truth, event: TruthEvent, _room: RoomPlant, known: RoomTruth) -> str | None:
    """Once a spot is truly off the plan by more than 1.5 mm in an axis (the pause limit of 1 mm and what the position monitor
    does not see) its grant gets beam for no longer than 2 ms, however often the beam is interrupted."""
    layer = _prescribed(truth, event)
    if layer is None:
        return None
    data, spots = event.data, event.data["spot_index"]
    error = np.maximum(np.abs(data["x_mm"] - layer.x_mm[spots]), np.abs(data["y_mm"] - layer.y_mm[spots]))
    off = np.flatnonzero((error > 1.5) & (data["counts1"] > 0))
    if not off.size:
        return None
    k = int(off[0])
    grant = (int(data["boot_id"]), int(data["grant_id"]))
    before_ns = known.off_place_ns if known.off_place_grant == grant else 0
    late_ns = before_ns + int(data["t_end_ns"][-1]) - int(data["t_start_ns"][k])
    known.off_place_grant, known.off_place_ns = grant, late_ns
    if late_ns <= OFF_PLACE_NS:
        return None
    return f"spot {int(spots[k])} is {error[k]:.2f} mm off and beam went on for {late_ns / 1e6:.1f} ms"


@invariant("B8", "wrong energy or species", "delivery.segment")
def energy_as_planned(truth: Truth, event: TruthEvent, _room: RoomPlant, _known: RoomTruth) -> str | None:
    """True energy is the layer's within 0.2 % and the offered step, true species the plan's, from the first ion."""
    layer = _prescribed(truth, event)
    if layer is None or truth.prescription is None or not event.data["counts1"].any():
        return None
    true = float(event.data["energy_mev_u"])
    if abs(true - layer.energy_mev_u) > 0.002 * layer.energy_mev_u + 0.26:
        return f"true energy {true:.2f} MeV/u, prescribed {layer.energy_mev_u:.2f}"
    if int(event.data["species"]) != layer.species_token:
        return f"true species {int(event.data['species'])}, prescribed {layer.species_token}"
    return None


@invariant("B10", "dead monitor", "beam.on", MONITOR, TICK, grace_ns=2 * NS_PER_MS + HARDWARE_GRACE_NS)
def monitors_alive(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam implies that both chambers have their voltage and fresh samples, 2 ms after they lost them."""
    if not known.beam_on:
        return None
    for number, monitor in ((1, room.unit.monitor), (2, room.unit2.monitor)):
        if not (monitor.hv_good and monitor.fresh):
            return f"beam with chamber {number}: voltage good {monitor.hv_good}, fresh {monitor.fresh}"
    return None


@invariant("B12", "orphan dose", "beam.on", "delivery.segment", "grant.accepted", "grant.ended")
def counts_belong_to_a_grant(_truth: Truth, event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Every count belongs to the one open grant, a grant is consumed once, and the unit's memory holds exactly their sum."""
    data = event.data
    if event.kind == "grant.accepted":
        key = (data["boot_id"], data["grant_id"])
        if key in known.consumed:
            return f"grant {key[1]} was accepted twice"
        known.consumed.add(key)
    elif event.kind == "delivery.segment":
        if known.open_grant != (data["boot_id"], data["grant_id"]):
            return f"counts for grant {data['grant_id']}, open is {known.open_grant}"
    elif event.kind == "grant.ended":
        known.open_grant = None
        total, given = room.unit.memory.total1 - known.counts1_base, known.counts1 + known.stray1
        if total != given:
            return f"the unit's memory holds {total} counts, {given} were given"
    elif known.open_grant is None:
        return "beam without an open grant"
    return None


# --- motion -------------------------------------------------------------------------------------------------------------


@invariant("M1", "gantry falls", "drive", "brake", grace_ns=150 * NS_PER_MS)
def brake_when_disabled(_truth: Truth, _event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """Ring and couch: no torque implies brakes applied, within 150 ms."""
    for what, device in (("ring", room.gantry), ("couch", room.couch)):
        if not (device.drive_enabled or device.brake_applied):
            return f"the {what} has neither torque nor brake"
    return None


@invariant("M3", "beam while moving", "beam.on", "motion.start", "brake", TICK, grace_ns=10 * NS_PER_MS)
def still_while_beam(truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam implies standstill, brakes applied, and the true angle within 0.2 deg of the plan's."""
    if not known.beam_on:
        return None
    ring, now_ns = room.gantry, truth.now_ns
    if abs(ring.speed_deg_s(now_ns)) > 0.01 or not ring.brake_applied:
        return f"beam while the ring turns at {ring.speed_deg_s(now_ns):.3f} deg/s, brake applied {ring.brake_applied}"
    planned = _planned_angle(truth, room)
    if planned is not None:
        off = abs((ring.angle_deg(now_ns) - planned + 180.0) % 360.0 - 180.0)
        if off > 0.2:
            return f"beam at {ring.angle_deg(now_ns):.3f} deg, planned {planned:.3f} deg"
    return None


@invariant("M4", "encoder lies", "beam.on", "motion.start", "motion.stop", TICK, grace_ns=50 * NS_PER_MS)
def encoders_agree(truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """While a drive is enabled or beam is on, load and motor encoders agree within 0.25 deg (the trip and noise)."""
    ring, now_ns = room.gantry, truth.now_ns
    if not (ring.drive_enabled or known.beam_on):
        return None
    load = ring.load_encoder_mdeg(now_ns)
    worst = max(abs(load - ring.motor_encoder_mdeg(drive, now_ns)) for drive in (0, 1))
    return f"encoders differ by {worst / 1000:.3f} deg with torque or beam on" if worst > 250 else None


# --- room ---------------------------------------------------------------------------------------------------------------


@invariant("R1", "person exposed", "beam.on", "door", "search", "person", grace_ns=NS_PER_MS)
def nobody_in_the_room(truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam to a room implies searched, door closed, nobody inside, 1 ms after any of it changed; with two elements failed P5
    judges."""
    if not known.beam_on or truth.plant.synchrotron.uncut:
        return None
    access = room.access
    if access.people_inside or not access.door_closed or not access.clear.value:
        return f"beam with people {list(access.people_inside)}, door closed {access.door_closed}, secured {access.clear.value}"
    return None


@invariant("R2", "wrong room", "beam.on", "route")
def one_path_one_room(truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam flows in one room at most, along the path that is open, for the room that holds the token."""
    if not known.beam_on:
        return None
    others = [name for name, other in truth.rooms.items() if other.beam_on and name != room.name]
    route = truth.plant.switchyard.route
    if others or route.split(":")[0] != room.name:
        return f"beam in {room.name} while the path leads to {route} and beam is also in {others}"
    holders = [name for name, other in truth.plant.rooms.items() if other.chain.room_token]
    return f"beam in {room.name}, tokens are held by {holders}" if holders != [room.name] else None


@invariant("R3", "re-entry", "door", "person", "search", ELEMENT, grace_ns=NS_PER_MS)
def an_open_door_voids_the_search(_truth: Truth, _event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """An open door implies that the search is void and chain A open, 1 ms after it opened."""
    access, chain = room.access, room.chain
    if access.door_closed or not (access.clear.value or chain.search_ok.value or chain.permit_a.value):
        return None
    return (
        f"door open, search line {chain.search_ok.value}, secured {access.clear.value}, contribution A {chain.permit_a.value}"
    )


@invariant("R4", "E-stop without effect", ELEMENT, TICK, "drive", grace_ns=10 * NS_PER_MS)
def an_estop_takes_beam_and_torque(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """An open E-stop loop implies no beam, contribution A open, and no torque on ring and couch, within 10 ms."""
    if room.access.estop_ok.value:
        return None
    torque = [name for name, device in (("ring", room.gantry), ("couch", room.couch)) if device.drive_enabled]
    if not known.beam_on and not room.chain.permit_a.value and not torque:
        return None
    return f"E-stop: beam {known.beam_on}, contribution A {room.chain.permit_a.value}, torque on {torque}"


@invariant("R5", "no warning", "beam.on")
def warned_before_beam(truth: Truth, event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """Beam begins only with the warning lamp lit, and lit for its warning time before."""
    if event.data["cause"] == "goes on":
        return None  # it has begun already: how long it may go on in a room that is open is for R3 and B2
    access = room.access
    lit_s = (truth.now_ns - access.lamp_lit_ns) / 1e9
    if access.lamp_lit and lit_s >= access.truth.warning_s:
        return None
    return f"beam with the warning lamp {'lit for ' + format(lit_s, '.1f') + ' s' if access.lamp_lit else 'dark'}"


# --- machine ------------------------------------------------------------------------------------------------------------


@invariant("P5", "actuator fails", "permit", "beam.on", "beam_off.escalated", TICK, grace_ns=TWO_FAILED_NS)
def beam_goes_whatever_fails(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam has gone 2 ms after the beam enable fell, also when neither RF-KO nor chopper did its work; while the chain stands
    in for one of them from level 2 on, contribution A is open and the stopper asked in."""
    chain = room.chain
    if known.beam_on and not chain.beam_enable.value:
        return "beam without beam enable"
    if chain.beam_off.level >= Level.DUMP and (chain.permit_a.value or not chain.beam_off.stopper.asked_in):
        return f"level {int(chain.beam_off.level)} with contribution A {chain.permit_a.value}"
    return None


# --- plan and sequence ----------------------------------------------------------------------------------------------------


@invariant("D1", "plan altered", "grant.accepted", "delivery.segment")
def plan_unaltered(truth: Truth, event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """Every grant is of the prescribed plan and ion, in its room, at its energy, places and counts."""
    prescription = truth.prescription
    if prescription is None:
        return None
    data = event.data
    if room.name != prescription.room:
        return f"grant in {room.name}, prescribed is {prescription.room}"
    if int(data["plan_hash"]) != prescription.plan_hash:
        return f"grant of plan {int(data['plan_hash'])}, prescribed is {prescription.plan_hash}"
    layer = _prescribed(truth, event)
    if layer is None:
        return f"grant for beam {int(data['beam'])} layer {int(data['layer'])}, which is not prescribed"
    if abs(int(data["kev_u"]) / 1000.0 - layer.energy_mev_u) > 0.26:
        return f"grant at {int(data['kev_u']) / 1000.0} MeV/u, prescribed {layer.energy_mev_u}"
    if event.kind == "grant.accepted" and int(data["species"]) != layer.species_token:
        return f"grant for ion {int(data['species'])}, prescribed is {layer.species_token}"
    spots = data["spot_index"]
    if spots.size and int(spots.max()) >= layer.counts1.size:
        return f"grant for spot {int(spots.max())} of {layer.counts1.size}"
    if (data["counts1_max"] > layer.counts1[spots] + 1.0).any():
        return "a grant permits more counts than the spot has in the plan"
    off = np.hypot(data["planned_x_mm"] - layer.x_mm[spots], data["planned_y_mm"] - layer.y_mm[spots])
    if off.size and off.max() > 0.002:
        return f"a granted place is {off.max():.3f} mm from the plan's"
    return None


@invariant("S3", "edit after arming", "beam.on")
def nothing_edited_since_armed(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam begins only while armed, with token, angle and species as they were when the room was armed."""
    if not room.chain.armed:
        return "beam in a room that is not armed"
    return "the selection was changed after arming" if known.preset_changed else None


# --- communication and record ---------------------------------------------------------------------------------------------


@invariant("C1", "stale counts as good", "beam.on", "permit", TICK)
def relays_follow_pulses(truth: Truth, _event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """A pulse relay is closed only for 100 ms after its last changed pulse."""
    for which, line in (("B", room.chain.permit_b), ("R", room.chain.permit_r)):
        age_ns = truth.now_ns - room.chain.last_pulse_ns(which)
        if line.value and age_ns > RELAY_HOLD_NS + NS_PER_MS:
            return f"relay {which} is closed {age_ns / 1e6:.0f} ms after the last pulse"
    return None


@invariant("V1", "lost record", "beam.on")
def grant_is_durable(truth: Truth, event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """No grant reaches beam before its record is durable."""
    if truth.record is None:
        return None
    grant_id = int(event.data["grant_id"])
    return None if truth.record.granted(room.unit.boot_id, grant_id) else f"beam for grant {grant_id}, not in the journal"


@invariant("V2", "unaccounted dose", "delivery.segment", "grant.ended", "grant.accepted", TICK)
def dose_is_accounted_for(truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """What the journal calls done never exceeds what spots were given, and that never exceeds done plus open grants."""
    if truth.record is None or (truth.prescription is not None and room.name != truth.prescription.room):
        return None
    given = known.counts1
    done, open_ = truth.record.done_counts1(), truth.record.open_counts1()
    if done <= given <= done + open_:
        return None
    return f"{given} counts were given in {room.name}; the journal says {done} done and at most {open_} more open"


def _prescribed(truth: Truth, event: TruthEvent) -> PrescribedLayer | None:
    if truth.prescription is None:
        return None
    return truth.prescription.layers.get((int(event.data["beam"]), int(event.data["layer"])))


def _planned_angle(truth: Truth, room: RoomPlant) -> float | None:
    grant = room.unit.open_grant
    if truth.prescription is None or grant is None:
        return None
    return truth.prescription.gantry_angle_deg.get(int(grant.beam))


def _overrun_counts1(event: TruthEvent, room: RoomPlant) -> float:
    """Counts that a segment's beam gives in `OVERRUN_S`."""
    return float(event.data["intensity_per_s"]) * sound_counts1_per_ion(room, event.data) * OVERRUN_S
