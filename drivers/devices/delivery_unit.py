"""The delivery unit of one room (`DeliveryUnit`), on process variables: grants out, results in.

A grant is one array, echoed by id and CRC, begun by that CRC alone. Results are pulled from the unit's ring and checked:
monitors lose updates, so none of the record depends on one. A refusal by the unit is CommandRejected with its reason in words.

Not responsible for what is granted or for journalling it first (`controller.delivery`), nor for the layout of the arrays
(`drivers.wire.codecs.grant`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.devices.pv_link import NO_EFFECT, PvLink, StatusWords
from drivers.hal.capabilities import (
    Grant,
    PieceFlag,
    ScannerMap,
    UnitLatch,
    UnitState,
    UnitStatus,
)
from drivers.hal.errors import CommandRejected, CommunicationError, DataError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import Device
from drivers.hal.reading import Reading
from drivers.wire.channels import Channels, Sample, as_float_array, as_int_array
from drivers.wire.codecs.grant import PIECES_MAX, STATUS_WORDS, decode_latch, decode_results, decode_status, encode_grant

ECHO_TIMEOUT_S = 2.0  # a grant older than 2 s is not begun any more (docs/wires.md)
ECHO_MONITOR_S = 0.05  # a monitor that takes longer counts as lost; assumed, some 50 round trips
COMMAND_TIMEOUT_S = 2.0
FOREVER_S = 86_400.0  # a grant may be held as long as the room allows; silence of the unit ends the wait much sooner
RESULT_TRIES = 5

REFUSALS: dict[int, str] = {
    1: "its checksum does not hold",
    2: "unknown protocol version",
    3: "it carries the boot id of another run of the unit",
    4: "its id is not the last one plus one",
    5: "a grant is open already",
    6: "it was older than 2 s at the start",
    7: "the measured species is another one",
    8: "the energy tokens of ring, magnets and map are not those of the grant",
    9: "its number of rows is wrong",
    10: "no scanner map for this energy is loaded",
    11: "beam is not permitted",
    12: "the unit is latched",
    13: "the intensity is out of range",
    14: "a row lies outside the field",
}


@dataclass(frozen=True, slots=True)
class _Echo:
    grant_id: int
    crc: int
    accepted: bool
    refusal: int


def map_words(scanner_map: ScannerMap) -> NDArray[np.float64]:
    """`DU:MAP:SP` of a scanner map, shape (16,)."""
    m = scanner_map
    return np.array(
        [
            m.energy_kev_u,
            m.x0_a,
            m.xx_a_mm,
            m.xy_a_mm,
            m.y0_a,
            m.yx_a_mm,
            m.yy_a_mm,
            m.monitor_x0_mm,
            m.monitor_xgain,
            m.monitor_y0_mm,
            m.monitor_ygain,
            m.counts1_per_ion,
            m.counts2_per_ion,
            m.focus_id,
            m.library_version,
            0.0,
        ]
    )


class DeliveryUnitClient:
    """DeliveryUnit over channels.

    Args:
        name: device name, for example ``"G1-delivery-unit"``.
        config: facility row; `prefix` is for example ``"ASAN:G1:DU"``.
        channels: the wire.
        bus: events ``grant.echoed``, ``grant.refused``, ``grant.ended``, ``unit.rebooted``, ``result.damaged`` from the device.
    """

    def __init__(self, name: str, config: Device, channels: Channels, bus: EventBus) -> None:
        self._name = name
        self._bus = bus
        self._prefix = config.prefix
        self._result_rb = f"{config.prefix}:RESULT:RB"
        self._echo_rb = f"{config.prefix}:ECHO:RB"
        self._latch_rb = f"{config.prefix}:LATCH:RB"
        self._map_sp = f"{config.prefix}:MAP:SP"
        self._echo: _Echo | None = None
        self._boot_id = 0
        self._link = PvLink(name, config, channels, bus, StatusWords(f"{config.prefix}:STATUS:RB", STATUS_WORDS, self._decode))

    @property
    def name(self) -> str:
        """Device name."""
        return self._name

    @property
    def status(self) -> UnitStatus:
        """Last known status. Raises CommunicationError when there never was one."""
        return self._link.status

    async def connect(self) -> None:
        """Check identity and heartbeat, watch the echo."""
        self._link.close()
        self._boot_id = 0
        await self._link.open(f"{self._prefix}:ID:RB")
        self._link.watch(self._echo_rb, self._take_echo)

    async def close(self) -> None:
        """End the monitors."""
        await self._link.end()

    def readings(self) -> Sequence[Reading[object]]:
        """State, open grant, totals and holds, as last received."""
        status, quality = self._link.status, self._link.quality
        values: tuple[tuple[str, object, str], ...] = (
            ("state", status.state.name.lower(), ""),
            ("open_grant_id", status.open_grant_id, ""),
            ("rows_finished", status.rows_finished, ""),
            ("hold", int(status.hold), ""),
            ("counts1_total", status.counts1_total, "counts"),
            ("counts2_total", status.counts2_total, "counts"),
            ("latched", status.latched, ""),
        )
        return [Reading(f"{self._name}.{n}", v, u, status.t_ns, quality, self._link.simulated) for n, v, u in values]

    async def load_map(self, scanner_map: ScannerMap) -> None:
        """Load the scanner map of one energy and see that the unit holds it.

        Raises:
            DataError: a number of the map is not finite (5111).
            DeviceError: the unit holds another map afterwards (3121).
        """
        words = map_words(scanner_map)
        if not np.isfinite(words).all():
            raise DataError("the scanner map has a number that is not finite", code=5111, device=self._name)
        self._link.require_fresh()
        await self._link.put(self._map_sp, words)
        held = as_float_array(self._map_sp, await self._link.get(self._map_sp), 16)
        if not np.array_equal(held, words):
            raise DeviceError(
                "the unit holds another scanner map than the one sent", code=3121, device=self._name, hint="try again"
            )

    async def submit(self, grant: Grant) -> int:
        """Send a grant and verify its echo.

        Returns:
            The CRC that starts it (signed 32-bit).

        Raises:
            CommandRejected: refused; code 4120 + the unit's refusal code, its reason in words.
            CommunicationError: no echo in time (2104), or the array was damaged on its way (2121).
        """
        array, crc = encode_grant(grant)
        self._link.require_fresh()
        repeated = self._echo is not None and (self._echo.grant_id, self._echo.crc) == (grant.grant_id, crc)
        self._echo = None
        await self._link.put(f"{self._prefix}:GRANT:SP", array)

        def echoed() -> bool | None:
            echo = self._echo
            if echo is None:
                return None
            if (echo.grant_id, echo.crc) == (grant.grant_id, crc):
                self._refuse(grant.grant_id, echo)
                return True
            if not echo.accepted and echo.refusal == 1:
                raise CommunicationError(
                    f"grant {grant.grant_id} arrived damaged (checksum {echo.crc:#x}, sent {crc:#x})",
                    code=2121,
                    device=self._name,
                    hint="send it again",
                    retryable=True,
                )
            return None

        what = f"echo of grant {grant.grant_id}"
        try:
            if not repeated:
                async with asyncio.timeout(ECHO_MONITOR_S):
                    await self._link.until(echoed, ECHO_TIMEOUT_S, what)
        except TimeoutError:
            repeated = True
        if repeated:
            # The echo of the same array may equal the last one, and monitors may be lost: ask.
            self._take_echo(await self._link.get(self._echo_rb))
            await self._link.until(echoed, ECHO_TIMEOUT_S, what)
        self._bus.emit(self._name, "grant.echoed", grant_id=grant.grant_id, rows=grant.rows)
        return crc

    async def start(self, grant_id: int, crc: int) -> None:
        """Begin the granted rows; returns when the unit works on them (or has ended them already).

        Raises:
            CommandRejected: the unit refuses to begin, with its reason.
        """
        self._link.require_fresh()
        await self._link.put(f"{self._prefix}:START:SP", [grant_id, crc])

        def begun() -> bool | None:
            status = self._link.require_fresh()
            self._same_boot(grant_id, status.boot_id)
            if self._echo is not None and self._echo.grant_id == grant_id:
                self._refuse(grant_id, self._echo)
            if status.open_grant_id == grant_id and status.state is UnitState.GRANTED:
                return None
            return True if grant_id in (status.open_grant_id, status.last_grant_id) else None

        await self._link.until(begun, COMMAND_TIMEOUT_S, f"start of grant {grant_id}")

    async def wait_ended(self, grant_id: int) -> UnitStatus:
        """Wait until the grant is no longer open. Holds may last: the wait ends early only when the unit falls silent.

        Raises:
            CommunicationError: the status stands still (2103) or is not connected (2102).
            DeviceError: the unit restarted meanwhile (3122): reconcile by its latch.
        """

        def ended() -> UnitStatus | None:
            status = self._link.require_fresh()
            self._same_boot(grant_id, status.boot_id)
            if status.open_grant_id == grant_id or status.last_grant_id < grant_id:
                return None
            return status

        status = await self._link.until(ended, FOREVER_S, f"end of grant {grant_id}")
        self._bus.emit(
            self._name, "grant.ended", grant_id=grant_id, reason=status.reason.name.lower(), rows=status.rows_finished
        )
        return status

    async def results(self, grant_id: int) -> NDArray[np.void]:
        """All pieces of a grant: pulled until the unit has no more, contiguous and with good checksums.

        A damaged or missing answer is asked for again, `RESULT_TRIES` times in all.

        Returns:
            Pieces in order of delivery, dtype PIECE_DTYPE.

        Raises:
            DataError: damaged `RESULT_TRIES` times (5121), pieces that do not follow each other (5122), or fewer rows than
                the unit says it has finished (5123).
            DeviceError: the unit restarted and has lost them (3122): reconcile by its latch.
            CommunicationError: the unit does not answer.
        """
        parts: list[NDArray[np.void]] = []
        first = finished = 0
        while True:
            pieces = await self._pull(grant_id, first)
            parts.append(pieces)
            first += pieces.size
            finished += int(np.count_nonzero(pieces["flags"] & int(PieceFlag.ROW_ENDED)))
            if pieces.size == 0 or (pieces.size < PIECES_MAX and finished == self._finished_rows(grant_id)):
                break
        table = np.concatenate(parts)
        self._check_order(grant_id, table)
        told = self._finished_rows(grant_id)
        if told is not None and told != finished:
            raise DataError(
                f"grant {grant_id}: the unit says {told} rows finished, its results hold {finished}",
                code=5123,
                device=self._name,
                hint="reconcile this grant from the unit's latch",
            )
        return table

    async def set_gate(self, open_: bool) -> None:
        """Withdraw (True) or make (False) the controller's objection to beam."""
        await self._link.put(f"{self._prefix}:GATE:SP", 1 if open_ else 0, anyone=not open_)

    async def abort(self) -> None:
        """End the open grant now. Sent at once, whatever the status says."""
        await self._link.put(f"{self._prefix}:ABORT:SP", 1, anyone=True)

    async def read_latch(self) -> UnitLatch:
        """What the unit kept through a power loss. Raises DataError when its checksum does not hold."""
        return decode_latch(as_int_array(self._latch_rb, await self._link.get(self._latch_rb)))

    async def reset(self) -> None:
        """Clear the latch after its cause was reconciled.

        Raises:
            CommandRejected: the unit stays latched (4141).
        """
        status = await self._link.refresh()
        if not status.latched:
            return
        await self._link.put(f"{self._prefix}:RESET:SP", status.boot_id)
        try:
            await self._link.until(
                lambda: True if not self._link.require_fresh().latched else None, COMMAND_TIMEOUT_S, "reset of the latch"
            )
        except CommunicationError as error:
            if error.code != NO_EFFECT:
                raise
            raise CommandRejected(
                f"the unit stays latched: {status.reason.name.lower().replace('_', ' ')}",
                code=4141,
                device=self._name,
                hint="remove the cause first",
            ) from None

    def _finished_rows(self, grant_id: int) -> int | None:
        """Rows that the unit says it has finished of an ended grant; None when its status speaks of another one."""
        status = self._link.status
        if status.last_grant_id != grant_id or status.open_grant_id == grant_id:
            return None
        return status.rows_finished

    async def _pull(self, grant_id: int, first: int) -> NDArray[np.void]:
        damage: Exception | None = None
        for _ in range(RESULT_TRIES):
            try:
                await self._link.put(f"{self._prefix}:RESULT:SP", [grant_id, first])
                answer = decode_results(as_int_array(self._result_rb, await self._link.get(self._result_rb)))
            except DataError as error:
                damage = error
                self._bus.emit(self._name, "result.damaged", grant_id=grant_id, first=first, error=str(error))
                continue
            self._same_boot(grant_id, answer.boot_id)
            if (answer.grant_id, answer.first) == (grant_id, first):
                return answer.pieces
            damage = DataError(f"the answer is for grant {answer.grant_id} from {answer.first}", code=5121)
        raise DataError(
            f"results of grant {grant_id} from piece {first} damaged {RESULT_TRIES} times: {damage}",
            code=5121,
            device=self._name,
            hint="reconcile this grant from the unit's latch",
        )

    def _check_order(self, grant_id: int, pieces: NDArray[np.void]) -> None:
        """Rows begin at 0, follow each other, and a row goes on only when the piece before did not end it."""
        if pieces.size == 0:
            return
        rows = pieces["row"].astype(np.int64)
        ended = (pieces["flags"] & int(PieceFlag.ROW_ENDED)) != 0
        expected = np.concatenate([[0], np.cumsum(ended[:-1])])
        if not np.array_equal(rows, expected):
            wrong = int(np.argmax(rows != expected))
            raise DataError(
                f"results of grant {grant_id}: piece {wrong} is of row {rows[wrong]}, expected row {expected[wrong]}",
                code=5122,
                device=self._name,
                hint="reconcile this grant from the unit's latch",
            )

    def _refuse(self, grant_id: int, echo: _Echo) -> None:
        if echo.accepted:
            return
        reason = REFUSALS.get(echo.refusal, f"unknown reason {echo.refusal}")
        self._bus.emit(self._name, "grant.refused", grant_id=grant_id, code=echo.refusal, reason=reason)
        raise CommandRejected(
            f"the unit refuses grant {grant_id}: {reason}",
            code=4120 + echo.refusal,
            device=self._name,
            hint="nothing of it was delivered",
            retryable=echo.refusal in (6, 11),
        )

    def _same_boot(self, grant_id: int, boot_id: int) -> None:
        if self._boot_id and boot_id != self._boot_id:
            raise DeviceError(
                f"the unit restarted (boot id {self._boot_id} is now {boot_id}) while grant {grant_id} was its concern",
                code=3122,
                device=self._name,
                hint="reconcile by the unit's latch, then connect again",
            )

    def _decode(self, words: Sequence[int], t_ns: int) -> UnitStatus:
        status = decode_status(words, t_ns).status
        if self._boot_id == 0:
            self._boot_id = status.boot_id
        elif status.boot_id != self._boot_id:
            self._bus.emit(self._name, "unit.rebooted", boot_id=status.boot_id, before=self._boot_id)
        return status

    def _take_echo(self, sample: Sample) -> None:
        try:
            grant_id, crc, accepted, refusal = (int(w) for w in as_int_array(self._echo_rb, sample, 4))
        except DataError as error:
            self._bus.emit(self._name, "echo.damaged", error=str(error))
            return
        self._echo = _Echo(grant_id, crc, bool(accepted), refusal)
