"""The procedure for a drive, or for the two drives of a ring: small, slow, and ended by the first failure that makes going on
dangerous.

Steps are tried in the order of `verdict.DRIVE_CHECKS`; each asks the bench and lets a judge decide. However it ends, the drive
is stopped and disabled. Not responsible for reading and writing (`drive_bench`), judging (`judge_drive`), stopping
(`drive_stops`) or the report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from controller.hil import judge_drive as judge
from controller.hil import judge_line, steps
from controller.hil.drive_bench import PERIOD_S, DriveBench, NotReached, Runaway, describe
from controller.hil.drive_hand import BRAKE_S, FAULTS, HANDSHAKE_S, now_s
from controller.hil.drive_parts import Ended, Episode
from controller.hil.drive_stops import DriveStops
from controller.hil.trace import Profile, Sample
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError, DeviceError
from drivers.wire.codecs.cia402 import Command, DriveState, Safety, Status, fault_text
from drivers.wire.codecs.registers import int32
from drivers.wire.modbus import REFUSED

SLS_DEG_S = 0.5  # docs/wires.md, safety word 8: with it active nothing is faster
BEYOND_DEG = 5.0  # how far beyond the soft limit the refused target lies
FENCE_SHARE = 0.25  # of the travel, beyond which the axis is stopped at once
FENCE_DEG = 0.1
OLD_S = 0.25  # older than the 200 ms at which a drive drops a command


class DriveProcedure(DriveStops):
    """One run of the procedure; arguments as for its base."""

    def __init__(self, bench: DriveBench, tell: Callable[[str], None] | None = None) -> None:
        super().__init__(bench, tell)
        self._limit_in_register = False

    async def run(self) -> None:
        """Run every check. Returns normally also when it ended early; cancellation goes through after the drive is safe."""
        why = "the procedure ended before"
        bench = self._bench
        try:
            for step in (
                self._identity,
                self._registers,
                self._liveness,
                self._rest,
                self._set_points_hold,
                self._old_commands,
                self._limits_by_register,
                self._enable,
                self._limits_by_set_point,
                self._move,
                self._disable,
                self._quick_stop,
                self._polling_lost,
                self._link_return,
            ):
                await step()
                vital = [check for check in self.notes.failed if check.requirement.vital]
                if vital:
                    raise Ended(f"{vital[0].requirement.name} failed: {vital[0].reason}")
        except Ended as ended:
            why = f"ended for safety: {ended}"
        except (Runaway, NotReached) as error:
            self._blame(str(error))
            why = f"ended for safety: {error}"
        except BeamlineError as error:
            self._blame(str(error))
            why = f"ended: {error}"
        except asyncio.CancelledError:
            why = "stopped by the technician"
            raise
        finally:
            self.left = await asyncio.shield(bench.make_safe())
            self._whole()
            if self.left.startswith("NOT SAFE"):
                why = self.left
            self.notes.finish(why)

    # --- before anything moves ------------------------------------------------------------------------------------------

    async def _identity(self) -> None:
        self._step("identity")
        self.identity = await steps.identity(self.notes, self._bench.target, self._bench.lines)
        self._end_if("identity")

    async def _liveness(self) -> None:
        self._step("liveness")
        await steps.liveness(self.notes, self._watch_counters)
        self._end_if("liveness")

    async def _watch_counters(self, seconds: float) -> Sequence[Sequence[int]]:
        begin = [len(trace.samples) for trace in self._bench.traces]
        await self._bench.watch(seconds)
        return [[s.counter for s in trace.samples[at:]] for trace, at in zip(self._bench.traces, begin, strict=True)]

    async def _registers(self) -> None:
        self._step("registers")
        await steps.registers(self.notes, self._bench.target, self._bench.lines)
        self._end_if("registers")

    async def _rest(self) -> None:
        """It stands as it must before anyone enables it; a fault that an earlier check left is acknowledged, once."""
        self._step("rest")
        bench = self._bench
        note = ""
        if any(sample.state in FAULTS for sample in await bench.poll()):
            note = f"; acknowledged {', '.join(fault_text(t.last.error_code) for t in bench.traces if t.last.error_code)}"
            await self._hand.reset()
        samples = await bench.poll()
        low, high = self._hand.limits.angle_deg.minimum, self._hand.limits.angle_deg.maximum
        reason = ""
        for trace, sample in zip(bench.traces, samples, strict=True):
            where = f"{trace.label}: "
            if sample.state in FAULTS:
                reason = reason or f"{where}in fault {fault_text(sample.error_code)}, which a reset does not clear"
            elif sample.state in (DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP):
                reason = reason or f"{where}is {sample.state.value} although nobody enabled it"
            elif not sample.still:
                reason = reason or f"{where}moves at {sample.speed_deg_s:+.2f} deg/s"
            elif not sample.braked:
                reason = reason or f"{where}its brake is not applied"
            elif sample.safety & Safety.STO:
                reason = reason or f"{where}torque is held off (STO)"
            elif not low <= sample.position_deg <= high:
                reason = reason or f"{where}stands at {sample.position_deg:.2f} deg, outside its soft limits"
        position = samples[0].position_deg
        room_deg = max(high - position, position - low)
        if not reason and room_deg < self._hand.travel_deg * (1.0 + FENCE_SHARE) + FENCE_DEG:
            reason = (
                f"only {room_deg:.2f} deg to the farther soft limit; the checks need {self._hand.travel_deg:g} deg and a margin"
            )
        measured = "; ".join(f"{t.label}: {describe(s)}" for t, s in zip(bench.traces, samples, strict=True)) + note
        self._judged("rest", judge.Finding(not reason, measured, "stands, braked, not enabled, no STO", reason))
        self._hand.home_deg = position
        self._hand.way = 1.0 if high - position >= position - low else -1.0
        margin = FENCE_SHARE * self._hand.travel_deg + FENCE_DEG
        ends = sorted((position, position + self._hand.way * self._hand.travel_deg))
        bench.fence_deg = (ends[0] - margin, ends[1] + margin)
        if any(sample.safety & Safety.SLS for sample in samples):
            self._hand.speed_deg_s = min(self._hand.speed_deg_s, SLS_DEG_S)

    async def _set_points_hold(self) -> None:
        """What is written to the set-points is found there again; nothing is enabled."""
        self._step("registers")
        bench = self._bench
        wanted = self._hand.set_point_words(self._hand.home_deg, self._hand.speed_deg_s)
        await bench.set_point(wanted)
        lost = []
        for place in bench.target.places:
            for name, words in wanted.items():
                if tuple(await bench.read(place, name, len(words))) != tuple(words):
                    lost.append(f"{place.label}: {name} ({bench.target.registers[name]})")
        if lost:
            reason = f"{', '.join(lost)} does not hold what was written"
            self._judged("registers", judge.Finding(False, reason, "set-points hold what was written", reason))

    async def _old_commands(self) -> None:
        """A set-point with a token that has grown old; nothing is enabled."""
        self._step("old_commands")
        bench = self._bench
        token = bench.traces[0].last.token
        if not token or "command_token" not in bench.target.registers:
            self.notes.skip(
                "old_commands", "the register map names no command_token: this drive cannot tell how old a command is"
            )
            return
        await bench.watch(OLD_S)
        limit = "exception answer; set-points as before"
        try:
            await self._hand.set_point(self._hand.home_deg + self._hand.limits.in_position_deg, self._hand.speed_deg_s, token)
        except DeviceError as error:
            held = int32(await bench.read(bench.target.places[0], "target", 2)) / 1000.0
            kept = abs(held - round(self._hand.home_deg, 3)) < 0.0015
            reason = "" if kept else f"it refused the frame, but its target is {held:.3f} deg now"
            self._judged("old_commands", judge.Finding(kept, error.message, limit, reason))
            return
        reason = f"it took a command that was {1000 * OLD_S:.0f} ms old"
        self._judged("old_commands", judge.Finding(False, "taken", limit, reason))

    # --- limits ---------------------------------------------------------------------------------------------------------

    @property
    def _beyond_deg(self) -> float:
        limits = self._hand.limits.angle_deg
        return limits.maximum + BEYOND_DEG if self._hand.way > 0 else limits.minimum - BEYOND_DEG

    def _limit_words(self, beyond_deg: float) -> str:
        limits = self._hand.limits.angle_deg
        return f"{limits.minimum:g} to {limits.maximum:g} deg; asked for {beyond_deg:g} deg"

    async def _limits_by_register(self) -> None:
        """Write a target beyond the limit while nothing is enabled: many drives refuse it there."""
        self._step("limits")
        bench, beyond = self._bench, self._beyond_deg
        limit = (
            f"{self._hand.limits.angle_deg.minimum:g} to {self._hand.limits.angle_deg.maximum:g} deg; asked for {beyond:g} deg"
        )
        try:
            await self._hand.set_point(beyond, self._hand.speed_deg_s)
        except DeviceError as error:
            if error.code != REFUSED:
                raise
            self._judged("limits", judge.Finding(True, f"refused when it was written: {error.message}", limit))
            return
        held = int32(await bench.read(bench.target.places[0], "target", 2)) / 1000.0
        await self._hand.set_point(self._hand.home_deg, self._hand.speed_deg_s)
        if self._hand.limits.angle_deg.holds(held):
            self._judged("limits", judge.Finding(True, f"clamped to {held:.3f} deg when it was written", limit))
        else:
            self._limit_in_register = True

    async def _limits_by_set_point(self) -> None:
        """The register took it: now ask to go there, very slowly, from far inside; any movement is stopped at once."""
        if not self._limit_in_register:
            return
        self._step("limits")
        bench, beyond = self._bench, self._beyond_deg
        limit = (
            f"{self._hand.limits.angle_deg.minimum:g} to {self._hand.limits.angle_deg.maximum:g} deg; asked for {beyond:g} deg"
        )
        await self._hand.set_point(beyond, self._hand.speed_deg_s / 10.0)
        began_s = now_s()
        await bench.command(Command.NEW_SET_POINT, first_only=True)
        await bench.watch(HANDSHAKE_S)
        seen = [sample for trace in bench.traces for sample in trace.since(began_s)]
        last = [trace.last for trace in bench.traces]
        moved = max(abs(sample.position_deg - self._hand.home_deg) for sample in seen)
        taken = any(sample.statusword & Status.SET_POINT_ACKNOWLEDGE for sample in seen)
        limited = any(sample.statusword & Status.INTERNAL_LIMIT for sample in seen)
        fault = next((sample.error_code for sample in last if sample.error_code), 0)
        moving = any(not sample.still for sample in last) or moved > self._hand.limits.in_position_deg
        if moving:
            await bench.command(Command.QUICK_STOP)
        measured = f"moved {moved:.3f} deg" + (f", fault {fault_text(fault)}" if fault else "")
        measured += ", set-point acknowledged" if taken else ", set-point not acknowledged"
        measured += ", internal limit (bit 11)" if limited else ""
        reason = ""
        if moving:
            reason = f"it moves towards {beyond:g} deg, beyond its soft limit"
        elif taken and not limited and not fault:
            reason = f"it takes {beyond:g} deg as a target, beyond its soft limit, and reports nothing"
        self._judged("limits", judge.Finding(not reason, measured, limit, reason))
        if reason:
            return
        if fault:
            await self._hand.reset()
        else:
            await bench.command(Command.ENABLE_OPERATION)
        await self._hand.up()

    # --- up, there and back, down ---------------------------------------------------------------------------------------

    async def _enable(self) -> None:
        self._step("enable")
        began_s = now_s()
        await self._bench.poll()
        try:
            await self._hand.up()
        except (NotReached, Runaway) as error:
            self._judged("enable", judge.Finding(False, str(error), "operation enabled"))
            self._torque(began_s)
            raise Ended(str(error)) from None
        for trace in self._bench.traces:
            self._judged("enable", judge.enabling(trace.since(began_s), self._hand.limits.in_position_deg))
        self._torque(began_s)
        self._end_if("torque_proof")

    def _torque(self, began_s: float) -> None:
        for trace in self._bench.traces:
            samples = trace.since(began_s)
            if samples:
                self._judged("torque_proof", judge.torque_first(samples))

    async def _move(self) -> None:
        for target_deg in (self._hand.home_deg + self._hand.way * self._hand.travel_deg, self._hand.home_deg):
            self._step("move", f" to {target_deg:.2f} deg")
            await self._move_to(target_deg)
            self._end_if("move")

    async def _move_to(self, target_deg: float) -> None:
        bench = self._bench
        start_deg = bench.traces[0].last.position_deg
        profile = Profile(start_deg, target_deg, self._hand.speed_deg_s, self._hand.acceleration, self._hand.jerk)
        await self._hand.set_point(target_deg, self._hand.speed_deg_s)
        sent_s = await self._hand.start()
        patience_s = 1.5 * profile.duration_s + self._hand.limits.settle_s + judge.REPORT_S + 1.0
        end_ns = now_ns() + round(patience_s * NS_PER_S)
        settled_ns: int | None = None
        while now_ns() < end_ns:
            samples = await bench.poll()
            self._hand.healthy(samples)
            done = all(s.statusword & Status.TARGET_REACHED and s.still for s in samples)
            settled_ns = (settled_ns or now_ns()) if done else None
            if settled_ns is not None and now_ns() - settled_ns > 0.15 * NS_PER_S:
                break
            late = now_s() - sent_s > profile.duration_s + judge.START_S
            if late and settled_ns is None and self._hand.stands_since(0.5) and now_s() - sent_s > patience_s - 1.0:
                break
            await asyncio.sleep(PERIOD_S)
        self.episodes.append(Episode(f"Move to {target_deg:.2f} deg", sent_s - 0.05, now_s(), profile, sent_s))
        window_deg = self._hand.limits.in_position_deg
        for trace in bench.traces:
            samples = trace.since(sent_s)
            self._judged("move", judge.arrival(samples, profile, window_deg))
            self._judged(
                "target_reached",
                judge.reached_honest(self._after_handshake(samples), profile, self._hand.limits.in_position_deg),
            )
            self._judged("settling", judge.settling(samples, profile, window_deg, self._hand.limits.settle_s))
            self._judged("velocity", judge.velocity(samples, profile))
            self._judged("following", judge.following(samples, profile, sent_s, self._bench.target.rig.following_deg))

    def _after_handshake(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """From the acknowledgement on: before it, the bit still belongs to the last target."""
        for index, sample in enumerate(samples):
            if sample.statusword & Status.SET_POINT_ACKNOWLEDGE or not sample.still:
                return samples[index:]
        return samples

    async def _disable(self) -> None:
        self._step("disable")
        bench = self._bench
        began_s = now_s()
        start = [trace.last.position_deg for trace in bench.traces]
        try:
            await bench.command(Command.SWITCH_ON)
            await bench.until(lambda s: s.state is not DriveState.OPERATION_ENABLED and s.braked, BRAKE_S, "brake applied")
            await bench.command(Command.DISABLE_VOLTAGE)
            await bench.until(lambda s: s.state is DriveState.SWITCH_ON_DISABLED, BRAKE_S, "switch on disabled")
        except NotReached as error:
            for trace, place in zip(bench.traces, start, strict=True):
                self._judged("disable", judge.brake_first(trace.since(began_s), place))
            self._judged("disable", judge.Finding(False, str(error), "brake applied, then switch on disabled"))
            raise Ended(str(error)) from None
        await bench.watch(0.1)
        for trace, place in zip(bench.traces, start, strict=True):
            self._judged("disable", judge.brake_first(trace.since(began_s), place))

    # --- the whole run --------------------------------------------------------------------------------------------------

    def _whole(self) -> None:
        """What is judged on everything that was seen."""
        bench = self._bench
        if not all(trace.samples for trace in bench.traces):
            return
        self._judged("held", judge.held(bench.traces))
        self._judged("statuswords", judge.statuswords(bench.traces))
        baud = bench.target.places[0].baud
        answered = judge_line.responses(bench.answers_s, bench.lines.lost, bench.block, baud, bench.target.poll_deadline_s)
        self._judged("response", answered)
        still_s = max(judge.standstill_of_counter_s(trace) for trace in bench.traces)
        if still_s > steps.COUNTER_S:
            self.notes.judge(
                "liveness",
                False,
                f"stood still for {still_s:.2f} s",
                f"{steps.COUNTER_S:g} s",
                "its counter stopped in between",
            )
