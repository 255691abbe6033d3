"""Where the room of a run answers, and what follows from it: the clock, who is asked, what may be asked at all.

Judges an endpoint map against the facility and the request, every objection at once. Not responsible for addresses
(`drivers.hal.endpoints`) nor for opening anything (`attached`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.hal.endpoints import EndpointMap, apply, load_endpoints, objections
from drivers.hal.errors import ConfigError
from drivers.hal.facility import Facility

if TYPE_CHECKING:
    from controller.beam.library import BeamLibrary

SCRIPTED, CONSOLE = "scripted", "console"
OPERATORS = ("", SCRIPTED, CONSOLE)
REAL = 1.0
ORIGIN_SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, eq=False)
class Whereabouts:
    """A room on real wires.

    Attributes:
        endpoints: the map.
        facility: with its devices where they answer.
        real: devices and parts that no simulator answers for.
        simulated: whether anything of the room is.
        operator: who answers the room's questions.
    """

    endpoints: EndpointMap
    facility: Facility
    real: tuple[str, ...]
    simulated: bool
    operator: str


def real_devices(facility: Facility, room: str) -> tuple[str, ...]:
    """Devices of a room, and parts of devices, that no simulator answers for."""
    found: list[str] = []
    for name, device in facility.devices_of(room).items():
        found += device.real_parts if device.simulated else [name]
    return tuple(found)


def locate(
    path: Path,
    facility: Facility,
    room: str,
    *,
    factor: float | None,
    operator: str = "",
    state: Path | None = None,
    library: BeamLibrary | None = None,
    lifted: Collection[str] = (),
    faults: bool = False,
    treats: bool = True,
) -> tuple[Whereabouts | None, list[str]]:
    """Find the room of a run on an endpoint map.

    Args:
        path: endpoint map or overlay.
        facility, room: what is to be found.
        factor: pace that was asked for, as a multiple of real time; None: none was asked for.
        operator: ``scripted``, ``console``, or empty: scripted where everything is simulated.
        state: the facility's state that outlives the run.
        library: what the beam is made from.
        lifted: names of overrides that were used.
        faults: whether faults are to be planted.
        treats: whether somebody is to be treated; otherwise what a patient received is nobody's question.

    Returns:
        Where the room is (None when the map cannot be used), and every objection.
    """
    try:
        endpoints = load_endpoints(path)
    except ConfigError as error:
        return None, error.as_reasons
    reasons = [f"{path}: {reason}" for reason in objections(facility, endpoints, room)]
    if reasons:
        return None, reasons
    there = apply(facility, endpoints)
    unplaced = sorted(name for name, d in there.devices_of(room).items() if d.endpoint.startswith("memory:"))
    if unplaced:
        reasons.append(
            f"{path}: {', '.join(unplaced)}: no endpoint; nothing falls back to a simulation: start `iongantry simulate` for "
            f"room {room}, or name an endpoint for each"
        )
    real = real_devices(there, room)
    simulated = any(d.simulated for d in there.devices_of(room).values())
    if factor is not None and factor != endpoints.speed:
        reasons.append(f"--speed {factor:g}: the simulators at these endpoints run at {endpoints.speed:g} times real time")
    if real and endpoints.speed != REAL:
        reasons.append(f"{path}: speed {endpoints.speed:g} beside real devices ({', '.join(real)}), which keep real time")
    if real and treats and state is None:
        reasons.append(f"--state: needed where something is real ({', '.join(real)}): what a patient received outlives a run")
    if real and lifted:
        reasons.append(
            f"--override {', '.join(sorted(lifted))}: only where everything is simulated; {', '.join(real)} are real"
        )
    if real and library is not None and library.origin == ORIGIN_SIMULATED and _makes_beam(there, room):
        reasons.append("the beam library was measured on a simulated plant: commission one on the machine itself")
    if faults and not endpoints.backdoor:
        reasons.append("--fault: there is no simulator process at these endpoints to plant faults in")
    if operator == SCRIPTED and (real or not endpoints.backdoor):
        reasons.append("--operator scripted: a scripted operator presses the buttons of a simulated plant only")
    chosen = operator or (SCRIPTED if endpoints.backdoor and not real else CONSOLE)
    return Whereabouts(endpoints, there, real, simulated, chosen), reasons


def _makes_beam(facility: Facility, room: str) -> bool:
    """Whether real magnets, source or delivery unit would work from the library."""
    return any(d.actuator and d.wire == "channels" and not d.simulated for d in facility.devices_of(room).values())
