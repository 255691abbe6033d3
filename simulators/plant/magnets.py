"""The magnets of one room's line with their supplies: ramps, lag, heat, quench, and where the beam then goes.

Currents follow their set-points with a limited ramp and a first-order lag, in closed form. Each change heats
superconducting coils a little; the heat relaxes (assumed). A coil above `inhibit_k` holds further
ramps back until it has cooled, above `trip_k` it quenches. The field follows the current with the plant's own gains
and saturation; orbit and spot size follow from the fields (`simulators.physics.optics`). Not responsible for stopping
the beam: the quench line and the delivery unit do that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulators.physics.optics import magnet_field_t, orbit_mm, scattered_sigma_mm, spot_sigma_mm
from simulators.physics.rigidity import nucleus
from simulators.plant.kernel import Kernel, Timer
from simulators.plant.machine_log import Machine, MachineLog, Operation
from simulators.plant.truth import RoomTruth

Floats = NDArray[np.float64]
COOL_HYSTERESIS_K = 0.1  # a held ramp goes on when the hottest coil is this far below the limit; assumed
SUPPLY_LIMIT_REL = 1.1  # supplies end 10 % above nameplate; assumed


@dataclass(frozen=True, slots=True)
class BeamAtIsocentre:
    """The unscanned beam: centre and sigma in mm at the isocentre plane; `arrives` False when it is lost on the way."""

    x_mm: float
    y_mm: float
    sigma_x_mm: float
    sigma_y_mm: float
    arrives: bool


class BeamlineMagnets:
    """All magnets of a room. Arrays hold the dipoles, then the quadrupoles, in the order of `names`.

    Attributes:
        identity: what the supplies say they are.
        names: magnet names.
        settled_token: energy token of the set-point once all currents have settled; 0 while ramping, quenched or deviating.
    """

    def __init__(self, kernel: Kernel, room: RoomTruth, log: MachineLog) -> None:
        self.identity = room.magnets.identity
        self.names = room.magnets.names
        self.settled_token = 0
        self._kernel = kernel
        self._room = room
        self._truth = room.magnets
        self._log = log
        count = len(self.names)
        t = self._truth
        self._nameplate_a = np.array(t.dipole_nameplate_a + t.quadrupole_nameplate_a)
        self._gain = np.array(t.dipole_gain_ppm + t.quadrupole_gain_ppm) * 1e-6
        self._radius_m = np.array(t.dipole_radius_m)
        self._start_a = np.zeros(2 * count)
        self._setpoint_a = np.zeros(2 * count)
        self._ramp_start_ns = 0
        self._token = 0
        self._pending: tuple[int, Floats] | None = None
        self._timer: Timer | None = None
        self._operation: Operation | None = None
        self._requested_ns = -1
        self._settled_ppm = 0
        self._excess_k = np.zeros(count)
        self._warmest_k = 0.0  # the largest of them
        self._excess_ns = 0
        self._quenched = np.zeros(count, dtype=np.bool_)
        self._quench_ns = 0
        self._current_offset_rel = np.zeros(2 * count)
        self._field_error_rel = np.zeros(2 * count)
        self._order = np.arange(2 * count)
        self._reads = 0
        self._watchers: list[Callable[[], None]] = []

    # --- what is seen -------------------------------------------------------------------------------------------

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call when a ramp starts, all settle, a coil quenches or a supply goes off its set-point."""
        self._watchers.append(watcher)

    @property
    def quench_bits(self) -> int:
        """Bit per magnet."""
        return int(sum(1 << int(i) for i in np.flatnonzero(self._quenched)))

    @property
    def quenched(self) -> bool:
        """Whether any coil has quenched and was not recovered."""
        return bool(self._quenched.any())

    @property
    def ramp_inhibited(self) -> bool:
        """Whether a coil is too warm to ramp."""
        return self._pending is not None or self.hottest_k >= self._truth.inhibit_k

    @property
    def off_setpoint(self) -> bool:
        """Whether a current stays away from its set-point although no ramp explains it, or a coil has quenched."""
        return self.quenched or (bool(self._token) and self.settled_token == 0 and self._timer is None)

    def nameplate(self) -> Floats:
        """What the makers promise, shape (1 + 2n,): a rigidity in T m, and the currents in A that hold it."""
        return np.concatenate([[self._truth.design_rigidity_tm], self._nameplate_a])

    def temperatures_k(self) -> Floats:
        """Coil temperature of each magnet now, shape (n,), K."""
        return np.asarray(self._truth.base_k + self._excess_k * self._left())

    @property
    def hottest_k(self) -> float:
        """Temperature of the warmest coil now, K; all of them cool alike."""
        return self._truth.base_k + self._warmest_k * self._left()

    def true_currents_a(self) -> Floats:
        """Currents now, shape (2n,), A, in the order of the supplies."""
        if self.quenched:
            since_s = (self._kernel.now_ns - self._quench_ns) * 1e-9
            return np.asarray(self._start_a * math.exp(-since_s / self._truth.dump_tau_s))
        return np.asarray(self._followed(self._kernel.now_ns) * (1.0 + self._current_offset_rel))

    def measured_currents_a(self) -> Floats:
        """What the supplies' transducers read, shape (2n,), A: true currents with noise (ppm of nameplate)."""
        self._reads += 1
        noise = self._kernel.rng(f"{self._room.name}-magnets", "reading", self._reads).standard_normal(self._setpoint_a.size)
        return np.asarray(self.true_currents_a() + noise * (self._truth.reading_noise_ppm * 1e-6) * self._nameplate_a)

    def deviation_ppm(self) -> int:
        """Largest deviation of a current from its set-point: now, or as it was when all had settled."""
        if not self._token:
            return 0
        if self.settled_token:
            return self._settled_ppm
        return self._deviation_ppm()

    # --- commands -----------------------------------------------------------------------------------------------

    def set_currents(self, token: int, currents_a: Floats) -> None:
        """Ramp all supplies to currents of shape (2n,) in A that belong to an energy token.

        Raises:
            ValueError: wrong number of currents, not finite, or beyond the supplies.
        """
        if currents_a.shape != self._setpoint_a.shape or not np.all(np.isfinite(currents_a)):
            raise ValueError(f"{currents_a.size} currents; {self._setpoint_a.size} finite ones are needed")
        if np.any(np.abs(currents_a) > SUPPLY_LIMIT_REL * self._nameplate_a):
            worst = int(np.argmax(np.abs(currents_a) / self._nameplate_a))
            limit_a = SUPPLY_LIMIT_REL * self._nameplate_a[worst]
            raise ValueError(f"{currents_a[worst]:.1f} A for supply {worst}, which ends at {limit_a:.1f} A")
        if self.quenched:
            return
        self._requested_ns = self._kernel.now_ns
        if self.ramp_inhibited:
            self._hold_back(token, currents_a)
        else:
            self._ramp(token, currents_a)
        self._tell()

    def recover(self) -> None:
        """Bring quenched coils back cold, with no current: hours in reality, a service action here."""
        self._quenched[:] = False
        self._excess_k[:] = 0.0
        self._warmest_k = 0.0
        self._start_a = np.zeros_like(self._start_a)
        self._setpoint_a = np.zeros_like(self._setpoint_a)
        self._token = 0
        self._tell()

    # --- faults -------------------------------------------------------------------------------------------------

    def quench(self, index: int) -> None:
        """A quench was detected (0.1 V for 10 ms, assumed): all coils are dumped, nothing is settled, watchers hear of it."""
        self._start_a = self.true_currents_a()
        self._quench_ns = self._kernel.now_ns
        self._quenched[index] = True
        self._cancel()
        self._pending = None
        self.settled_token = 0
        self._kernel.emit(f"{self._room.name}-magnets", "quench", room=self._room.name, magnet=self.names[index])
        self._tell()

    def offset_supply(self, index: int, relative: float) -> None:
        """Fault: supply `index` (dipoles first) gives more or less current than asked; its transducer tells."""
        self._current_offset_rel[index] = relative
        self._check_settled()

    def offset_field(self, index: int, relative: float) -> None:
        """Fault: a magnet's field is off although its current is right (shorted turns); only the beam tells."""
        self._field_error_rel[index] = relative
        self._tell()

    def swap(self, first: int, second: int) -> None:
        """Fault: two supplies feed each other's magnet; their own transducers do not tell."""
        self._order[[first, second]] = self._order[[second, first]]
        self._tell()

    # --- the beam -----------------------------------------------------------------------------------------------

    def beam_at_isocentre(self, token: int, energy_mev_u: float) -> BeamAtIsocentre:
        """Where ions of a token and energy come out, unscanned, and how wide."""
        t, spot, count = self._truth, self._room.spot, len(self.names)
        rigidity_tm = nucleus(token).rigidity_tm(energy_mev_u)
        currents = self.true_currents_a()[self._order]
        # Nameplate currents hold the design rigidity on the design radius, by definition of nameplate.
        ideal = np.concatenate([t.design_rigidity_tm / self._radius_m, np.full(count, t.design_rigidity_tm)])
        field = magnet_field_t(currents, ideal / self._nameplate_a, self._gain, t.dipole_saturation, self._nameplate_a)
        field *= 1.0 + self._field_error_rel
        x_mm = orbit_mm(field[:count], self._radius_m, rigidity_tm, np.array(t.orbit_x_mm))
        y_mm = orbit_mm(field[:count], self._radius_m, rigidity_tm, np.array(t.orbit_y_mm))
        mean_error = float(np.mean(field[:count] * self._radius_m / rigidity_tm - 1.0))
        detuning = field[count:] / rigidity_tm - 1.0
        scattered = scattered_sigma_mm(token, energy_mev_u, spot.scatter_x0, spot.scatter_drift_mm)
        sigma_x = spot_sigma_mm(
            spot.optical_x_mm, rigidity_tm, t.design_rigidity_tm, detuning, np.array(t.sigma_x_response), scattered
        )
        sigma_y = spot_sigma_mm(
            spot.optical_y_mm, rigidity_tm, t.design_rigidity_tm, detuning, np.array(t.sigma_y_response), scattered
        )
        # An achromat forgives a common error at its end, but not in between: the dispersive orbit is metres times that error.
        arrives = max(abs(x_mm), abs(y_mm), abs(mean_error) * 2000.0) <= t.aperture_mm and not self.quenched
        return BeamAtIsocentre(x_mm, y_mm, sigma_x, sigma_y, arrives)

    # --- inside -------------------------------------------------------------------------------------------------

    def _followed(self, t_ns: int) -> Floats:
        """Ramp with first-order lag: I = ramp(t) - r tau (1 - e^(-t/tau)), and after the ramp the rest of the lag decays."""
        t = self._truth
        change = self._setpoint_a - self._start_a
        elapsed = max(t_ns - self._ramp_start_ns, 0) * 1e-9
        length = np.abs(change) / t.ramp_a_s
        rate = np.sign(change) * t.ramp_a_s
        inside = np.minimum(elapsed, length)
        behind = rate * t.lag_s * (1.0 - np.exp(-inside / t.lag_s)) * np.exp(-(elapsed - inside) / t.lag_s)
        return np.asarray(self._start_a + rate * inside - behind)

    def _settle_s(self) -> float:
        """Time until every current stays within half the tolerance."""
        t = self._truth
        change = np.abs(self._setpoint_a - self._start_a)
        length = change / t.ramp_a_s
        lag_end = t.ramp_a_s * t.lag_s * (1.0 - np.exp(-length / t.lag_s))
        allowed = 0.5e-6 * t.tolerance_ppm * np.maximum(np.abs(self._setpoint_a), 1e-3 * self._nameplate_a)
        decay = t.lag_s * np.log(np.maximum(lag_end / allowed, 1.0))
        return float(np.max(length + decay))

    def _ramp(self, token: int, currents_a: Floats) -> None:
        now = self._kernel.now_ns
        self._start_a = self._followed(now)
        self._cancel()
        moved = bool(np.any(np.abs(currents_a - self._setpoint_a) > 1e-9))
        self._setpoint_a = currents_a.copy()
        self._ramp_start_ns = now
        self._token = token
        self.settled_token = 0
        if moved:
            self._heat(self._truth.step_heat_k)
            if self.quenched:
                return
        end_ns = now + round(self._settle_s() * 1e9)
        self._operation = self._log.add(
            Operation(Machine.MAGNETS, "ramp", now, end_ns, room=self._room.name, requested_ns=self._requested_ns)
        )
        self._timer = self._kernel.at(end_ns, self._arrived)

    def _left(self) -> float:
        """Share of the coils' excess temperature that is left by now."""
        return math.exp(-(self._kernel.now_ns - self._excess_ns) * 1e-9 / self._truth.heat_tau_s)

    def _heat(self, by_k: float) -> None:
        self._excess_k = self.temperatures_k() - self._truth.base_k + by_k
        self._warmest_k = float(self._excess_k.max())
        self._excess_ns = self._kernel.now_ns
        if self._truth.superconducting and self._truth.base_k + self._excess_k.max() >= self._truth.trip_k:
            self.quench(int(np.argmax(self._excess_k)))

    def _hold_back(self, token: int, currents_a: Floats) -> None:
        """Keep the set-point until the hottest coil has cooled below the limit less the hysteresis."""
        first = self._pending is None
        self._pending = (token, currents_a.copy())
        self.settled_token = 0
        if first:
            self._cancel()
            excess = self.hottest_k - self._truth.base_k
            goal = self._truth.inhibit_k - COOL_HYSTERESIS_K - self._truth.base_k
            wait_s = self._truth.heat_tau_s * math.log(max(excess / goal, 1.0))
            self._timer = self._kernel.after(round(wait_s * 1e9), self._cooled)

    def _cooled(self, _t_ns: int) -> None:
        self._timer = None
        if self._pending is not None:
            token, currents_a = self._pending
            self._pending = None
            self._ramp(token, currents_a)
            self._tell()

    def _arrived(self, _t_ns: int) -> None:
        self._timer = None
        self._operation = None
        self._check_settled()

    def _check_settled(self) -> None:
        done = self._timer is None and self._pending is None and not self.quenched
        self._settled_ppm = self._deviation_ppm() if done else 0
        self.settled_token = self._token if done and self._settled_ppm <= self._truth.tolerance_ppm else 0
        self._tell()

    def _deviation_ppm(self) -> int:
        off = np.abs(self.true_currents_a() - self._setpoint_a) / np.maximum(np.abs(self._setpoint_a), 1e-3 * self._nameplate_a)
        return int(min(round(float(off.max()) * 1e6), 2**31 - 1))

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._operation is not None:
            self._operation.end_ns = min(self._operation.end_ns, self._kernel.now_ns)
            self._operation = None

    def _tell(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()
