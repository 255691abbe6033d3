"""What a treatment hands to its records: one fraction, its beams, and the passes (executed grants) of each beam.

Frozen values filled by delivery and read by spot table, DICOM record, report and summary. All times are loop time in integer
ns; `FractionOutcome.utc` alone turns them into a date. Not responsible for computing anything beyond sums that all readers
share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from controller.plan.model import Beam, Plan
from drivers.hal.capabilities import PIECE_DTYPE, EndReason, Grant
from drivers.hal.clock import NS_PER_S, NS_PER_US

Floats = NDArray[np.float64]


class Status(Enum):
    """How a fraction or a beam ended (summary.json)."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    REFUSED = "refused"
    FAULT = "fault"


class Termination(Enum):
    """DICOM TreatmentTerminationStatus (3008,002A)."""

    NORMAL = "NORMAL"
    OPERATOR = "OPERATOR"
    MACHINE = "MACHINE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted: a spill, a hold, a room state. `label` says which (a number, a cause, a state)."""

    t_start_ns: int
    t_end_ns: int
    label: str = ""

    @property
    def duration_s(self) -> float:
        """Length in s."""
        return (self.t_end_ns - self.t_start_ns) / NS_PER_S


@dataclass(frozen=True, slots=True)
class Interlock:
    """One trip. The first of a chain has `first_out`; those that followed from it do not."""

    t_ns: int
    name: str  # row of the limits file or cause of the room, for example "position"
    description: str
    device: str = ""
    first_out: bool = True
    resolution: str = ""  # how it was cleared; empty while it stands
    resolved_by: str = ""


@dataclass(frozen=True, slots=True)
class Override:
    """A check that somebody set aside, with a reason. `name` as on the command line: machine, approval."""

    t_ns: int
    name: str
    reason: str
    operator: str = ""
    detail: str = ""  # planned and actual value, for people


@dataclass(frozen=True, slots=True)
class SignedInterval:
    """What a beam received over all its sessions, where that had to be accepted by a signature. Counts of monitor 1.

    Attributes:
        counts1_lower, counts1_upper: bounds; equal when the counts are known and something else was in doubt.
        doubt: why it had to be signed.
        signed_by, reason: who accepted it, and on what.
    """

    beam_number: int
    counts1_planned: int
    counts1_lower: int
    counts1_upper: int
    doubt: str
    signed_by: str
    reason: str

    @property
    def exact(self) -> bool:
        """Whether the counts are known all the same."""
        return self.counts1_lower == self.counts1_upper

    @property
    def share(self) -> tuple[float, float]:
        """The bounds as a share of the plan, %."""
        planned = max(self.counts1_planned, 1)
        return 100.0 * self.counts1_lower / planned, 100.0 * self.counts1_upper / planned

    def __str__(self) -> str:
        low, high = self.share
        known = f"received {self.counts1_lower} counts, {low:.2f} % of plan"
        if not self.exact:
            known = (
                f"is known only between {self.counts1_lower} and {self.counts1_upper} counts, {low:.2f} to {high:.2f} % of plan"
            )
        return (
            f"beam {self.beam_number} {known} ({self.doubt or 'no reason stated'}), accepted by {self.signed_by}: {self.reason}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class PassOutcome:
    """One executed grant.

    Attributes:
        grant: as sent.
        pieces: what came back, dtype PIECE_DTYPE, in the unit's order; may be empty.
        reason: why it ended.
        attempt: counts the grants of this layer and painting from 1.
        t_granted_ns, t_started_ns, t_ended_ns: journalled, started, seen to have ended.
        gantry_angle_deg: measured when it was started.
        interlock: name of the interlock that ended it; empty when none did.
    """

    grant: Grant
    pieces: NDArray[np.void]
    reason: EndReason
    attempt: int
    t_granted_ns: int
    t_started_ns: int
    t_ended_ns: int
    gantry_angle_deg: float
    interlock: str = ""


@dataclass(frozen=True, eq=False)
class BeamOutcome:
    """One beam of the fraction.

    Attributes:
        beam: the plan's beam.
        passes: in the order of delivery; empty when none was granted.
        counts1_per_meterset, counts2_per_meterset: counts per unit of the beam's meterset, per layer in the plan's order, shape
            (layers,), from the beam library as used for the grants.
        status, termination: how it ended.
        reason: why it ended early, for people; empty when complete.
        gantry_angle_deg: measured at the end of positioning.
        couch: measured axes by the names of COUCH_AXES; empty when not read.
        snout_mm, range_shifters: measured set-up.
        t_begin_ns, t_end_ns: from selection to the end of the beam.
        machine_limited_s: what an oracle would have needed; None when nobody measured it.
        continuation: this beam finishes an earlier, partial one.
        received_before: counts of monitor 1 of earlier attempts per spot, flat; None when there were none.
    """

    beam: Beam
    passes: tuple[PassOutcome, ...]
    counts1_per_meterset: Floats
    counts2_per_meterset: Floats
    status: Status
    termination: Termination
    reason: str = ""
    gantry_angle_deg: float = 0.0
    couch: Mapping[str, float] = field(default_factory=dict)
    snout_mm: float | None = None
    range_shifters: tuple[str, ...] = ()
    t_begin_ns: int = 0
    t_end_ns: int = 0
    machine_limited_s: float | None = None
    continuation: bool = False
    received_before: NDArray[np.int64] | None = None

    @cached_property
    def layer_offsets(self) -> NDArray[np.int64]:
        """First flat position of each layer, and the total at the end; shape (layers + 1,)."""
        return np.concatenate([[0], np.cumsum([layer.spots for layer in self.beam.layers])]).astype(np.int64)

    @cached_property
    def pieces(self) -> NDArray[np.void]:
        """Pieces of all passes, one after another."""
        arrays = [p.pieces for p in self.passes if p.pieces.size]
        return np.concatenate(arrays) if arrays else np.zeros(0, dtype=PIECE_DTYPE)

    @cached_property
    def beam_on_s(self) -> float:
        """Time during which a spot was being irradiated."""
        return float((self.pieces["t_end_ns"] - self.pieces["t_start_ns"]).sum()) / NS_PER_S

    @cached_property
    def irradiation_s(self) -> float:
        """From the first ion to the last: beam on, steps, refills and holds."""
        if self.pieces.size == 0:
            return 0.0
        return float(self.pieces["t_end_ns"].max() - self.pieces["t_start_ns"].min()) / NS_PER_S


@dataclass(frozen=True, slots=True)
class Machine:
    """Who delivered, for the record. `simulated` is said in every name a reader may look at."""

    facility: str
    room: str
    machine_name: str
    simulated: bool
    institution: str = ""
    manufacturer: str = "iongantry"
    model: str = "iongantry"
    serial_number: str = ""
    software_version: str = ""


@dataclass(frozen=True, slots=True)
class LoopLag:
    """How late the controller's loop was, ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, eq=False)
class FractionOutcome:
    """One fraction of a plan, from the command to the last beam off.

    Attributes:
        plan, fraction: what was asked.
        machine: where.
        seed: of the simulated world; None without one.
        started_utc: date of loop time `t_origin_ns`; a fixed date in virtual time, so that equal runs give equal files.
        beams: those that were selected, delivered or not.
        status, termination, reason: how it ended.
        research: an override was used.
        operator: name for the record.
        motion: measured gantry angle, (t_ns, angle_deg), coarse; at least the corners.
        spills, holds, states: as seen by the controller; a hold's label is its cause.
        interlocks: first-out first.
        overrides: in order.
        loop_lag, wall_s: measures of the run.
        intervals: beams of the treatment, of whatever session, whose dose had to be accepted by a signature.
        run_id: what tells two runs of one fraction apart in the UIDs; the journal's boot id is fine.
    """

    plan: Plan
    fraction: int
    machine: Machine
    seed: int | None
    started_utc: datetime
    t_origin_ns: int
    beams: tuple[BeamOutcome, ...]
    status: Status
    termination: Termination
    reason: str = ""
    research: bool = False
    operator: str = ""
    motion: tuple[tuple[int, float], ...] = ()
    spills: tuple[Span, ...] = ()
    holds: tuple[Span, ...] = ()
    states: tuple[Span, ...] = ()
    interlocks: tuple[Interlock, ...] = ()
    overrides: tuple[Override, ...] = ()
    intervals: tuple[SignedInterval, ...] = ()
    loop_lag: LoopLag = LoopLag(0.0, 0.0, 0.0)
    wall_s: float = 0.0
    run_id: int = 0

    @property
    def known_within_an_interval(self) -> bool:
        """Every beam of this session was completed, and what a beam received over all sessions is known only between bounds."""
        completed = all(beam.status is Status.COMPLETE for beam in self.beams)
        return self.status is Status.PARTIAL and completed and not all(interval.exact for interval in self.intervals)

    def interval_of(self, beam_number: int) -> SignedInterval | None:
        """The signed interval of a beam, if there is one."""
        return next((interval for interval in self.intervals if interval.beam_number == beam_number), None)

    def utc(self, t_ns: int) -> datetime:
        """Date of a loop time, to the microsecond."""
        return self.started_utc + timedelta(microseconds=(t_ns - self.t_origin_ns) // NS_PER_US)
