"""What must be true of couch, nozzle and patient: where they are, that they stop, what imaging says of them."""

import numpy as np
import pytest

from simulators.plant.brake import BrakeFault
from simulators.plant.couch import Couch
from simulators.plant.drive import DriveState
from simulators.plant.kernel import Kernel
from simulators.plant.motion_truth import MotionTruth
from simulators.plant.nozzle import FAULT, IN_POSITION, MOVING, Nozzle
from simulators.plant.patient import Patient

NS = 1_000_000_000
MS = 1_000_000
TRUTH = MotionTruth.load("asan").rooms["G1"]


class Bench:
    """A couch that is polled every 50 ms while `advance` runs."""

    def __init__(self, seed=1):
        self.kernel = Kernel(seed)
        self.couch = Couch(self.kernel, "G1", TRUTH.couch)
        self.couch.sto.set(True)
        self.events = []
        self.kernel.observe(self.events.append)
        self.polling = True

    @property
    def now(self):
        return self.kernel.now_ns

    def advance(self, seconds, watch=None):
        end = self.now + round(seconds * NS)
        while self.now < end:
            self.kernel.advance_to(min(self.now + 50 * MS, end))
            if self.polling:
                self.couch.polled()
            if watch is not None:
                watch()

    def control(self, *words):
        for word in words:
            self.couch.drive.write_controlword(word)

    def go(self, *targets):
        self.control(0x06, 0x07, 0x0F)
        self.advance(0.3)
        self.couch.targets[:] = targets
        self.control(0x1F, 0x0F)

    def arrive(self):
        while not self.couch.drive.target_reached:
            self.advance(0.05)
        self.control(0x06)
        self.advance(1.0)


def test_all_axes_arrive_together_at_their_targets():
    bench = Bench()
    target = np.array([120.0, -400.0, 60.0, 35.0, 1.5, -2.0])
    track = []
    bench.go(*target)
    bench.advance(4.0, lambda: track.append(bench.couch.encoder(bench.now)))
    bench.arrive()
    assert bench.couch.encoder(bench.now) == pytest.approx(target)
    assert np.abs(bench.couch.position(bench.now) - target)[:3].max() < 0.5
    assert np.abs(bench.couch.position(bench.now) - target)[3:].max() < 0.2
    progress = np.array(track) / target
    assert progress == pytest.approx(progress[:, :1] * np.ones(6), abs=1e-9)
    assert bench.couch.brake_applied and not bench.couch.drive_enabled
    assert bench.couch.standstill.value and bench.couch.torque_off.value


def test_no_axis_exceeds_its_speed():
    bench = Bench()
    speeds = []
    bench.go(200.0, 900.0, -300.0, -90.0, 3.0, -3.0)
    bench.advance(25.0, lambda: speeds.append(np.abs(bench.couch.speed(bench.now))))
    assert np.all(np.max(speeds, axis=0) <= np.array(TRUTH.couch.speed) * (1 + 1e-9))
    assert np.max(np.array(speeds) / np.array(TRUTH.couch.speed)) == pytest.approx(1.0, abs=1e-6)


def test_the_true_place_never_jumps():
    bench = Bench()
    where = []
    bench.go(100.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    bench.advance(6.0, lambda: where.append(bench.couch.position(bench.now)[0]))
    bench.go(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    bench.advance(6.0, lambda: where.append(bench.couch.position(bench.now)[0]))
    assert np.abs(np.diff(where)).max() < 50.0 * 0.05 + 0.05


@pytest.mark.parametrize("cause", ["quick stop", "sto", "polling"])
def test_a_couch_that_is_stopped_or_left_alone_comes_to_rest_braked(cause):
    bench = Bench()
    bench.go(0.0, 900.0, 0.0, 0.0, 0.0, 0.0)
    bench.advance(5.0)
    before = bench.couch.position(bench.now)[1]
    if cause == "quick stop":
        bench.control(0x02)
    elif cause == "sto":
        bench.couch.sto.set(False)
    else:
        bench.polling = False
    bench.advance(2.0)
    assert bench.couch.position(bench.now)[1] - before < 50.0
    assert np.all(bench.couch.speed(bench.now) == 0.0)
    assert bench.couch.brake_applied and not bench.couch.drive_enabled and bench.couch.standstill.value
    faulted = cause == "polling"
    assert bench.couch.drive.state is (DriveState.FAULT if faulted else DriveState.SWITCH_ON_DISABLED)
    assert bench.couch.drive.error_code == (0x8700 if faulted else 0)


def test_a_target_outside_the_travel_is_a_fault_and_no_motion():
    bench = Bench()
    bench.go(251.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    bench.advance(1.0)
    assert bench.couch.drive.error_code == 0x6320
    assert bench.couch.encoder(bench.now)[0] == 0.0
    assert bench.couch.brake_applied


def test_couch_brakes_that_do_not_open_or_close_are_faults():
    stuck = Bench()
    stuck.couch.brake.set_fault(BrakeFault.FAILS_TO_RELEASE)
    stuck.control(0x06, 0x07, 0x0F)
    stuck.advance(1.0)
    assert stuck.couch.drive.state is DriveState.FAULT and not stuck.couch.drive_enabled
    loose = Bench()
    loose.go(10.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    loose.advance(3.0)
    loose.couch.brake.set_fault(BrakeFault.FAILS_TO_SET)
    loose.control(0x06)
    loose.advance(1.0)
    assert loose.couch.drive.error_code == 0x5441
    assert loose.couch.drive_enabled  # its drives go on holding it


@pytest.mark.parametrize("indexed", [True, False])
def test_imaging_leads_a_patient_to_the_planned_place(indexed):
    bench = Bench(seed=7)
    patient = Patient(bench.kernel, "G1", TRUTH.patient, bench.couch)
    planned = np.array([10.0, -200.0, 30.0, 5.0, 0.0, 0.0])
    patient.lie_down(planned if indexed else None)
    bench.go(*planned)
    bench.arrive()
    before = patient.residual(bench.now)
    assert np.abs(before[:3]).max() > 1.0
    correction = np.array(list(patient.registered_correction().values()))
    bench.go(*(bench.couch.encoder(bench.now) + correction))
    bench.arrive()
    after = patient.residual(bench.now)
    assert np.abs(after[:3]).max() < 1.0
    assert np.abs(after[3:]).max() < 0.4
    assert np.abs(list(patient.registered_correction().values()))[:3].max() < 2.0
    assert patient.registered_correction() != patient.registered_correction()


def test_a_couch_that_stands_elsewhere_than_indexed_shows_in_the_images():
    bench = Bench(seed=7)
    patient = Patient(bench.kernel, "G1", TRUTH.patient, bench.couch)
    patient.lie_down((0.0,) * 6)
    own = patient.registered_correction()
    bench.go(15.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    bench.arrive()
    assert patient.registered_correction()["lateral_mm"] - own["lateral_mm"] == pytest.approx(-15.0, abs=2.0)


def test_setup_errors_are_large_enough_to_matter_and_small_enough_to_correct():
    kernel = Kernel(5)
    patient = Patient(kernel, "G1", TRUTH.patient, Couch(kernel, "G1", TRUTH.couch))
    offsets = []
    for _ in range(200):
        patient.lie_down()
        offsets.append(patient.setup_offset)
    spread = np.std(offsets, axis=0)
    assert spread[:3] == pytest.approx([3.0] * 3, rel=0.2)
    assert np.abs(offsets)[:, :3].max() <= 20.0
    assert np.abs(offsets)[:, 3:].max() <= 3.0


def test_range_shifters_take_their_travel_and_count_only_when_they_have_arrived():
    kernel = Kernel(1)
    nozzle = Nozzle(kernel, "G1", TRUTH.nozzle)
    nozzle.set_mask(0b10)
    assert (nozzle.status, nozzle.mask, nozzle.wet_mm) == (MOVING, 0, 0.0)
    assert not nozzle.settled.value
    kernel.advance_to(1_499 * MS)
    assert nozzle.mask == 0
    kernel.advance_to(1_501 * MS)
    assert (nozzle.status, nozzle.mask, nozzle.wet_mm, nozzle.inserted) == (IN_POSITION, 0b10, 60.0, ("RS60",))
    assert nozzle.settled.value
    with pytest.raises(ValueError, match="mask"):
        nozzle.set_mask(0b100)


def test_a_stuck_range_shifter_shows_unless_its_switch_lies():
    kernel = Kernel(1)
    nozzle = Nozzle(kernel, "G1", TRUTH.nozzle)
    nozzle.shifters[0].stuck = True
    nozzle.set_mask(0b01)
    kernel.advance_to(5 * NS)
    assert nozzle.status == 0 and nozzle.mask == 0
    nozzle.shifters[0].switch_lies = True
    assert nozzle.status == IN_POSITION and nozzle.mask == 1 and nozzle.wet_mm == 0.0


def test_a_snout_that_nobody_watches_stops():
    kernel = Kernel(1)
    nozzle = Nozzle(kernel, "G1", TRUTH.nozzle)
    nozzle.set_snout(100.0)
    for _ in range(40):
        kernel.advance_to(kernel.now_ns + 50 * MS)
        nozzle.polled()
    assert nozzle.status == MOVING
    kernel.advance_to(60 * NS)
    assert nozzle.status & FAULT
    assert 400.0 < nozzle.snout_encoder_mm(kernel.now_ns) < 500.0
    nozzle.set_snout(100.0)
    while nozzle.moving:
        kernel.advance_to(kernel.now_ns + 50 * MS)
        nozzle.polled()
    assert nozzle.snout_encoder_mm(kernel.now_ns) == 100.0
    assert nozzle.snout_mm(kernel.now_ns) == pytest.approx(100.0, abs=0.5)
    with pytest.raises(ValueError, match="travel"):
        nozzle.set_snout(501.0)
