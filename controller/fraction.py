"""Treats the beams of one fraction in one room, a session each, and turns what happened into outcomes for the record.

Sees capabilities only: the same code runs on hardware, a rig or simulators. Not responsible for putting devices together
(`assembly`), for refusing a plan (`intake`), nor for writing the outputs (`outputs`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.beam.request import BeamPass, BeamRequest, PreparedBeam
from controller.delivery.layers import BeamDelivery, Delivered, Expected
from controller.intake import Intake
from controller.plan.deliverability import machine_angle_deg
from controller.plan.errors import PlanError, Why
from controller.plan.model import Beam
from controller.plan.nominal import stopping_power_mev_cm2_g
from controller.plan.schedule import BeamSchedule, Pass
from controller.plan.schedule import planned_counts as layer_counts
from controller.record.entries import BeamClaim, write_claim, write_closed
from controller.record.journal import Journal
from controller.record.ledger import BeamKey, Claim, Ledger, Received
from controller.record.outcome import BeamOutcome, PassOutcome, Status, Termination
from controller.record.reconcile import BeamReconciliation, counts_between, reconcile, record_outcomes
from controller.room.causes import Severity
from controller.room.machine import Room
from controller.room.ports import BeamSharing, DeliveryContext, DeliveryResult, Job, OperatorPort, Tuned
from controller.room.positioning import Placement
from controller.room.session import Outcome, Session, SessionResult
from controller.room.supervision import Timing
from drivers.hal.capabilities import RoomDevices
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError
from drivers.hal.events import Event, EventBus

EXCESS_GY = 0.25  # what the second unit allows beyond the plan, over one spot (IEC 60601-2-64 as quoted)
WATER_I_EV, WATER_Z_OVER_A = 78.0, 0.55508
GY_MM2_PER_MEV_CM2_G = 1.602177e-8  # dose of one particle per mm2 with a mass stopping power of 1 MeV cm2/g
REUNION_S = 60.0  # for a delivery unit whose server is started again to tell what it gave (assumed)
REUNION_POLL_S = 1.0
LATCH_S = 2.0  # for the unit to tell what it kept of a grant whose results are lost
EMERGENCY_STOP = "room.estop"  # a fault of the room, which has to be acknowledged, and none of the program
OPERATOR_DECLINED = "[4307]"
SPOT_MARGIN = 1.05
SPOT_MARGIN_COUNTS = 20


def counts1_per_gy_mm2(prepared: PreparedBeam) -> float:
    """Counts of monitor 1 per gray and mm2 in the entrance: counts per ion over the dose that one ion per mm2 gives.

    Carbon of 430 MeV/u: about 6e5 ions per mm2 and gray, 7.5e3 counts of 0.02 pC.
    """
    ion, energy = prepared.entry.ion, prepared.entry.energy_kev_u / 1000.0
    stopping = stopping_power_mev_cm2_g(ion, energy, WATER_I_EV, WATER_Z_OVER_A)
    return prepared.entry.counts1_per_ion / (GY_MM2_PER_MEV_CM2_G * stopping)


@dataclass(slots=True)
class BeamRun:
    """One beam while it is treated."""

    beam: Beam
    schedule: BeamSchedule
    angle_deg: float
    request: BeamRequest
    claim: Claim | None = None
    delivery: BeamDelivery | None = None
    prepared: PreparedBeam | None = None
    t_begin_ns: int = 0
    angles_deg: dict[int, float] = field(default_factory=dict)  # by grant id
    machine_limited_s: float | None = None


class RoomTuner:
    """`Tuner` of both room and delivery: the library row of a pass, on accelerator, magnets and unit.

    Args:
        run: the beam it tunes for.
        room: room name.
    """

    def __init__(self, run: BeamRun, room: str) -> None:
        self._run = run
        self._room = room
        self._cycle = -1

    async def tune(self, job: Job, devices: RoomDevices, placement: Placement) -> Tuned:
        """First layer, and the second dose unit's ceilings for the whole field."""
        first = self._run.schedule.passes[0]
        prepared = await self._prepare(first)
        ratio = _ratio(prepared)
        area_mm2 = 2.0 * math.pi * prepared.entry.sigma_x_mm * prepared.entry.sigma_y_mm
        passes = self._run.schedule.passes
        planned1 = sum(int(p.counts1.sum()) for p in passes)
        largest1 = max(int(p.counts1.max()) + p.quantum_counts for p in passes)
        return Tuned(
            species_token=first.ion.token,
            energy_kev_u=prepared.entry.energy_kev_u,
            field_counts2_max=math.ceil(ratio * (planned1 + EXCESS_GY * area_mm2 * counts1_per_gy_mm2(prepared))),
            spot_counts2_max=math.ceil(ratio * largest1 * SPOT_MARGIN) + SPOT_MARGIN_COUNTS,
        )

    async def prepare(self, scheduled: Pass) -> Expected:
        """Energy, magnets and map of a pass."""
        prepared = await self._prepare(scheduled)
        return Expected(_ratio(prepared), prepared.entry.sigma_x_mm, prepared.entry.sigma_y_mm)

    async def _prepare(self, scheduled: Pass) -> PreparedBeam:
        new_cycle = scheduled.cycle_index != self._cycle
        prepared = await self._run.request.prepare(
            BeamPass(
                ion=scheduled.ion,
                energy_mev_u=scheduled.energy_mev_u,
                room=self._room,
                angle_deg=self._run.angle_deg,
                ions=scheduled.ions,
                duration_s=scheduled.duration_s,
                new_cycle=new_cycle and scheduled.cycle_index > 0,
            )
        )
        self._cycle = scheduled.cycle_index
        self._run.prepared = prepared
        return prepared


def _ratio(prepared: PreparedBeam) -> float:
    scanner_map = prepared.entry.scanner_map
    return scanner_map.counts2_per_ion / scanner_map.counts1_per_ion


class Fraction:
    """All beams of one fraction.

    Args:
        intake: what to treat.
        number: fraction number.
        devices: the room's, connected.
        supervisor: gives the beam token.
        operator: who confirms.
        journal: of this run.
        ledger: of the facility; None for service measurements.
        bus: events.
        machine_limited_s: what an oracle says of a beam afterwards; None where there is none.
        simulated: for the ledger's details.
        before: what earlier sessions gave, by beam number; the intake's schedules hold what is left.
        room: the room machine where it outlives the fraction; None makes one.
        console_alive: False when the console that commands the room was lost; None when nothing depends on one.
        timing: of the sessions; None: theirs.
    """

    def __init__(
        self,
        intake: Intake,
        number: int,
        devices: RoomDevices,
        supervisor: BeamSharing,
        operator: OperatorPort,
        journal: Journal,
        ledger: Ledger | None,
        bus: EventBus,
        *,
        machine_limited_s: Callable[[int], Awaitable[float | None]] | None = None,
        simulated: bool = True,
        before: Mapping[int, Received] | None = None,
        room: Room | None = None,
        console_alive: Callable[[], bool] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._intake = intake
        self._number = number
        self._devices = devices
        self._supervisor = supervisor
        self._operator = operator
        self._journal = journal
        self._ledger = ledger
        self._bus = bus
        self._machine_limited_s = machine_limited_s
        self._simulated = simulated
        self._before = before or {}
        self.room = room or Room(intake.room.name, devices.access, bus)
        self._console_alive = console_alive
        self._timing = timing
        self.current: BeamRun | None = None  # the beam that is treated, or was treated last
        self.session: Session | None = None
        self.outcomes: list[BeamOutcome] = []
        self._stopped = ""

    @property
    def before(self) -> Mapping[int, Received]:
        """What earlier sessions gave, by beam number."""
        return self._before

    @property
    def written_in(self) -> Path:
        """The journal of this session, which lies in its treatment's directory."""
        return self._journal.path

    def stop(self, why: str) -> None:
        """End the fraction now, whatever it is doing: beam off, brakes set, what was delivered recorded. Never refused."""
        self._stopped = self._stopped or why
        if self.session is not None:
            self.session.stop(why)

    async def run(self) -> None:
        """Treat the beams in the plan's order; the first that does not complete ends the fraction. See `outcomes`."""
        try:
            for beam, schedule in zip(self._intake.beams, self._intake.schedules, strict=True):
                if self._stopped:
                    break
                await self._treat(beam, schedule)
                if self.outcomes[-1].status is not Status.COMPLETE:
                    break
        finally:
            self.outcomes += [self._unbegun(beam) for beam in self._intake.beams[len(self.outcomes) :]]

    async def _treat(self, beam: Beam, schedule: BeamSchedule) -> None:
        intake = self._intake
        angle_deg = machine_angle_deg(intake.room, beam.gantry_angle_deg)
        if angle_deg is None:
            raise PlanError(f"beam {beam.number} cannot be reached in {intake.room.name}", code=Why.GANTRY)
        request = BeamRequest(
            self._devices.accelerator,
            self._devices.magnets,
            self._devices.unit,
            intake.library,
            intake.room,
            intake.facility.accelerator,
            self._bus,
        )
        run = self.current = BeamRun(beam, schedule, angle_deg, request, t_begin_ns=now_ns())
        self._bus.emit(
            "fraction",
            "beam.selected",
            beam_number=beam.number,
            name=beam.name,
            layers=len(beam.layers),
            spots=sum(int(p.spot_index.size) for p in schedule.passes),
            meterset=beam.meterset,
            unit=beam.meterset_unit,
        )
        tuner = RoomTuner(run, intake.room.name)
        self.session = Session(
            self.room,
            intake.room,
            self._devices,
            self._operator,
            self._supervisor,
            tuner,
            lambda context: self._deliver(context, run, tuner),
            Job.of(intake.plan, beam.number, self._number),
            self._bus,
            timing=self._timing,
            console_alive=self._console_alive,
        )
        broken: BaseException | None = None
        forget = self._bus.subscribe(partial(self._note_angle, run))
        try:
            result = await self.session.run()
        except BaseException as error:  # noqa: BLE001 - raised again, after what was delivered is in ledger and record
            broken, result = error, self.session.result()
        finally:
            forget()
        delivered = run.delivery.delivered if run.delivery is not None else Delivered()
        closed = True
        try:
            if run.delivery is not None:
                await self._wait_for_results(run.delivery)
            unsettled = await self._reconcile(delivered)
            if unsettled is not None:
                delivered.complete = False
                words = (result.reason, *unsettled.reasons, _not_in_the_record(delivered, unsettled))
                result = replace(result, reason="; ".join(filter(None, words)))
            self._close(run, delivered, result, unsettled)
        except Exception as error:  # noqa: BLE001 - then ledger and journal say open, which counts with all that was granted
            closed = False
            broken = broken if isinstance(error, BeamlineError) else broken or error
            self._bus.emit("fraction", "close.failed", beam_number=beam.number, error=str(error))
            result = replace(result, reason="; ".join(filter(None, (result.reason, str(error)))))
        if broken is None and result.outcome in (Outcome.COMPLETE, Outcome.PARTIAL):
            await self.session.close_out()
        if delivered.runs and self._machine_limited_s is not None:
            run.machine_limited_s = await self._machine_limited_s(run.beam.number)
        self.outcomes.append(self._outcome(run, delivered, result, closed=closed))
        if broken is not None:
            raise broken

    def _note_angle(self, run: BeamRun, event: Event) -> None:
        """What the gantry reads as a grant is started; where it does not read soundly, the angle of positioning stands."""
        if event.kind != "pass.started":
            return
        for reading in self._devices.gantry.readings():
            if reading.name.endswith(".angle") and reading.good and isinstance(reading.value, float):
                run.angles_deg[int(event.data["grant_id"])] = reading.value
                return

    async def _deliver(self, context: DeliveryContext, run: BeamRun, tuner: RoomTuner) -> DeliveryResult:
        """The room's `Deliver`: claim, deliver, and say what became of it. Called once per session, resumes included."""
        unit = self._devices.unit
        flat = planned_counts(run.beam, run.schedule)
        key = BeamKey(self._intake.plan.uid, self._number, run.beam.number)
        before, head = self._before.get(run.beam.number), self._journal.head
        if self._ledger is not None:
            run.claim = self._ledger.claim(
                key,
                flat,
                details={
                    "room": context.room,
                    "plan_hash": self._intake.plan.plan_hash,
                    "simulated": self._simulated,
                    "journal_seq": head.seq,
                    "journal_sha256": head.sha256.hex(),
                },
                journal=str(self._journal.path),
                resume=before is not None,
                after_claims=before.claims if before is not None else 0,
            )
        prepared = run.prepared
        status = unit.status
        write_claim(
            self._journal,
            BeamClaim(
                plan_uid=key.plan_uid,
                fraction=key.fraction,
                beam_number=key.beam_number,
                plan_hash=self._intake.plan.plan_hash,
                unit_boot_id=status.boot_id,
                counts1_base=status.counts1_total,
                counts2_base=status.counts2_total,
                counts2_per_count1=_ratio(prepared) if prepared is not None else 1.0,
                layer_spots=np.array([layer.spots for layer in run.beam.layers], dtype=np.int32),
                claimed_counts1=flat,
            ),
        )
        run.delivery = BeamDelivery(
            unit=unit,
            tuner=tuner,
            control=context.control,
            journal=self._journal,
            bus=self._bus,
            plan_hash=self._intake.plan.plan_hash,
            fraction=self._number,
            watchdog=context.watchdog,
        )
        delivered = await run.delivery.run(run.schedule.passes)
        counts1 = sum(int(r.pieces["counts1"].sum()) for r in delivered.runs)
        counts2 = sum(int(r.pieces["counts2"].sum()) for r in delivered.runs)
        return DeliveryResult(delivered.complete, True, counts1, counts2, delivered.reason, delivered)

    async def _wait_for_results(self, delivery: BeamDelivery) -> None:
        """Beam is off and the unit does not answer: its server may be back in a moment, and the unit holds what it gave."""
        if not delivery.delivered.unsettled or await delivery.fetch_lost():
            return
        self._bus.emit("fraction", "results.awaited", grants=sorted(delivery.delivered.unsettled), for_s=REUNION_S)
        deadline_ns = now_ns() + round(REUNION_S * NS_PER_S)
        while now_ns() < deadline_ns:
            await asyncio.sleep(REUNION_POLL_S)
            if await delivery.fetch_lost(tell=False):
                return

    async def _reconcile(self, delivered: Delivered) -> BeamReconciliation | None:
        """Where results of a grant were lost: what the unit's latch says of it, or the interval up to all of it."""
        if not delivered.unsettled:
            return None
        unit, latch = self._devices.unit, None
        try:
            async with asyncio.timeout(LATCH_S):
                if not unit.status.open_grant_id:
                    latch = await unit.read_latch()
        except (BeamlineError, TimeoutError) as error:
            self._bus.emit("fraction", "latch.unreadable", error=str(error))
        return reconcile(self._journal.records(), latch)[-1]

    def _close(
        self, run: BeamRun, delivered: Delivered, result: SessionResult, unsettled: BeamReconciliation | None = None
    ) -> None:
        """Close the beam in journal and ledger: what the pieces say, per spot, and for lost ones what bounds them."""
        if run.delivery is None:
            return
        if unsettled is not None:
            record_outcomes(self._journal, unsettled)
        if run.claim is not None and self._ledger is not None:
            self._close_claim(self._ledger, run.claim, run.beam, delivered, result, unsettled)
        write_closed(self._journal, run.beam.number, "complete" if delivered.complete else "partial", result.reason)

    def _close_claim(
        self,
        ledger: Ledger,
        claim: Claim,
        beam: Beam,
        delivered: Delivered,
        result: SessionResult,
        unsettled: BeamReconciliation | None,
    ) -> None:
        """What was received, in the ledger. Spots that were found wrong wait for a physicist."""
        counts1, counts2 = self._counts_per_meterset(beam)
        lower, upper = received_counts(beam, delivered, counts2 / counts1)
        if unsettled is not None:
            lower, upper = unsettled.received()
        ledger.close_claim(
            claim,
            lower,
            upper,
            complete=delivered.complete,
            reason=result.reason,
            needs_signature=bool(delivered.findings) or (unsettled is not None and unsettled.needs_signature),
        )

    def _outcome(self, run: BeamRun, delivered: Delivered, result: SessionResult, *, closed: bool) -> BeamOutcome:
        angle = result.placement.ring.angle.value if result.placement is not None else run.angle_deg
        cause = result.causes[0] if result.causes else None
        last = len(delivered.runs) - 1
        passes = tuple(
            PassOutcome(
                grant=r.grant,
                pieces=r.pieces,
                reason=r.reason,
                attempt=r.attempt,
                t_granted_ns=r.granted_ns,
                t_started_ns=r.started_ns,
                t_ended_ns=r.ended_ns,
                gantry_angle_deg=run.angles_deg.get(r.grant.grant_id, angle),
                interlock=cause.name if cause is not None and i == last and not delivered.complete else "",
            )
            for i, r in enumerate(delivered.runs)
        )
        status, termination = _status(delivered, result, stopped=bool(self._stopped))
        if not closed:
            status, termination = Status.FAULT, Termination.MACHINE
        before = self._before.get(run.beam.number)
        counts1, counts2 = self._counts_per_meterset(run.beam)
        couch = result.placement.couch_values() if result.placement is not None else {}
        snout, shifters = (result.placement.snout.value, result.placement.range_shifters) if result.placement else (None, ())
        return BeamOutcome(
            beam=run.beam,
            passes=passes,
            counts1_per_meterset=counts1,
            counts2_per_meterset=counts2,
            status=status,
            termination=termination,
            reason=result.reason if status is not Status.COMPLETE else "",
            gantry_angle_deg=angle,
            couch=couch,
            snout_mm=snout,
            range_shifters=tuple(shifters),
            t_begin_ns=run.t_begin_ns,
            t_end_ns=now_ns(),
            machine_limited_s=run.machine_limited_s,
            continuation=before is not None and bool(before.upper.any()),
            received_before=before.upper if before is not None else None,
        )

    def _unbegun(self, beam: Beam) -> BeamOutcome:
        """A beam that was not reached: planned, and nothing given."""
        counts1, counts2 = self._counts_per_meterset(beam)
        before, t_ns = self._before.get(beam.number), now_ns()
        return BeamOutcome(
            beam=beam,
            passes=(),
            counts1_per_meterset=counts1,
            counts2_per_meterset=counts2,
            status=Status.REFUSED,
            termination=Termination.OPERATOR if self._stopped else Termination.MACHINE,
            reason=f"not begun: {self._stopped or 'an earlier beam was not completed'}",
            gantry_angle_deg=beam.gantry_angle_deg,
            t_begin_ns=t_ns,
            t_end_ns=t_ns,
            received_before=before.upper if before is not None else None,
        )

    def _counts_per_meterset(self, beam: Beam) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts of monitor 1 and 2 per unit of a beam's meterset, per layer in the plan's order."""
        intake = self._intake
        conversions = [c for _, c in layer_counts(beam, intake.facility, intake.room, intake.library)]
        counts1 = np.array([c.counts1_per_unit for c in conversions])
        return counts1, np.array([c.counts1_per_unit * c.counts2_per_count1 for c in conversions])


def _not_in_the_record(delivered: Delivered, unsettled: BeamReconciliation) -> str:
    """Dose that ledger and journal state and the record cannot show, because no results of it are left."""
    shown = sum(int(run.pieces["counts1"].sum()) for run in delivered.runs)
    lower, upper = (int(counts.sum()) for counts in unsettled.received())
    if upper <= shown:
        return ""
    between = f"{lower - shown}" if lower == upper else f"between {max(0, lower - shown)} and {upper - shown}"
    grants = ", ".join(str(grant_id) for grant_id in sorted(delivered.unsettled))
    return f"THIS RECORD LACKS {between} counts of monitor 1 given by grant {grants}, whose results are lost; see the ledger"


def planned_counts(beam: Beam, schedule: BeamSchedule) -> NDArray[np.int64]:
    """Counts of monitor 1 planned per spot, flat in the plan's order, over all paintings."""
    offsets = np.concatenate([[0], np.cumsum([layer.spots for layer in beam.layers])])
    flat = np.zeros(int(offsets[-1]), dtype=np.int64)
    for scheduled in schedule.passes:
        np.add.at(flat, offsets[scheduled.layer_index] + scheduled.spot_index, scheduled.counts1)
    return flat


def received_counts(
    beam: Beam, delivered: Delivered, counts2_per_count1: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of monitor 1 received per spot, at least and at most, flat in the plan's order; equal unless a monitor is doubted.

    `counts2_per_count1` is what the library expects of the monitors, shape (layers,).
    """
    offsets = np.concatenate([[0], np.cumsum([layer.spots for layer in beam.layers])])
    lower, upper = np.zeros(int(offsets[-1]), dtype=np.int64), np.zeros(int(offsets[-1]), dtype=np.int64)
    for run in delivered.runs:
        layer = run.scheduled.layer_index
        bounds = counts_between(run.pieces, run.reason, float(counts2_per_count1[layer]))
        for flat, counts in zip((lower, upper), bounds, strict=True):
            np.add.at(flat, offsets[layer] + run.pieces["spot_index"], counts)
    return lower, upper


def _status(delivered: Delivered, result: SessionResult, *, stopped: bool) -> tuple[Status, Termination]:
    """How a beam ended. Refused is what ended before anything moved; a fault is what the program did not understand."""
    if result.outcome is Outcome.COMPLETE and delivered.complete:
        return Status.COMPLETE, Termination.NORMAL
    declined = OPERATOR_DECLINED in result.reason
    of_machine = result.causes or delivered.findings or (result.outcome is Outcome.REFUSED and not declined)
    termination = Termination.OPERATOR if stopped or not of_machine else Termination.MACHINE
    if any(cause.severity is Severity.FAULT and cause.name != EMERGENCY_STOP for cause in result.causes):
        return Status.FAULT, Termination.MACHINE
    begun = result.moved or result.beam_given or delivered.runs
    return Status.PARTIAL if begun else Status.REFUSED, termination
