"""The plant's process variables: names, types, what a read gives, what a put does, and when a value is posted
(docs/wires.md).

`PvTable` is any table of variables; `facility_pvs` builds the one of a facility. Whatever carries it (memory twin,
Channel Access server) reads, writes and subscribes here. Values are posted on change; delivering units post their
progress every 100 ms; every `STATUS:RB` begins with a counter that moves at each post and at least once a second
while anybody is subscribed.

Not responsible for the wire, nor for bringing the plant up to the present before a request.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulators.plant.delivery_unit import DeliveryUnitPlant
from simulators.plant.facility import FacilityPlant
from simulators.plant.grants import words64
from simulators.plant.kernel import Kernel
from simulators.plant.magnets import BeamlineMagnets
from simulators.plant.reference import COLUMNS, PIECES_KEPT, ReferenceDetector
from simulators.plant.second_dose_unit import SecondDoseUnitPlant

Value = int | float | str | NDArray[np.int32] | NDArray[np.float64]
Listener = Callable[[str, Value], None]

BEAT_NS = 900_000_000
RECENT_NS = 100_000_000  # a counter that moved so recently is left alone: no gap is longer than 1 s
INT32_MAX = 2**31 - 1
GRANT_WORDS_MAX = 14 + 5 * 4000 + 1  # header, rows, CRC
RESULT_WORDS_MAX = 5 + 17 * 256 + 1  # header, pieces, CRC


@dataclass(frozen=True, slots=True)
class Pv:
    """One variable.

    Attributes:
        kind: ``"int"``, ``"double"``, ``"string"``, ``"int[]"`` or ``"double[]"``.
        get: its present value.
        put: what a client's write does; None for a read-back. Raises ValueError when the value makes no sense.
        elements: most elements of an array; 0: as many as it has at present.
    """

    kind: str
    get: Callable[[], Value]
    put: Callable[[Value], None] | None = None
    elements: int = 0


class PvTable:
    """Variables by name, with subscribers.

    A status is a read-back whose first word is a counter, which this table keeps: +1 at each post.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._pvs: dict[str, Pv] = {}
        self._counters: dict[str, int] = {}
        self._posted_ns: dict[str, int] = {}
        self._listeners: list[tuple[Listener, Container[str] | None]] = []
        self._asleep: dict[str, Value] = {}  # of devices without power: what was seen last
        self._beating = False

    # --- what a server needs --------------------------------------------------------------------------------------

    def names(self) -> Iterable[str]:
        """All names, in the order of their making."""
        return tuple(self._pvs)

    def kind(self, name: str) -> str:
        """Type of a variable. KeyError when there is none of that name."""
        return self._pvs[name].kind

    def elements(self, name: str) -> int:
        """Most elements that a variable may hold: 1 of a number or text."""
        pv = self._pvs[name]
        if not pv.kind.endswith("[]"):
            return 1
        return pv.elements or int(np.size(pv.get()))

    def writable(self, name: str) -> bool:
        """Whether clients may write it."""
        return self._pvs[name].put is not None

    def read(self, name: str) -> Value:
        """Present value. KeyError when there is no such variable."""
        return self._asleep[name] if name in self._asleep else self._pvs[name].get()

    def write(self, name: str, value: Value) -> None:
        """A client's put.

        Raises:
            KeyError: no such variable.
            PermissionError: a read-back.
            ValueError: wrong type or number of elements, or refused by the device.
        """
        pv = self._pvs[name]
        if pv.put is None:
            raise PermissionError(f"{name} is read only")
        taken = coerce(name, pv.kind, value)
        if name in self._asleep:
            return
        pv.put(taken)
        self.post(name)

    def subscribe(self, listener: Listener, names: Container[str] | None = None) -> Callable[[], None]:
        """Call `listener(name, value)` at every post (of one of `names`, a view that may change); returns what ends it.

        A value that nobody is to be told is not read.
        """
        entry = listener, names
        self._listeners.append(entry)
        self._beat()

        def cancel() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)

        return cancel

    # --- what devices need ----------------------------------------------------------------------------------------

    def add(
        self, name: str, kind: str, get: Callable[[], Value], put: Callable[[Value], None] | None = None, elements: int = 0
    ) -> None:
        """Add a variable; see `Pv`."""
        self._pvs[name] = Pv(kind, get, put, elements)

    def add_status(self, name: str, words: Callable[[], list[int]]) -> None:
        """Add a status: an int array of a counter and these words."""
        self._counters[name] = 0
        self._posted_ns[name] = self._kernel.now_ns
        self.add(name, "int[]", lambda: np.array([self._counters[name], *words()], dtype=np.int32))

    def power(self, prefix: str, on: bool) -> None:
        """A device has lost its power, or has it back: without it nothing is posted, reads repeat what was seen last, counters
        stand, and what is written is lost.
        """
        own = [name for name in self._pvs if name.startswith(f"{prefix}:")]
        for name in own:
            if on:
                self._asleep.pop(name, None)
            elif name not in self._asleep:
                self._asleep[name] = self._pvs[name].get()

    def post(self, name: str) -> None:
        """Tell subscribers the present value."""
        if name in self._asleep:
            return
        if name in self._counters:
            self._counters[name] = (self._counters[name] + 1) & INT32_MAX
            self._posted_ns[name] = self._kernel.now_ns
        told = [listener for listener, names in self._listeners if names is None or name in names]
        if not told:
            return
        value = self._pvs[name].get()
        for listener in told:
            listener(name, value)

    def _beat(self) -> None:
        """Move every counter at least once a second; stops when nobody listens."""
        if self._beating or not self._listeners:
            return
        self._beating = True

        def beat(t_ns: int) -> None:
            if not self._listeners:
                self._beating = False
                return
            for name, posted_ns in self._posted_ns.items():
                if t_ns - posted_ns >= RECENT_NS:
                    self.post(name)
            self._kernel.after(BEAT_NS, beat)

        self._kernel.after(BEAT_NS, beat)


def coerce(name: str, kind: str, value: Value) -> Value:
    """Bring a client's value into the variable's type; ValueError when it does not fit."""
    if kind == "string":
        if isinstance(value, str):
            return value
        raise ValueError(f"{name}: text is expected")
    if isinstance(value, str):
        raise ValueError(f"{name}: a number is expected, not {value!r}")
    array = np.atleast_1d(np.asarray(value))
    if kind.startswith("int") and not np.all(np.isfinite(array) & (array == np.round(array)) & (np.abs(array) <= 2.0**31)):
        raise ValueError(f"{name}: 32-bit integers are expected")
    if not kind.endswith("[]"):
        if array.size != 1:
            raise ValueError(f"{name}: one value is expected, not {array.size}")
        return int(array[0]) if kind == "int" else float(array[0])
    return array.astype(np.int32) if kind == "int[]" else array.astype(np.float64)


def facility_pvs(plant: FacilityPlant) -> PvTable:
    """The table of a whole facility, wired to its plant."""
    table = PvTable(plant.kernel)
    prefix = plant.truth.prefix
    _accelerator(table, plant, prefix)
    for name, room in plant.rooms.items():
        _magnets(table, room.magnets, f"{prefix}:{name}:MAG")
        _unit(table, room.unit, f"{prefix}:{name}:DU")
        _second_unit(table, room.unit2, f"{prefix}:{name}:DU2")
        _reference(table, plant.references[name], f"{prefix}:{name}:QA")
    return table


def _ints(value: Value, count: int, name: str) -> list[int]:
    if not isinstance(value, np.ndarray) or value.size != count:
        raise ValueError(f"{name}: {count} integers are expected")
    return [int(word) for word in value]


def _int(value: Value) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _array(values: list[int] | tuple[int, ...]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def _accelerator(table: PvTable, plant: FacilityPlant, prefix: str) -> None:
    ring, yard = plant.synchrotron, plant.switchyard
    setpoints = {"species": 0, "cycle": 0, "step": 0}
    route_sp = ["none"]

    def status() -> list[int]:
        s = ring.status()
        kilo = min(int(s.ions_left / 1000.0), INT32_MAX)
        return [int(s.state), s.energy_kev_u, s.spill, s.species_token, int(s.settled), kilo, int(s.fault)]

    def command(key: str, act: Callable[[int], None]) -> Callable[[Value], None]:
        def put(value: Value) -> None:
            setpoints[key] = _int(value)
            act(setpoints[key])

        return put

    def off(value: Value) -> None:
        if _int(value) == 1:
            ring.off()

    def select_route(value: Value) -> None:
        yard.select(str(value))
        route_sp[0] = str(value)

    table.add(f"{prefix}:ACC:ID:RB", "string", lambda: plant.truth.accelerator.identity)
    table.add(f"{prefix}:ACC:SRC:SPECIES:SP", "int", lambda: setpoints["species"], command("species", ring.select_species))
    table.add(f"{prefix}:ACC:SRC:SPECIES:RB", "int", lambda: ring.measured_species)
    table.add(f"{prefix}:ACC:RING:CYCLE:SP", "int", lambda: setpoints["cycle"], command("cycle", ring.start_cycle))
    table.add(f"{prefix}:ACC:RING:STEP:SP", "int", lambda: setpoints["step"], command("step", ring.step_to))
    table.add(f"{prefix}:ACC:RING:OFF:SP", "int", lambda: 0, off)
    table.add_status(f"{prefix}:ACC:STATUS:RB", status)
    table.add(f"{prefix}:HEBT:ROUTE:SP", "string", lambda: route_sp[0], select_route)
    table.add(f"{prefix}:HEBT:ROUTE:RB", "string", lambda: yard.readback)
    shown = [ring.measured_species]

    def ring_changed() -> None:
        table.post(f"{prefix}:ACC:STATUS:RB")
        if ring.measured_species != shown[0]:
            shown[0] = ring.measured_species
            table.post(f"{prefix}:ACC:SRC:SPECIES:RB")

    ring.watch(ring_changed)
    yard.watch(lambda: table.post(f"{prefix}:HEBT:ROUTE:RB"))


def _magnets(table: PvTable, magnets: BeamlineMagnets, prefix: str) -> None:
    count = len(magnets.names)
    setpoint = [np.zeros(1 + 2 * count)]

    def put(value: Value) -> None:
        if not isinstance(value, np.ndarray) or value.size != 1 + 2 * count or not np.all(np.isfinite(value)):
            raise ValueError(f"{prefix}:CURRENT:SP: a token and {2 * count} finite currents are expected")
        currents = value.astype(np.float64)
        magnets.set_currents(int(currents[0]), currents[1:])
        setpoint[0] = currents

    def readback() -> NDArray[np.float64]:
        return np.concatenate([[float(magnets.settled_token)], magnets.measured_currents_a()])

    def status() -> list[int]:
        hottest_mk = round(magnets.hottest_k * 1e3)
        return [magnets.settled_token, magnets.quench_bits, hottest_mk, int(magnets.ramp_inhibited), magnets.deviation_ppm()]

    table.add(f"{prefix}:ID:RB", "string", lambda: magnets.identity)
    table.add(f"{prefix}:NAMEPLATE:RB", "double[]", magnets.nameplate)
    table.add(f"{prefix}:CURRENT:SP", "double[]", lambda: setpoint[0], put)
    table.add(f"{prefix}:CURRENT:RB", "double[]", readback)
    table.add_status(f"{prefix}:STATUS:RB", status)

    def changed() -> None:
        table.post(f"{prefix}:STATUS:RB")
        table.post(f"{prefix}:CURRENT:RB")

    magnets.watch(changed)


def _unit(table: PvTable, unit: DeliveryUnitPlant, prefix: str) -> None:
    state: dict[str, NDArray[np.int32]] = {"start": _array([0, 0]), "result": _array([0, 0]), "grant": _array([])}

    def status() -> list[int]:
        total1, total2 = unit.counts()
        if unit.wrap_bits:
            total1 &= (1 << unit.wrap_bits) - 1
        grant = unit.open_grant
        return [
            unit.boot_id,
            int(unit.state),
            unit.memory.last_grant_id,
            grant.grant_id if grant is not None else 0,
            unit.open_row() if grant is not None else 0,
            int(unit.reason),
            int(unit.hold),
            *words64(total1),
            *words64(total2),
            unit.rows_finished(),
            *unit.memory.held,
            int(unit.latched),
        ]

    def put_map(value: Value) -> None:
        unit.load_map(np.asarray(value, dtype=np.float64))

    def put_grant(value: Value) -> None:
        state["grant"] = np.asarray(value, dtype=np.int32)
        unit.submit(state["grant"])

    def put_start(value: Value) -> None:
        grant_id, crc = _ints(value, 2, f"{prefix}:START:SP")
        state["start"] = _array([grant_id, crc])
        unit.start(grant_id, crc)

    def put_result(value: Value) -> None:
        grant_id, first = _ints(value, 2, f"{prefix}:RESULT:SP")
        state["result"] = _array([grant_id, first])
        table.post(f"{prefix}:RESULT:RB")

    def put_abort(value: Value) -> None:
        if _int(value) == 1:
            unit.abort()

    def result() -> NDArray[np.int32]:
        grant_id, first = state["result"]
        return unit.memory.answer(unit.boot_id, int(grant_id), int(first))

    table.add(f"{prefix}:ID:RB", "string", lambda: unit.identity)
    table.add_status(f"{prefix}:STATUS:RB", status)
    table.add(f"{prefix}:MAP:SP", "double[]", lambda: unit.map.values if unit.map is not None else np.zeros(16), put_map)
    table.add(f"{prefix}:GRANT:SP", "int[]", lambda: state["grant"], put_grant, GRANT_WORDS_MAX)
    table.add(f"{prefix}:ECHO:RB", "int[]", lambda: _array(unit.echo))
    table.add(f"{prefix}:START:SP", "int[]", lambda: state["start"], put_start)
    table.add(f"{prefix}:GATE:SP", "int", lambda: int(unit.controller_gate), lambda v: unit.set_controller_gate(_int(v) == 1))
    table.add(f"{prefix}:ABORT:SP", "int", lambda: 0, put_abort)
    table.add(f"{prefix}:RESET:SP", "int", lambda: 0, lambda v: unit.reset(_int(v)))
    table.add(f"{prefix}:RESULT:SP", "int[]", lambda: state["result"], put_result)
    table.add(f"{prefix}:RESULT:RB", "int[]", result, elements=RESULT_WORDS_MAX)
    table.add(f"{prefix}:LATCH:RB", "int[]", unit.memory.latch)
    names = {"status": "STATUS", "progress": "STATUS", "echo": "ECHO", "latch": "LATCH"}

    def changed(what: str) -> None:
        if what == "power":
            table.power(prefix, unit.powered)
        else:
            table.post(f"{prefix}:{names[what]}:RB")

    unit.watch(changed)


def _second_unit(table: PvTable, unit2: SecondDoseUnitPlant, prefix: str) -> None:
    ceiling = [_array([0, 0, 0, 0])]

    def status() -> list[int]:
        monitor = unit2.monitor
        return [
            unit2.boot_id,
            int(unit2.state),
            *words64(unit2.total),
            int(monitor.hv_good),
            int(monitor.fresh),
            int(unit2.trip),
            unit2.self_test_age_s,
            unit2.tripped_row,
        ]

    def put_ceiling(value: Value) -> None:
        boot_id, high, low, spot = _ints(value, 4, f"{prefix}:CEILING:SP")
        unit2.start_field(boot_id, (high << 32) | (low & 0xFFFFFFFF), spot)
        ceiling[0] = _array([boot_id, high, low, spot])

    def self_test(value: Value) -> None:
        if _int(value) == 1:
            unit2.self_test()

    table.add(f"{prefix}:ID:RB", "string", lambda: unit2.identity)
    table.add(f"{prefix}:CEILING:SP", "int[]", lambda: ceiling[0], put_ceiling)
    table.add_status(f"{prefix}:STATUS:RB", status)
    table.add(f"{prefix}:SELFTEST:SP", "int", lambda: 0, self_test)
    table.add(f"{prefix}:RESET:SP", "int", lambda: 0, lambda v: unit2.acknowledge(_int(v)))

    def changed() -> None:
        table.power(prefix, unit2.powered)
        table.post(f"{prefix}:STATUS:RB")

    unit2.watch(changed)


def _reference(table: PvTable, detector: ReferenceDetector, prefix: str) -> None:
    """Commissioning only: rows of `reference.COLUMNS`, one after the other."""
    table.add(f"{prefix}:ID:RB", "string", lambda: detector.identity)
    table.add(f"{prefix}:INSTALL:SP", "int", lambda: int(detector.installed), lambda v: detector.install(_int(v) == 1))
    table.add(f"{prefix}:SPOTS:RB", "double[]", lambda: detector.readings().reshape(-1), elements=len(COLUMNS) * PIECES_KEPT)
    detector.watch(lambda: table.post(f"{prefix}:SPOTS:RB"))
