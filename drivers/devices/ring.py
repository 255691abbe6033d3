"""What a gantry ring says of itself: both drives and the load encoder, read from their nodes, with their quality.

Read only. Not responsible for commands (`gantry`), nor for deciding what a disagreement means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drivers.devices.connect import Connection, Liveness, deadline_ns, standing
from drivers.devices.drive_group import DriveView
from drivers.hal.capabilities import RingState
from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import BeamlineError, CommunicationError
from drivers.hal.facility import Device
from drivers.hal.reading import Quality, Reading
from drivers.wire.codecs.cia402 import DriveState, Safety, drive_state
from drivers.wire.codecs.registers import int16, int32
from drivers.wire.modbus import ModbusLine

ENCODER_PAIR_DEG = 0.2  # starting value of the encoder pair's trip, assumed
STANDSTILL_DEG_S = 0.01  # a ring that is slower stands (bound for beam while moving), assumed


@dataclass(frozen=True, slots=True)
class DriveSample:
    """One drive's status block, read at `t_ns`."""

    t_ns: int
    statusword: int
    position_deg: float
    speed_deg_s: float
    torque_percent: float
    error_code: int
    safety: Safety
    token: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RingSample:
    """Both drives and the load encoder, read one after the other and stamped when the last one had answered."""

    t_ns: int
    drives: tuple[DriveSample, DriveSample]
    load_deg: float
    load_valid: bool

    @property
    def motor_deg(self) -> float:
        """Mean of the drive encoders."""
        return (self.drives[0].position_deg + self.drives[1].position_deg) / 2.0

    @property
    def speed_deg_s(self) -> float:
        """Mean of the drive speeds."""
        return (self.drives[0].speed_deg_s + self.drives[1].speed_deg_s) / 2.0

    @property
    def spread_deg(self) -> float:
        """Largest disagreement between any two of the three encoders, at the instant at which the load encoder was read.

        The nodes are read one after the other; at 3 deg/s a repeated question alone would look like 0.2 deg.
        """
        then = [d.position_deg + d.speed_deg_s * (self.t_ns - d.t_ns) / NS_PER_S for d in self.drives]
        return max(*then, self.load_deg) - min(*then, self.load_deg)

    @property
    def still(self) -> bool:
        """Whether both drives stand."""
        return all(abs(drive.speed_deg_s) < STANDSTILL_DEG_S for drive in self.drives)

    @property
    def braked(self) -> bool:
        """Whether both brakes are applied."""
        return all(Safety.SBC in drive.safety for drive in self.drives)

    @property
    def enabled(self) -> bool:
        """Whether a drive follows set-points."""
        return any(drive_state(drive.statusword) is DriveState.OPERATION_ENABLED for drive in self.drives)

    @property
    def error_code(self) -> int:
        """The first drive fault, 0 when there is none."""
        return self.drives[0].error_code or self.drives[1].error_code

    def view(self, index: int, node: int) -> DriveView:
        """One drive as its group sees it."""
        drive = self.drives[index]
        braked = Safety.SBC in drive.safety
        label = f"drive {'AB'[index]}"
        return DriveView(node, label, drive.statusword, drive.error_code, self.still, braked, drive.token)


class RingReader:
    """Reads a ring.

    Args:
        name: device, for the names of readings.
        config: nodes (drive A, drive B, load encoder), deadline.
        client: the room's motion line.
        registers: register tables ``drive`` and ``load_encoder``.
        lost: told when a node is silent, or answers with a counter that stands still.
    """

    def __init__(
        self,
        name: str,
        config: Device,
        client: ModbusLine,
        registers: Mapping[str, Mapping[str, int]],
        lost: Callable[[BeamlineError], None],
    ) -> None:
        self.sample: RingSample | None = None
        self._name = name
        self._config = config
        self._client = client
        self._lost = lost
        self._lives = tuple(Liveness(deadline_ns(config)) for _ in config.unit_ids)
        drive, encoder = registers["drive"], registers["load_encoder"]
        self._drive = {key: address - drive["statusword"] for key, address in drive.items()}
        self._encoder = {key: address - encoder["status"] for key, address in encoder.items()}
        self._token = slice(self._drive["cycles"], self._drive["cycles"] + 2) if "cycles" in drive else slice(0)
        drive_span = (drive["statusword"], max(self._drive["counter"] + 1, self._token.stop))
        encoder_span = (encoder["status"], self._encoder["counter"] + 1)
        a, b, load = config.unit_ids
        self._spans = ((a, *drive_span), (b, *drive_span), (load, *encoder_span))

    async def read(self) -> RingSample:
        """Read all three nodes now. Raises CommunicationError when one is silent."""
        try:
            a, a_ns = await self._client.read(*self._spans[0]), now_ns()
            b, b_ns = await self._client.read(*self._spans[1]), now_ns()
            load, t_ns = await self._client.read(*self._spans[2]), now_ns()
        except CommunicationError as error:
            self._lost(error)
            raise
        counters = (a[self._drive["counter"]], b[self._drive["counter"]], load[self._encoder["counter"]])
        for life, counter in zip(self._lives, counters, strict=True):
            life.see(counter, t_ns)
        still_ns = max(life.still_ns(t_ns) for life in self._lives)
        if still_ns > self._lives[0].deadline_ns:
            self._lost(standing(self._name, still_ns))
        load_deg = int32(load, self._encoder["position"]) / 1000.0
        drives = (self._drive_sample(a, a_ns), self._drive_sample(b, b_ns))
        self.sample = RingSample(t_ns, drives, load_deg, bool(load[0] & 1))
        return self.sample

    def restart(self) -> None:
        """Start anew after a reconnection: each counter has to move before it proves anything."""
        for life in self._lives:
            life.restart()

    def silent_since_ns(self) -> int | None:
        """When the slowest of the three counters last moved; None when one has never been seen."""
        moved = [life.moved_ns for life in self._lives]
        return None if None in moved else min(m for m in moved if m is not None)

    def quality(self, connection: Connection) -> Quality:
        """Quality of the last sample, now."""
        sample = self.sample
        if sample is None:
            return Quality.DISCONNECTED
        if not connection.up:
            return connection.quality_down
        at_ns = now_ns()
        if any(life.quality(at_ns) is not Quality.GOOD for life in self._lives):
            return Quality.STALE
        return Quality.GOOD if sample.load_valid and sample.spread_deg <= ENCODER_PAIR_DEG else Quality.ALARM

    def state(self, sample: RingSample, quality: Quality) -> RingState:
        """A sample as the capability shows it."""
        name = self._name
        return RingState(
            angle=Reading(f"{name}.angle", sample.load_deg, "deg", sample.t_ns, quality, self._simulated(2)),
            motor_angle=Reading(f"{name}.motor_angle", sample.motor_deg, "deg", sample.t_ns, quality, self._simulated(0, 1)),
            speed_deg_s=sample.speed_deg_s,
            enabled=sample.enabled,
            brake_applied=sample.braked,
            standstill=sample.still,
            error_code=sample.error_code,
        )

    def readings(self, quality: Quality) -> Sequence[Reading[object]]:
        """Everything of the last sample; empty before the first."""
        sample = self.sample
        if sample is None:
            return ()
        a, b = sample.drives
        values: tuple[tuple[str, object, str, tuple[int, ...]], ...] = (  # of which nodes a value is made
            ("angle", sample.load_deg, "deg", (2,)),
            ("motor_angle", sample.motor_deg, "deg", (0, 1)),
            ("encoder_spread", sample.spread_deg, "deg", (0, 1, 2)),
            ("speed", sample.speed_deg_s, "deg/s", (0, 1)),
            ("enabled", sample.enabled, "", (0, 1)),
            ("brake_applied", sample.braked, "", (0, 1)),
            ("torque_a", a.torque_percent, "%", (0,)),
            ("torque_b", b.torque_percent, "%", (1,)),
            ("safety_a", int(a.safety), "", (0,)),
            ("safety_b", int(b.safety), "", (1,)),
            ("error_code", sample.error_code, "", (0, 1)),
        )
        name, t_ns = self._name, sample.t_ns
        return [Reading(f"{name}.{n}", v, u, t_ns, quality, self._simulated(*nodes)) for n, v, u, nodes in values]

    def _simulated(self, *nodes: int) -> bool:
        """Whether a simulator had a part in a value made of these nodes (drive A, drive B, load encoder)."""
        config = self._config
        if not config.simulated:
            return False
        return any(not config.parts or config.parts[node] not in config.real_parts for node in nodes)

    def _drive_sample(self, words: Sequence[int], t_ns: int) -> DriveSample:
        at = self._drive
        return DriveSample(
            t_ns,
            words[0],
            int32(words, at["position"]) / 1000.0,
            int32(words, at["speed"]) / 1000.0,
            int16(words[at["torque"]]) / 10.0,
            words[at["error_code"]],
            Safety(words[at["safety"]] & 0x3F),
            tuple(words[self._token]),
        )
