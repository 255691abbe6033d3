"""The delivery unit's client: nothing is believed that was not echoed by id and checksum, pulled whole, or still beating."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from pv_bench import Bench, device

from drivers.devices.delivery_unit import REFUSALS, DeliveryUnitClient
from drivers.hal.capabilities import DeliveryUnit, EndReason, Grant, ScanMode, ScannerMap, UnitState
from drivers.hal.errors import CommandRejected, CommunicationError, DataError, DeviceError
from simulators.clock import run
from simulators.plant.grants import PIECE, crc32c, encode_latch, encode_results

DU = "FAC:G1:DU"
STATUS, ECHO = f"{DU}:STATUS:RB", f"{DU}:ECHO:RB"
BOOT = 4100
MAP = ScannerMap(200_000, 0.1, 0.5, 0.01, -0.2, 0.02, 0.6, 0.0, 1.14, 0.0, 1.14, 0.013, 0.012, 1, 3)


def words(state: UnitState = UnitState.IDLE, last: int = 0, open_: int = 0, **more: int) -> list[int]:
    """A status without its counter."""
    return [
        more.get("boot", BOOT),
        int(state),
        last,
        open_,
        0,
        more.get("reason", 0),
        more.get("hold", 0),
        0,
        0,
        0,
        0,
        more.get("rows", 0),
        0,
        0,
        more.get("latched", 0),
    ]


def bench() -> Bench:
    return Bench(
        {
            f"{DU}:ID:RB": "a unit",
            STATUS: [0, *words()],
            f"{DU}:MAP:SP": np.zeros(16),
            f"{DU}:GRANT:SP": [0],
            ECHO: [0, 0, 0, 0],
            f"{DU}:START:SP": [0, 0],
            f"{DU}:GATE:SP": 1,
            f"{DU}:ABORT:SP": 0,
            f"{DU}:RESET:SP": 0,
            f"{DU}:RESULT:SP": [0, 0],
            f"{DU}:RESULT:RB": encode_results(BOOT, 0, 0, np.zeros(0, dtype=PIECE)),
            f"{DU}:LATCH:RB": encode_latch(BOOT, 7, 3, 10, 9, 5_000_000_000, 4_999_999_999),
        }
    )


def grant(grant_id: int = 1, rows: int = 3) -> Grant:
    index = np.arange(rows, dtype=np.int32)
    return Grant(
        unit_boot_id=BOOT,
        grant_id=grant_id,
        plan_hash=12345,
        fraction=1,
        beam_number=1,
        layer_index=0,
        painting=0,
        species_token=6012,
        energy_kev_u=200_000,
        scan_mode=ScanMode.RASTER,
        intensity_per_s=10_000_000,
        quantum_counts=30,
        spot_index=index,
        x_um=index * 1000,
        y_um=-index * 1000,
        counts1_max=index + 500,
        counts2_max=index + 510,
    )


def pieces(rows: int) -> np.ndarray[Any, np.dtype[np.void]]:
    table = np.zeros(rows, dtype=PIECE)
    table["row"] = np.arange(rows)
    table["spot_index"] = np.arange(rows) + 10
    table["counts1"] = 5_000_000_000 + np.arange(rows)
    table["t_start_ns"] = np.arange(rows) * 1000
    table["t_end_ns"] = np.arange(rows) * 1000 + 900
    table["flags"] = 33
    return table


def accept(b: Bench) -> None:
    """A unit that accepts and runs whatever it is given."""

    def submit(array: Any) -> None:
        grant_id = int(array[2])
        b.post(ECHO, [grant_id, int(array[-1]), 1, 0])
        b.status(STATUS, words(UnitState.GRANTED, grant_id, grant_id))

    b.on_write[f"{DU}:GRANT:SP"] = submit
    b.on_write[f"{DU}:START:SP"] = lambda v: b.status(STATUS, words(UnitState.DELIVERING, int(v[0]), int(v[0])))


def refuse(b: Bench, pv: str, code: int) -> None:
    def answer(array: Any) -> None:
        grant_id, crc = (int(array[2]), int(array[-1])) if pv == "GRANT" else (int(array[0]), int(array[1]))
        b.post(ECHO, [grant_id, crc, 0, code])

    b.on_write[f"{DU}:{pv}:SP"] = answer


def serve_results(b: Bench, table: Any, damage: Callable[[int, Any], Any] | None = None) -> list[tuple[int, int]]:
    """Answer result requests; `damage(n, words)` may spoil the n-th answer."""
    asked: list[tuple[int, int]] = []

    def answer(value: Any) -> None:
        grant_id, first = int(value[0]), int(value[1])
        asked.append((grant_id, first))
        array = encode_results(BOOT, grant_id, first, table)
        b.post(f"{DU}:RESULT:RB", array if damage is None else damage(len(asked), array))

    b.on_write[f"{DU}:RESULT:SP"] = answer
    return asked


def with_unit(body: Callable[[Bench, DeliveryUnitClient], Awaitable[None]]) -> None:
    async def scenario() -> None:
        b = bench()
        b.status(STATUS, words())
        unit = DeliveryUnitClient("G1-delivery-unit", device(DU, "a unit"), b.channels, b.bus)
        await unit.connect()
        assert isinstance(unit, DeliveryUnit)
        await body(b, unit)
        await unit.close()

    run(scenario())


def test_a_grant_is_taken_when_it_is_echoed_by_id_and_checksum() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        accept(b)
        crc = await unit.submit(grant())
        sent = np.asarray(b.written(f"{DU}:GRANT:SP")[0])
        assert crc == crc32c(sent[:-1].astype(np.int32)) == int(sent[-1])
        await unit.start(1, crc)
        assert unit.status.state is UnitState.DELIVERING
        b.later(5.0, lambda: b.status(STATUS, words(UnitState.FINISHED, 1, 0, reason=1, rows=3)))
        ended = await unit.wait_ended(1)
        assert ended.reason is EndReason.FINISHED and ended.rows_finished == 3

    with_unit(body)


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_refusal_is_told_in_the_units_words(code: int) -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        refuse(b, "GRANT", code)
        for _ in range(2):  # the second answer equals the first: no monitor tells it
            with pytest.raises(CommandRejected) as refusal:
                await unit.submit(grant())
            assert REFUSALS[code] in str(refusal.value) and refusal.value.code == 4120 + code
        accept(b)
        await unit.submit(grant())

    with_unit(body)


def test_a_start_that_is_refused_says_why() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        accept(b)
        crc = await unit.submit(grant())
        refuse(b, "START", 11)
        with pytest.raises(CommandRejected, match="beam is not permitted"):
            await unit.start(1, crc)

    with_unit(body)


def test_an_echo_of_other_content_is_no_echo() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        b.on_write[f"{DU}:GRANT:SP"] = lambda v: b.post(ECHO, [1, int(v[-1]) ^ 1, 1, 0])
        with pytest.raises(CommunicationError, match="no echo of grant 1"):
            await unit.submit(grant())
        b.on_write[f"{DU}:GRANT:SP"] = lambda v: b.post(ECHO, [1, int(v[-1]) ^ 1, 0, 1])
        with pytest.raises(CommunicationError, match="arrived damaged"):
            await unit.submit(grant())

    with_unit(body)


def test_results_are_pulled_until_they_are_whole() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        b.status(STATUS, words(UnitState.FINISHED, 9, rows=600))
        await asyncio.sleep(0.1)
        asked = serve_results(b, pieces(600))
        table = await unit.results(9)
        assert table.size == 600 and np.array_equal(table["row"], np.arange(600))
        assert int(table["counts1"][599]) == 5_000_000_599, "counts are 64 bits"
        assert [first for _, first in asked] == [0, 256, 512]
        with pytest.raises(DataError, match="600 rows finished, its results hold 512"):
            serve_results(b, pieces(512))
            await unit.results(9)
        asked = serve_results(b, pieces(500))
        assert (await unit.results(8)).size == 500
        assert [first for _, first in asked] == [0, 256, 500], "asked on until nothing came: no status spoke of that grant"

    with_unit(body)


def test_damaged_answers_are_asked_for_again_and_never_believed() -> None:
    def flip(n: int, array: Any) -> Any:
        spoiled = array.copy()
        if n in (1, 2, 4):
            spoiled[20] ^= 64
        return spoiled

    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        serve_results(b, pieces(300), flip)
        assert (await unit.results(9)).size == 300
        assert b.kinds().count("result.damaged") == 3
        serve_results(b, pieces(300), lambda _n, a: np.append(a[:-1], a[-1] ^ 1).astype(np.int32))
        with pytest.raises(DataError, match="damaged 5 times"):
            await unit.results(9)

    with_unit(body)


def test_a_gap_between_answers_is_noticed() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        table = pieces(300)
        table["row"][256:] += 1
        serve_results(b, table)
        with pytest.raises(DataError, match="piece 256 is of row 257, expected row 256"):
            await unit.results(9)

    with_unit(body)


def test_a_unit_that_restarts_under_a_grant_is_not_waited_for() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        accept(b)
        await unit.start(1, await unit.submit(grant()))
        b.later(1.0, lambda: b.status(STATUS, words(UnitState.IDLE, 1, 0, boot=BOOT + 1)))
        with pytest.raises(DeviceError, match="restarted"):
            await unit.wait_ended(1)
        assert "unit.rebooted" in b.kinds()
        await unit.connect()
        assert unit.status.boot_id == BOOT + 1

    with_unit(body)


def test_a_held_grant_is_waited_for_while_the_unit_lives_and_no_longer() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        accept(b)
        await unit.start(1, await unit.submit(grant()))
        b.status(STATUS, words(UnitState.HELD, 1, 1, hold=4))
        waiting = asyncio.ensure_future(unit.wait_ended(1))
        await asyncio.sleep(300.0)
        assert not waiting.done()
        b.stop()
        began = asyncio.get_running_loop().time()
        with pytest.raises(CommunicationError, match="has not moved"):
            await waiting
        assert asyncio.get_running_loop().time() - began < 1.5

    with_unit(body)


def test_a_map_is_loaded_when_the_unit_holds_it() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        await unit.load_map(MAP)
        assert list(b.values[f"{DU}:MAP:SP"]) == pytest.approx(
            [200_000, 0.1, 0.5, 0.01, -0.2, 0.02, 0.6, 0.0, 1.14, 0.0, 1.14, 0.013, 0.012, 1, 3, 0]
        )
        b.on_write[f"{DU}:MAP:SP"] = lambda v: b.values.update({f"{DU}:MAP:SP": np.asarray(v) * 1.001})
        with pytest.raises(DeviceError, match="another scanner map"):
            await unit.load_map(MAP)

    with_unit(body)


def test_abort_and_gate_go_out_even_when_the_status_is_stale() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        b.stop()
        await asyncio.sleep(5.0)
        await unit.set_gate(False)
        await unit.abort()
        assert b.written(f"{DU}:GATE:SP") == [0] and b.written(f"{DU}:ABORT:SP") == [1]
        with pytest.raises(CommunicationError):
            await unit.submit(grant())
        assert not b.written(f"{DU}:GRANT:SP"), "no grant on a status that may be old"

    with_unit(body)


def test_the_latch_is_read_whole_and_cleared_by_boot_id() -> None:
    async def body(b: Bench, unit: DeliveryUnitClient) -> None:
        latch = await unit.read_latch()
        assert (latch.grant_id, latch.last_finished_row, latch.total_counts1) == (7, 3, 5_000_000_000)
        b.status(STATUS, words(UnitState.LATCHED, 7, 0, latched=1, reason=4))
        await asyncio.sleep(0.1)
        with pytest.raises(CommandRejected, match="stays latched: position"):
            await unit.reset()
        b.on_write[f"{DU}:RESET:SP"] = lambda _v: b.status(STATUS, words(UnitState.IDLE, 7))
        await unit.reset()
        assert b.written(f"{DU}:RESET:SP") == [BOOT, BOOT]
        b.values[f"{DU}:LATCH:RB"] = encode_latch(BOOT, 7, 3, 10, 9, 5, 4) ^ np.int32(1)
        with pytest.raises(DataError, match="checksum"):
            await unit.read_latch()

    with_unit(body)
