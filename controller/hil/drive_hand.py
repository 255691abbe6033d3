"""What the drive procedure makes an axis do: up, go there, get going, reset. With the figures of facility and overlay.

Not responsible for verdicts (`drive_procedure`, `drive_stops`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial

from controller.hil.drive_bench import PERIOD_S, DriveBench, NotReached
from controller.hil.judge_drive import ERROR_SUPERVISION, REACTION_S, START_S
from controller.hil.trace import Profile, Sample, longest_gap_s
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.wire.codecs.cia402 import PROFILE_POSITION, Command, DriveState, Status, fault_text
from drivers.wire.codecs.registers import words_of_milli

ENABLE_S = 3.0  # assumed: torque proof and brake release take about 0.3 s
HANDSHAKE_S = 0.5  # assumed
BRAKE_S = 1.5  # assumed: setting the brake takes 0.1 s
FAULTS = (DriveState.FAULT, DriveState.FAULT_REACTION)


def now_s() -> float:
    """Loop time in s, as the traces have it."""
    return now_ns() / NS_PER_S


class DriveHand:
    """Moves the drives of a bench.

    Args:
        bench: the drives.

    Attributes:
        limits: soft limits and motion of the facility file.
        travel_deg, speed_deg_s, acceleration, jerk, ramp: what the checks move by, in deg and s.
        home_deg: where it stood at the start.
        way: 1 or -1, the direction with more room.
    """

    def __init__(self, bench: DriveBench) -> None:
        gantry, rig = bench.target.room.gantry, bench.target.rig
        if gantry is None:
            raise ValueError(f"room {bench.target.room.name} has no gantry")
        self.bench = bench
        self.limits = gantry
        self.travel_deg = rig.travel_deg
        self.speed_deg_s = min(rig.speed_deg_s, gantry.speed_deg_s)
        self.acceleration = rig.acceleration_deg_s2 or gantry.acceleration_deg_s2
        self.jerk = gantry.jerk_deg_s3 if rig.jerk_deg_s3 is None else rig.jerk_deg_s3
        self.ramp = rig.quick_stop_deg_s2
        self.home_deg = 0.0
        self.way = 1.0

    async def up(self) -> None:
        """To operation enabled, target where it stands."""
        bench = self.bench
        samples = await bench.poll()
        await self.set_point(samples[0].position_deg, self.speed_deg_s)
        if all(sample.state is DriveState.OPERATION_ENABLED for sample in samples):
            return
        if any(sample.state is not DriveState.SWITCH_ON_DISABLED for sample in samples):
            await bench.command(Command.DISABLE_VOLTAGE)
            await bench.until(lambda s: s.state is DriveState.SWITCH_ON_DISABLED, BRAKE_S, "switch on disabled")
        for word, state in (
            (Command.SHUTDOWN, DriveState.READY),
            (Command.SWITCH_ON, DriveState.SWITCHED_ON),
            (Command.ENABLE_OPERATION, DriveState.OPERATION_ENABLED),
        ):
            await bench.command(word)
            await bench.until(partial(_is_in, state), ENABLE_S, state.value)

    async def set_point(self, target_deg: float, speed_deg_s: float, token: Sequence[int] | None = None) -> None:
        """Mode, target, speed and acceleration to every drive."""
        await self.bench.set_point(self.set_point_words(target_deg, speed_deg_s), token)

    def set_point_words(self, target_deg: float, speed_deg_s: float) -> dict[str, Sequence[int]]:
        """The registers of a set-point, by name."""
        return {
            "mode": (PROFILE_POSITION,),
            "target": words_of_milli(target_deg),
            "velocity": words_of_milli(speed_deg_s),
            "acceleration": words_of_milli(self.acceleration),
        }

    async def start(self, extra: int = 0) -> float:
        """The set-point handshake; returns when the set-point was sent. Raises NotReached."""
        bench = self.bench
        sent_s = now_s()
        await bench.command(Command.NEW_SET_POINT | extra, first_only=True)
        end_ns = now_ns() + round(HANDSHAKE_S * NS_PER_S)
        while not (await bench.poll())[0].statusword & Status.SET_POINT_ACKNOWLEDGE:
            self.healthy([trace.last for trace in bench.traces])
            if now_ns() >= end_ns:
                raise NotReached(
                    f"the set-point was not acknowledged within {HANDSHAKE_S:g} s; a drive of a ring takes one only when its "
                    "partner is enabled with the same target: check the whole ring, or set it to run alone"
                )
            await asyncio.sleep(PERIOD_S)
        await bench.command(Command.ENABLE_OPERATION | extra, first_only=True)
        return sent_s

    async def get_going(self, speed_deg_s: float, reserve_s: float, extra: int = 0) -> float | None:
        """Start towards the farther end and return once it runs: the speed, or None when the way is too short for it."""
        here = self.bench.traces[0].last.position_deg
        ends = (self.home_deg, self.home_deg + self.way * self.travel_deg)
        target_deg = max(ends, key=lambda end: abs(end - here))
        way_deg = abs(target_deg - here)
        speed = min(speed_deg_s, 0.6 * math.sqrt(self.acceleration * way_deg))
        if reserve_s:
            speed = min(speed, 0.5 * way_deg / (reserve_s + REACTION_S))
        await self.set_point(target_deg, speed)
        await self.start(extra)
        profile = Profile(here, target_deg, speed, self.acceleration, self.jerk)
        end_ns = now_ns() + round((profile.duration_s + START_S) * NS_PER_S)
        while now_ns() < end_ns:
            samples = await self.bench.poll()
            self.healthy(samples)
            if abs(samples[0].speed_deg_s) >= 0.85 * speed:
                return max(abs(sample.speed_deg_s) for sample in samples)
            await asyncio.sleep(PERIOD_S)
        return None

    async def reset(self) -> None:
        """The edge of the reset bit; never starts motion."""
        for word in (Command.DISABLE_VOLTAGE, Command.FAULT_RESET):
            await self.bench.command(word)
            await self.bench.watch(0.03)
        await self.bench.command(Command.DISABLE_VOLTAGE)
        await self.bench.poll()

    def marks(self, t_s: float) -> list[tuple[float, float]]:
        """Where each drive is and how fast, carried on from its last sample to `t_s`."""
        found = []
        for trace in self.bench.traces:
            last = trace.last
            found.append((last.position_deg + last.speed_deg_s * (t_s - last.t_s), abs(last.speed_deg_s)))
        return found

    def stands_since(self, seconds: float) -> bool:
        """Whether every drive has stood for so long."""
        since_s = now_s() - seconds
        return all(sample.still for trace in self.bench.traces for sample in trace.since(since_s))

    def healthy(self, samples: Sequence[Sample]) -> None:
        """Raise NotReached when a drive is in fault."""
        for trace, sample in zip(self.bench.traces, samples, strict=True):
            if sample.state in FAULTS:
                note = ""
                gap_s = longest_gap_s(trace.samples[-20:])
                if sample.error_code == ERROR_SUPERVISION and gap_s > self.bench.target.poll_deadline_s / 2.0:
                    note = f"; this computer did not ask it for {1000 * gap_s:.0f} ms: is it busy with something else?"
                raise NotReached(f"{trace.label} went into fault {fault_text(sample.error_code)}{note}")


def _is_in(state: DriveState, sample: Sample) -> bool:
    return sample.state is state
