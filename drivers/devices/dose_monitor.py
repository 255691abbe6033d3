"""The second, independent dose unit of one room (`DoseMonitor`), on process variables.

It knows nothing of plans: a ceiling for the field, a ceiling for the spot, and it withholds the permit by itself. This module
loads the ceilings, reads it, and runs the self-test of both dose channels.

Not responsible for comparing the two monitors during delivery (the delivery unit and the interlocks do).
"""

from __future__ import annotations

from collections.abc import Sequence

from drivers.devices.pv_link import PvLink, StatusWords, int64, words64
from drivers.hal.capabilities import DoseMonitorStatus
from drivers.hal.errors import CommandRejected, DataError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Reading
from drivers.wire.channels import Channels

IDLE, WATCHING, TRIPPED = 0, 1, 2
TRIPS = {
    1: "the field's ceiling was reached",
    2: "a spot's ceiling was reached",
    3: "high voltage of monitor 2 is out of its band",
    4: "the signal of monitor 2 stands still",
    5: "counts without a ceiling",
    6: "a chamber does not answer the injected charge within 2 %, or lacks its voltage",
}
CEILING_TRIPS = (1, 2)  # dose was given: no self-test clears them
COMMAND_TIMEOUT_S = 2.0
SELF_TEST_TIMEOUT_S = 15.0  # assumed


def trip_words(reason: int) -> str:
    """Why the unit tripped, in words (docs/wires.md)."""
    return TRIPS.get(reason, f"reason {reason}")


def _remedy(reason: int) -> str:
    if reason in CEILING_TRIPS:
        return "physicist: account for the dose, then acknowledge the trip"
    return "remove the cause, then run the dose self-test"


def decode_status(words: Sequence[int], t_ns: int) -> DoseMonitorStatus:
    """Decode `DU2:STATUS:RB` (docs/wires.md); ValueError for an unknown state."""
    _counter, boot_id, state, high, low, hv_good, fresh, reason, age_s, _row = words
    if state not in (IDLE, WATCHING, TRIPPED):
        raise ValueError(f"state {state} of the second dose unit is unknown")
    return DoseMonitorStatus(t_ns, boot_id, state, int64(high, low), bool(hv_good), bool(fresh), reason, age_s)


class SecondDoseUnit:
    """DoseMonitor over channels.

    Args:
        name: device name, for example ``"G1-dose-unit-2"``.
        config: facility row; `prefix` is for example ``"ASAN:G1:DU2"``.
        channels: the wire.
        bus: events ``field.started``, ``self_test`` from the device.
    """

    def __init__(self, name: str, config: Device, channels: Channels, bus: EventBus) -> None:
        self._name = name
        self._bus = bus
        self._prefix = config.prefix
        self._link = PvLink(name, config, channels, bus, StatusWords(f"{config.prefix}:STATUS:RB", 10, decode_status))

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    @property
    def status(self) -> DoseMonitorStatus:
        """Last known status. Raises CommunicationError when there never was one."""
        return self._link.status

    async def connect(self) -> None:
        """Check identity and heartbeat."""
        self._link.close()
        await self._link.open(f"{self._prefix}:ID:RB")

    async def close(self) -> None:
        """End the monitor."""
        await self._link.end()

    def readings(self) -> Sequence[Reading[object]]:
        """State, field total, high voltage and freshness, as last received."""
        status, quality = self._link.status, self._link.quality
        values: tuple[tuple[str, object, str], ...] = (
            ("state", ("idle", "watching", "tripped")[status.state], ""),
            ("counts2_total", status.counts2_total, "counts"),
            ("hv_good", status.hv_good, ""),
            ("fresh", status.fresh, ""),
            ("trip_reason", status.trip_reason, ""),
        )
        return [Reading(f"{self._name}.{n}", v, u, status.t_ns, quality, self._link.simulated) for n, v, u in values]

    async def start_field(self, field_counts_max: int, spot_counts_max: int) -> None:
        """Load the ceilings and zero the field total; returns when the unit watches a total of zero.

        Raises:
            DataError: a ceiling is not positive, or the spot ceiling does not fit 32 bits (5131).
            DeviceError: high voltage or signal is missing (3131).
            CommandRejected: the unit stays tripped (4151).
        """
        if field_counts_max <= 0 or not 0 < spot_counts_max < 2**31:
            raise DataError(
                f"ceilings of {field_counts_max} and {spot_counts_max} counts are impossible", code=5131, device=self._name
            )
        before = self._link.require_fresh()
        self._healthy(before)
        await self._link.put(f"{self._prefix}:CEILING:SP", [before.boot_id, *words64(field_counts_max), spot_counts_max])
        await self._link.refresh()

        def watching() -> bool | None:
            status = self._link.require_fresh()
            if status.state == TRIPPED:
                raise CommandRejected(
                    f"the second dose unit stays tripped: {trip_words(status.trip_reason)}",
                    code=4151,
                    device=self._name,
                    hint=_remedy(status.trip_reason),
                )
            return True if status.state == WATCHING and status.counts2_total == 0 else None

        await self._link.until(watching, COMMAND_TIMEOUT_S, "field total of zero")
        self._bus.emit(self._name, "field.started", field_counts_max=field_counts_max, spot_counts_max=spot_counts_max)

    async def self_test(self) -> None:
        """Test both dose channels; returns when the unit reports a test younger than this call.

        Raises:
            DeviceError: a channel has no high voltage or no signal (3131), the test was failed (3132), or it was passed and a
                ceiling trip stands (3133).
            CommunicationError: no result in time.
        """
        self._link.require_fresh()
        await self._link.put(f"{self._prefix}:SELFTEST:SP", 1)
        after = await self._link.refresh()
        asked_ns = after.t_ns

        def tested() -> DoseMonitorStatus | None:
            status = self._link.require_fresh()
            elapsed_s = (status.t_ns - asked_ns) / 1e9
            return status if 0 <= status.self_test_age_s <= elapsed_s + 1.0 else None

        status = await self._link.until(tested, SELF_TEST_TIMEOUT_S, "result of the dose self-test")
        self._healthy(status)
        if status.state == TRIPPED and status.trip_reason in CEILING_TRIPS:
            raise DeviceError(
                f"both channels are sound, but the trip stands: {trip_words(status.trip_reason)}",
                code=3133,
                device=self._name,
                hint=_remedy(status.trip_reason),
            )
        if status.state == TRIPPED:
            raise DeviceError(
                f"the dose self-test failed: {trip_words(status.trip_reason)}",
                code=3132,
                device=self._name,
                hint="no treatment; physics compares both monitors",
            )
        self._bus.emit(self._name, "self_test", passed=True)

    async def acknowledge(self) -> None:
        """Clear a ceiling trip after a person has accounted for what it let through; beam then needs a new field.

        Raises:
            CommandRejected: the unit stays tripped (4151).
            CommunicationError: no answer.
        """
        status = await self._link.refresh()
        if status.state != TRIPPED:
            return
        await self._link.put(f"{self._prefix}:RESET:SP", status.boot_id)
        after = await self._link.refresh()
        if after.state == TRIPPED:
            raise CommandRejected(
                f"the second dose unit stays tripped: {trip_words(after.trip_reason)}",
                code=4151,
                device=self._name,
                hint="remove the cause, then run the dose self-test",
            )
        self._bus.emit(self._name, "trip.acknowledged", reason=status.trip_reason, counts2=status.counts2_total)

    def _healthy(self, status: DoseMonitorStatus) -> None:
        missing = [word for word, good in (("high voltage", status.hv_good), ("fresh signal", status.fresh)) if not good]
        if missing:
            raise DeviceError(f"no {' and no '.join(missing)}", code=3131, device=self._name, hint="check the monitor's supply")
