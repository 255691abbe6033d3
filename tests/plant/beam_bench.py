"""A whole simulated facility with the beam of one room ready, for tests of the plant's beam side.

The map is what perfect commissioning would give: taken from the plant itself, so that what is left is the plant's own noise.
"""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulators.physics.rigidity import nucleus
from simulators.plant.delivery_unit import DeliveryUnitPlant
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel, TruthEvent
from simulators.plant.truth import PlantTruth, load_truth

S = 1_000_000_000
MS = 1_000_000
US = 1_000


class Bench:
    """A facility, one room of it chosen and permitted, and everything its plant said."""

    def __init__(self, name: str = "asan", room: str = "G1", seed: int = 1, truth: PlantTruth | None = None) -> None:
        self.kernel = Kernel(seed=seed)
        self.plant = FacilityPlant(self.kernel, truth if truth is not None else load_truth(name))
        self.truth = self.plant.truth.rooms[room]
        self.room = self.plant.rooms[room]
        self.ring = self.plant.synchrotron
        self.magnets = self.room.magnets
        self.unit: DeliveryUnitPlant = self.room.unit
        self.unit2 = self.room.unit2
        self.chain = self.room.chain
        self.events: list[TruthEvent] = []
        self.kernel.observe(self.events.append)
        self.last_id = 0

    # --- time -----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        return self.kernel.now_ns

    def run(self, seconds: float) -> None:
        """Let plant time pass."""
        self.kernel.advance_to(self.kernel.now_ns + round(seconds * 1e9))

    def run_until_ended(self, limit_s: float = 600.0) -> None:
        """Let time pass until no grant is open."""
        end = self.now + round(limit_s * 1e9)
        while self.unit.open_grant is not None and self.now < end:
            due = self.kernel.next_ns
            self.kernel.advance_to(min(end, due if due is not None else end))

    def kind(self, kind: str) -> list[TruthEvent]:
        """Truth events of a kind so far."""
        return [event for event in self.events if event.kind == kind]

    # --- beam -----------------------------------------------------------------------------------------------------

    def permit(self) -> None:
        """Close every element of the chain and both relays."""
        for line in self.chain.elements.values():
            line.set(True)
        self.chain.permit_b.set(True)
        self.chain.permit_r.set(True)
        self.run(1.0)

    def ready(self, kev_u: int = 300_000, route: str | None = None) -> Bench:
        """Permit, route, flattop, magnets, map and ceilings for an energy."""
        self.permit()
        self.plant.switchyard.select(route or self.truth.routes[0])
        self.ring.start_cycle(kev_u)
        self.tune(kev_u)
        self.run(60.0)
        self.ring.start_cycle(kev_u)
        self.run(5.0)
        self.load_true_map(kev_u)
        self.unit2.start_field(self.unit2.boot_id, 10**9, 10**8)
        return self

    def currents(self, kev_u: int) -> NDArray[np.float64]:
        """Nameplate currents for the selected ion at an energy, A, shape (2n,)."""
        t = self.truth.magnets
        nameplate = np.array(t.dipole_nameplate_a + t.quadrupole_nameplate_a)
        return nameplate * nucleus(self.ring.true_species).rigidity_tm(kev_u / 1000.0) / t.design_rigidity_tm

    def tune(self, kev_u: int) -> None:
        self.magnets.set_currents(kev_u, self.currents(kev_u))

    def step(self, kev_u: int, settle_s: float = 3.0) -> None:
        """Step ring and magnets down and load the map."""
        self.ring.step_to(kev_u)
        self.tune(kev_u)
        self.run(settle_s)
        self.load_true_map(kev_u)

    def true_map(self, kev_u: int) -> NDArray[np.float64]:
        """The map perfect commissioning would give now: scanner by inverting the plant's own response, sag included."""
        token, energy = self.ring.true_species, kev_u / 1000.0
        rigidity = nucleus(token).rigidity_tm(energy)
        through = self.magnets.beam_at_isocentre(token, energy)
        sag = self.room.scanner.sag_mm(self.room.gantry.angle_deg(self.now))
        healthy = self.room.scanner.__class__(self.truth.scanner)

        def at(ix: float, iy: float) -> NDArray[np.float64]:
            x, y = healthy.displacement_mm(np.array([ix]), np.array([iy]), rigidity)
            return np.array([x[0] + through.x_mm + sag[0], y[0] + through.y_mm + sag[1]])

        zero = at(0.0, 0.0)
        response = np.column_stack([(at(100.0, 0.0) - zero) / 100.0, (at(0.0, 100.0) - zero) / 100.0])
        inverse = np.linalg.inv(response)
        offset = -inverse @ zero
        c, t = self.truth.chambers, self.truth.scanner
        stretch_x = t.sad_x_mm / (t.sad_x_mm - c.monitor_distance_mm)
        stretch_y = t.sad_y_mm / (t.sad_y_mm - c.monitor_distance_mm)
        return np.array(
            [
                kev_u,
                offset[0],
                inverse[0, 0],
                inverse[0, 1],
                offset[1],
                inverse[1, 0],
                inverse[1, 1],
                c.strip_offset_x_mm * stretch_x + sag[0],
                stretch_x / (1.0 + c.strip_gain_x_rel),
                c.strip_offset_y_mm * stretch_y + sag[1],
                stretch_y / (1.0 + c.strip_gain_y_rel),
                self.unit.monitor.counts_per_ion(token, energy),
                self.unit2.monitor.counts_per_ion(token, energy),
                1,
                1,
                0,
            ]
        )

    def load_true_map(self, kev_u: int) -> None:
        self.unit.load_map(self.true_map(kev_u))

    # --- grants ---------------------------------------------------------------------------------------------------

    def quantum(self, intensity: int) -> int:
        """One reaction quantum in counts: intensity times 200 us, rounded up."""
        assert self.unit.map is not None
        return int(np.ceil(intensity * 200e-6 * self.unit.map.counts1_per_ion))

    def words(self, counts: ArrayLike = 1000, n: int = 100, **header: Any) -> NDArray[np.int32]:
        """A grant of a raster of n spots, 3 mm apart, as words with a good CRC; header entries may be overridden."""
        assert self.unit.map is not None
        columns = min(n, 20)
        row, column = np.divmod(np.arange(n), columns)
        column = np.where(row % 2, columns - 1 - column, column)
        x_um = header.pop("x_um", (column - columns // 2) * 3000)
        y_um = header.pop("y_um", (row - row.max() // 2) * 3000)
        max1 = np.broadcast_to(np.asarray(header.pop("counts", counts)), n)
        max2 = np.round(max1 * self.unit.map.counts2_per_ion / self.unit.map.counts1_per_ion)
        intensity = header.pop("intensity", 5_000_000)
        head = {
            "protocol": 1,
            "boot_id": self.unit.boot_id,
            "grant_id": self.unit.memory.last_grant_id + 1,
            "plan_hash": 12345,
            "fraction": 1,
            "beam": 1,
            "layer": 0,
            "painting": 0,
            "species": self.ring.measured_species,
            "kev_u": self.unit.map.kev_u,
            "mode": 0,
            "intensity": intensity,
            "quantum": self.quantum(intensity),
            "n": n,
        }
        assert set(header) <= set(head), header
        head.update(header)
        body = np.column_stack([np.arange(n), x_um, y_um, max1, header.get("max2", max2)]).astype(np.int32)
        return with_crc(np.concatenate([np.array(list(head.values()), dtype=np.int32), body.reshape(-1)]))

    def submit(self, words: NDArray[np.int32]) -> int:
        """Send a grant that must be accepted; returns its id."""
        self.unit.submit(words)
        assert self.unit.echo == (int(words[2]), int(words[-1]), 1, 0), self.unit.echo
        return int(words[2])

    def begin(self, words: NDArray[np.int32]) -> int:
        """Send and start a grant; returns its id."""
        grant_id = self.submit(words)
        self.unit.start(grant_id, int(words[-1]))
        return grant_id

    def deliver(self, words: NDArray[np.int32]) -> NDArray[np.void]:
        """Send, start, wait for the end; returns the pieces."""
        grant_id = self.begin(words)
        self.run_until_ended()
        return self.unit.memory.pieces(grant_id)


def with_crc(words: NDArray[np.int32]) -> NDArray[np.int32]:
    """Words with their CRC-32C behind them."""
    value = google_crc32c.value(words.astype("<i4").tobytes())
    return np.append(words, np.int32(value - (1 << 32) if value >= 1 << 31 else value))
