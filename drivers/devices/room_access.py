"""Remote I/O of a room: what the safety system lets us see, presets for the interlock system, and the request pulse R.

While beam is requested a pulse leaves every 50 ms (the relay falls after 100 ms), in one transaction with the status; while a
treatment is armed a heartbeat does, by which the interlock system sees this program live. Dropping the request is synchronous:
once `request_beam(False)` has returned no pulse leaves; one that comes too late, or that the gate objects to, drops it. Not
responsible for when to request, nor for the safety chain itself, which owes nothing to this program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntFlag

from drivers.devices.connect import NOT_ALIVE, Poller, standing
from drivers.devices.node import Node
from drivers.hal.capabilities import RoomStatus
from drivers.hal.clock import NS_PER_MS, now_ns
from drivers.hal.errors import BeamlineError, ConfigError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Reading
from drivers.wire.codecs.registers import words_of_int32, words_of_milli
from drivers.wire.modbus import LINE_CLOSED, ModbusLine, Withheld

PULSE_S = 0.05  # docs/wires.md: must change at least every 100 ms
RELAY_NS = 100 * NS_PER_MS  # so long after a pulse its relay has fallen
REFRESH_S = 0.5
FULL_READ_PULSES = 10  # the whole block is read with every tenth pulse, the first registers with the others
FAILURES_MAX = 2  # pulses that fail one after the other before the request is dropped: the relay has fallen by then
READ_BACK = 3309


class RoomBit(IntFlag):
    """Register 9."""

    DOOR_A = 1
    DOOR_B = 2
    SEARCH = 4
    ESTOP = 8
    LAMP = 16
    STOPPER_CLOSED = 32
    BEAM_PRESENT = 64


class Contribution(IntFlag):
    """Register 10."""

    A = 1
    B = 2
    R = 4
    ENABLED = 8


# Before the first answer: nothing is safe, nothing is permitted.
UNKNOWN = RoomStatus(
    t_ns=0,
    door_closed=False,
    search_complete=False,
    search_state=0,
    estop_healthy=False,
    lamp_lit=False,
    stopper_closed=False,
    beam_present=False,
    permit_a=False,
    permit_b=False,
    permit_r=False,
    beam_enabled=False,
    chain_a_bits=0,
    service_mode=False,
)


class RoomAccessIO:
    """`RoomAccess` of a room.

    Args:
        name: device, for example ``"G1-safety"``.
        config: its entry in the facility file.
        client: the room's safety line.
        registers: register table ``safety``.
        bus: where ``room.bits``, ``request.on``, ``request.off``, ``request.dropped`` and the connection are told.
    """

    def __init__(
        self, name: str, config: Device, client: ModbusLine, registers: Mapping[str, Mapping[str, int]], bus: EventBus
    ) -> None:
        table = registers["safety"]
        self._name = name
        self._config = config
        self._client = client
        self._bus = bus
        self._node = Node(name, config, client, table, ("counter", "room_mode"), bus)
        self._short = (self._node.first, table["search_state"] + 1 - self._node.first)
        self._full = (self._node.first, self._node.count)
        self._heartbeat_register = table["heartbeat"]
        if table["request_pulse"] != self._heartbeat_register + 1:
            raise ConfigError(
                "the request pulse is not the register behind the heartbeat: one frame carries both", code=1005, device=name
            )
        self._preset_register = table["room_token"]
        self._poller = Poller(name, bus, self._beat, self._pause_s)
        self._watchers: list[Callable[[RoomStatus], None]] = []
        self._status = UNKNOWN
        self._bits: tuple[int, ...] = ()
        self._requested = False
        self._armed = False
        self._gate: Callable[[int], bool] | None = None
        self._pulsed_ns: int | None = None  # when the last pulse of this request left
        self._pulse = 0
        self._failures = 0

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    @property
    def status(self) -> RoomStatus:
        """Last status; its `t_ns` is when the device's counter last moved. All false before the first answer."""
        return self._status

    @property
    def requested(self) -> bool:
        """Whether beam is requested now."""
        return self._requested

    async def connect(self) -> None:
        """Open the line, check who answers, see the counter move, read the status."""
        await self._node.connection.open()
        self._decode()
        self._poller.start()

    async def close(self) -> None:
        """Drop the request and stop reading."""
        self.request_beam(False)
        await self._poller.stop()
        await self._node.connection.close()

    def watch(self, watcher: Callable[[RoomStatus], None]) -> Callable[[], None]:
        """Call `watcher` with each status that differs from the one before; returns the function that ends it."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    def readings(self) -> Sequence[Reading[object]]:
        """The second encoder's angle, totals of both monitors and what else the block shows; empty before the first."""
        node = self._node
        if len(node.words) < node.count:
            return ()
        quality, t_ns, simulated = node.quality(), node.t_ns, self._config.simulated
        values: tuple[tuple[str, object, str], ...] = (
            ("ring_angle", node.number("ring_angle") / 1000.0, "deg"),
            ("motor_angle", node.number("motor_angle") / 1000.0, "deg"),
            ("standstill", bool(node.word("standstill")), ""),
            ("counts1", node.total("counts1"), "counts"),
            ("counts2", node.total("counts2"), "counts"),
            ("position_error", node.number("position_error") / 1000.0, "mm"),
            ("magnet_deviation", node.number("magnet_deviation"), "ppm"),
            ("species_token", node.number("species"), ""),
            ("signal_per_ion", node.number("signal_per_ion") / 1000.0, ""),
            ("monitor_health", node.word("monitor_health"), ""),
        )
        return [Reading(f"{self._name}.{n}", v, u, t_ns, quality, simulated) for n, v, u in values]

    async def refresh(self) -> RoomStatus:
        """Read now. Raises CommunicationError when the node is silent."""
        await self._node.read()
        return self._decode()

    async def preset(
        self, room_token: int, angle_deg: float, species_token: int, armed: bool, plan_hash: int = 0, beam_number: int = 0
    ) -> None:
        """Tell the interlock system what was selected; returns when it has been read back.

        Raises:
            DataError: a number does not fit its register.
            DeviceError: other values are read back.
            CommunicationError: silent.
        """
        if not self._node.connection.up:
            raise self._node.connection.unavailable()
        values = [room_token, *words_of_milli(angle_deg), *words_of_int32(species_token), int(armed)]
        values += [*words_of_int32(plan_hash), beam_number & 0xFFFF]
        self._armed = self._armed and armed  # the heartbeat ends before the register does
        await self._client.write(self._node.unit, self._preset_register, values)
        self._armed = armed
        self._poller.kick()
        held = await self._client.read(self._node.unit, self._preset_register, len(values))
        if list(held) != values:
            raise DeviceError(
                f"preset {values} reads back as {list(held)}", code=READ_BACK, device=self._name, hint="try again"
            )

    def request_beam(self, on: bool) -> None:
        """Start or stop the request pulse. Off acts in this very step: no pulse leaves after it.

        Raises:
            CommunicationError: on, while the safety I/O is not connected.
        """
        if on and not self._node.connection.up:
            raise self._node.connection.unavailable()
        if on == self._requested:
            return
        self._requested = on
        self._failures = 0
        self._pulsed_ns = None
        if on:
            self._poller.kick()
        self._bus.emit(self._name, "request.on" if on else "request.off")

    def gate(self, fed: Callable[[int], bool] | None) -> None:
        """Ask `fed` in the step in which a pulse would leave, with the ns since the one before (0: the first); False drops it.

        None: nobody is asked. A pulse that comes after its relay has fallen drops the request in any case.
        """
        self._gate = fed

    # --- inside --------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        if self._requested or (self._armed and self._node.connection.up):
            await self._send_pulse()
        elif self._node.connection.up:
            try:
                await self.refresh()
            except BeamlineError:
                return  # the connection has been told, and tries again

    async def _send_pulse(self) -> None:
        self._pulse = (self._pulse + 1) & 0xFFFF
        span = self._full if self._pulse % FULL_READ_PULSES == 0 else self._short
        requested = self._requested
        values = [self._pulse, self._pulse] if requested else [self._pulse]  # armed, and beam not requested: a heartbeat alone
        guard = self._may_pulse if requested else _may_beat
        try:
            words = await self._client.read_write(self._node.unit, span, self._heartbeat_register, values, guard=guard)
        except Withheld:
            self._pulse = (self._pulse - 1) & 0xFFFF  # it did not leave
            return
        except BeamlineError as error:
            if error.code == LINE_CLOSED:
                self._pulse = (self._pulse - 1) & 0xFFFF
            self._pulse_failed(error)
            return
        self._failures = 0
        node = self._node
        node.take((*words, *node.words[len(words) :]))
        self._decode()
        still_ns = node.life.still_ns(node.t_ns)
        if still_ns > node.life.deadline_ns:
            self._pulse_failed(standing(self._name, still_ns))

    def _may_pulse(self) -> bool:
        """Asked when the line is ours. A relay that has fallen must not be closed again by whoever comes late."""
        if not self._requested:
            return False
        at_ns = now_ns()
        gap_ns = 0 if self._pulsed_ns is None else at_ns - self._pulsed_ns
        if (self._gate is not None and not self._gate(gap_ns)) or gap_ns > RELAY_NS:
            if self._requested:
                self._requested = False
                self._bus.emit(self._name, "request.withheld", gap_ms=round(gap_ns / NS_PER_MS))
            return False
        self._pulsed_ns = at_ns
        return True

    def _pulse_failed(self, error: BeamlineError) -> None:
        """A pulse did not arrive. Beam is off by the relay; a request must not come back by itself when the line does."""
        self._failures += 1
        if self._failures < FAILURES_MAX and error.code not in (LINE_CLOSED, NOT_ALIVE):
            return
        if self._requested:
            self._requested = False
            self._bus.emit(self._name, "request.dropped", error=str(error))
        self._node.connection.lost(error)

    def _decode(self) -> RoomStatus:
        node = self._node
        moved_ns = node.life.moved_ns or 0
        words = node.words
        bits = (*words[1:5], words[-1])
        previous = self._status
        if bits == self._bits:
            if moved_ns != previous.t_ns:
                self._status = _restamped(previous, moved_ns)
            return self._status
        self._bits = bits
        room, contributions = RoomBit(node.word("room_bits") & 0x7F), Contribution(node.word("contributions") & 0xF)
        self._status = status = RoomStatus(
            t_ns=moved_ns,
            door_closed=RoomBit.DOOR_A in room and RoomBit.DOOR_B in room,
            search_complete=RoomBit.SEARCH in room,
            search_state=node.word("search_state"),
            estop_healthy=RoomBit.ESTOP in room,
            lamp_lit=RoomBit.LAMP in room,
            stopper_closed=RoomBit.STOPPER_CLOSED in room,
            beam_present=RoomBit.BEAM_PRESENT in room,
            permit_a=Contribution.A in contributions,
            permit_b=Contribution.B in contributions,
            permit_r=Contribution.R in contributions,
            beam_enabled=Contribution.ENABLED in contributions,
            chain_a_bits=node.word("chain_a"),
            service_mode=node.word("room_mode") == 1,
        )
        self._bus.emit(
            self._name,
            "room.bits",
            room=int(room),
            contributions=int(contributions),
            chain_a=status.chain_a_bits,
            search_state=status.search_state,
            service_mode=status.service_mode,
        )
        for watcher in tuple(self._watchers):
            watcher(status)
        return status

    def _pause_s(self) -> float:
        return PULSE_S if self._requested or self._armed else REFRESH_S


def _may_beat() -> bool:
    return True


def _restamped(status: RoomStatus, t_ns: int) -> RoomStatus:
    """The same status, seen again later. Field by field: `dataclasses.replace` costs more than the whole poll."""
    return RoomStatus(
        t_ns,
        status.door_closed,
        status.search_complete,
        status.search_state,
        status.estop_healthy,
        status.lamp_lit,
        status.stopper_closed,
        status.beam_present,
        status.permit_a,
        status.permit_b,
        status.permit_r,
        status.beam_enabled,
        status.chain_a_bits,
        status.service_mode,
    )
