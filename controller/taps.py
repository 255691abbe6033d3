"""What a run's wires go through on request: wire faults (`--fault wire-...`) and a recording (`--record FILE`).

Not responsible for either (`drivers.wire.tap`), nor for replaying (`replay`).
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.intake import Refused
from drivers.wire.tap import NoTap, Tap, TapChain
from drivers.wire.tap.disturb import Disturber
from drivers.wire.tap.faults import WireFault, is_wire_fault, parse_wire_fault, unsuited_wire_faults
from drivers.wire.tap.record import Recorder

if TYPE_CHECKING:
    from controller.admission import Admitted, TreatOptions
    from drivers.hal.events import EventBus
    from drivers.hal.facility import Facility
    from simulators.faults import TimedFault

Oracle = Callable[[int], Awaitable[float | None]]
STOPPED = "stopped"  # entry of a recording: somebody ended the run from outside
VIRTUAL_CLOCK, WALL_CLOCK = "virtual", "wall"
FACT_PLAN, FACT_LIBRARY, FACT_KEYS, FACT_FACILITY, FACT_DEVICES = "plan", "library", "keys", "facility", "devices"
FACT_ORACLE = "machine_limited_s"


def sort_faults(specs: Sequence[str], scenario: Path | None, seed: int = 0) -> tuple[list[TimedFault], list[WireFault]]:
    """Faults of the plant and of the wires, from the command line and a scenario file. Raises ValueError, a line per error."""
    from simulators.faults import fault_texts, parse_fault

    texts, wrong = fault_texts(specs, scenario)
    plant: list[TimedFault] = []
    wires: list[WireFault] = []
    for number, text in enumerate(texts):
        try:
            if is_wire_fault(text):
                wires.append(parse_wire_fault(text, seed=seed * 1000 + number))
            else:
                plant.append(parse_fault(text))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    return plant, wires


def wire_fault_objections(faults: Sequence[WireFault], facility: Facility, room: str, real: Sequence[str]) -> list[str]:
    """Why wires cannot be disturbed so: there is no such wire, or something real hangs on one."""
    from controller.wires import CHANNELS, MESSAGES

    devices = facility.devices_of(room).values()
    wires = {d.wire_name for d in devices if d.wire == "stream"} | {part for d in devices for part in d.parts}
    found = unsuited_wire_faults(faults, wires | {CHANNELS, MESSAGES})
    if faults and real:
        found.append(f"--fault {faults[0]}: wires are disturbed only where everything is simulated; {', '.join(real)} are real")
    return found


def record_objections(path: Path) -> list[str]:
    """Why a recording cannot be written there."""
    if path.exists():
        return [f"--record {path}: is there already; name a new file"]
    if not path.parent.is_dir():
        return [f"--record {path}: {path.parent} is not a directory"]
    return []


class Taps:
    """What one run's wires go through.

    Args:
        faults: of its wires.
        recorder: writes it down; None: nobody does.

    Attributes:
        recorder: the recording, if there is one.
    """

    def __init__(self, faults: Sequence[WireFault] = (), recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        self._faults = faults
        self._disturber: Disturber | None = None

    def tap(self, bus: EventBus) -> Tap:
        """What the wires go through: faults next to them, the recording next to the drivers. Faults are told on the bus."""

        def tell(fault: WireFault, begins: bool) -> None:
            bus.emit("faults", "fault.planted" if begins else "fault.over", name=str(fault), value=fault.duration_s)

        parts: list[Tap] = []
        if self._faults:
            self._disturber = Disturber(self._faults, tell)
            parts.append(self._disturber)
        if self.recorder is not None:
            parts.append(self.recorder)
        return TapChain(*parts) if parts else NoTap()

    def note(self, **facts: Any) -> None:
        """Put something beside the wires down in the recording."""
        if self.recorder is not None:
            for name, value in facts.items():
                self.recorder.fact(name, value)

    def noted(self, oracle: Oracle) -> Oracle:
        """An oracle whose answers are put down in the recording."""
        answers: dict[str, float | None] = {}

        async def asked(beam_number: int) -> float | None:
            answers[str(beam_number)] = answer = await oracle(beam_number)
            self.note(**{FACT_ORACLE: dict(answers)})
            return answer

        return asked

    def stopped(self, why: str) -> None:
        """Put down that somebody ended the run, at this instant."""
        if self.recorder is not None:
            self.recorder.put_down("operator", STOPPED, f'"why":{json.dumps(why)}')

    def close(self, **end: Any) -> None:
        """No fault any more, and the recording's end."""
        if self._disturber is not None:
            self._disturber.stop()
        if self.recorder is not None:
            self.recorder.close(**end)

    @property
    def failure(self) -> str:
        """Why the recording is not whole; empty when it is, or when there is none."""
        return self.recorder.failure if self.recorder is not None else ""


@contextlib.contextmanager
def taps_of(options: TreatOptions, admitted: Admitted) -> Iterator[Taps]:
    """The taps of one run. Raises Refused when the recording cannot be begun."""
    recorder: Recorder | None = None
    if options.record is not None:
        try:
            recorder = Recorder(options.record, _header(options, admitted))
        except OSError as error:
            raise Refused([f"--record {options.record}: cannot be made: {error.strerror or error}"]) from None
        for name, value in _facts(options, admitted).items():
            recorder.fact(name, value)
    taps = Taps(admitted.wire_faults, recorder)
    try:
        yield taps
    except BaseException as error:
        taps.close(status="none", error=f"{type(error).__name__}: {error}")
        raise


def _header(options: TreatOptions, admitted: Admitted) -> dict[str, Any]:
    intake = admitted.intake
    return {
        "program": f"iongantry {version('iongantry')}",
        "facility": intake.facility.name,
        "room": intake.room.name,
        "clock": VIRTUAL_CLOCK if admitted.factor is None else WALL_CLOCK,
        "simulated": admitted.simulated,
        "asked": {
            "plan": options.plan.name,
            "facility": options.facility,
            "room": intake.room.name,
            "beams": [beam.number for beam in intake.beams],
            "fraction": options.fraction,
            "seed": options.seed,
            "overrides": dict(options.overrides),
            "faults": [*options.faults],
            "scenario": options.scenario.name if options.scenario is not None else "",
            "operator": options.operator,
        },
    }


def _facts(options: TreatOptions, admitted: Admitted) -> dict[str, Any]:
    """The files that a replay needs, as they are now. Private keys never; public ones, to check the library's signature."""
    from controller.admission import library_in
    from controller.beam.signing import trusted_keys

    facts: dict[str, Any] = {FACT_PLAN: base64.b64encode(options.plan.read_bytes()).decode()}
    library, keys = library_in(options.state)
    if library is not None:
        facts[FACT_LIBRARY] = base64.b64encode(library.read_bytes()).decode()
        facts[FACT_KEYS] = {name: key.hex() for name, key in trusted_keys(keys).items()}
    if options.facility != admitted.intake.facility.name:
        facts[FACT_FACILITY] = Path(options.facility).read_text(encoding="utf-8")
    if admitted.where is not None:
        facts[FACT_DEVICES] = {
            name: {
                "line": d.wire_name,
                "endpoint": d.endpoint,
                "part_endpoints": {str(unit): to for unit, to in d.part_endpoints.items()},
            }
            for name, d in admitted.where.facility.devices_of(admitted.intake.room.name).items()
        }
    return facts
