"""The dipole and quadrupole supplies of one room's superconducting magnets (`PowerSupply`), on process variables.

All currents of an energy travel in one array with its energy token; the supply repeats the token when everything has settled,
and the delivery unit compares it with the ring's. A quench is an error; a ramp that a warm coil holds back goes on by itself
when the coil has cooled, and is waited for.

Not responsible for which currents belong to an energy (`controller.beam.library`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.devices.pv_link import PvLink, StatusWords
from drivers.hal.clock import now_ns
from drivers.hal.errors import DataError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Reading
from drivers.wire.channels import Channels, as_float_array

RAMP_TIMEOUT_S = 180.0  # assumed: the longest ramp (55.6 to 430 MeV/u) behind a coil that has to cool first
DEVIATION_PPM_MAX = 1000  # assumed: rigidity mismatch above 0.1 %


@dataclass(frozen=True, slots=True)
class MagnetStatus:
    """What the supplies say of themselves."""

    t_ns: int
    settled_kev_u: int  # 0 while ramping
    quench_bits: int
    hottest_mk: int
    ramp_inhibited: bool
    deviation_ppm: int


def decode_status(words: Sequence[int], t_ns: int) -> MagnetStatus:
    """Decode `MAG:STATUS:RB` (docs/wires.md)."""
    _counter, token, quench, hottest, inhibited, deviation = words
    return MagnetStatus(t_ns, token, quench, hottest, bool(inhibited), deviation)


class Magnets:
    """PowerSupply over channels.

    Args:
        name: device name, for example ``"G1-magnets"``.
        config: facility row; `magnets` names them in order, `prefix` is for example ``"ASAN:G1:MAG"``.
        channels: the wire.
        bus: events ``magnets.settled`` and ``magnets.warm`` (a ramp is held back) from the device.
    """

    def __init__(self, name: str, config: Device, channels: Channels, bus: EventBus) -> None:
        self._name = name
        self._bus = bus
        self._magnets = config.magnets
        self._identity = f"{config.prefix}:ID:RB" if config.identity else None
        self._current_sp = f"{config.prefix}:CURRENT:SP"
        self._nameplate_rb = f"{config.prefix}:NAMEPLATE:RB"
        self._current_rb = f"{config.prefix}:CURRENT:RB"
        self._set: NDArray[np.float64] | None = None
        self._warm = False
        self._link = PvLink(name, config, channels, bus, StatusWords(f"{config.prefix}:STATUS:RB", 6, decode_status))

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    @property
    def magnet_names(self) -> tuple[str, ...]:
        """Names of the magnets, in the order of the current arrays."""
        return self._magnets

    @property
    def status(self) -> MagnetStatus:
        """Last known status. Raises CommunicationError when there never was one."""
        return self._link.status

    @property
    def settled_kev_u(self) -> int:
        """Energy token for which all currents are settled; 0 while they ramp."""
        return self._link.require_fresh().settled_kev_u

    async def connect(self) -> None:
        """Check identity (supplies for which the facility names none are not asked), heartbeat, and the number of supplies.

        Raises:
            DeviceError: another device (3101), or another number of supplies answers (3103).
        """
        self._link.close()
        await self._link.open(self._identity)
        currents = as_float_array(self._current_rb, await self._link.get(self._current_rb))
        if currents.size != 1 + 2 * len(self._magnets):
            raise DeviceError(
                f"{self._current_rb} has {currents.size - 1} currents, expected {2 * len(self._magnets)}",
                code=3103,
                device=self._name,
                hint="check the magnets of this room in the facility file",
            )
        self._set = None

    async def close(self) -> None:
        """End the monitors."""
        await self._link.end()

    def readings(self) -> Sequence[Reading[object]]:
        """Settled token, hottest coil, deviation and quench bits, as last received."""
        status, quality = self._link.status, self._link.quality
        values: tuple[tuple[str, object, str], ...] = (
            ("settled_energy", status.settled_kev_u / 1000.0, "MeV/u"),
            ("hottest_coil", status.hottest_mk / 1000.0, "K"),
            ("deviation", status.deviation_ppm, "ppm"),
            ("quench_bits", status.quench_bits, ""),
        )
        return [Reading(f"{self._name}.{n}", v, u, status.t_ns, quality, self._link.simulated) for n, v, u in values]

    async def set_currents(self, energy_kev_u: int, dipole_a: NDArray[np.float64], quadrupole_a: NDArray[np.float64]) -> None:
        """Ramp all to the currents of one energy; returns when the supplies repeat its token, settled within 0.1 %.

        Args:
            energy_kev_u: energy token.
            dipole_a: shape (n,), A.
            quadrupole_a: shape (n,), A.

        Raises:
            DataError: wrong number of currents, or not finite.
            DeviceError: settled, but away from the set-point (3111), or magnets have quenched (3112).
            CommunicationError: not settled in time.
        """
        n = len(self._magnets)
        if dipole_a.shape != (n,) or quadrupole_a.shape != (n,):
            raise DataError(
                f"{dipole_a.size} dipole and {quadrupole_a.size} quadrupole currents for {n} magnets",
                code=5101,
                device=self._name,
            )
        values = np.concatenate([[float(energy_kev_u)], dipole_a, quadrupole_a])
        if not np.isfinite(values).all():
            raise DataError(f"a current for {energy_kev_u / 1000:g} MeV/u is not finite", code=5102, device=self._name)
        before = self._ready(energy_kev_u)
        if self._set is not None and np.array_equal(values, self._set) and before.settled_kev_u == energy_kev_u:
            return
        await self._link.put(self._current_sp, values)
        if before.settled_kev_u == energy_kev_u:
            # Same token, other currents: the last status may still speak of the old ones. Asked now, it cannot.
            await self._link.refresh()
        status = await self._link.until(
            lambda: self._settled(energy_kev_u), RAMP_TIMEOUT_S, f"settled currents for {energy_kev_u / 1000:g} MeV/u"
        )
        self._set = values
        self._bus.emit(self._name, "magnets.settled", energy_kev_u=energy_kev_u, deviation_ppm=status.deviation_ppm)

    async def read_currents(self) -> Reading[NDArray[np.float64]]:
        """Measured currents, dipoles then quadrupoles, A, shape (2 n,)."""
        values = as_float_array(self._current_rb, await self._link.get(self._current_rb), 1 + 2 * len(self._magnets))
        return Reading(f"{self._name}.currents", values[1:], "A", now_ns(), self._link.quality, self._link.simulated)

    async def read_nameplate(self) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """What the magnets' makers promise: a rigidity in T m, and the dipole and quadrupole currents in A that hold it."""
        n = len(self._magnets)
        values = as_float_array(self._nameplate_rb, await self._link.get(self._nameplate_rb), 1 + 2 * n)
        return float(values[0]), values[1 : 1 + n], values[1 + n :]

    def _settled(self, token: int) -> MagnetStatus | None:
        status = self._ready(token)
        if status.settled_kev_u != token:
            return None
        if status.deviation_ppm > DEVIATION_PPM_MAX:
            raise DeviceError(
                f"settled {status.deviation_ppm} ppm away from the set-point, limit {DEVIATION_PPM_MAX} ppm",
                code=3111,
                device=self._name,
                hint="check the supply that deviates",
            )
        return status

    def _ready(self, token: int) -> MagnetStatus:
        status = self._link.require_fresh()
        if status.quench_bits:
            names = ", ".join(m for i, m in enumerate(self._magnets) if status.quench_bits >> i & 1)
            raise DeviceError(
                f"quench of {names}: no ramp to {token / 1000:g} MeV/u", code=3112, device=self._name, hint="recover the magnet"
            )
        if status.ramp_inhibited and not self._warm:
            self._bus.emit(self._name, "magnets.warm", hottest_k=status.hottest_mk / 1000.0, energy_kev_u=token)
        self._warm = status.ramp_inhibited
        return status
