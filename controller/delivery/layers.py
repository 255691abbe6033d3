"""Delivers one beam: pass by pass, each by journalled grants, each judged before it is followed.

For every pass: prepare energy, magnets and map; journal the grant and sync it; send it; start it by its checksum; wait; pull
its results; journal them; judge them. The results of a pass are pulled while the machine steps to the next energy, so they cost
no beam time.

Not responsible for the room's states (it asks `BeamPermission`), nor for what is set on the machine (`Tuner`), nor for outputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.delivery.grants import UnitIdentity, build_grant, still_owed
from controller.delivery.results import Finding, Limits, RowResult, fold, judge
from controller.plan.schedule import Pass
from controller.record.entries import write_done, write_grant, write_started
from controller.record.journal import Journal
from controller.room.ports import BeamEnded, BeamPermission
from controller.room.tasks import uninterrupted
from controller.room.watchdog import Watchdog
from drivers.hal.capabilities import PIECE_DTYPE, DeliveryUnit, EndReason, Grant, Hold, PieceFlag, UnitState, UnitStatus
from drivers.hal.clock import now_ns
from drivers.hal.errors import BeamlineError, CommandRejected, CommunicationError, DataError
from drivers.hal.events import EventBus

FETCH_S = 3.0  # for results that an error left behind; the room waits 10 s for the delivery to wind up
RESUMABLE = (EndReason.PERMIT_LOST, EndReason.ABORTED)
ATTEMPTS_MAX = 20  # grants for one pass; more means that beam is lost again and again (assumed)
NOT_OPEN = 4124  # the unit holds no such grant as open
NOT_BEGUN = (4126, 4131)  # the unit has the grant and does not begin: too old meanwhile, or beam is not permitted now
END_S = 2.0  # for the unit to end a grant that nobody waits for any more, and to tell its results (assumed)
HOLD_POLL_S = 0.1
# How long each step of a delivery may take until it reports again (assumed, above the limits of the devices it waits for).
OPEN_S = 0.5  # while a grant is open, and from its end to what follows
ASK_S = 10.0  # permission, submit, start: each has deadlines of its own
PREPARE_S = 240.0  # magnets ramp for 180 s at most; no grant is open
RESULTS_S = 10.0  # a grant's results, block by block
NOTHING = np.zeros(0, dtype=PIECE_DTYPE)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the library says to expect of a prepared beam."""

    counts2_per_count1: float
    sigma_x_mm: float
    sigma_y_mm: float


class Tuner(Protocol):
    """Sets accelerator, magnets and scanner map for a pass; returns when they agree on its energy."""

    async def prepare(self, scheduled: Pass) -> Expected: ...


@dataclass(frozen=True, slots=True, eq=False)
class GrantRun:
    """One grant and everything that came of it. `rows` says which row of the pass each row of the grant stands for."""

    grant: Grant
    scheduled: Pass
    rows: NDArray[np.int64]
    attempt: int
    granted_ns: int
    started_ns: int
    ended_ns: int = 0
    reason: EndReason = EndReason.NONE
    rows_finished: int = 0
    pieces: NDArray[np.void] = field(default_factory=lambda: NOTHING)

    def received(self) -> NDArray[np.int64]:
        """Counts of monitor 1 per row of the pass, shape (rows of the pass,)."""
        counts = np.zeros(self.scheduled.counts1.shape, dtype=np.int64)
        np.add.at(counts, self.rows[self.pieces["row"]], self.pieces["counts1"])
        return counts


@dataclass(slots=True)
class Delivered:
    """What became of a beam: grants in order, findings, and why it ended. `complete` means nothing is owed.

    `unsettled` are ids of grants that are durable and whose results are not: what they gave is not in `runs`.
    """

    runs: list[GrantRun] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    complete: bool = False
    reason: str = ""
    unsettled: set[int] = field(default_factory=set)


class DeliveryEnded(BeamlineError):
    """The field cannot go on; what was delivered is in the journal."""

    family = 3200


class BeamDelivery:
    """One beam's delivery.

    Args:
        unit, tuner, control, journal, bus: collaborators.
        plan_hash, fraction: identity for the grants.
        limits: for judging slices.
        watchdog: to whom delivery and collecting report while they live.
    """

    def __init__(
        self,
        *,
        unit: DeliveryUnit,
        tuner: Tuner,
        control: BeamPermission,
        journal: Journal,
        bus: EventBus,
        plan_hash: int,
        fraction: int,
        limits: Limits | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._unit = unit
        self._tuner = tuner
        self._control = control
        self._journal = journal
        self._bus = bus
        self._plan_hash = plan_hash
        self._fraction = fraction
        self._limits = limits or Limits()
        self._watchdog = watchdog or Watchdog()
        self._beat = self._watchdog.watch("delivery", ASK_S)
        self._pending: asyncio.Task[None] | None = None
        self._granted: dict[int, GrantRun] = {}  # by grant id, from the moment it is durable
        self.delivered = Delivered()

    async def run(self, passes: Sequence[Pass], received: Callable[[Pass], NDArray[np.int64]] | None = None) -> Delivered:
        """Deliver passes in order.

        Args:
            passes: as scheduled.
            received: what earlier sessions delivered per row of a pass; nothing by default.

        Returns:
            What became of them; also kept in `delivered` while it grows, so that an exception loses nothing.
        """
        delivered = self.delivered
        try:
            for scheduled in passes:
                before = received(scheduled) if received is not None else np.zeros(scheduled.counts1.shape, dtype=np.int64)
                if not await self._deliver_pass(scheduled, before):
                    break
            else:
                await self._settle()
                delivered.complete = not delivered.findings
        except BeamEnded as ended:
            delivered.reason = str(ended)
        finally:
            self._beat.beat(RESULTS_S + END_S)  # beam is no longer wanted; what was given is still fetched
            pending, self._pending = self._pending, None
            try:
                if pending is not None:
                    await asyncio.shield(pending)
            finally:
                await uninterrupted(self.fetch_lost())
        self._beat.end()
        if delivered.findings:
            delivered.reason = delivered.findings[0].message
        return delivered

    async def _deliver_pass(self, scheduled: Pass, received: NDArray[np.int64]) -> bool:
        """One pass, by as many grants as interruptions make necessary; False when findings end the field."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            owed = still_owed(scheduled, received)
            if not owed.any():
                return True
            self._beat.beat(ASK_S)
            await self._control.permission()
            self._control.held("tuning")
            self._beat.beat(PREPARE_S)
            expected = await self._tuner.prepare(scheduled)
            self._beat.beat(RESULTS_S)
            await self._settle()
            if self.delivered.findings:
                return False
            self._beat.beat(ASK_S)
            await self._control.permission()
            run = await self._execute(scheduled, owed, attempt, expected)
            if run.reason is EndReason.FINISHED:
                return True
            await self._settle()
            received = received + self.delivered.runs[-1].received()
            self._control.lost()
            if run.reason not in RESUMABLE:
                words = run.reason.name.lower().replace("_", " ")
                raise DeliveryEnded(
                    f"the delivery unit ended grant {run.grant.grant_id}: {words}",
                    code=3200 + int(run.reason),
                    device=self._unit.name,
                    hint="see the report for the last spots; the cause must be found before beam",
                )
        raise DeliveryEnded(
            f"beam {scheduled.beam_number} layer {scheduled.layer_index} lost its beam {ATTEMPTS_MAX} times",
            code=3220,
            device=self._unit.name,
            hint="find out what takes the beam away",
        )

    async def _execute(self, scheduled: Pass, owed: NDArray[np.int64], attempt: int, expected: Expected) -> GrantRun:
        """Journal, send, start and await one grant; its results are being pulled when this returns."""
        status = self._unit.status
        grant, rows = build_grant(
            scheduled,
            owed,
            UnitIdentity(status.boot_id, status.last_grant_id + 1),
            plan_hash=self._plan_hash,
            fraction=self._fraction,
            counts2_per_count1=expected.counts2_per_count1,
        )
        run = GrantRun(grant, scheduled, rows, attempt, now_ns(), 0)
        write_grant(self._journal, grant, attempt=attempt)
        self.delivered.unsettled.add(grant.grant_id)
        self._granted[grant.grant_id] = run
        try:
            run, ended = await self._carry_out(run)
        except asyncio.CancelledError:
            await uninterrupted(self._end_open(run))
            raise
        return self._close(run, ended, expected if run.started_ns else None)

    async def _carry_out(self, run: GrantRun) -> tuple[GrantRun, UnitStatus]:
        """Send, start and await a journalled grant. One that the unit does not begin for now is ended unused."""
        grant, scheduled = run.grant, run.scheduled
        self._beat.beat(ASK_S)
        try:
            crc = await self._unit.submit(grant)
        except CommandRejected:  # the unit said no: nothing of it can be delivered
            self._settled(grant.grant_id, EndReason.ABORTED, NOTHING)
            raise
        self._bus.emit(
            "delivery",
            "pass.started",
            beam_number=scheduled.beam_number,
            layer=scheduled.layer_index,
            painting=scheduled.painting,
            attempt=run.attempt,
            grant_id=grant.grant_id,
            energy_mev_u=scheduled.energy_mev_u,
            rows=grant.rows,
        )
        try:
            await self._unit.start(grant.grant_id, crc)
        except CommandRejected as refused:
            await self._unit.abort()
            ended = await self._unit.wait_ended(grant.grant_id)
            # A pause may fall between echo and start: then it was we who ended the grant.
            ours = refused.code == NOT_OPEN and ended.last_grant_id == grant.grant_id and ended.reason is EndReason.ABORTED
            if refused.code not in NOT_BEGUN and not ours:
                self._close(run, ended, None)
                raise
            return run, ended
        run = replace(run, started_ns=now_ns())
        write_started(self._journal, grant.grant_id, crc)
        self._control.beam_on()
        self._beat.beat(OPEN_S)
        holds = asyncio.create_task(self._tell_holds(grant.grant_id), name="holds")
        try:
            return run, await self._unit.wait_ended(grant.grant_id)
        finally:
            holds.cancel()

    async def _tell_holds(self, grant_id: int) -> None:
        """Tell the room when the unit holds the beam by itself (spill, energy, gate) and when it goes on."""
        told = Hold(0)
        while True:
            await asyncio.sleep(HOLD_POLL_S)
            status = self._unit.status
            if status.open_grant_id == grant_id:  # once it has ended, whoever waits for that has to go on by itself
                self._beat.beat(OPEN_S)
            hold = status.hold if status.state is UnitState.HELD else Hold(0)
            if hold == told:
                continue
            told = hold
            if hold:
                self._control.held((hold.name or str(int(hold))).lower().replace("_", " ").replace("|", ", "))
            else:
                self._control.beam_on()

    def _close(self, run: GrantRun, ended: UnitStatus, expected: Expected | None) -> GrantRun:
        run = replace(run, ended_ns=now_ns(), reason=ended.reason, rows_finished=ended.rows_finished)
        self.delivered.runs.append(run)
        self._pending = asyncio.create_task(self._collect(len(self.delivered.runs) - 1, expected), name="results")
        return run

    async def _collect(self, index: int, expected: Expected | None) -> None:
        """Pull, journal and judge the results of one grant."""
        run = self.delivered.runs[index]
        beat = self._watchdog.watch("collecting of results", RESULTS_S)  # ended only by success: who dies does not report
        pieces = await self._unit.results(run.grant.grant_id)
        finished = int(np.count_nonzero(pieces["flags"] & int(PieceFlag.ROW_ENDED)))
        if finished != run.rows_finished:
            raise DataError(
                f"grant {run.grant.grant_id}: the unit finished {run.rows_finished} rows, its results show {finished}",
                code=5123,
                device=self._unit.name,
                hint="what it gave is bounded by the unit's latch",
            )
        self._settled(run.grant.grant_id, run.reason, pieces)
        beat.end()
        run = self.delivered.runs[index] = replace(run, pieces=pieces)
        result = fold(pieces, run.grant.rows)
        self._tell(run, result)
        if expected is None:
            return
        findings = judge(
            run.grant,
            result,
            counts2_per_count1=expected.counts2_per_count1,
            sigma_x_mm=expected.sigma_x_mm,
            sigma_y_mm=expected.sigma_y_mm,
            limits=self._limits,
        )
        self.delivered.findings += findings
        for finding in findings:
            self._bus.emit("delivery", "finding", code=finding.code, message=finding.message, hint=finding.hint)

    def _settled(self, grant_id: int, reason: EndReason, pieces: NDArray[np.void]) -> None:
        """What a grant gave is known and durable."""
        write_done(self._journal, grant_id, reason, pieces)
        self.delivered.unsettled.discard(grant_id)

    def _tell(self, run: GrantRun, result: RowResult) -> None:
        total = int(result.counts1.sum())
        self._bus.emit(
            "delivery",
            "pass.ended",
            beam_number=run.scheduled.beam_number,
            layer=run.scheduled.layer_index,
            painting=run.scheduled.painting,
            grant_id=run.grant.grant_id,
            reason=run.reason.name.lower(),
            spots=result.rows_finished,
            counts1=total,
            counts2=int(result.counts2.sum()),
            meterset=total * float(run.scheduled.meterset.sum()) / float(run.scheduled.counts1.sum()),
            spill=int(run.pieces["spill"][-1]) if run.pieces.size else 0,
        )

    async def fetch_lost(self, *, tell: bool = True) -> bool:
        """Ask once more for the results of grants that an error left open: the unit may still hold them.

        Returns whether the unit could be asked about all of them; what it no longer holds stays in `delivered.unsettled`.
        """
        reached = True
        for grant_id in sorted(self.delivered.unsettled):
            try:
                async with asyncio.timeout(FETCH_S):
                    await self._fetch(grant_id)
            except (BeamlineError, TimeoutError) as error:
                if tell:
                    self._bus.emit("delivery", "results.lost", grant_id=grant_id, error=str(error))
                reached = reached and not isinstance(error, CommunicationError | TimeoutError)
        return reached

    async def _fetch(self, grant_id: int) -> None:
        run, runs = self._granted[grant_id], self.delivered.runs
        index = next((i for i, known in enumerate(runs) if known.grant.grant_id == grant_id), None)
        latch = await self._unit.read_latch()  # it answers now; what was known of it may be from before
        if latch.boot_id == run.grant.unit_boot_id and latch.grant_id < grant_id:  # it never arrived
            self._settled(grant_id, EndReason.ABORTED, NOTHING)
            return
        if self._unit.status.open_grant_id == grant_id:
            await self._unit.abort()
            await self._unit.wait_ended(grant_id)
        status = self._unit.status
        if status.boot_id != run.grant.unit_boot_id or status.last_grant_id != grant_id:
            return  # restarted: its latch decides
        pieces = await self._unit.results(grant_id)
        finished = int(np.count_nonzero(pieces["flags"] & int(PieceFlag.ROW_ENDED)))
        if finished != status.rows_finished:
            return
        run = replace(run, ended_ns=now_ns(), reason=status.reason, rows_finished=finished, pieces=pieces)
        self._settled(grant_id, run.reason, pieces)
        if index is None:
            runs.append(run)
        else:
            runs[index] = run
        self._tell(run, fold(pieces, run.grant.rows))

    async def _settle(self) -> None:
        """Wait for the results that are being pulled."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            await pending

    async def _end_open(self, run: GrantRun) -> None:
        """Cancelled while a grant was open: end it and fetch what it delivered, because the record needs it.

        What cannot be fetched in time stays unsettled.
        """
        grant_id = run.grant.grant_id
        try:
            async with asyncio.timeout(END_S):
                await self._unit.abort()
                if (await self._unit.read_latch()).grant_id < grant_id:  # it never arrived
                    self._settled(grant_id, EndReason.ABORTED, NOTHING)
                    return
                self._close(run, await self._unit.wait_ended(grant_id), None)
                await self._settle()
        except (BeamlineError, TimeoutError) as error:
            self._bus.emit("delivery", "grant.unsettled", grant_id=grant_id, error=str(error))
