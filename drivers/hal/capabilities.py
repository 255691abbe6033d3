"""What the controller may ask of equipment. Small Protocols; `drivers.devices` implements them, nobody subclasses them.

Rules that hold for all: a command returns when its effect has been read back, or raises (`CommunicationError`, `DeviceError`,
`CommandRejected`); a query may be retried by the driver, a motion command never; every value carries its age and quality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drivers.hal.ions import Ion
from drivers.hal.reading import Reading


class Connectable(Protocol):
    """Every device."""

    @property
    def name(self) -> str: ...

    async def connect(self) -> None:
        """Open, check the identity, read the state. Raises CommunicationError or DeviceError (wrong identity)."""
        ...

    async def close(self) -> None: ...

    def readings(self) -> Sequence[Reading[object]]:
        """Last known values, as they are, without I/O."""
        ...


# --- motion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RingState:
    """A rotating gantry at one instant."""

    angle: Reading[float]  # deg, load encoder
    motor_angle: Reading[float]  # deg, drive encoders (mean)
    speed_deg_s: float
    enabled: bool
    brake_applied: bool
    standstill: bool
    error_code: int


@runtime_checkable
class Axis(Connectable, Protocol):
    """One axis: the gantry ring, or a fixed port that refuses to move."""

    async def read_state(self) -> RingState: ...

    async def move_to(self, angle_deg: float) -> RingState:
        """Move, settle, set the brake, remove torque; returns the state read after that."""
        ...

    async def stop(self) -> None:
        """Quick stop and brake. Always accepted, never waits for its turn."""
        ...


COUCH_AXES = ("lateral_mm", "longitudinal_mm", "vertical_mm", "angle_deg", "pitch_deg", "roll_deg")


@runtime_checkable
class AxisGroup(Connectable, Protocol):
    """Axes that move together: the couch (`COUCH_AXES`)."""

    async def read_axes(self) -> Mapping[str, Reading[float]]: ...

    async def move_to(self, targets: Mapping[str, float]) -> Mapping[str, Reading[float]]: ...

    async def stop(self) -> None: ...


@runtime_checkable
class Snout(Connectable, Protocol):
    """The nozzle's moving parts: snout position and range shifters."""

    async def set_up(self, snout_mm: float | None, range_shifters: Sequence[str]) -> None:
        """Bring the snout to a position (None leaves it) and exactly these range shifters into the beam."""
        ...

    async def read_set_up(self) -> tuple[Reading[float], tuple[str, ...]]: ...


# --- beam ---------------------------------------------------------------------------------------------------------


class AcceleratorState(IntEnum):
    """State of the ring."""

    OFF = 0
    INJECTING = 1
    ACCELERATING = 2
    FLATTOP = 3
    STEPPING = 4
    EMPTY = 5
    FAULT = 6


@dataclass(frozen=True, slots=True)
class AcceleratorStatus:
    """What the accelerator says of itself."""

    t_ns: int
    state: AcceleratorState
    energy_kev_u: int  # measured; 0 while not settled
    spill: int
    species_token: int
    settled: bool
    ions_left: float
    fault_code: int


@runtime_checkable
class BeamSource(Connectable, Protocol):
    """Source, linac, synchrotron and the switchyard to the rooms."""

    @property
    def status(self) -> AcceleratorStatus: ...

    async def select_species(self, ion: Ion) -> None:
        """Switch source and linac; returns when the new species is measured."""
        ...

    async def select_route(self, route: str) -> None:
        """Open the path to a room (`G1`, `F1:90`), or close all (`none`)."""
        ...

    async def start_cycle(self, energy_mev_u: float) -> None:
        """Refill and accelerate to a flattop; returns when settled there."""
        ...

    async def step_to(self, energy_mev_u: float) -> None:
        """Step down on the flattop; returns when settled."""
        ...

    async def switch_off(self) -> None:
        """Dump the ring."""
        ...


@runtime_checkable
class PowerSupply(Connectable, Protocol):
    """The dipole and quadrupole supplies of a room's magnets, set together."""

    @property
    def magnet_names(self) -> tuple[str, ...]: ...

    async def set_currents(self, energy_kev_u: int, dipole_a: NDArray[np.float64], quadrupole_a: NDArray[np.float64]) -> None:
        """Ramp all to the currents of one energy; returns when all have settled within tolerance."""
        ...

    async def read_currents(self) -> Reading[NDArray[np.float64]]:
        """Measured currents, dipoles then quadrupoles, A."""
        ...


class ScanMode(IntEnum):
    """How the unit goes from spot to spot."""

    RASTER = 0
    SPOT = 1


@dataclass(frozen=True, slots=True)
class ScannerMap:
    """Library row as the delivery unit needs it for one energy: isocentre mm to scanner A, monitor mm to isocentre mm."""

    energy_kev_u: int
    x0_a: float
    xx_a_mm: float
    xy_a_mm: float
    y0_a: float
    yx_a_mm: float
    yy_a_mm: float
    monitor_x0_mm: float
    monitor_xgain: float
    monitor_y0_mm: float
    monitor_ygain: float
    counts1_per_ion: float
    counts2_per_ion: float
    focus_id: int
    library_version: int


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """Permission to deliver at most these counts at these places: one message, journalled before it is sent.

    Arrays have shape (n,), int32 on the wire. See docs/wires.md, Grant.
    """

    unit_boot_id: int
    grant_id: int
    plan_hash: int
    fraction: int
    beam_number: int
    layer_index: int
    painting: int
    species_token: int
    energy_kev_u: int
    scan_mode: ScanMode
    intensity_per_s: int
    quantum_counts: int
    spot_index: NDArray[np.int32]
    x_um: NDArray[np.int32]
    y_um: NDArray[np.int32]
    counts1_max: NDArray[np.int32]
    counts2_max: NDArray[np.int32]

    @property
    def rows(self) -> int:
        """Number of spots granted."""
        return int(self.spot_index.size)


class UnitState(IntEnum):
    """State of the delivery unit."""

    IDLE = 0
    GRANTED = 1
    DELIVERING = 2
    HELD = 3
    FINISHED = 4
    ENDED_EARLY = 5
    LATCHED = 6


class Hold(IntFlag):
    """Why an open grant is held."""

    GATE = 1
    CONTROLLER = 2
    SPILL = 4
    ENERGY = 8
    PAUSE_LIMIT = 16


class EndReason(IntEnum):
    """Why a grant ended."""

    NONE = 0
    FINISHED = 1
    ABORTED = 2
    PERMIT_LOST = 3
    POSITION = 4
    DOSE_1 = 5
    DOSE_2 = 6
    MONITORS_DISAGREE = 7
    RATE = 8
    TOKEN = 9
    MONITOR_DEAD = 10
    SECOND_UNIT = 11
    STRAY_COUNTS = 12
    SUPPLY = 13


class PieceFlag(IntFlag):
    """How a delivered piece of a row ended."""

    ROW_ENDED = 1
    CUT_GATE = 2
    CUT_SPILL = 4
    CUT_PERMIT = 8
    CUT_UNIT = 16
    GATE_OPEN = 32
    CUT_CONTROLLER = 64


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """What the delivery unit says of itself."""

    t_ns: int
    boot_id: int
    state: UnitState
    last_grant_id: int
    open_grant_id: int
    open_row: int
    reason: EndReason
    hold: Hold
    counts1_total: int
    counts2_total: int
    rows_finished: int
    latched: bool


@dataclass(frozen=True, slots=True)
class UnitLatch:
    """What survives a power loss in the delivery unit."""

    boot_id: int
    grant_id: int
    last_finished_row: int
    open_row_counts1: int
    open_row_counts2: int
    total_counts1: int
    total_counts2: int


# One delivered piece of a granted row, as the unit reports it.
PIECE_DTYPE = np.dtype(
    [
        ("row", np.int32),
        ("spot_index", np.int32),
        ("spill", np.int32),
        ("x_um", np.int32),
        ("y_um", np.int32),
        ("sigma_x_um", np.int32),
        ("sigma_y_um", np.int32),
        ("counts1", np.int64),
        ("counts2", np.int64),
        ("t_start_ns", np.int64),
        ("t_end_ns", np.int64),
        ("flags", np.int32),
    ]
)


@runtime_checkable
class DeliveryUnit(Connectable, Protocol):
    """The hardware that executes grants (an FPGA in reality)."""

    @property
    def status(self) -> UnitStatus: ...

    async def load_map(self, scanner_map: ScannerMap) -> None: ...

    async def submit(self, grant: Grant) -> int:
        """Send a grant and verify its echo; returns the CRC that starts it. Raises CommandRejected with the unit's reason."""
        ...

    async def start(self, grant_id: int, crc: int) -> None:
        """Begin the granted rows."""
        ...

    async def wait_ended(self, grant_id: int) -> UnitStatus:
        """Wait until the grant is no longer open (finished, ended early or latched)."""
        ...

    async def results(self, grant_id: int) -> NDArray[np.void]:
        """All pieces of a grant, contiguous and checked, dtype PIECE_DTYPE."""
        ...

    async def set_gate(self, open_: bool) -> None:
        """The controller may close the gate further, and withdraw that; it can never open the sensor's own gate."""
        ...

    async def abort(self) -> None:
        """End the open grant now. Always accepted."""
        ...

    async def read_latch(self) -> UnitLatch: ...

    async def reset(self) -> None:
        """Clear the latch after its cause was reconciled."""
        ...


@dataclass(frozen=True, slots=True)
class DoseMonitorStatus:
    """The second dose unit."""

    t_ns: int
    boot_id: int
    state: int  # 0 idle, 1 watching, 2 tripped
    counts2_total: int
    hv_good: bool
    fresh: bool
    trip_reason: int
    self_test_age_s: int


@runtime_checkable
class DoseMonitor(Connectable, Protocol):
    """The second, independent dose unit with its own ceiling."""

    @property
    def status(self) -> DoseMonitorStatus: ...

    async def start_field(self, field_counts_max: int, spot_counts_max: int) -> None:
        """Load ceilings and zero the field total."""
        ...

    async def self_test(self) -> None:
        """Test both dose channels; raises DeviceError when either fails."""
        ...

    async def acknowledge(self) -> None:
        """Clear a trip whose dose was accounted for; beam needs a new field."""
        ...


# --- room ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoomStatus:
    """Remote I/O of a room: what the safety system lets us see."""

    t_ns: int
    door_closed: bool
    search_complete: bool
    search_state: int
    estop_healthy: bool
    lamp_lit: bool
    stopper_closed: bool
    beam_present: bool
    permit_a: bool
    permit_b: bool
    permit_r: bool
    beam_enabled: bool
    chain_a_bits: int
    service_mode: bool

    @property
    def secured(self) -> bool:
        """Searched, closed and healthy: nobody is in the room."""
        return self.door_closed and self.search_complete and self.estop_healthy


@runtime_checkable
class RoomAccess(Connectable, Protocol):
    """Door, search, lamps, and the request contribution R."""

    @property
    def status(self) -> RoomStatus: ...

    async def refresh(self) -> RoomStatus:
        """Read now."""
        ...

    async def preset(
        self, room_token: int, angle_deg: float, species_token: int, armed: bool, plan_hash: int = 0, beam_number: int = 0
    ) -> None:
        """Tell the interlock system what was selected, and of which plan (its 31-bit hash, 0: none) and beam."""
        ...

    def request_beam(self, on: bool) -> None:
        """Start or stop the request pulse. Synchronous: a trip drops it in the same step."""
        ...

    def gate(self, fed: Callable[[int], bool] | None) -> None:
        """Let `fed(ns since the last one, 0 the first)` say of each pulse, in the step in which it would leave, if it may."""
        ...


@dataclass(frozen=True, slots=True)
class InterlockStatus:
    """The interlock system's own, read-only status line."""

    t_ns: int
    relay_closed: bool
    active_trips: int
    first_out_code: int
    boot_id: int
    first_out_value: int = 0  # in the unit of the row
    first_out_limit: int = 0
    first_out_input: int = 0xFFFF  # index in the row; 0x8000 added: not believed; 0xFFFF: none
    motion_permitted: bool | None = None  # the motion relay is closed; None: the room has none that could be read
    motion_code: int = 0  # of the row that withholds motion; 0: none
    motion_row: str = ""  # that row in words, where its code is known
    motion_advice: str = ""  # what to do about it
    first_out_row: str = ""  # the row that tripped first in words, where its code is known
    first_out_advice: str = ""


@runtime_checkable
class InterlockView(Connectable, Protocol):
    """What the interlock system shows."""

    @property
    def status(self) -> InterlockStatus: ...

    async def refresh(self) -> InterlockStatus: ...


@runtime_checkable
class MotionSensor(Connectable, Protocol):
    """A breathing signal; supervision and record only."""

    async def read_amplitude(self) -> Reading[float]: ...


@runtime_checkable
class Imager(Connectable, Protocol):
    """Two X-ray images registered to the plan's references."""

    async def registered_correction(self) -> Mapping[str, float]:
        """Correction in `COUCH_AXES` that would bring the patient to the planned place."""
        ...


@dataclass(frozen=True, slots=True)
class RoomDevices:
    """Everything one room is treated with."""

    gantry: Axis
    couch: AxisGroup
    snout: Snout
    magnets: PowerSupply
    accelerator: BeamSource
    unit: DeliveryUnit
    dose_monitor: DoseMonitor
    access: RoomAccess
    interlock: InterlockView
    imager: Imager
    motion_sensor: MotionSensor | None = None  # shown and recorded where there is one; beam does not need it

    def all(self) -> tuple[Connectable, ...]:
        """Every device, in the order in which they are connected."""
        needed: tuple[Connectable, ...] = (
            self.access,
            self.interlock,
            self.gantry,
            self.couch,
            self.snout,
            self.accelerator,
            self.magnets,
            self.unit,
            self.dose_monitor,
            self.imager,
        )
        return needed if self.motion_sensor is None else (*needed, self.motion_sensor)
