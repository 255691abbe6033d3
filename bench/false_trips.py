"""How often the interlock system stops a treatment in which nothing is wrong: clean fields of every kind, in virtual time.

`python -m bench.false_trips --fields 1000` draws fields (facility, room, ion, shape, size, depth, dose, angle, paintings, seed
of the plant) and treats each with every invariant on and nothing planted. Any trip but POWER_UP counts, and any field that had
beam and did not end as planned. Draws that give no deliverable plan, or that the controller itself refuses on the way (a couch
too near to the nozzle), are no fields and counted apart; trips in them count. The same `--seed` draws the same fields. Stopped
(Ctrl-C, SIGTERM), it ends the field it is at, and tells what came of all and with which `--from` to go on. Not responsible for
whether a trip was right (that is asked of faults, elsewhere): here every trip is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.figures import NS_PER_S, Bench, Figure

if TYPE_CHECKING:
    import numpy as np

    from controller.plan.make import PlanSpec
    from drivers.hal.events import Event

FACILITIES = ("asan", "qst", "research")
SHAPES = ("sphere", "box", "pancreas", "liver", "lung", "prostate")
BY_DESIGN = "POWER_UP"  # the system boots tripped, and a person turns the key


@dataclass(frozen=True, slots=True)
class Drawn:
    """One field to treat."""

    facility: str
    spec: PlanSpec
    seed: int

    def __str__(self) -> str:
        s = self.spec
        size = f"{s.shape} {s.diameter_mm:g} mm at {s.depth_mm:g} mm, {s.dose_gy:g} Gy, {s.paintings} painting(s)"
        return f"{self.facility} {s.room} {s.species} {size}, {s.angles_deg[0]:g} deg, plant seed {self.seed}"


@dataclass(slots=True)
class Tally:
    """What came of the fields.

    Attributes:
        trips: by row, trips while nothing was wrong.
        power_ups: trips of the row that trips by design: one for each start of an interlock system, or nothing was watched.
        incomplete: fields that did not end as planned, in words.
        kinds: how many fields had each facility and room, ion, shape.
        undeliverable: draws that gave no deliverable plan.
        declined: draws that the controller ended before beam, by its code.
        simulated_s, cpu_s: of the treatments.
        draws: how many were looked at to the end, whatever came of them; those passed over before the first count too.
    """

    fields: int = 0
    draws: int = 0
    trips: Counter[str] = field(default_factory=Counter)
    power_ups: int = 0
    incomplete: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    undeliverable: int = 0
    declined: Counter[str] = field(default_factory=Counter)
    simulated_s: float = 0.0
    cpu_s: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.fields} clean fields, {self.simulated_s / 3600:.1f} h simulated, {self.cpu_s:.0f} s CPU: "
            f"{self.trips.total()} false trips, {len(self.incomplete)} fields incomplete",
            f"draws without a deliverable plan: {self.undeliverable}; declined before beam: {dict(self.declined)}; "
            f"go on with --from {self.draws}",
            f"starts of an interlock system seen: {self.power_ups}",
            ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items())),
            *(f"false trip of {row}: {count}" for row, count in self.trips.most_common()),
            *(f"incomplete: {text}" for text in self.incomplete),
        ]
        return "\n".join(lines)


def draw(rng: np.random.Generator) -> Drawn:
    """One field; any combination that the facilities offer, whether or not a plan can be made of it."""
    from controller.plan.make import PlanSpec
    from drivers.hal.facility import load_facility

    facility = load_facility(FACILITIES[rng.integers(len(FACILITIES))])
    room = list(facility.rooms.values())[rng.integers(len(facility.rooms))]
    offers = facility.accelerator.species
    if room.gantry is None:
        angle_deg = float(room.ports_deg[rng.integers(len(room.ports_deg))])
    else:
        angle_deg = float(rng.integers(int(room.gantry.angle_deg.minimum), int(room.gantry.angle_deg.maximum) + 1))
    spec = PlanSpec(
        shape=SHAPES[rng.integers(len(SHAPES))],
        species=offers[rng.integers(len(offers))].symbol,
        diameter_mm=float(rng.integers(10, 31)),
        depth_mm=float(rng.integers(50, 181)),
        dose_gy=float(rng.integers(2, 9)) / 2.0,
        angles_deg=(angle_deg,),
        room=room.name,
        paintings=int(rng.choice([1, 1, 1, 2, 3])),
        seed=int(rng.integers(1 << 30)),
    )
    return Drawn(facility.name, spec, int(rng.integers(1 << 30)))


def drawn(seed: int) -> Iterator[Drawn]:
    """Fields without end; equal seeds give equal fields."""
    import numpy as np

    rng = np.random.default_rng(seed)
    while True:
        yield draw(rng)


def treat(one: Drawn, directory: Path, tally: Tally) -> bool:
    """Treat one field and count. False when it came to no beam."""
    from controller.admission import TreatOptions
    from controller.beam.library_file import load_library
    from controller.intake import Refused
    from controller.plan.errors import PlanError
    from controller.plan.make import write_plan
    from controller.treatment import run_treatment
    from drivers.hal.facility import load_facility

    facility = load_facility(one.facility)
    found: Counter[str] = Counter()
    states: set[str] = set()

    def listen(event: Event) -> None:
        if event.kind == "room.state":
            states.add(str(event.data["state"]).partition(".")[0])
        if event.kind == "interlock.trip":
            found[str(event.data["id"])] += 1

    try:
        plan = write_plan(one.spec, facility, directory / "field.dcm", load_library(facility))
        start_s = time.process_time()
        result = run_treatment(TreatOptions(plan=plan, facility=one.facility, room=one.spec.room, seed=one.seed), listen)
    except (PlanError, Refused):
        tally.undeliverable += 1
        return False
    tally.cpu_s += time.process_time() - start_s
    end_ns = max((state.t_end_ns for state in result.outcome.states), default=result.outcome.t_origin_ns)
    tally.simulated_s += (end_ns - result.outcome.t_origin_ns) / NS_PER_S
    tally.power_ups += found.pop(BY_DESIGN, 0)
    tally.trips += found
    if "irradiating" not in states:
        tally.declined[result.outcome.reason.partition(":")[0]] += 1
        return False
    tally.fields += 1
    tally.kinds.update((f"{one.facility} {one.spec.room}", one.spec.species, one.spec.shape))
    if result.status != "complete":
        tally.incomplete.append(f"{one}: {result.status}: {result.outcome.reason}")
    return True


def count(
    fields: int,
    seed: int,
    tell: Callable[[str], None] = lambda _line: None,
    stop: Callable[[], bool] = lambda: False,
    first: int = 0,
) -> Tally:
    """Treat so many fields, or as many as are done when `stop` says so: it is asked between two.

    `first` is how many draws of this seed to pass over: a tally's `draws` tells where to go on.
    """
    tally = Tally(draws=first)
    with TemporaryDirectory(prefix="bench-") as directory:
        for one in itertools.islice(drawn(seed), first, None):
            if tally.fields >= fields or stop():
                break
            before = tally.trips.total() + len(tally.incomplete)
            treated = treat(one, Path(directory), tally)
            tally.draws += 1
            if tally.trips.total() + len(tally.incomplete) > before:
                tell(f"after field {tally.fields}: {one}: {dict(tally.trips)} {tally.incomplete[-1:]}")
            elif treated and tally.fields % 50 == 0:
                tell(f"{tally.fields} fields, {tally.trips.total()} false trips, {tally.cpu_s:.0f} s CPU")
    return tally


def measure(bench: Bench) -> list[Figure]:
    """False trips in five fields for each repetition asked for."""
    tally = count(5 * bench.repeat, seed=0)
    note = f"{tally.fields} fields, {tally.simulated_s:.0f} s simulated, {len(tally.incomplete)} incomplete"
    return [Figure("false trips", "trips", (float(tally.trips.total()),), 0.0, False, note)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when anything tripped, or a field did not end as planned."""
    parser = argparse.ArgumentParser(prog="bench.false_trips", description="Counts false trips in clean fields.")
    parser.add_argument("--fields", type=int, default=40, help="how many to treat")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--from", dest="first", type=int, default=0, help="how many draws of the seed to pass over")
    parser.add_argument("--cpu-s", type=float, default=None, help="stop after so much CPU time")
    given = parser.parse_args(arguments)
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())

    def stop() -> bool:
        return asked.is_set() or (given.cpu_s is not None and time.process_time() >= given.cpu_s)

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    tally = count(given.fields, given.seed, tell, stop, given.first)
    sys.stdout.write(f"{tally}\n")
    return int(bool(tally.trips or tally.incomplete))


if __name__ == "__main__":
    raise SystemExit(main())
