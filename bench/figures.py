"""What a measure gives, and what all of them need: a figure with its aim and its samples, plans made once, one treated run.

A figure is the median of several samples taken in one process, one after the other; where two things are compared both are
measured in turn in the same run, so that a slow moment of the machine falls on both. Not responsible for any claim: that is
docs/measures.md.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controller.treatment import TreatResult

NS_PER_S = 1_000_000_000
IONGANTRY = (sys.executable, "-c", "from controller.cli import main; main()")  # the command line in a process of its own


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes:
        name: what was measured.
        samples: one value per repetition, in `unit`.
        aim: what we want, None where there is no aim; `at_least` says on which side.
        note: what the figure was made of.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    aim: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def value(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    def as_data(self) -> dict[str, Any]:
        """As written to bench.json."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "aim": self.aim,
            "at_least": self.at_least,
            "met": self.met,
            "samples": list(self.samples),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Treated:
    """One run of `treat` with what it took.

    Attributes:
        wall_s, cpu_s: of the whole call: reading and checking the plan, the run, outputs where asked for.
        simulated_s: from the first state of the room to the last.
    """

    result: TreatResult
    wall_s: float
    cpu_s: float
    simulated_s: float


@dataclass(slots=True)
class Bench:
    """Where measures work and how often they repeat.

    Attributes:
        directory: for plans and outputs; gone afterwards.
        repeat: samples per figure.
        tell: called with a line of progress.
    """

    directory: Path
    repeat: int
    tell: Callable[[str], None]
    _plans: dict[str, Path] = field(default_factory=dict)
    _outputs: int = 0

    def plan(self, shape: str) -> Path:
        """A plan of a shape of `iongantry plan`, with its own defaults, made once."""
        from controller.beam.library_file import load_library
        from controller.plan.make import PlanSpec, write_plan
        from drivers.hal.facility import load_facility

        if shape not in self._plans:
            facility = load_facility("asan")
            path = self.directory / f"{shape}.dcm"
            self._plans[shape] = write_plan(PlanSpec(shape=shape), facility, path, load_library(facility, None, None))
        return self._plans[shape]

    def treat(self, shape: str, *, outputs: bool = False, seed: int = 0, beams: tuple[int, ...] = ()) -> Treated:
        """Treat in virtual time, every invariant on. Raises RuntimeError unless it is delivered as prescribed."""
        from controller.admission import TreatOptions
        from controller.treatment import run_treatment

        output = None
        if outputs:
            self._outputs += 1
            output = self.directory / f"treated-{self._outputs}"
        options = TreatOptions(plan=self.plan(shape), beams=beams, seed=seed, output=output)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        result = run_treatment(options)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        if result.status != "complete":
            raise RuntimeError(f"{shape}: ended {result.status}: {result.outcome.reason}")
        outcome = result.outcome
        simulated_s = (max(state.t_end_ns for state in outcome.states) - outcome.t_origin_ns) / NS_PER_S
        return Treated(result, wall_s, cpu_s, simulated_s)


@contextmanager
def bench(repeat: int, tell: Callable[[str], None]) -> Iterator[Bench]:
    """A bench with a directory of its own."""
    with TemporaryDirectory(prefix="bench-") as directory:
        yield Bench(Path(directory), repeat, tell)


def cpu_of(action: Callable[[], object]) -> float:
    """CPU time of an action, s."""
    start_s = time.process_time()
    action()
    return time.process_time() - start_s
