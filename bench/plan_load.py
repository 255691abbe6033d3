"""What reading a plan costs: with all checks, over pydicom reading all spot arrays of the same file.

Ours: `read_plan` (structure, sums, weights, integrity of every number) and `check` (deliverability in a room with its beam
library; the library is loaded already). Theirs: `pydicom.dcmread` and every ScanSpotPositionMap and ScanSpotMetersetWeights as
an array, and no check. CPU time, both in turn.
"""

from __future__ import annotations

from bench.figures import Bench, Figure, cpu_of

AIM = 0.6
SHAPE = "benchmark"
PER_SAMPLE = 5  # readings of each kind per sample


def measure(bench: Bench) -> list[Figure]:
    """Ratio of CPU times."""
    import numpy as np
    import pydicom

    from controller.beam.library_file import load_library
    from controller.plan.deliverability import check
    from controller.plan.reading import read_plan
    from drivers.hal.facility import load_facility

    path = bench.plan(SHAPE)
    facility = load_facility("asan")
    room, library = facility.room("G1"), load_library(facility, None, None)

    def read_and_check() -> None:
        if refusals := check(read_plan(path), facility, room, library, (), None):
            raise RuntimeError(f"the plan is refused: {refusals[0]}")

    def pydicom_reads() -> int:
        spots = 0
        for beam in pydicom.dcmread(path).IonBeamSequence:
            for point in beam.IonControlPointSequence:
                places = np.asarray(point.ScanSpotPositionMap, dtype=np.float32)
                weights = np.asarray(point.ScanSpotMetersetWeights, dtype=np.float32)
                spots += min(places.size // 2, weights.size)
        return spots

    read_and_check()
    spots = pydicom_reads() // 2
    all_checks, integrity, theirs = [], [], []
    for _ in range(bench.repeat):
        ours_s = read_s = theirs_s = 0.0
        for _ in range(PER_SAMPLE):
            ours_s += cpu_of(read_and_check)
            read_s += cpu_of(lambda: read_plan(path))
            theirs_s += cpu_of(pydicom_reads)
        all_checks.append(ours_s / theirs_s)
        integrity.append(read_s / theirs_s)
        theirs.append(theirs_s / PER_SAMPLE * 1e3)
    note = f"{spots} spots, {path.stat().st_size / 1e6:.2f} MB; pydicom {sorted(theirs)[len(theirs) // 2]:.1f} ms"
    return [
        Figure("plan load, all checks", "x pydicom", tuple(all_checks), AIM, False, note),
        Figure("plan load, integrity alone", "x pydicom", tuple(integrity), None, False, "without deliverability"),
    ]
