"""The beam library: what to set, and what to expect, for a beam of one species and energy in one room.

A row holds what was measured on the plant at one node (species, room, port, focus, energy): magnet currents, scanner map,
position monitor map, counts per ion of both monitors, spot size, date and QA status. Between two neighbouring *released* nodes
everything is interpolated linearly after division by its leading dependence (currents by the magnetic rigidity, counts per ion
by Z^2/beta^2), so that few nodes describe the beam well. A beam that needs a row which is not released is refused.

Not responsible for the file and its signature (`library_file`), for measuring (`commission`), or for what the accelerator
offers. The simulated plant never reads any of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from drivers.hal.capabilities import ScannerMap
from drivers.hal.errors import CommandRejected, DataError
from drivers.hal.facility import Meterset
from drivers.hal.ions import IONS, Ion

PORT_TOLERANCE_DEG = 0.1  # a fixed port is chosen by its angle


class Qa(Enum):
    """Whether a row may be used."""

    RELEASED = "released"
    WITHDRAWN = "withdrawn"


class NotReleased(CommandRejected):
    """The library has no released row for what is asked (codes 4301 unknown, 4302 outside, 4303 withdrawn)."""


@dataclass(frozen=True, slots=True)
class LibraryRow:
    """One node, as measured.

    Attributes:
        species: symbol, for example ``"C"``.
        room: room name.
        port_deg: beam angle of a fixed port; None for a rotating gantry.
        focus: focus id.
        energy_kev_u: energy token.
        qa: whether it may be used.
        date: day of the measurement, ISO 8601.
        dipole_a, quadrupole_a: magnet currents, A.
        scanner_a: x0, xx, xy, y0, yx, yy: scanner currents, A = x0 + xx X + xy Y for X, Y in mm at the isocentre plane.
        monitor: x0, xgain, y0, ygain: isocentre mm = x0 + xgain * monitor mm.
        counts1_per_ion, counts2_per_ion: monitor counts per ion.
        sigma_x_mm, sigma_y_mm: spot size at the isocentre plane.
    """

    species: str
    room: str
    port_deg: float | None
    focus: int
    energy_kev_u: int
    qa: Qa
    date: str
    dipole_a: tuple[float, ...]
    quadrupole_a: tuple[float, ...]
    scanner_a: tuple[float, ...]
    monitor: tuple[float, ...]
    counts1_per_ion: float
    counts2_per_ion: float
    sigma_x_mm: float
    sigma_y_mm: float

    @property
    def place(self) -> str:
        """Where and what, for messages: ``"C 430.000 MeV/u in F1 at 90 deg"``."""
        port = "" if self.port_deg is None else f" at {self.port_deg:g} deg"
        return f"{self.species} {self.energy_kev_u / 1000:.3f} MeV/u in {self.room}{port}"


@dataclass(frozen=True, slots=True)
class AngleMap:
    """How far the beam of one room lies from where the scanner map puts it, by gantry angle: shift in mm, isocentre plane.

    `angle_deg` ascends within one turn; between its angles the shift is interpolated linearly, around the circle.
    """

    room: str
    qa: Qa
    date: str
    angle_deg: tuple[float, ...]
    dx_mm: tuple[float, ...]
    dy_mm: tuple[float, ...]

    def shift_mm(self, angle_deg: float) -> tuple[float, float]:
        """Shift (x, y) in mm at a gantry angle."""
        dx = np.interp(angle_deg, self.angle_deg, self.dx_mm, period=360.0)
        dy = np.interp(angle_deg, self.angle_deg, self.dy_mm, period=360.0)
        return float(dx), float(dy)


@dataclass(frozen=True, slots=True, eq=False)
class LibraryEntry:
    """What one beam needs: currents (A), the delivery unit's map, and what to expect (spot size in mm)."""

    ion: Ion
    energy_kev_u: int
    room: str
    angle_deg: float
    dipole_a: NDArray[np.float64]
    quadrupole_a: NDArray[np.float64]
    scanner_map: ScannerMap
    sigma_x_mm: float
    sigma_y_mm: float
    library_version: int

    @property
    def counts1_per_ion(self) -> float:
        """Counts of monitor 1 per ion."""
        return self.scanner_map.counts1_per_ion

    @property
    def counts2_per_ion(self) -> float:
        """Counts of monitor 2 per ion."""
        return self.scanner_map.counts2_per_ion


def _scales(ion: Ion, energy_mev_u: float) -> tuple[float, float]:
    """Leading dependences on energy: rigidity in T m, and Z^2/beta^2 (the Bethe formula's factor)."""
    return ion.rigidity_tm(energy_mev_u), (ion.atomic_number / ion.beta(energy_mev_u)) ** 2


@dataclass(slots=True, eq=False)
class _Table:
    """All nodes of one (species, room, port, focus): ascending energies (n,), features (n, k) over their leading scale."""

    ion: Ion
    magnets: int
    energies_kev_u: NDArray[np.int64]
    released: NDArray[np.bool_]
    features: NDArray[np.float64]  # dipoles, quadrupoles, scanner (6), monitor (4), counts 1, counts 2, sigma x, sigma y

    @classmethod
    def of(cls, rows: Sequence[LibraryRow]) -> _Table:
        ordered = sorted(rows, key=lambda r: r.energy_kev_u)
        ion, magnets = IONS[ordered[0].species], len(ordered[0].dipole_a)
        features = np.array(
            [
                (
                    *r.dipole_a,
                    *r.quadrupole_a,
                    *r.scanner_a,
                    *r.monitor,
                    r.counts1_per_ion,
                    r.counts2_per_ion,
                    r.sigma_x_mm,
                    r.sigma_y_mm,
                )
                for r in ordered
            ]
        )
        energies = np.array([r.energy_kev_u for r in ordered], dtype=np.int64)
        if np.any(np.diff(energies) == 0):
            raise DataError(f"two rows for {ordered[0].place}", code=5305, hint="restore the released file")
        table = cls(ion, magnets, energies, np.array([r.qa is Qa.RELEASED for r in ordered]), features)
        for i, energy in enumerate(energies):
            features[i] /= table.scale(energy / 1000.0)
        return table

    def scale(self, energy_mev_u: float) -> NDArray[np.float64]:
        """What each feature is divided by, shape (k,)."""
        rigidity, ionisation = _scales(self.ion, energy_mev_u)
        return np.repeat([rigidity, 1.0, ionisation, 1.0], [2 * self.magnets + 6, 4, 2, 2])

    def at(self, energy_kev_u: int, place: str) -> NDArray[np.float64]:
        """Features at an energy, shape (k,). Raises NotReleased."""
        e = self.energies_kev_u
        if not e[0] <= energy_kev_u <= e[-1]:
            raise NotReleased(
                f"{place}: the beam library covers {e[0] / 1000:g} to {e[-1] / 1000:g} MeV/u, not {energy_kev_u / 1000:g}",
                code=4302,
                hint="change the plan, or commission that energy",
            )
        upper = int(np.searchsorted(e, energy_kev_u))
        lower = upper if e[upper] == energy_kev_u else upper - 1
        for node in (lower, upper):
            if not self.released[node]:
                wanted, missing = energy_kev_u / 1000, e[node] / 1000
                raise NotReleased(
                    f"{place}: {wanted:g} MeV/u needs the library row at {missing:g} MeV/u, which is withdrawn",
                    code=4303,
                    hint="have it measured and released again by physics",
                )
        here = self.scale(energy_kev_u / 1000.0)
        if lower == upper:
            return np.asarray(self.features[lower] * here)
        # Against the logarithm of the energy the scaled features are nearly straight.
        log = np.log(np.array([e[lower], energy_kev_u, e[upper]], dtype=np.float64))
        weight = (log[1] - log[0]) / (log[2] - log[0])
        return np.asarray(((1.0 - weight) * self.features[lower] + weight * self.features[upper]) * here)


@dataclass(slots=True, eq=False)
class BeamLibrary:
    """All rows of one facility, verified, ready to be asked.

    Attributes:
        facility: name of the facility it was made for.
        version: grows by one with every release; it is in every scanner map and in the record.
        date: day of the release, ISO 8601.
        origin: where the measurements come from, for example ``"simulated"``.
        meterset: what a monitor unit is at this facility.
        signed_by: key id; empty for a library that was made in this process.
    """

    facility: str
    version: int
    date: str
    origin: str
    meterset: Meterset
    rows: tuple[LibraryRow, ...]
    angle_maps: tuple[AngleMap, ...] = ()
    signed_by: str = ""
    _tables: dict[tuple[str, str, float | None, int], _Table] = field(default_factory=dict, init=False, repr=False)
    _angles: dict[str, AngleMap] = field(default_factory=dict, init=False, repr=False)
    _cache: dict[tuple[str, int, str, float, int], LibraryEntry] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        groups: dict[tuple[str, str, float | None, int], list[LibraryRow]] = {}
        for row in self.rows:
            groups.setdefault((row.species, row.room, row.port_deg, row.focus), []).append(row)
        self._tables = {key: _Table.of(group) for key, group in groups.items()}
        self._angles = {m.room: m for m in self.angle_maps}

    def lookup(
        self, species: str | Ion, energy_mev_u: float, room: str, angle_deg: float = 0.0, focus: int = 1
    ) -> LibraryEntry:
        """Settings and expectations of one beam.

        Args:
            species: ion or its symbol.
            energy_mev_u: kinetic energy in MeV/u; rounded to a keV/u token.
            room: room name.
            angle_deg: gantry angle, or angle of the fixed port.
            focus: focus id.

        Raises:
            NotReleased: no rows (4301), energy outside them (4302), or a needed row is withdrawn (4303).
        """
        symbol = species.symbol if isinstance(species, Ion) else species
        energy_kev_u = round(energy_mev_u * 1000.0)
        key = (symbol, energy_kev_u, room, angle_deg, focus)
        entry = self._cache.get(key)
        if entry is None:
            entry = self._cache[key] = self._interpolate(*key)
        return entry

    def counts_per_ion(self, species: str | Ion, energy_mev_u: float, room: str = "") -> float:
        """Counts of monitor 1 per ion; of the first room that has this species when no room is named."""
        return self._counts(species, energy_mev_u, room)[0]

    def counts2_per_ion(self, species: str | Ion, energy_mev_u: float, room: str = "") -> float:
        """Counts of monitor 2 per ion."""
        return self._counts(species, energy_mev_u, room)[1]

    def ions_per_count(self, species: str | Ion, energy_mev_u: float, room: str = "") -> float:
        """Ions per count of monitor 1."""
        return 1.0 / self.counts_per_ion(species, energy_mev_u, room)

    def mu_to_counts(self, species: str | Ion, energy_mev_u: float, mu: float, room: str = "") -> float:
        """Counts of monitor 1 for a number of monitor units.

        A monitor unit is a fixed chamber charge (a fixed number of counts), except for protons of a facility that plans in
        protons per MU: there it is the table's number of protons, linear in energy between its entries, constant outside.
        """
        return mu * self.counts_per_mu(species, energy_mev_u, room)

    def counts_per_mu(self, species: str | Ion, energy_mev_u: float, room: str = "") -> float:
        """Counts of monitor 1 in one monitor unit."""
        symbol = species.symbol if isinstance(species, Ion) else species
        table = self.meterset.protons_per_mu
        if symbol != "p" or not table:
            return self.meterset.counts_per_mu
        energies, protons = zip(*table, strict=True)
        return float(np.interp(energy_mev_u, energies, protons)) * self.counts_per_ion(symbol, energy_mev_u, room)

    def ions_per_mu(self, species: str | Ion, energy_mev_u: float, room: str = "") -> float:
        """Ions in one monitor unit (about 8e4 for carbon of 430 MeV/u at 20 pC per MU)."""
        return self.counts_per_mu(species, energy_mev_u, room) / self.counts_per_ion(species, energy_mev_u, room)

    def _counts(self, species: str | Ion, energy_mev_u: float, room: str) -> tuple[float, float]:
        symbol = species.symbol if isinstance(species, Ion) else species
        for name, place, _port, _focus in self._tables:
            if name == symbol and room in ("", place):
                features = self._tables[name, place, _port, _focus].at(round(energy_mev_u * 1000.0), f"{symbol} in {place}")
                return float(features[-4]), float(features[-3])
        raise self._unknown(symbol, room)

    def _unknown(self, symbol: str, room: str, more: str = "") -> NotReleased:
        have = sorted({f"{s} in {r}" for s, r, _, _ in self._tables})
        return NotReleased(
            f"beam library {self.version} of {self.facility} has no rows for {symbol} in {room or 'any room'}{more}",
            code=4301,
            hint=f"it has {', '.join(have) or 'none'}",
        )

    def _interpolate(self, symbol: str, energy_kev_u: int, room: str, angle_deg: float, focus: int) -> LibraryEntry:
        ports = [port for s, r, port, f in self._tables if (s, r, f) == (symbol, room, focus)]
        if not ports:
            raise self._unknown(symbol, room, f" with focus {focus}")
        port = next((p for p in ports if p is None or abs(p - angle_deg) <= PORT_TOLERANCE_DEG), angle_deg)
        if port not in ports:
            raise self._unknown(
                symbol, room, f" at {angle_deg:g} deg (ports: {', '.join(f'{p:g}' for p in ports if p is not None)})"
            )
        place = f"{symbol} in {room}" if port is None else f"{symbol} in {room} at {port:g} deg"
        table = self._tables[symbol, room, port, focus]
        v = table.at(energy_kev_u, place)
        n = table.magnets
        x0, xx, xy, y0, yx, yy, mx0, mxgain, my0, mygain, counts1, counts2, sigma_x, sigma_y = (float(f) for f in v[2 * n :])
        shift = self._shift(room, port, angle_deg)
        return LibraryEntry(
            ion=IONS[symbol],
            energy_kev_u=energy_kev_u,
            room=room,
            angle_deg=angle_deg,
            dipole_a=v[:n],
            quadrupole_a=v[n : 2 * n],
            scanner_map=ScannerMap(
                energy_kev_u=energy_kev_u,
                # The beam lies `shift` from where it is sent at this angle: send it that much less far.
                x0_a=x0 - xx * shift[0] - xy * shift[1],
                xx_a_mm=xx,
                xy_a_mm=xy,
                y0_a=y0 - yx * shift[0] - yy * shift[1],
                yx_a_mm=yx,
                yy_a_mm=yy,
                monitor_x0_mm=mx0,
                monitor_xgain=mxgain,
                monitor_y0_mm=my0,
                monitor_ygain=mygain,
                counts1_per_ion=counts1,
                counts2_per_ion=counts2,
                focus_id=focus,
                library_version=self.version,
            ),
            sigma_x_mm=sigma_x,
            sigma_y_mm=sigma_y,
            library_version=self.version,
        )

    def _shift(self, room: str, port: float | None, angle_deg: float) -> tuple[float, float]:
        if port is not None:
            return 0.0, 0.0
        angles = self._angles.get(room)
        if angles is None or angles.qa is not Qa.RELEASED:
            raise NotReleased(
                f"the beam library of {self.facility} has no released gantry angle map for {room}",
                code=4303,
                hint="commission the room's angles",
            )
        return angles.shift_mm(angle_deg)


def withdraw(library: BeamLibrary, rows: Iterable[LibraryRow], date: str) -> BeamLibrary:
    """A new version of the library in which some rows must not be used."""
    gone = {(r.species, r.room, r.port_deg, r.focus, r.energy_kev_u) for r in rows}
    changed = tuple(
        replace(r, qa=Qa.WITHDRAWN) if (r.species, r.room, r.port_deg, r.focus, r.energy_kev_u) in gone else r
        for r in library.rows
    )
    return BeamLibrary(
        library.facility, library.version + 1, date, library.origin, library.meterset, changed, library.angle_maps
    )
