"""What must be true of the plant, whatever the controller believes: named invariants, judged at every truth event of every run.

Each invariant is a function of `Truth` (the plant's objects, what its events have said so far, the prescription as a table of
its own, and what the disk holds of the record) and the event that just happened; it returns a sentence when it is violated.
Names are those of the hazard table (docs/invariants.md). Limits are hardware limits and the bounds of the interlocks' limits
file, widened by what a measured value may differ from the true one.

Not responsible for stopping anything: a violation is handed to a callback, and whoever runs the world ends the run by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import TruthEvent
from simulators.plant.room import RoomPlant

NS_PER_MS = 1_000_000
RELAY_HOLD_NS = 100 * NS_PER_MS
HARDWARE_GRACE_NS = 250_000  # 200 us of beam-off hardware and 50 us of its logic


@dataclass(frozen=True, slots=True, eq=False)
class PrescribedLayer:
    """One layer as prescribed; arrays of shape (spots,) in the plan's order, isocentre plane, IEC gantry axes."""

    energy_mev_u: float
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    counts1: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prescription:
    """What was prescribed for one fraction, handed to the invariants by whoever starts the run."""

    plan_hash: int
    species_token: int
    room: str
    gantry_angle_deg: Mapping[int, float]  # by beam number
    layers: Mapping[tuple[int, int], PrescribedLayer]  # by (beam number, layer index)
    received_before: Mapping[int, float] = field(default_factory=dict)  # counts of earlier sessions, by beam number
    # The same per spot, by (beam number, layer index); shape (spots,).
    spots_before: Mapping[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)


class RecordProbe(Protocol):
    """What is durable in the record of the treated room, as the disk has it (not as the controller remembers it)."""

    def granted(self, boot_id: int, grant_id: int) -> bool: ...

    def done_counts1(self) -> int:
        """Counts of monitor 1 that durable `done` records account for."""
        ...

    def open_counts1(self) -> int:
        """Upper bound of counts in durable grants that are not done."""
        ...


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold."""

    name: str
    t_ns: int
    room: str
    message: str

    def __str__(self) -> str:
        return f"{self.name} at {self.t_ns / 1e9:.6f} s in {self.room}: {self.message}"


@dataclass(slots=True)
class RoomTruth:
    """What the events of one room have said so far."""

    beam_on: bool = False
    armed_preset: tuple[int, int, int] | None = None  # token, angle, species as they were when armed
    preset_changed: bool = False
    delivered: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)  # counts 1 by (beam, layer)
    delivered_true: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)  # from ions
    allowance: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)  # reaction quanta
    touched: set[tuple[int, int, int]] = field(default_factory=set)  # (boot, grant, ...) whose quantum was counted
    open_grant: tuple[int, int] | None = None
    consumed: set[tuple[int, int]] = field(default_factory=set)
    counts1: int = 0
    counts1_base: int = 0
    in_motion: bool = False


@dataclass(slots=True)
class Truth:
    """Everything an invariant may look at."""

    plant: FacilityPlant
    prescription: Prescription | None
    record: RecordProbe | None
    rooms: dict[str, RoomTruth]

    @property
    def now_ns(self) -> int:
        """Plant time."""
        return self.plant.kernel.now_ns


Check = Callable[[Truth, TruthEvent, RoomPlant, RoomTruth], str | None]


@dataclass(frozen=True, slots=True)
class Invariant:
    """A named check, the kinds of event at which it is judged (empty: all of its room), and how long the plant has to answer.

    With a `grace_ns`, a check that fails is judged again after that time, and is violated only when it fails then.
    """

    name: str
    hazard: str
    kinds: frozenset[str]
    grace_ns: int
    check: Check


CATALOGUE: dict[str, Invariant] = {}
TICK = "tick"  # the monitor's own event, every 50 ms while beam or motion is on
TICK_NS = 50 * NS_PER_MS


def invariant(name: str, hazard: str, *kinds: str, grace_ns: int = 0) -> Callable[[Check], Check]:
    """Register a check under its name."""

    def register(check: Check) -> Check:
        CATALOGUE[name] = Invariant(name, hazard, frozenset(kinds), grace_ns, check)
        return check

    return register


class InvariantMonitor:
    """Watches one plant.

    Args:
        plant: whose truth.
        on_violation: called with the first violation only; the run is over then.
        prescription: what may be delivered; without one, invariants that need it are silent (commissioning).
        record: what is durable; without one, V1 and V2 are silent.
    """

    def __init__(
        self,
        plant: FacilityPlant,
        on_violation: Callable[[Violation], None],
        prescription: Prescription | None = None,
        record: RecordProbe | None = None,
    ) -> None:
        self._plant = plant
        self._on_violation = on_violation
        self._truth = Truth(plant, prescription, record, {name: RoomTruth() for name in plant.rooms})
        self._ticking: set[str] = set()
        self.violation: Violation | None = None
        self.judged = 0
        for name, room in plant.rooms.items():
            self._truth.rooms[name].counts1_base = room.unit.counts()[0]
            for monitor in (room.unit.monitor, room.unit2.monitor):
                monitor.watch(lambda name=name: self._take_change(name))
        plant.kernel.observe(self._take)

    def _take_change(self, room: str) -> None:
        self._take(TruthEvent(self._truth.now_ns, f"{room}-chambers", "monitor", {"room": room}))

    def _take(self, event: TruthEvent) -> None:
        """Fold one event in, then judge everything that listens to it."""
        name = event.data.get("room")
        names = [name] if name is not None else list(self._truth.rooms)
        for room_name in names:
            room, known = self._plant.rooms[room_name], self._truth.rooms[room_name]
            _remember(event, room, known)
            if (known.beam_on or known.in_motion) and room_name not in self._ticking:
                self._ticking.add(room_name)
                self._plant.kernel.after(TICK_NS, lambda t_ns, r=room_name: self._tick(t_ns, r))  # type: ignore[misc]
            for rule in CATALOGUE.values():
                if not rule.kinds or event.kind in rule.kinds:
                    self._judge(rule, event, room_name)

    def _tick(self, t_ns: int, room_name: str) -> None:
        self._ticking.discard(room_name)
        self._take(TruthEvent(t_ns, "invariants", TICK, {"room": room_name}))

    def _judge(self, rule: Invariant, event: TruthEvent, room_name: str, *, again: bool = False) -> None:
        if self.violation is not None:
            return
        self.judged += 1
        message = rule.check(self._truth, event, self._plant.rooms[room_name], self._truth.rooms[room_name])
        if message is None:
            return
        if rule.grace_ns and not again:
            self._plant.kernel.after(rule.grace_ns, lambda _t: self._judge(rule, event, room_name, again=True))
            return
        self.violation = Violation(rule.name, self._truth.now_ns, room_name, message)
        self._on_violation(self.violation)


def _remember(event: TruthEvent, room: RoomPlant, known: RoomTruth) -> None:
    """What later checks need to know of earlier events."""
    chain = room.chain
    preset = (chain.room_token, chain.preset_angle_mdeg, chain.preset_species)
    if not chain.armed:
        known.armed_preset, known.preset_changed = None, False
    elif known.armed_preset is None:
        known.armed_preset = preset
    elif preset != known.armed_preset:
        known.preset_changed = True
    match event.kind:
        case "beam.on":
            known.beam_on = True
        case "beam.off":
            known.beam_on = False
        case "motion.start":
            known.in_motion = True
        case "motion.stop":
            known.in_motion = False
        case "grant.accepted":
            known.open_grant = (event.data["boot_id"], event.data["grant_id"])
        case "delivery.segment":
            _remember_segment(event.data, known)
        case "stray":
            known.counts1 += int(event.data["counts1"])


def _remember_segment(data: Mapping[str, Any], known: RoomTruth) -> None:
    known.counts1 += int(data["counts1"].sum())
    key = (int(data["beam"]), int(data["layer"]))
    spots = data["spot_index"]
    size = int(spots.max(initial=-1)) + 1
    for table, values in (
        (known.delivered, data["counts1"].astype(np.float64)),
        (known.delivered_true, data["ions"] * float(data["counts1_per_ion"])),
        (known.allowance, np.full(spots.shape, float(data["quantum_counts"]))),
    ):
        if table.get(key, np.zeros(0)).size < size:
            table[key] = np.concatenate([table.get(key, np.zeros(0)), np.zeros(size - table.get(key, np.zeros(0)).size)])
        np.add.at(table[key], spots, values)


# --- beam and dose ------------------------------------------------------------------------------------------------------


@invariant("B1", "beam despite trip", "beam.on", "permit", grace_ns=HARDWARE_GRACE_NS)
def beam_needs_permits(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam implies contributions A and B, 200 us after either fell."""
    chain = room.chain
    if known.beam_on and not (chain.permit_a.value and chain.permit_b.value):
        return f"beam with contributions A {chain.permit_a.value}, B {chain.permit_b.value}"
    return None


@invariant("B2", "open interlock", "beam.on", "trip", TICK, grace_ns=NS_PER_MS)
def beam_needs_whole_chain(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Extraction implies that no element of the chain is open, 1 ms after it opened."""
    open_elements = [name for name, line in room.chain.elements.items() if not line.value]
    return f"beam with open chain elements: {', '.join(open_elements)}" if known.beam_on and open_elements else None


@invariant("B3", "spot overdose", "delivery.segment")
def spot_within_plan(truth: Truth, event: TruthEvent, _room: RoomPlant, known: RoomTruth) -> str | None:
    """Counts of a spot stay within plan + max(2 %, a quantum per grant); its ions within the monitors' limit of that."""
    layer = _prescribed(truth, event)
    if layer is None:
        return None
    key = (int(event.data["beam"]), int(event.data["layer"]))
    counted, true, quanta = known.delivered[key], known.delivered_true[key], known.allowance[key]
    if truth.prescription is not None and (before := truth.prescription.spots_before.get(key)) is not None:
        before = before[: counted.size]
        counted, true = counted + before, true + before
        quanta = quanta + np.where(before > 0, float(event.data["quantum_counts"]), 0.0)
    planned = layer.counts1[: counted.size]
    allowed = planned + np.maximum(0.02 * planned, quanta) + 2.0
    for what, got, limit in (("counts", counted, allowed), ("ions", true, allowed * 1.10 + 60.0)):
        over = np.flatnonzero(got > limit)
        if over.size:
            k = int(over[0])
            where = f"beam {key[0]} layer {key[1]} spot {k}"
            return f"{where}: {got[k]:.0f} {what} (as counts), planned {planned[k]:.0f}, limit {limit[k]:.0f}"
    return None


@invariant("B4", "one monitor lies", "delivery.segment")
def monitors_agree(_truth: Truth, event: TruthEvent, _room: RoomPlant, _known: RoomTruth) -> str | None:
    """Where the monitors drift apart by more than twice their limit, beam does not go on for longer than 5 ms."""
    data = event.data
    counts1 = np.cumsum(data["counts1"]).astype(np.float64)
    counts2 = np.cumsum(data["counts2"]) * (float(data["counts1_per_ion"]) / float(data["counts2_per_ion"]))
    apart = np.flatnonzero(np.abs(counts1 - counts2) > np.maximum(0.10 * counts1, 60.0))
    if not apart.size:
        return None
    k = int(apart[0])
    late_ns = int(data["t_end_ns"][-1]) - int(data["t_end_ns"][k])
    if late_ns <= 5 * NS_PER_MS:
        return None
    return f"monitors differ ({counts1[k]:.0f} and {counts2[k]:.0f} counts) and beam went on for {late_ns / 1e6:.1f} ms"


@invariant("B5", "overdose over all attempts", "delivery.segment")
def field_within_plan(truth: Truth, event: TruthEvent, _room: RoomPlant, known: RoomTruth) -> str | None:
    """What a beam received over all grants and earlier sessions stays within its plan and a reaction quantum per grant."""
    if truth.prescription is None:
        return None
    beam = int(event.data["beam"])
    planned = sum(float(layer.counts1.sum()) for (b, _), layer in truth.prescription.layers.items() if b == beam)
    got = truth.prescription.received_before.get(beam, 0) + sum(
        float(counts.sum()) for (b, _), counts in known.delivered.items() if b == beam
    )
    allowed = planned * 1.002 + float(event.data["quantum_counts"]) * (len(known.consumed) + 1)
    return f"beam {beam} received {got:.0f} of {planned:.0f} counts, limit {allowed:.0f}" if got > allowed else None


@invariant("B6", "dose between spots", "stray", grace_ns=HARDWARE_GRACE_NS)
def stray_counts_latch(_truth: Truth, event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """More than 20 counts with no active spot latch the unit."""
    counts = int(event.data["counts1"])
    return f"{counts} stray counts and the unit did not latch" if counts > 20 and not room.unit.latched else None


@invariant("B7", "wrong place", "delivery.segment")
def spots_in_place(truth: Truth, event: TruthEvent, _room: RoomPlant, _known: RoomTruth) -> str | None:
    """A spot truly off the plan by more than 1.5 mm (1 mm and the monitor's noise) is not irradiated for longer than 2 ms."""
    layer = _prescribed(truth, event)
    if layer is None:
        return None
    data = event.data
    spots = data["spot_index"]
    error = np.hypot(data["x_mm"] - layer.x_mm[spots], data["y_mm"] - layer.y_mm[spots])
    off = np.flatnonzero((error > 1.5) & (data["counts1"] > 0))
    if not off.size:
        return None
    k = int(off[0])
    late_ns = int(data["t_end_ns"][-1]) - int(data["t_start_ns"][k])
    if late_ns <= 2 * NS_PER_MS:
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
    if int(event.data["species"]) != truth.prescription.species_token:
        return f"true species {int(event.data['species'])}, prescribed {truth.prescription.species_token}"
    return None


@invariant("B10", "dead monitor", "beam.on", "monitor", TICK, grace_ns=2 * NS_PER_MS + HARDWARE_GRACE_NS)
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
        total = room.unit.memory.total1 - known.counts1_base
        if total != known.counts1:
            return f"the unit's memory holds {total} counts, {known.counts1} were given"
    elif known.open_grant is None:
        return "beam without an open grant"
    return None


# --- motion -------------------------------------------------------------------------------------------------------------


@invariant("M1", "gantry falls", "drive", "brake", grace_ns=150 * NS_PER_MS)
def brake_when_disabled(_truth: Truth, _event: TruthEvent, room: RoomPlant, _known: RoomTruth) -> str | None:
    """No drive enabled implies brakes applied, within 150 ms."""
    ring = room.gantry
    return None if ring.drive_enabled or ring.brake_applied else "no drive is enabled and no brake is applied"


@invariant("M3", "beam while moving", "beam.on", "motion.start", TICK, grace_ns=10 * NS_PER_MS)
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
def nobody_in_the_room(_truth: Truth, _event: TruthEvent, room: RoomPlant, known: RoomTruth) -> str | None:
    """Beam to a room implies searched, door closed, nobody inside, 1 ms after any of it changed."""
    if not known.beam_on:
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


# --- plan and sequence ----------------------------------------------------------------------------------------------------


@invariant("D1", "plan altered", "grant.accepted", "delivery.segment")
def plan_unaltered(truth: Truth, event: TruthEvent, _room: RoomPlant, _known: RoomTruth) -> str | None:
    """Every grant is of the prescribed plan, at its energy, places and counts."""
    prescription = truth.prescription
    if prescription is None:
        return None
    data = event.data
    if int(data["plan_hash"]) != prescription.plan_hash:
        return f"grant of plan {int(data['plan_hash'])}, prescribed is {prescription.plan_hash}"
    layer = _prescribed(truth, event)
    if layer is None:
        return f"grant for beam {int(data['beam'])} layer {int(data['layer'])}, which is not prescribed"
    if abs(int(data["kev_u"]) / 1000.0 - layer.energy_mev_u) > 0.26:
        return f"grant at {int(data['kev_u']) / 1000.0} MeV/u, prescribed {layer.energy_mev_u}"
    spots = data["spot_index"]
    if spots.size and int(spots.max()) >= layer.counts1.size:
        return f"grant for spot {int(spots.max())} of {layer.counts1.size}"
    if (data["counts1_max"] > layer.counts1[spots] + 1.0).any():
        return "a grant permits more counts than the spot has in the plan"
    if event.kind == "delivery.segment":
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
    """What the journal calls done never exceeds what was given, and that never exceeds done plus open grants."""
    if truth.record is None:
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
