"""What the tests of resuming share: treat, watch the plant's truth, and add it up over sessions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import controller.assembly
from controller.admission import TreatOptions
from controller.intake import Intake, take_in
from controller.plan.schedule import planned_counts
from controller.treatment import TreatResult, run_treatment
from drivers.hal.facility import load_facility


@dataclass
class PlantTruth:
    """Ions that truly arrived, as counts of a sound monitor 1, by (beam, layer): one array per spot, all sessions added."""

    intake: Intake
    given: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    worlds: list[Any] = field(default_factory=list)

    def take(self, event: Any) -> None:
        if event.kind != "delivery.segment":
            return
        d = event.data
        key = d["beam"], d["layer"]
        spots = self.intake.plan.beam(key[0]).layers[key[1]].spots
        counts = self.given.setdefault(key, np.zeros(spots))
        np.add.at(counts, d["spot_index"], d["ions"] * d["counts1_per_ion"])

    def with_beam_on(self) -> PlantTruth:
        """A copy as of this instant, with what the stretch in delivery has given so far."""
        copy = PlantTruth(self.intake, {key: counts.copy() for key, counts in self.given.items()})
        plant = self.worlds[-1].plant
        run = plant.rooms[self.intake.room.name].unit._run
        if run is not None:
            done = run.stretch.cut(plant.kernel.now_ns)
            beam, layer = run.grant.beam, run.grant.layer
            counts = copy.given.setdefault((beam, layer), np.zeros(self.intake.plan.beam(beam).layers[layer].spots))
            np.add.at(counts, done.spot_index, done.ions * run.expected.counts1_per_ion)
        return copy

    def flat(self, beam_number: int) -> np.ndarray:
        beam = self.intake.plan.beam(beam_number)
        return np.concatenate([self.given.get((beam_number, la.index), np.zeros(la.spots)) for la in beam.layers])

    def planned(self, beam_number: int) -> np.ndarray:
        i = self.intake
        counts = planned_counts(i.plan.beam(beam_number), i.facility, i.room, i.library)
        return np.concatenate([c for c, _ in counts]).astype(float)

    def error_of_beam(self, beam_number: int) -> float:
        return float(self.flat(beam_number).sum() / self.planned(beam_number).sum() - 1.0)

    def p95_of_spots(self, beam_number: int) -> float:
        planned = self.planned(beam_number)
        return float(np.quantile(np.abs(self.flat(beam_number) / planned - 1.0), 0.95))

    def assert_as_planned(self, *beams: int) -> None:
        for number in beams:
            assert abs(self.error_of_beam(number)) < 0.005, f"beam {number}"
            assert self.p95_of_spots(number) < 0.03, f"beam {number}"

    def assert_never_over(self, *beams: int) -> None:
        """No spot received more than planned, but for what a monitor may lie and a quantum of each session."""
        for number in beams:
            planned = self.planned(number)
            over = self.flat(number) - planned * 1.05 - 20.0
            assert over.max() <= 0.0, f"beam {number} spot {int(over.argmax())}: {over.max():.0f} counts above its limit"


@contextmanager
def watching(truth: PlantTruth) -> Iterator[PlantTruth]:
    """Every world that is made meanwhile tells its truth."""
    original = controller.assembly.SimulatedWorld

    class Watched(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            truth.worlds.append(self)
            self.plant.kernel.observe(truth.take)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller.assembly, "SimulatedWorld", Watched)
        yield truth


@contextmanager
def fractions() -> Iterator[list[Any]]:
    """Every fraction that is treated meanwhile, for a test that presses stop."""
    import controller.fraction

    original, made = controller.fraction.Fraction, []

    class Seen(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller.fraction, "Fraction", Seen)
        yield made


def at_pass(number: int, delay_s: float, action: Callable[[], Any]) -> Callable[[Any], None]:
    """A listener that acts some time after the n-th pass was started, counting from 1."""
    passes = 0

    def listen(event: Any) -> None:
        nonlocal passes
        if event.kind == "pass.started":
            passes += 1
            if passes == number:
                asyncio.get_running_loop().call_later(delay_s, action)

    return listen


def truth_of(plan: Path, room: str = "G1") -> PlantTruth:
    return PlantTruth(take_in(plan, "asan", room, (), {}))


def treat(plan: Path, output: Path, *faults: str, listener: Any = None, **more: Any) -> TreatResult:
    return run_treatment(TreatOptions(plan=plan, output=output, faults=faults, **more), listener)


def iongantry(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from controller.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **more)


def make_plan(path: Path, *, angles: Sequence[float] = (2.0,), paintings: int | None = None, diameter_mm: float = 20.0) -> Path:
    from controller.plan.make import PlanSpec, write_plan

    spec = PlanSpec(
        shape="sphere",
        species="C",
        diameter_mm=diameter_mm,
        depth_mm=120.0,
        dose_gy=1.0 * len(angles),
        angles_deg=tuple(angles),
        room="G1",
        paintings=paintings,
    )
    return write_plan(spec, load_facility("asan"), path)
