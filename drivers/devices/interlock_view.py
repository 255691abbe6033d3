"""The interlock system's own status line, read only: permit relay, motion relay, active trips, first-out.

The relays are hardware and say the truth at once; first-out and trips come from the daemon, which lives while its pulse changes
or its relay is open. Not responsible for interlocks: the controller never decides one, and never writes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drivers.devices.connect import Connection, Poller, check_identity, prove_alive, standing
from drivers.hal.capabilities import InterlockStatus
from drivers.hal.clock import NS_PER_MS, now_ns
from drivers.hal.errors import BeamlineError, CommunicationError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Quality, Reading
from drivers.wire.codecs.registers import int32
from drivers.wire.modbus import ModbusLine

REFRESH_S = 0.5

# Before the first answer: no permission, and no time at which it was true.
UNKNOWN = InterlockStatus(t_ns=0, relay_closed=False, active_trips=0, first_out_code=0, boot_id=0)


class InterlockStatusLine:
    """`InterlockView` of a room.

    Args:
        name: device, for example ``"G1-interlock"``.
        config: its entry in the facility file.
        client: the room's safety line.
        registers: register table ``permit_relay``.
        bus: where ``interlock.status`` and the connection are told.
        rows: by first-out code, a row in words and what to do about it; a code that is not there is told as a number.
    """

    def __init__(
        self,
        name: str,
        config: Device,
        client: ModbusLine,
        registers: Mapping[str, Mapping[str, int]],
        bus: EventBus,
        rows: Mapping[int, tuple[str, str]] | None = None,
    ) -> None:
        table = registers["permit_relay"]
        self._name = name
        self._config = config
        self._client = client
        self._bus = bus
        self._rows = rows or {}
        self._identity = table["identity"]
        self._first = table["pulse"]
        self._at = {key: address - self._first for key, address in table.items()}
        self._count = max(self._at.values()) + 1
        self._status = UNKNOWN
        self._pulse: int | None = None
        self._connection = Connection(name, bus, self._establish)
        self._poller = Poller(name, bus, self._beat, lambda: REFRESH_S)

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    @property
    def status(self) -> InterlockStatus:
        """Last status; open and without a time before the first answer."""
        return self._status

    async def connect(self) -> None:
        """Open the line, check who answers, read the status. A daemon that withholds its pulse is no reason to fail."""
        await self._connection.open()
        self._poller.start()

    async def close(self) -> None:
        """Stop reading."""
        await self._poller.stop()
        await self._connection.close()

    def readings(self) -> Sequence[Reading[object]]:
        """Relay, trips, first-out, as last read."""
        status = self._status
        stale = now_ns() - status.t_ns > self._config.deadline_ms * NS_PER_MS
        quality = self._connection.quality_down if not self._connection.up else Quality.STALE if stale else Quality.GOOD
        values: tuple[tuple[str, object, str], ...] = (
            ("relay_closed", status.relay_closed, ""),
            ("active_trips", status.active_trips, ""),
            ("first_out_code", status.first_out_code, ""),
            ("boot_id", status.boot_id, ""),
            ("first_out_value", status.first_out_value, ""),
            ("first_out_limit", status.first_out_limit, ""),
            ("first_out_input", status.first_out_input, ""),
            *(() if status.motion_permitted is None else (("motion_permitted", status.motion_permitted, ""),)),
        )
        return [Reading(f"{self._name}.{n}", v, u, status.t_ns, quality, self._config.simulated) for n, v, u in values]

    async def refresh(self) -> InterlockStatus:
        """Read now. Raises CommunicationError when the relay node is silent."""
        try:
            status = await self._read()
        except CommunicationError as error:
            self._connection.lost(error)
            raise
        still_ns = now_ns() - status.t_ns
        if still_ns > self._config.deadline_ms * NS_PER_MS:  # a relay cannot be closed so long after its last pulse
            self._connection.lost(standing(self._name, still_ns))
        return status

    async def _read(self) -> InterlockStatus:
        unit = self._config.unit_ids[0]
        words = await self._client.read(unit, self._first, self._count)  # one answer: trips and relay of one instant
        pulse, closed = words[0], bool(words[self._at["relay_closed"]])
        motion = self._at.get("motion_closed")
        motion_code = words[self._at["motion_code"]] if motion is not None else 0
        row, advice = self._rows.get(motion_code, ("", ""))
        first_row, first_advice = self._rows.get(words[self._at["first_out"]], ("", ""))
        before = self._status
        fresh = not closed or (self._pulse is not None and pulse != self._pulse)
        self._pulse = pulse
        self._status = status = InterlockStatus(
            t_ns=now_ns() if fresh else before.t_ns,
            relay_closed=closed,
            active_trips=words[self._at["active_trips"]],
            first_out_code=words[self._at["first_out"]],
            boot_id=words[self._at["boot_id"]],
            first_out_value=int32(words, self._at["first_out_value"]),
            first_out_limit=int32(words, self._at["first_out_limit"]),
            first_out_input=words[self._at["first_out_input"]],
            motion_permitted=bool(words[motion]) if motion is not None else None,
            motion_code=motion_code,
            motion_row=row,
            motion_advice=advice,
            first_out_row=first_row,
            first_out_advice=first_advice,
        )
        if _facts(status) != _facts(before):
            self._bus.emit(
                self._name,
                "interlock.status",
                relay_closed=closed,
                active_trips=status.active_trips,
                first_out_code=status.first_out_code,
                boot_id=status.boot_id,
                first_out_value=status.first_out_value,
                first_out_limit=status.first_out_limit,
                first_out_input=status.first_out_input,
                motion_permitted=status.motion_permitted,
                motion_code=status.motion_code,
            )
        return status

    async def _establish(self) -> None:
        await self._client.connect()
        await check_identity(self._name, self._config, self._client, self._identity)
        self._pulse = None
        first = await self._read()

        async def poll() -> None:
            await self._read()

        def lives() -> bool:
            """An open relay says what is safe; a closed one is believed when its pulse moves."""
            return not self._status.relay_closed or self._status.t_ns > first.t_ns

        await prove_alive(self._name, poll, lives, self._config.deadline_ms / 1000.0)

    async def _beat(self) -> None:
        if self._connection.up:
            try:
                await self.refresh()
            except BeamlineError:
                return  # the connection has been told, and tries again


def _facts(status: InterlockStatus) -> tuple[object, ...]:
    shown = (status.first_out_value, status.first_out_limit, status.first_out_input)
    motion = (status.motion_permitted, status.motion_code)
    return status.relay_closed, status.active_trips, status.first_out_code, status.boot_id, *shown, *motion
