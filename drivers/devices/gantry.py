"""The rotating gantry: commands the group of two drives on one ring, watches both encoders against each other, refuses.

The drives' own firmware moves the ring, proves torque, sets brakes and stops by itself when it is not polled; this driver asks
by CiA 402 words and believes only what it reads back. Beam is not its business, nor whether the way is free.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

from drivers.devices.connect import Connection, Poller, check_identity, prove_alive, silent
from drivers.devices.drive_group import DriveGroup, DriveView
from drivers.devices.ring import ENCODER_PAIR_DEG, RingReader, RingSample
from drivers.hal.capabilities import RingState
from drivers.hal.clock import NS_PER_MS, now_ns
from drivers.hal.errors import BeamlineError, CommandRejected, ConfigError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device, Room
from drivers.hal.reading import Quality, Reading
from drivers.wire.codecs.cia402 import PROFILE_POSITION, Safety, Status
from drivers.wire.codecs.registers import int32, words_of_milli
from drivers.wire.modbus import ModbusLine

IN_POSITION_S = 0.5  # assumed: time inside the window before the ring counts as arrived
WRONG_WAY_DEG = 0.5  # assumed: farther than this from the nearest point so far means that it turns the wrong way
BRAKE_SHIFT_DEG = 0.05  # assumed: what the ring may move while its brake is set
SLS_DEG_S = 0.5  # safely limited speed while someone is in the room, design notes
SILENCE_NS = 250 * NS_PER_MS  # counters of a moving machine may stand still for three polls
POLL_DEADLINE_MS = 200.0  # docs/wires.md: unpolled for longer, a drive stops by itself
SLOW_POLL_S = 1.0
PATIENCE = 1.5  # a motion may take this many times the computed time, and a little more
GRACE_S = 5.0

ENCODERS_DISAGREE = 3302
NOT_ARRIVED = 3303
WRONG_WAY = 3304
NOT_BRAKED = 3305
STALE = 3306
STOPPED_SAFELY = 3313
READ_BACK = 3309
OUT_OF_LIMITS = 4001
BUSY = 4002
NOT_AT_STANDSTILL = 4003
TORQUE_OFF = 4004


class RotatingGantry:
    """`Axis` of a gantry room.

    Args:
        name: device, for example ``"G1-gantry"``.
        config: its entry in the facility file: nodes (drive A, drive B, load encoder), identity, deadlines.
        room: limits of motion.
        client: the room's motion line.
        registers: register tables ``drive`` and ``load_encoder``.
        bus: where ``motion.start``, ``motion.end``, ``motion.failed``, ``motion.stop`` and the connection are told.
    """

    def __init__(
        self,
        name: str,
        config: Device,
        room: Room,
        client: ModbusLine,
        registers: Mapping[str, Mapping[str, int]],
        bus: EventBus,
    ) -> None:
        if room.gantry is None or len(config.unit_ids) != 3:
            raise ConfigError("a gantry needs limits and three nodes (drive A, drive B, load encoder)", code=1006, device=name)
        self._name = name
        self._config = config
        self._room = room
        self._limits = room.gantry
        self._client = client
        self._drive = registers["drive"]
        self._bus = bus
        self._moving = False
        self._connection = Connection(name, bus, self._establish)
        self._ring = RingReader(name, config, client, registers, self._connection.lost)
        # Two polls, one of them lost, fit into the time after which a drive stops by itself.
        period_s = 0.4 * (config.poll_deadline_ms or POLL_DEADLINE_MS) / 1000.0
        self._group = DriveGroup(name, client, config.unit_ids[:2], self._drive, self._views, period_s)
        self._poller = Poller(name, bus, self._background, self._pause_s)

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    async def connect(self) -> None:
        """Open the line, check who answers, see the counters move, read the state."""
        await self._connection.open()
        self._poller.start()

    async def close(self) -> None:
        """Stop polling; drives that are enabled then stop by themselves."""
        await self._poller.stop()
        await self._connection.close()

    def readings(self) -> Sequence[Reading[object]]:
        """Angles, speed, torques and safety words, as last read."""
        return self._ring.readings(self._quality())

    @property
    def sample(self) -> RingSample | None:
        """Both drives and the load encoder as last read; None before the first."""
        return self._ring.sample

    async def read_state(self) -> RingState:
        """Read both drives and the load encoder now. Raises CommunicationError when one is silent."""
        return self._ring.state(await self._ring.read(), self._quality())

    async def move_to(self, angle_deg: float) -> RingState:
        """Turn the ring, settle, set the brake, take torque away; see `Axis.move_to`.

        Angles a full turn apart are the same beam: 270 goes to -90 where the limits are +-180.

        Raises:
            CommandRejected: outside the limits, a motion is under way, not at standstill, torque held off by the safety chain,
                or stopped by `stop`.
            DeviceError: fault, encoders disagree, frozen device, not arrived, brake not set.
            CommunicationError: a drive or the encoder is silent; the drives stop by themselves.
        """
        if not self._connection.up:
            raise self._connection.unavailable()
        if self._moving:
            raise CommandRejected("a motion is under way", code=BUSY, device=self._name, hint="stop it first")
        self._moving = True
        stops = self._group.stops
        began = False
        try:
            sample = await self._ring.read()
            target_deg = self._target_deg(angle_deg, sample.load_deg)
            self._may_move(sample)
            if abs(sample.load_deg - target_deg) > self._limits.in_position_deg / 2.0:
                began = True
                self._bus.emit(self._name, "motion.start", from_deg=round(sample.load_deg, 3), to_deg=target_deg)
                await self._move(sample, target_deg, stops)
            final = await self._ring.read()
            self._prove(final, target_deg)
        except BaseException as error:
            if began:
                await self._group.halt(self._bus, error)
            raise
        finally:
            self._moving = False
            self._poller.kick()
        if began:
            self._bus.emit(self._name, "motion.end", angle_deg=round(final.load_deg, 3))
        return self._ring.state(final, self._quality())

    async def stop(self) -> None:
        """Quick stop on both drives at once, then wait for rest, brake and torque off.

        Raises:
            CommunicationError: a drive did not take it (both have been tried; an unpolled drive stops by itself).
            DeviceError: not at rest after 5 s.
        """
        self._bus.emit(self._name, "motion.stop")
        await self._group.quick_stop()
        await self._group.rest()

    async def acknowledge(self) -> RingState:
        """Reset drive faults whose cause is gone. Never starts motion. Raises DeviceError while a cause remains."""
        await self._group.reset_faults()
        return await self.read_state()

    # --- may it, and did it ----------------------------------------------------------------------------------------------

    def _target_deg(self, angle_deg: float, present_deg: float) -> float:
        """The angle inside the limits that stands for `angle_deg`, nearest to where the ring is."""
        target = self._room.beam_angle_deg(angle_deg, present_deg) if math.isfinite(angle_deg) else None
        if target is None:
            low, high = self._limits.angle_deg.minimum, self._limits.angle_deg.maximum
            raise CommandRejected(
                f"cannot turn to {angle_deg:g} deg: outside the limits {low:g} to {high:g} deg",
                code=OUT_OF_LIMITS,
                device=self._name,
                hint="choose another beam angle or room",
            )
        return target

    def _may_move(self, sample: RingSample) -> None:
        """Refuse what must not begin."""
        self._group.healthy(self._views_of(sample))
        self._encoders_agree(sample)
        if self._quality() is not Quality.GOOD:
            raise DeviceError(
                f"values are {self._quality().value}: a counter of the drives or the encoder stands still",
                code=STALE,
                device=self._name,
                hint="check the line and restart the silent node",
            )
        if any(Safety.STO in drive.safety for drive in sample.drives):
            raise CommandRejected(
                "torque is held off by the safety chain (STO)",
                code=TORQUE_OFF,
                device=self._name,
                hint="release the emergency stop, reset the chain, and see whether the motion permit is withheld",
            )
        if not sample.still or sample.enabled:
            raise CommandRejected(
                f"not at standstill: {sample.speed_deg_s:+.3f} deg/s, drives {'enabled' if sample.enabled else 'disabled'}",
                code=NOT_AT_STANDSTILL,
                device=self._name,
                hint="stop it first",
            )

    def _encoders_agree(self, sample: RingSample) -> None:
        if not sample.load_valid:
            raise DeviceError("the load encoder says its value is not valid", code=ENCODERS_DISAGREE, device=self._name)
        if sample.spread_deg > ENCODER_PAIR_DEG:
            a, b = (drive.position_deg for drive in sample.drives)
            raise DeviceError(
                f"encoders differ by {sample.spread_deg:.3f} deg, limit {ENCODER_PAIR_DEG} deg: load {sample.load_deg:.3f},"
                f" drive A {a:.3f}, drive B {b:.3f} deg",
                code=ENCODERS_DISAGREE,
                device=self._name,
                hint="find out which one is wrong before anything moves",
            )

    def _prove(self, sample: RingSample, target_deg: float) -> None:
        """After the motion: at the place, standing, brake set, no torque."""
        self._group.healthy(self._views_of(sample))
        self._encoders_agree(sample)
        error_deg = sample.load_deg - target_deg
        if abs(error_deg) > self._limits.in_position_deg + BRAKE_SHIFT_DEG:
            raise DeviceError(
                f"stands at {sample.load_deg:.3f} deg, {error_deg:+.3f} deg from the target",
                code=NOT_ARRIVED,
                device=self._name,
                hint="move again",
            )
        if not sample.braked or not sample.still or sample.enabled:
            raise DeviceError(
                f"arrived, but brake {'set' if sample.braked else 'not set'}, {sample.speed_deg_s:+.3f} deg/s,"
                f" drives {'enabled' if sample.enabled else 'disabled'}",
                code=NOT_BRAKED,
                device=self._name,
                hint="press the emergency stop",
            )

    # --- the motion -------------------------------------------------------------------------------------------------------

    async def _move(self, start: RingSample, target_deg: float, stops: int) -> None:
        """Set-point to both drives and read back, enable, start, watch, disable."""
        drive, limits = self._drive, self._limits
        first, count = drive["mode"], drive["acceleration"] + 2 - drive["mode"]
        set_point = [
            PROFILE_POSITION,
            *words_of_milli(target_deg),
            *words_of_milli(limits.speed_deg_s),
            *words_of_milli(limits.acceleration_deg_s2),
        ]
        await self._group.poll(stops)  # for the drives' tokens, which must be young
        await self._group.write_set_point(first, set_point)
        for node in self._config.unit_ids[:2]:
            held = await self._client.read(node, first, count)
            if list(held) != set_point:
                raise DeviceError(
                    f"node {node} holds target {int32(held, 1) / 1000.0:.3f} deg and mode {held[0]};"
                    f" sent {target_deg:.3f} deg and mode {PROFILE_POSITION}",
                    code=READ_BACK,
                    device=self._name,
                    hint="check the register map",
                )
        await self._group.enable(stops)
        await self._group.take_set_point(stops)
        await self._watch(start.load_deg, target_deg, stops)
        await self._group.disable(stops)

    async def _watch(self, start_deg: float, target_deg: float, stops: int) -> None:
        """Poll until the ring has been inside the window, reported as reached by both drives, for `IN_POSITION_S`."""
        window_deg = self._limits.in_position_deg
        nearest_deg = abs(start_deg - target_deg)
        deadline_ns = now_ns() + round(self._patience_s(nearest_deg) * 1e9)
        inside_since_ns: int | None = None
        while True:
            await asyncio.sleep(self._group.period_s)
            await self._group.poll(stops)
            sample = self._ring.sample
            if sample is None:
                raise silent(self._name)
            self._encoders_agree(sample)
            self._counting(sample)
            if sample.braked and sample.still and not sample.enabled:
                raise DeviceError(
                    f"stopped on the way by a safety function of the drives: at {sample.load_deg:.3f} deg",
                    code=STOPPED_SAFELY,
                    device=self._name,
                    hint="see whether the motion permit is withheld or an emergency stop was pressed",
                )
            distance_deg = abs(sample.load_deg - target_deg)
            nearest_deg = min(nearest_deg, distance_deg)
            if distance_deg > nearest_deg + WRONG_WAY_DEG:
                raise DeviceError(
                    f"turns away from the target: {distance_deg:.3f} deg to go, was {nearest_deg:.3f} deg",
                    code=WRONG_WAY,
                    device=self._name,
                    hint="check the sign of the axis",
                )
            following = any(d.statusword & Status.FOLLOWING_ERROR for d in sample.drives)
            reached = all(d.statusword & Status.TARGET_REACHED for d in sample.drives)
            if reached and sample.still and distance_deg <= window_deg and not following:
                inside_since_ns = sample.t_ns if inside_since_ns is None else inside_since_ns
                if sample.t_ns - inside_since_ns >= IN_POSITION_S * 1e9:
                    return
            else:
                inside_since_ns = None
            if sample.t_ns > deadline_ns:
                raise DeviceError(
                    f"not arrived in time: at {sample.load_deg:.3f} deg, target {target_deg:.3f} deg,"
                    f" target {'reached' if reached else 'not reached'} by the drives"
                    f"{', following error' if following else ''}",
                    code=NOT_ARRIVED,
                    device=self._name,
                    hint="look at the torque and the brakes",
                )

    def _counting(self, sample: RingSample) -> None:
        since_ns = self._ring.silent_since_ns()
        if since_ns is None or sample.t_ns - since_ns > SILENCE_NS:
            raise DeviceError(
                "a drive or the encoder answers with a counter that stands still",
                code=STALE,
                device=self._name,
                hint="it is frozen",
            )

    def _patience_s(self, distance_deg: float) -> float:
        """Longest time for a motion: the jerk-limited profile at the speed allowed now, settling, and patience."""
        limits = self._limits
        sample = self._ring.sample
        limited = sample is not None and any(Safety.SLS in drive.safety for drive in sample.drives)
        speed_deg_s = min(limits.speed_deg_s, SLS_DEG_S) if limited else limits.speed_deg_s
        profile_s = distance_deg / speed_deg_s + speed_deg_s / limits.acceleration_deg_s2
        profile_s += limits.acceleration_deg_s2 / limits.jerk_deg_s3
        return PATIENCE * profile_s + limits.settle_s + GRACE_S

    # --- polling ----------------------------------------------------------------------------------------------------------

    async def _views(self) -> Sequence[DriveView]:
        return self._views_of(await self._ring.read())

    def _views_of(self, sample: RingSample) -> list[DriveView]:
        return [sample.view(index, node) for index, node in enumerate(self._config.unit_ids[:2])]

    def _quality(self) -> Quality:
        return self._ring.quality(self._connection)

    async def _establish(self) -> None:
        await self._client.connect()
        await check_identity(self._name, self._config, self._client, self._drive["identity"])
        self._ring.restart()
        first = await self._ring.read()

        async def poll() -> None:
            await self._ring.read()

        def moved() -> bool:
            since_ns = self._ring.silent_since_ns()
            return since_ns is not None and since_ns > first.t_ns

        await prove_alive(self._name, poll, moved, self._config.deadline_ms / 1000.0)

    async def _background(self) -> None:
        """One poll while no motion of ours polls; after a stop quickly, until the ring stands without torque."""
        if self._moving or not self._connection.up:
            return
        try:
            await self._ring.read()
        except BeamlineError:
            return  # the connection has been told, and tries again

    def _pause_s(self) -> float:
        sample = self._ring.sample
        busy = sample is not None and (sample.enabled or not sample.still or not sample.braked)
        return self._group.period_s if busy else min(SLOW_POLL_S, self._config.deadline_ms / 2000.0)
