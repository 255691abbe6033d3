"""The synchrotron with its source, and the switchyard to the rooms (`BeamSource`), on process variables.

Every command returns when its effect has been measured: a species when the ring measures it, an energy when the ring is settled
at the token asked for. Deadlines follow from the facility file's times.

Not responsible for deciding when to refill or step (`controller.beam.request`), nor for who may have the beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from drivers.devices.pv_link import NO_EFFECT, PvLink, StatusWords
from drivers.hal.capabilities import AcceleratorState, AcceleratorStatus
from drivers.hal.errors import CommandRejected, CommunicationError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device, Facility
from drivers.hal.ions import Ion, ion_by_token
from drivers.hal.reading import Reading
from drivers.wire.channels import Channels, Sample

REFUSALS: dict[int, str] = {
    1: "energies only step down within a cycle",
    2: "the source does not have that species, or is still switching to it",
    3: "the energy is outside the range of the species",
    4: "it has tripped",
}

# A wait is given up after this many times the believed duration, and a little more.
PATIENCE = 3.0
GRACE_S = 2.0


def decode_status(words: Sequence[int], t_ns: int) -> AcceleratorStatus:
    """Decode `ACC:STATUS:RB` (docs/wires.md); ValueError for an unknown state."""
    _counter, state, energy, spill, species, settled, kilo_ions, fault = words
    return AcceleratorStatus(
        t_ns=t_ns,
        state=AcceleratorState(state),
        energy_kev_u=energy,
        spill=spill,
        species_token=species,
        settled=bool(settled),
        ions_left=kilo_ions * 1000.0,
        fault_code=fault,
    )


class Accelerator:
    """BeamSource over channels.

    Args:
        name: device name, for example ``"accelerator"``.
        config: facility row; `prefix` is the facility's (``"ASAN"``), below which `ACC` and `HEBT` lie.
        channels: the wire.
        bus: events ``species``, ``route``, ``cycle``, ``step`` from the device.
        facility: believed times, for deadlines.
    """

    def __init__(self, name: str, config: Device, channels: Channels, bus: EventBus, facility: Facility) -> None:
        self._name = name
        self._bus = bus
        self._facts = facility.accelerator
        self._route_s = max((room.route_switch_s for room in facility.rooms.values()), default=0.0)
        prefix = config.prefix
        self._identity = f"{prefix}:ACC:ID:RB"
        self._species_sp = f"{prefix}:ACC:SRC:SPECIES:SP"
        self._cycle_sp = f"{prefix}:ACC:RING:CYCLE:SP"
        self._step_sp = f"{prefix}:ACC:RING:STEP:SP"
        self._off_sp = f"{prefix}:ACC:RING:OFF:SP"
        self._route_sp = f"{prefix}:HEBT:ROUTE:SP"
        self._route_rb = f"{prefix}:HEBT:ROUTE:RB"
        self._route = ""
        self._link = PvLink(name, config, channels, bus, StatusWords(f"{prefix}:ACC:STATUS:RB", 8, decode_status))

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    @property
    def status(self) -> AcceleratorStatus:
        """Last known status; its age is in `t_ns`. Raises CommunicationError when there never was one."""
        return self._link.status

    @property
    def route(self) -> str:
        """The beam path as last read back: a room, ``none`` or ``moving``; empty when unknown."""
        return self._route

    async def connect(self) -> None:
        """Check identity and heartbeat, read status and route."""
        self._link.close()
        await self._link.open(self._identity)
        self._link.watch(self._route_rb, self._take_route)
        self._take_route(await self._link.get(self._route_rb))

    async def close(self) -> None:
        """End the monitors."""
        await self._link.end()

    def readings(self) -> Sequence[Reading[object]]:
        """State, energy, species, spill, ions left and route, as last received."""
        status, quality = self._link.status, self._link.quality
        values: tuple[tuple[str, object, str], ...] = (
            ("state", status.state.name.lower(), ""),
            ("energy", status.energy_kev_u / 1000.0, "MeV/u"),
            ("species_token", status.species_token, ""),
            ("spill", status.spill, ""),
            ("ions_left", status.ions_left, ""),
            ("route", self._route, ""),
        )
        return [Reading(f"{self._name}.{n}", v, u, status.t_ns, quality, self._link.simulated) for n, v, u in values]

    async def refresh(self) -> AcceleratorStatus:
        """Ask for the status now: the ions left change without a post. Raises CommunicationError."""
        return await self._link.refresh()

    async def select_species(self, ion: Ion) -> None:
        """Switch source and linac; returns when the ring measures the species, at once when it does already.

        Raises:
            CommandRejected: refused, with the accelerator's reason (4106).
            CommunicationError: no answer in time.
            DeviceError: the accelerator is in fault, or gives another ion (3204).
        """
        if self._sound().species_token == ion.token:
            return
        await self._command(self._species_sp, ion.token)

        def measured() -> bool | None:
            status = self._sound()
            self._accepted(status, f"{ion.name} ions")
            return True if status.species_token == ion.token else None

        try:
            await self._link.until(measured, self._facts.species_switch_s * PATIENCE + GRACE_S, f"beam of {ion.name}")
        except CommunicationError as error:
            token = self._link.status.species_token
            if error.code != NO_EFFECT or token == 0:
                raise
            other = ion_by_token(token)
            raise DeviceError(
                f"{ion.name} was selected, the ring measures {other.name if other else f'token {token}'}",
                code=3204,
                device=self._name,
                hint="call physics: source, linac and stripper",
            ) from None
        self._bus.emit(self._name, "species", species=ion.symbol)

    async def select_route(self, route: str) -> None:
        """Open the path to a room, or close all with ``none``; returns when the switchyard reads it back."""
        if self._route == route:
            return
        await self._link.put(self._route_sp, route)
        await self._link.until(
            lambda: True if self._route == route else None, self._route_s * PATIENCE + GRACE_S, f"beam path {route!r}"
        )
        self._bus.emit(self._name, "route", route=route)

    async def start_cycle(self, energy_mev_u: float) -> None:
        """Refill and accelerate; returns when the ring is settled at the energy in a new spill.

        Raises:
            CommandRejected: refused, with the accelerator's reason (4106).
            CommunicationError: not settled in time.
            DeviceError: fault (3201), settled at another energy (3202), or the ring ran empty (3203).
        """
        token, before = round(energy_mev_u * 1000.0), self._sound().spill
        await self._command(self._cycle_sp, token)
        await self._settled(token, lambda s: s.spill != before, self._facts.cycle_s)
        self._bus.emit(self._name, "cycle", energy_kev_u=token, spill=self.status.spill)

    async def step_to(self, energy_mev_u: float) -> None:
        """Step down on the flattop; returns when settled there, at once when the ring is there already.

        Raises:
            CommandRejected: there is no flattop to step on, or the step leads up (4105).
            CommunicationError, DeviceError: as for a cycle.
        """
        token, status = round(energy_mev_u * 1000.0), self._sound()
        if status.state is not AcceleratorState.FLATTOP or not status.settled:
            raise CommandRejected(
                f"no step to {energy_mev_u:g} MeV/u: the ring is {status.state.name.lower()}",
                code=4105,
                device=self._name,
                hint="start a cycle",
            )
        if token > status.energy_kev_u:
            raise CommandRejected(
                f"no step up from {status.energy_kev_u / 1000:g} to {energy_mev_u:g} MeV/u within a cycle",
                code=4105,
                device=self._name,
                hint="start a cycle",
            )
        if token == status.energy_kev_u:
            return
        old = status.energy_kev_u
        await self._command(self._step_sp, token)
        duration_s = self._facts.energy_step_s + self._facts.energy_step_per_mev_u_s * (old - token) / 1000.0
        await self._settled(token, lambda s: s.state is not AcceleratorState.FLATTOP or s.energy_kev_u != old, duration_s)
        self._bus.emit(self._name, "step", energy_kev_u=token, spill=self.status.spill)

    async def switch_off(self) -> None:
        """Dump the ring; returns when it is off."""
        await self._link.put(self._off_sp, 1, anyone=True)
        await self._link.until(
            lambda: True if self.status.state in (AcceleratorState.OFF, AcceleratorState.FAULT) else None,
            self._facts.cycle_s * PATIENCE + GRACE_S,
            "ring off",
        )

    async def _settled(self, token: int, new: Callable[[AcceleratorStatus], bool], duration_s: float) -> None:
        def check() -> bool | None:
            status = self._sound()
            self._accepted(status, f"{token / 1000:g} MeV/u")
            if not new(status):
                return None
            if status.state in (AcceleratorState.OFF, AcceleratorState.EMPTY):
                raise DeviceError(
                    f"the ring ran {status.state.name.lower()} on the way to {token / 1000:g} MeV/u",
                    code=3203,
                    device=self._name,
                    hint="start a cycle",
                    retryable=True,
                )
            if not status.settled or status.state is not AcceleratorState.FLATTOP:
                return None
            if status.energy_kev_u != token:
                raise DeviceError(
                    f"settled at {status.energy_kev_u / 1000:g} MeV/u instead of {token / 1000:g}",
                    code=3202,
                    device=self._name,
                    hint="beam tuning by physics",
                )
            return True

        await self._link.until(check, duration_s * PATIENCE + GRACE_S, f"settled beam of {token / 1000:g} MeV/u")

    async def _command(self, pv: str, value: int) -> None:
        lingering = self._link.status.fault_code != 0
        await self._link.put(pv, value)
        if lingering:
            await (
                self._link.refresh()
            )  # what the last status said of an earlier command must not be taken for this one's answer

    def _accepted(self, status: AcceleratorStatus, what: str) -> None:
        if status.fault_code:
            reason = REFUSALS.get(status.fault_code, f"fault {status.fault_code}")
            raise CommandRejected(
                f"the accelerator refuses {what}: {reason}",
                code=4106,
                device=self._name,
                hint="check plan and accelerator",
            )

    def _sound(self) -> AcceleratorStatus:
        """The status, fresh and without fault."""
        status = self._link.require_fresh()
        if status.state is AcceleratorState.FAULT:
            raise DeviceError(
                f"the accelerator is in fault: {REFUSALS.get(status.fault_code, status.fault_code)}",
                code=3201,
                device=self._name,
                hint="remove the cause, then switch the ring off to clear it",
            )
        return status

    def _take_route(self, sample: Sample) -> None:
        self._route = sample.value if isinstance(sample.value, str) else ""
