"""The stops of the drive procedure: quick stop, silence on the line, a line that is cut; and what clears the fault afterwards.

Not responsible for the rest of the procedure (`drive_procedure`).
"""

from __future__ import annotations

import asyncio
import contextlib

from controller.hil import judge_drive as judge
from controller.hil import steps
from controller.hil.drive_bench import NotReached, Runaway, describe
from controller.hil.drive_hand import BRAKE_S, FAULTS, now_s
from controller.hil.drive_parts import DriveParts, Ended, Episode
from controller.hil.trace import Sample
from drivers.wire.codecs.cia402 import Command, DriveState

RESET_BIT = int(Command.FAULT_RESET)
LINK_DOWN_S = 1.5  # assumed: longer than any drive's own time-out that could start it again
AFTER_S = 0.35  # what setting the brake may take on top of a stop, before a silent drive is looked at again, assumed


class DriveStops(DriveParts):
    """The stopping part of the procedure."""

    async def _quick_stop(self) -> None:
        self._step("quick_stop")
        bench = self._bench
        await self._hand.up()
        began_s = now_s()
        going = await self._hand.get_going(self._hand.speed_deg_s, reserve_s=0.0)
        if going is None:
            self.notes.skip("quick_stop", self._too_short())
            return
        command_s = now_s()
        marks = self._hand.marks(command_s)
        await bench.command(Command.QUICK_STOP)
        longest_s = 2.0 * going / self._hand.ramp + 1.0
        with contextlib.suppress(NotReached, Runaway):  # the judge sees the samples, and says more
            await bench.until(lambda s: s.still, longest_s, "standstill")
            await bench.watch(0.1)
            if any(trace.last.state is DriveState.QUICK_STOP for trace in bench.traces):
                await bench.command(Command.DISABLE_VOLTAGE)
            await bench.until(lambda s: s.braked and not _holding(s), BRAKE_S, "brake applied after the quick stop")
        self.episodes.append(Episode("Quick stop", began_s, now_s(), command_s=command_s))
        for trace, (place, speed) in zip(bench.traces, marks, strict=True):
            stop = judge.Stopped(speed, place, trace.since(command_s))
            self._judged("quick_stop", judge.quick_stop(stop, self._hand.ramp))

    async def _polling_lost(self) -> None:
        self._step("polling_lost")
        bench = self._bench
        await self._hand.up()
        began_s = now_s()
        deadline_s = bench.target.poll_deadline_s
        speed = await self._hand.get_going(self._hand.speed_deg_s, reserve_s=deadline_s + 0.2)
        if speed is None:
            self.notes.skip("polling_lost", self._too_short())
            return
        command_s = now_s()
        marks = self._hand.marks(command_s)
        silent_s = deadline_s + 2.0 * speed / self._hand.ramp + AFTER_S
        await asyncio.sleep(silent_s)
        await bench.poll()
        back_s = now_s()
        await bench.watch(0.1)
        self.episodes.append(Episode("Polling stops", began_s, now_s(), command_s=command_s))
        stops = [
            judge.Stopped(told, place, trace.since(back_s - 0.05))
            for trace, (place, told) in zip(bench.traces, marks, strict=True)
        ]
        self._judged("polling_lost", judge.polling_lost(stops, self._hand.ramp, deadline_s, silent_s))
        self._end_if("polling_lost")
        await self._edge_after_polling()

    async def _edge_after_polling(self) -> None:
        """The fault stays while bit 7 is low, and is cleared by its edge."""
        self._step("reset_edge")
        bench = self._bench
        await bench.command(Command.DISABLE_VOLTAGE)
        await bench.watch(0.05)
        limit = "stays in fault until bit 7 rises, then switch on disabled without error"
        if any(trace.last.state is DriveState.FAULT for trace in bench.traces):
            await self._hand.reset()
            states = ", ".join(describe(sample) for sample in await bench.poll())
            cleared = all(t.last.state is DriveState.SWITCH_ON_DISABLED and not t.last.error_code for t in bench.traces)
            reason = "" if cleared else f"the edge did not clear the fault: {states}"
            self._judged("reset_edge", judge.Finding(cleared, f"after the edge: {states}", limit, reason))
        else:
            self._judged("reset_edge", judge.Finding(False, "", limit, "the fault went away without a reset"))
        if not all(trace.last.state is DriveState.SWITCH_ON_DISABLED for trace in bench.traces):
            raise Ended("the fault of the lost polling cannot be cleared")

    async def _link_return(self) -> None:
        """Cut the line in motion, with bit 7 left high; open it again."""
        self._step("link_return")
        bench = self._bench
        await self._hand.up()
        began_s = now_s()
        deadline_s = bench.target.poll_deadline_s
        speed = await self._hand.get_going(self._hand.speed_deg_s, reserve_s=deadline_s + 0.2, extra=RESET_BIT)
        if speed is None:
            self.notes.skip("link_return", self._too_short())
            return
        command_s = now_s()
        marks = self._hand.marks(command_s)
        await bench.lines.close()
        down_s = max(LINK_DOWN_S, deadline_s + 2.0 * speed / self._hand.ramp + AFTER_S)
        await asyncio.sleep(down_s)
        await bench.lines.open()
        limit = "the same device, at rest, not enabled, brake applied, and nothing moves afterwards"
        self.identity = await steps.identity(self.notes, bench.target, bench.lines)
        self._end_if("identity")
        back_s = now_s()
        await bench.watch(0.4)
        self.episodes.append(Episode("Link lost", began_s, now_s(), command_s=command_s))
        measured, reason = [], ""
        for trace, (place, told) in zip(bench.traces, marks, strict=True):
            samples = trace.since(back_s)
            gone = max(abs(sample.position_deg - samples[0].position_deg) for sample in samples)
            far = abs(samples[0].position_deg - place)
            allowed = judge.stopping_deg(told, self._hand.ramp, deadline_s + judge.SUPERVISION_MARGIN_S)
            measured.append(f"{trace.label}: {describe(trace.last)}, {far:.3f} deg after the cut, then {gone:.3f} deg")
            if any(sample.state is DriveState.OPERATION_ENABLED for sample in samples):
                reason = reason or "it is enabled again after the line came back, and nobody enabled it"
            elif any(not sample.still for sample in samples) or gone > judge.SHIFT_DEG:
                reason = reason or f"it moves after the line came back ({gone:.3f} deg)"
            elif far > allowed:
                reason = reason or f"it went {far:.3f} deg after the line was cut, allowed {allowed:.3f} deg"
            elif not trace.last.braked:
                reason = reason or "its brake is not applied"
        self._judged("link_return", judge.Finding(not reason, "; ".join(measured), limit, reason))
        self._end_if("link_return")
        await self._edge_left_high()

    async def _edge_left_high(self) -> None:
        """Bit 7 has been high since before the fault: that is no edge."""
        self._step("reset_edge")
        bench = self._bench
        limit = "stays in fault until bit 7 rises, then switch on disabled without error"
        early = [trace.label for trace in bench.traces if trace.last.state not in FAULTS]
        if len(early) < len(bench.traces):  # of a ring, one drive may carry the fault for both
            await bench.command(RESET_BIT)
            await bench.watch(0.05)
            early = [trace.label for trace in bench.traces if trace.last.state not in FAULTS]
        reason = ""
        if len(early) == len(bench.traces):
            reason = "the fault was cleared without a rising edge: bit 7 had been high since before it"
        measured = "; ".join(describe(trace.last) for trace in bench.traces)
        self._judged("reset_edge", judge.Finding(not reason, measured, limit, reason))
        await self._hand.reset()

    def _too_short(self) -> str:
        return f"the travel of {self._hand.travel_deg:g} deg is too short to get going; allow more in [rig] travel_deg"


def _holding(sample: Sample) -> bool:
    return sample.state in (DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP)
