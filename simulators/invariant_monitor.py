"""What the plant's truth events have said so far, and the monitor that holds it against a catalogue of named invariants.

The catalogue itself is `simulators.invariants`. Not responsible for stopping anything: a violation is handed to a callback, and
whoever runs the world ends the run by name.
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

Floats = NDArray[np.float64]
NS_PER_MS = 1_000_000
MONITOR, ELEMENT, TICK = "monitor", "element", "tick"  # the monitor's own events: a chamber changed, a chain element changed,
TICK_NS = 50 * NS_PER_MS  # ... and this long has passed while beam or motion is on


@dataclass(frozen=True, slots=True, eq=False)
class PrescribedLayer:
    """One layer as prescribed; arrays of shape (spots,) in the plan's order, isocentre plane, IEC gantry axes."""

    species_token: int
    energy_mev_u: float
    x_mm: Floats
    y_mm: Floats
    counts1: Floats


@dataclass(frozen=True, slots=True)
class Prescription:
    """What was prescribed for one fraction, handed to the invariants by whoever starts the run."""

    plan_hash: int
    room: str
    gantry_angle_deg: Mapping[int, float]  # by beam number
    layers: Mapping[tuple[int, int], PrescribedLayer]  # by (beam number, layer index)
    received_before: Mapping[int, float] = field(default_factory=dict)  # counts of earlier sessions, by beam number
    # The same per spot, by (beam number, layer index); shape (spots,).
    spots_before: Mapping[tuple[int, int], Floats] = field(default_factory=dict)

    def planned_counts1(self, beam: int) -> float:
        """Counts of monitor 1 prescribed for a whole beam."""
        return sum(float(layer.counts1.sum()) for (number, _), layer in self.layers.items() if number == beam)


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
class SpotSums:
    """What the spots of one layer have had so far; arrays of shape (highest spot index seen + 1,).

    Attributes:
        counts1: counted by monitor 1.
        true: what a sound monitor 1 would have counted for the ions that came.
        quanta: reaction quanta, one for each grant that touched the spot.
    """

    counts1: Floats = field(default_factory=lambda: np.zeros(0))
    true: Floats = field(default_factory=lambda: np.zeros(0))
    quanta: Floats = field(default_factory=lambda: np.zeros(0))
    _last_grant: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, data: Mapping[str, Any], sound_counts1_per_ion: float) -> None:
        """Add one `delivery.segment`."""
        spots = data["spot_index"]
        missing = int(spots.max(initial=-1)) + 1 - self.counts1.size
        if missing > 0:
            more = np.zeros(missing)
            self.counts1, self.true, self.quanta = (np.append(a, more) for a in (self.counts1, self.true, self.quanta))
            self._last_grant = np.append(self._last_grant, np.full(missing, -1))
        np.add.at(self.counts1, spots, data["counts1"].astype(np.float64))
        np.add.at(self.true, spots, data["ions"] * sound_counts1_per_ion)
        fresh = np.unique(spots[self._last_grant[spots] != data["grant_id"]])
        self.quanta[fresh] += float(data["quantum_counts"])
        self._last_grant[fresh] = data["grant_id"]


@dataclass(slots=True)
class RoomTruth:
    """What the events of one room have said so far.

    Attributes:
        moving: devices in motion.
        armed_preset: token, angle and species as they were when the room was armed.
        spots: by (beam, layer).
        quanta: reaction quanta of all grants of a beam, by beam number.
        counts1, stray1: counts of monitor 1 in spots, and outside of any, since the monitor began.
        counts1_base: the unit's memory at that time.
        off_place_grant, off_place_ns: the last grant with spots off their places, and the beam it had since, in all segments.
    """

    beam_on: bool = False
    moving: set[str] = field(default_factory=set)
    armed_preset: tuple[int, int, int] | None = None
    preset_changed: bool = False
    spots: dict[tuple[int, int], SpotSums] = field(default_factory=dict)
    quanta: dict[int, float] = field(default_factory=dict)
    open_grant: tuple[int, int] | None = None
    consumed: set[tuple[int, int]] = field(default_factory=set)
    counts1: int = 0
    stray1: int = 0
    counts1_base: int = 0
    off_place_grant: tuple[int, int] = (0, 0)
    off_place_ns: int = 0

    def beam_counts1(self, beam: int) -> float:
        """Counts of monitor 1 that a beam has had."""
        return sum(float(sums.counts1.sum()) for (number, _), sums in self.spots.items() if number == beam)

    def remember(self, event: TruthEvent, room: RoomPlant) -> None:
        """Fold one event in."""
        chain, data = room.chain, event.data
        if not chain.armed:
            self.armed_preset, self.preset_changed = None, False
        else:
            preset = (chain.room_token, chain.preset_angle_mdeg, chain.preset_species)
            if self.armed_preset is None:
                self.armed_preset = preset
            elif preset != self.armed_preset:
                self.preset_changed = True
        match event.kind:
            case "beam.on":
                self.beam_on = True
            case "beam.off":
                self.beam_on = False
            case "motion.start":
                self.moving.add(data["device"])
            case "motion.stop":
                self.moving.discard(data["device"])
            case "grant.accepted":
                self.open_grant = (data["boot_id"], data["grant_id"])
                self.quanta[data["beam"]] = self.quanta.get(data["beam"], 0.0) + float(data["quantum_counts"])
            case "delivery.segment":
                self.counts1 += int(data["counts1"].sum())
                sums = self.spots.setdefault((int(data["beam"]), int(data["layer"])), SpotSums())
                sums.add(data, sound_counts1_per_ion(room, data))
            case "stray":
                self.stray1 += int(data["counts1"])


def sound_counts1_per_ion(room: RoomPlant, data: Mapping[str, Any]) -> float:
    """What monitor 1 of a room counts per ion of a segment when nothing is wrong with it."""
    return float(room.unit.monitor.sound_counts_per_ion(int(data["species"]), float(data["energy_mev_u"])))


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
    """A named check, the kinds of event at which it is judged, and how long the plant has to answer.

    With a `grace_ns`, a check that fails is judged again after that time, and is violated only when it fails then.
    """

    name: str
    hazard: str
    kinds: frozenset[str]
    grace_ns: int
    check: Check


class InvariantMonitor:
    """Watches one plant.

    Args:
        plant: whose truth.
        on_violation: called with the first violation only; the run is over then.
        rules: the catalogue.
        prescription: what may be delivered; without one, invariants that need it are silent (commissioning).
        record: what is durable; without one, invariants of the record are silent.

    Attributes:
        violation: the first one.
        judged: how many checks were made.
    """

    def __init__(
        self,
        plant: FacilityPlant,
        on_violation: Callable[[Violation], None],
        rules: Mapping[str, Invariant],
        prescription: Prescription | None = None,
        record: RecordProbe | None = None,
    ) -> None:
        self._plant = plant
        self._on_violation = on_violation
        self._by_kind: dict[str, list[Invariant]] = {}
        for rule in rules.values():
            for kind in rule.kinds:
                self._by_kind.setdefault(kind, []).append(rule)
        self._truth = Truth(plant, prescription, record, {name: RoomTruth() for name in plant.rooms})
        self._ticking: set[str] = set()
        self._sessions: dict[str, Prescription] = {}
        self.violation: Violation | None = None
        self.judged = 0
        for name, room in plant.rooms.items():
            self._truth.rooms[name].counts1_base = room.unit.counts()[0]
            for monitor in (room.unit.monitor, room.unit2.monitor):
                monitor.watch(lambda name=name: self._own(MONITOR, name))
            for line in room.chain.elements.values():
                line.watch(lambda _t_ns, _value, name=name: self._own(ELEMENT, name))  # type: ignore[misc]
        plant.kernel.observe(self._take)

    def begin(self, prescription: Prescription, record: RecordProbe | None = None) -> None:
        """A session begins in the room of a prescription: it is judged by that from now on, and by no earlier one.

        For a plant that outlives its sessions: what the room has had so far counts no longer, and a violation is forgotten.
        Sessions of other rooms go on. Raises ValueError when there is no such room, or beam is on in it.
        """
        name = prescription.room
        known = self._truth.rooms.get(name)
        if known is None:
            raise ValueError(f"the plant has no room {name!r}")
        if known.beam_on:
            raise ValueError(f"beam is on in {name}")
        base = self._plant.rooms[name].unit.counts()[0]
        self._truth.rooms[name] = RoomTruth(
            moving=known.moving, open_grant=known.open_grant, consumed=known.consumed, counts1_base=base
        )
        self._sessions[name] = prescription
        self._truth.record = record
        self.violation = None

    def _own(self, kind: str, room_name: str) -> None:
        self._take(TruthEvent(self._truth.now_ns, "invariants", kind, {"room": room_name}))

    def _take(self, event: TruthEvent) -> None:
        """Fold one event in, then judge everything that listens to it; events of no room concern all rooms."""
        name = event.data.get("room")
        rules = self._by_kind.get(event.kind, ())
        for room_name in [name] if name is not None else list(self._truth.rooms):
            room, known = self._plant.rooms[room_name], self._truth.rooms[room_name]
            known.remember(event, room)
            if (known.beam_on or known.moving) and room_name not in self._ticking:
                self._ticking.add(room_name)
                self._plant.kernel.after(TICK_NS, lambda _t_ns, r=room_name: self._tick(r))  # type: ignore[misc]
            for rule in rules:
                self._judge(rule, event, room_name)

    def _tick(self, room_name: str) -> None:
        self._ticking.discard(room_name)
        self._own(TICK, room_name)

    def _judge(self, rule: Invariant, event: TruthEvent, room_name: str, *, again: bool = False) -> None:
        if self.violation is not None:
            return
        self.judged += 1
        if self._sessions:  # a grant in a room without a session is held against what is prescribed elsewhere
            self._truth.prescription = self._sessions.get(room_name) or next(iter(self._sessions.values()))
        message = rule.check(self._truth, event, self._plant.rooms[room_name], self._truth.rooms[room_name])
        if message is None:
            return
        if rule.grace_ns and not again:
            self._plant.kernel.after(rule.grace_ns, lambda _t: self._judge(rule, event, room_name, again=True))
            return
        self.violation = Violation(rule.name, self._truth.now_ns, room_name, message)
        self._on_violation(self.violation)
