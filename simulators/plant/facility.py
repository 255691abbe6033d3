"""The whole plant of one facility: accelerator, switchyard, and the rooms with their beam lines, put together.

Each room's moving parts and safety chain come from `room.RoomPlant`; this module adds the beam side and wires the
hard-wired lines between them (dose units and quench detection to the chain, route and species to the room). Nothing
here decides anything.
"""

from __future__ import annotations

from simulators.plant.chambers import Monitor
from simulators.plant.delivery_unit import DeliveryUnitPlant
from simulators.plant.kernel import Kernel
from simulators.plant.machine_log import MachineLog
from simulators.plant.magnets import BeamlineMagnets
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.reference import ReferenceDetector
from simulators.plant.room import RoomPlant
from simulators.plant.scanner import Scanner
from simulators.plant.second_dose_unit import SecondDoseUnitPlant
from simulators.plant.switchyard import Switchyard
from simulators.plant.synchrotron import Synchrotron
from simulators.plant.truth import PlantTruth, RoomTruth, load_truth


class FacilityPlant:
    """One simulated facility.

    Args:
        kernel: plant time, randomness, truth events.
        truth: beam part of the plant's truth.
        motion: its moving part; the shipped tables of the same name when not given.

    Attributes:
        synchrotron, switchyard, rooms: the parts; rooms by name.
        references: the reference detector of each room, for commissioning (`reference`).
        log: what the machine did (`machine_log`).
    """

    def __init__(self, kernel: Kernel, truth: PlantTruth, motion: MotionTruth | None = None) -> None:
        self.kernel = kernel
        self.truth = truth
        self.log = MachineLog()
        self.synchrotron = Synchrotron(kernel, truth.accelerator, self.log)
        switch_s = {route: room.route_switch_s for room in truth.rooms.values() for route in room.routes}
        self.switchyard = Switchyard(kernel, switch_s, self.log)
        moving = motion if motion is not None else MotionTruth.load(truth.name)
        if set(moving.rooms) != set(truth.rooms):
            raise ValueError(
                f"rooms of the beam part {sorted(truth.rooms)} and of the motion part {sorted(moving.rooms)} differ"
            )
        self.rooms: dict[str, RoomPlant] = {}
        self.references: dict[str, ReferenceDetector] = {}
        for name, room_truth in truth.rooms.items():
            room = RoomPlant(kernel, moving.rooms[name], interlocked=True)
            self._fit_beam(room, room_truth)
            self.rooms[name] = room
            self.references[name] = ReferenceDetector(kernel, name)

    @classmethod
    def shipped(cls, kernel: Kernel, name: str) -> FacilityPlant:
        """The shipped plant of that name."""
        return cls(kernel, load_truth(name))

    def begin_life(self, number: int) -> None:
        """Before anything runs: dose units get boot ids of this life, so that nobody takes them for those of an earlier one.

        A simulated unit dies with its process, and its latch and totals with it. `number`: below 2**30, another one each time.
        """
        for index, room in enumerate(self.rooms.values()):
            room.unit.begin_life(number + 1000 * index)
            room.unit2.boot_id = number + 1000 * index + 500

    def _fit_beam(self, room: RoomPlant, truth: RoomTruth) -> None:
        kernel, chain, chambers = self.kernel, room.chain, truth.chambers
        magnets = BeamlineMagnets(kernel, truth, self.log)
        scanner = Scanner(truth.scanner)
        monitor2 = Monitor(
            chambers.gap2_mm, chambers.charge_per_count_fc, chambers.charge_per_count_proton_fc, chambers.gain2_rel
        )
        unit2 = SecondDoseUnitPlant(kernel, truth.name, truth.unit2, monitor2, chain.dose2_ok)
        room.route = lambda: self.switchyard.route
        room.measured_species = lambda: self.synchrotron.measured_species
        room.magnets, room.scanner, room.unit2 = magnets, scanner, unit2
        room.unit = DeliveryUnitPlant(
            kernel,
            truth,
            chain,
            self.synchrotron,
            self.switchyard,
            magnets,
            scanner,
            unit2,
            room.gantry.angle_deg,
            self.log,
        )
        services = room.services
        services.trip_k, services.hottest_k = truth.magnets.trip_k, lambda: magnets.hottest_k
        services.beam = lambda: room.beam_present
        unit, off = room.unit, chain.beam_off
        off.accelerator = self.synchrotron
        off.beam, off.counts, off.lose = (lambda: unit.delivering), (lambda: unit.counts()[0]), unit.lose_beam
        off.route_open = lambda: room.route_open
        unit.off = off.off
        chain.quench_ok.set(True)
        magnets.watch(lambda: chain.quench_ok.set(not magnets.quenched))
