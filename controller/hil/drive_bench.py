"""The edge of the drive procedure: reads the status blocks, sends the words, keeps the traces, and can always make safe.

Everything that is read goes into the traces; nothing is judged here except what must stop the axis at once: a drive that
leaves its fence. Not responsible for what is tried (`drive_procedure`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from controller.hil.target import Place, Target
from controller.hil.trace import Sample, Trace
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError
from drivers.wire.codecs.cia402 import Command, DriveState
from drivers.wire.codecs.registers import int16, int32
from drivers.wire.framing import Kind
from drivers.wire.modbus import ModbusClient
from drivers.wire.stream import StreamOpener

Opener = Callable[[Place], StreamOpener]
PERIOD_S = 0.004  # pause between polls; the line's own time comes on top
ENABLE_VOLTAGE, NO_QUICK_STOP = 1 << 1, 1 << 2  # bits of the controlword; without one of them it is a stop
YOUNG_S = 0.05  # a token must arrive within 200 ms of the drive's own time
SAFE_S = 3.0  # how long a drive may take to rest when it is made safe
RAMP_TRIES = 3


class Runaway(Exception):
    """An axis moves where it must not. The text says where it is and how far it may be."""


class NotReached(Exception):
    """A drive did not come to the state that was asked for. The text says what it is in."""


class Lines:
    """The Modbus lines of a target: one client per endpoint.

    Args:
        places: the nodes.
        open_line: what opens an endpoint.
    """

    def __init__(self, places: Sequence[Place], open_line: Opener) -> None:
        self.clients: dict[str, ModbusClient] = {}
        for place in places:
            if place.address not in self.clients:
                framing: Kind = "rtu" if place.rtu else "tcp"
                self.clients[place.address] = ModbusClient(place.label, open_line(place), framing=framing)

    def of(self, place: Place) -> ModbusClient:
        """The line of a node."""
        return self.clients[place.address]

    async def open(self) -> None:
        """Open every line. Raises CommunicationError."""
        for client in self.clients.values():
            await client.connect()

    async def close(self) -> None:
        """Let go of every line."""
        for client in self.clients.values():
            await client.close()

    @property
    def lost(self) -> int:
        """Questions that got no sound answer at once."""
        return sum(client.counts.silent + client.counts.garbled for client in self.clients.values())


class DriveBench:
    """The drives of a target on their lines.

    Args:
        target: one drive, or the two of a ring.
        lines: their lines.

    Attributes:
        traces: per drive, everything seen.
        answers_s: how long each status block took from question to answer.
        fence_deg: lowest and highest position allowed; None before the start is known.
    """

    def __init__(self, target: Target, lines: Lines) -> None:
        self.target = target
        self.lines = lines
        self.traces = tuple(Trace(place.label) for place in target.places)
        self.answers_s: list[float] = []
        self.fence_deg: tuple[float, float] | None = None
        self.energised = False
        self._registers: Mapping[str, int] = target.registers
        self._first = self._registers["statusword"]
        last = max(self._registers["counter"] + 1, self._registers.get("cycles", 0) + 2)
        self.block = last - self._first  # registers of a status block
        self._words = [int(Command.DISABLE_VOLTAGE)] * len(target.places)

    # --- reading --------------------------------------------------------------------------------------------------

    async def poll(self, *, fenced: bool = True) -> Sequence[Sample]:
        """Read every drive now.

        Raises:
            Runaway: one is outside the fence.
            CommunicationError, DeviceError: one does not answer as it must.
        """
        samples = []
        for place, trace in zip(self.target.places, self.traces, strict=True):
            asked_ns = now_ns()
            words = await self.lines.of(place).read(place.unit, self._first, self.block)
            answered_ns = now_ns()
            self.answers_s.append((answered_ns - asked_ns) / NS_PER_S)
            trace.samples.append(self._sample(words, asked_ns / NS_PER_S, answered_ns / NS_PER_S))
            samples.append(trace.last)
        if fenced and self.fence_deg is not None:
            low, high = self.fence_deg
            for trace in self.traces:
                if not low <= trace.last.position_deg <= high:
                    raise Runaway(f"{trace.label} is at {trace.last.position_deg:.3f} deg, outside {low:.3f} to {high:.3f} deg")
        return samples

    async def watch(self, seconds: float) -> None:
        """Poll for a time."""
        end_ns = now_ns() + round(seconds * NS_PER_S)
        while now_ns() < end_ns:
            await self.poll()
            await asyncio.sleep(PERIOD_S)

    async def until(self, wanted: Callable[[Sample], bool], timeout_s: float, what: str) -> None:
        """Poll until every drive is as wanted. Raises NotReached with what they are in."""
        end_ns = now_ns() + round(timeout_s * NS_PER_S)
        while True:
            samples = await self.poll()
            if all(wanted(sample) for sample in samples):
                return
            if now_ns() >= end_ns:
                states = "; ".join(f"{trace.label}: {describe(trace.last)}" for trace in self.traces)
                raise NotReached(f"{what} not reached within {timeout_s:g} s: {states}")
            await asyncio.sleep(PERIOD_S)

    async def read(self, place: Place, register: str, count: int) -> tuple[int, ...]:
        """Registers of one drive by name."""
        return await self.lines.of(place).read(place.unit, self._registers[register], count)

    # --- words ----------------------------------------------------------------------------------------------------

    async def command(self, word: int, *, first_only: bool = False) -> None:
        """Send a controlword to every drive, or to the one that takes the set-points."""
        if word & 0x0F == Command.ENABLE_OPERATION:
            self.energised = True
        stops = not word & ENABLE_VOLTAGE or not word & NO_QUICK_STOP
        if not stops and not self._young():  # a stop is taken with any token, and waits for nothing
            await self.poll()
        for index, trace in enumerate(self.traces[: 1 if first_only else None]):
            trace.marks.append((now_ns() / NS_PER_S, f"0x{word:02X}"))
            await self._write(index, {"controlword": (word,)}, trace.last.token if trace.samples else ())
            self._words[index] = word

    async def set_point(self, values: Mapping[str, Sequence[int]], token: Sequence[int] | None = None) -> None:
        """Write set-points to every drive, each in one frame, which repeats the controlword sent last: no edge, no start.

        `token`: an old command token, to see it refused; by default the one each drive showed last.
        """
        if token is None and not self._young():
            await self.poll()
        for index, trace in enumerate(self.traces):
            await self._write(index, {"controlword": (self._words[index],), **values}, token or trace.last.token)

    async def _write(self, index: int, values: Mapping[str, Sequence[int]], token: Sequence[int]) -> None:
        """One frame from the first to the last of the named registers, with the token in front where the drive has one."""
        place, registers = self.target.places[index], self._registers
        if "command_token" in registers and "cycles" in registers:
            values = {"command_token": token, **values}
        elif len(values) > 1:  # without a token the set-points travel alone, behind the controlword
            values = {name: words for name, words in values.items() if name != "controlword"}
        first = min(registers[name] for name in values)
        frame = [0] * (max(registers[name] + len(words) for name, words in values.items()) - first)
        for name, words in values.items():
            frame[registers[name] - first : registers[name] - first + len(words)] = words
        await self.lines.of(place).write(place.unit, first, frame)

    def _young(self) -> bool:
        """Whether every drive was seen so lately that its token is good."""
        since_s = now_ns() / NS_PER_S - YOUNG_S
        return all(trace.samples and trace.last.t_s > since_s for trace in self.traces)

    async def make_safe(self) -> str:
        """Quick stop, wait for rest, voltage off, whatever state it is in; returns how the drives were left.

        Never raises for a drive that does not obey: says so, with the local stop.
        """
        if not self.energised:
            return "never enabled"
        try:
            await self.lines.open()
        except BeamlineError as error:
            return (
                f"NOT SAFE: the line cannot be opened ({error}); an unpolled drive should stop by itself; {self._local_stop()}"
            )
        for _ in range(RAMP_TRIES):
            if await self._send_quick_stop():
                break
        end_ns = now_ns() + round(SAFE_S * NS_PER_S)
        samples: Sequence[Sample] = ()
        while now_ns() < end_ns:
            with contextlib.suppress(BeamlineError):
                samples = await self.poll(fenced=False)
                if all(s.still and s.state in (DriveState.QUICK_STOP, DriveState.OPERATION_ENABLED) for s in samples):
                    await self.command(Command.DISABLE_VOLTAGE)
                if all(s.still and s.braked and not _powered(s) for s in samples):
                    self.energised = False
                    return "at rest, brake applied, not enabled"
            await asyncio.sleep(PERIOD_S)
        with contextlib.suppress(BeamlineError):
            await self.command(Command.DISABLE_VOLTAGE)
        left = "; ".join(f"{trace.label}: {describe(trace.last)}" for trace in self.traces if trace.samples) or "not known"
        return f"NOT SAFE: {left}; {self._local_stop()}"

    async def _send_quick_stop(self) -> bool:
        good = True
        for place in self.target.places:
            try:
                controlword = self._registers["controlword"]
                await self.lines.of(place).write(place.unit, controlword, [Command.QUICK_STOP], urgent=True)
            except BeamlineError:
                good = False
        return good

    def _local_stop(self) -> str:
        return f"use the local stop now: {self.target.rig.local_stop or 'none is declared'}"

    def _sample(self, words: Sequence[int], asked_s: float, answered_s: float) -> Sample:
        at = {name: register - self._first for name, register in self._registers.items()}
        return Sample(
            (asked_s + answered_s) / 2.0,
            words[at["statusword"]],
            int32(words, at["position"]) / 1000.0,
            int32(words, at["speed"]) / 1000.0,
            int16(words[at["torque"]]) / 10.0,
            words[at["error_code"]],
            words[at["safety"]],
            words[at["counter"]],
            tuple(words[at["cycles"] : at["cycles"] + 2]) if "cycles" in at else (),
            (answered_s - asked_s) / 2.0,
        )


def _powered(sample: Sample) -> bool:
    return sample.state in (DriveState.OPERATION_ENABLED, DriveState.QUICK_STOP)


def describe(sample: Sample) -> str:
    """A sample in words."""
    fault = f", error 0x{sample.error_code:04X}" if sample.error_code else ""
    brake = "brake applied" if sample.braked else "brake released"
    return f"{sample.state.value}, {brake}, {sample.position_deg:.3f} deg, {sample.speed_deg_s:+.3f} deg/s{fault}"
