"""The promises of streams and channels in docs/wire-semantics.md, one test each, on every implementation."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from channels_rigs import CHANNELS, REAL_CHANNELS, ChannelsRig, EpicsRig, until
from stream_rigs import STREAMS, StreamRig

from drivers.hal.errors import CommandRejected, CommunicationError, DataError
from drivers.wire.channels import PutValue, Sample, Severity, as_float, as_float_array, as_int, as_int_array, as_text

SETTLE_S = 0.2
MUCH = 8_000_000  # bytes; more than the buffers of any operating system in between


@pytest.fixture(params=STREAMS)
def line(request: pytest.FixtureRequest) -> StreamRig:
    return STREAMS[request.param]()


@pytest.fixture(params=[*CHANNELS, *(pytest.param(name, marks=pytest.mark.xdist_group("wires")) for name in REAL_CHANNELS)])
def pvs(request: pytest.FixtureRequest) -> ChannelsRig:
    return (CHANNELS | REAL_CHANNELS)[request.param]()


@pytest.fixture(scope="module", autouse=True)
def no_server_is_left() -> Iterator[None]:
    yield
    EpicsRig.end()


def test_every_promise_has_its_test() -> None:
    text = (Path(__file__).parents[2] / "docs" / "wire-semantics.md").read_text(encoding="utf-8")
    promised = set(re.findall(r"^\| ([SC]\d+) \|", text, flags=re.MULTILINE))
    tested = {m[1].upper() for name in dir(sys.modules[__name__]) if (m := re.match(r"test_([sc]\d+)_", name))}
    assert promised == tested


# --- streams -----------------------------------------------------------------------------------------------------------


async def take(stream: object, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.read(64, 1.0)  # type: ignore[attr-defined]
    return data


def test_s1_bytes_arrive_in_order_and_complete(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        sent = [bytes([i]) * (1 + i % 7) for i in range(60)]
        for part in sent:
            await client.write(part)
            await line.server.write(part)
        assert await take(line.server, sum(map(len, sent))) == b"".join(sent)
        assert await take(client, sum(map(len, sent))) == b"".join(sent)

    line.run(main())


def test_s2_a_read_returns_what_is_there_and_never_more_than_asked(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        await client.write(b"abcdef")
        await client.write(b"gh")
        await asyncio.sleep(SETTLE_S)
        assert await line.server.read(5) == b"abcde"
        assert await line.server.read(99) == b"fgh"

    line.run(main())


def test_s3_a_late_byte_is_not_lost_to_a_timeout(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        with pytest.raises(TimeoutError):
            await client.read(10, 0.05)
        await line.server.write(b"late")
        assert await take(client, 4) == b"late"

    line.run(main())


def test_s4_travel_takes_the_time_of_the_baud_rate(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await client.write(bytes(100))
        on_the_wire = 100 * 11 / line.baud if line.baud else 0.0
        if line.baud:
            assert loop.time() - start < on_the_wire / 2
        await take(line.server, 100)
        assert on_the_wire <= loop.time() - start < on_the_wire + line.slack_s
        if line.baud:  # and back, on the same wires
            start = loop.time()
            await line.server.write(bytes(100))
            await take(client, 100)
            assert on_the_wire <= loop.time() - start < on_the_wire + line.slack_s

    line.run(main())


def test_s5_a_lost_line_ends_reads_and_refuses_writes(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        waiting = asyncio.ensure_future(client.read(10, 5.0))
        await asyncio.sleep(0.01)
        await line.lose()
        assert await waiting == b""
        with pytest.raises(ConnectionError):
            await client.write(b"x")

    line.run(main())


def test_s6_nothing_from_before_arrives_after_reopening(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        await line.server.write(b"old answer")
        await client.write(b"old question")
        await line.lose()
        await line.find()
        client = await line.open()
        with pytest.raises(TimeoutError):
            await client.read(10, SETTLE_S)
        with pytest.raises(TimeoutError):
            await line.server.read(10, SETTLE_S)

    line.run(main())


def test_s7_opening_a_line_where_nobody_is_fails(line: StreamRig) -> None:
    async def main() -> None:
        await line.lose()
        with pytest.raises(ConnectionError):
            await line.open()

    line.run(main())


def test_s8_discarding_takes_only_what_has_arrived(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        await line.server.write(b"stale")
        await asyncio.sleep(SETTLE_S)
        assert client.discard_input() == 5
        await line.server.write(b"new")
        assert await take(client, 3) == b"new"

    line.run(main())


def test_s9_a_peer_that_does_not_read_makes_writes_fail_and_memory_not_grow(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        line.hold()
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 4 * MUCH:
                await client.write(bytes(4096))
                sent += 4096
        assert 0 < sent < MUCH
        with pytest.raises(ConnectionError):  # and not some of it later
            await client.write(b"x")
        assert await client.read() == b""

    line.run(main())


def test_s10_input_that_nobody_reads_is_held_up_or_lost_but_not_hoarded(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        with contextlib.suppress(ConnectionError):
            for _ in range(4 * MUCH // 65536):
                await line.server.write(bytes(65536))
        await asyncio.sleep(SETTLE_S)
        assert client.discard_input() < MUCH

    line.run(main())


def test_s11_closing_ends_a_waiting_read_and_refuses_what_comes_after(line: StreamRig) -> None:
    async def main() -> None:
        client = await line.open()
        waiting = asyncio.ensure_future(client.read(10, 5.0))
        await asyncio.sleep(0.01)
        await client.close()
        assert await waiting == b""
        assert await client.read(10, 5.0) == b""
        with pytest.raises(ConnectionError):
            await client.write(b"x")
        await client.close()
        again = await line.open()  # and the line is free for the next
        await again.write(b"next")
        assert await take(line.server, 4) == b"next"

    line.run(main())


# --- channels ----------------------------------------------------------------------------------------------------------


def test_c1_values_come_back_as_they_were_set(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        assert as_int("int", await ca.get("int")) == 7
        assert as_float("float", await ca.get("float")) == 2.5
        assert as_text("text", await ca.get("text")) == "G1"
        assert as_int_array("ints", await ca.get("ints"), 2).tolist() == [1, -2]
        assert as_float_array("floats", await ca.get("floats")).tolist() == [0.5, -1e300]
        await ca.put("ints", [5, -(2**31)])
        assert as_int_array("ints", await ca.get("ints")).tolist() == [5, -(2**31)]
        await ca.put("floats", [1.5])
        assert as_float_array("floats", await ca.get("floats")).tolist() == [1.5]
        await ca.put("text", "x" * 39)
        assert as_text("text", await ca.get("text")) == "x" * 39
        with pytest.raises(CommunicationError):
            await ca.get("no such variable", timeout_s=0.3)

    pvs.run(main())


def test_c2_put_returns_when_the_server_has_processed_it(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        await ca.get("int")
        put = asyncio.ensure_future(ca.put("int", 12))
        returned: list[bool] = []
        pvs.table.on_write = lambda: returned.append(put.done())
        await put
        assert pvs.table.values["int"] == 12
        assert returned == [False]

    pvs.run(main())


def test_c3_a_new_monitor_is_told_the_present_value(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[object] = []
        cancel = ca.monitor("text", lambda sample: told.append(sample.value))
        await until(lambda: bool(told))
        await asyncio.sleep(SETTLE_S)
        assert told == ["G1"]
        cancel()
        pvs.table.post("text", "F1")
        await asyncio.sleep(SETTLE_S)
        assert told == ["G1"]

    pvs.run(main())


def test_c4_the_last_value_arrives_whatever_is_merged(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[object] = []
        ca.monitor("int", lambda sample: told.append(sample.value))
        await until(lambda: bool(told))
        for burst in range(20):
            for value in range(10):
                pvs.table.post("int", 100 * burst + value)
            await until(lambda last=100 * burst + 9: told[-1] == last)  # type: ignore[misc]
        assert len(told) <= 201
        if pvs.merging:
            assert len(told) < 201, "a burst of ten never fits the twin's queue"

    pvs.run(main())


def test_c5_an_older_value_never_follows_a_newer_one(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[int] = []
        ca.monitor("count-a", lambda sample: told.append(as_int("count-a", sample)))
        await until(lambda: bool(told))
        for value in range(1, 300):
            pvs.table.post("count-a", value)
            await asyncio.sleep(0.0007)
        await until(lambda: told[-1] == 299)
        assert told == sorted(told)

    pvs.run(main())


def test_c6_between_variables_order_is_not_promised(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[tuple[str, int]] = []
        ca.monitor("count-a", lambda sample: told.append(("a", as_int("count-a", sample))))
        ca.monitor("count-b", lambda sample: told.append(("b", as_int("count-b", sample))))
        await until(lambda: len(told) >= 2)
        for value in range(1, 100):
            pvs.table.post("count-a", value)
            pvs.table.post("count-b", value)
            await asyncio.sleep(0.003)
        await until(lambda: ("a", 99) in told and ("b", 99) in told)
        last = {"a": 0, "b": 0}
        overtaken = 0
        for name, value in told:
            last[name] = value
            overtaken += last["b"] > last["a"]  # b was always posted after a
        assert last == {"a": 99, "b": 99}
        if pvs.overtaking:
            assert overtaken > 0, "the rough twin must show that order is not promised"

    pvs.run(main())


def test_c7_without_a_connection_requests_fail(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        await ca.get("int")
        assert ca.connected("int")
        pvs.freeze()
        under_way = asyncio.ensure_future(ca.put("int", 1, timeout_s=30.0))
        await asyncio.sleep(0.0001)
        await pvs.disconnect()
        assert not ca.connected("int")
        with pytest.raises(CommunicationError, match="lost the server"):
            await under_way
        with pytest.raises(CommunicationError):
            await ca.get("int")
        with pytest.raises(CommunicationError):
            await ca.put("int", 3)
        assert pvs.table.values["int"] == 7

    pvs.run(main())


def test_c8_a_reconnection_replays_the_present_value(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[object] = []
        ca.monitor("int", lambda sample: told.append(sample.value))
        await until(lambda: told == [7])
        await pvs.disconnect()
        pvs.table.post("int", 8)
        await asyncio.sleep(SETTLE_S)
        assert told == [7]
        await pvs.reconnect()
        await until(lambda: told == [7, 8])
        await pvs.disconnect()
        await pvs.reconnect()
        await until(lambda: told == [7, 8, 8])
        assert ca.connected("int")
        await ca.put("int", 9)
        await until(lambda: told == [7, 8, 8, 9])

    pvs.run(main())


def test_c9_a_read_only_variable_stays_as_it_is(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        with pytest.raises(CommandRejected, match="access denied"):
            await ca.put("read-only", 9)
        assert as_int("read-only", await ca.get("read-only")) == 1
        assert pvs.table.writes == []

    pvs.run(main())


def test_c10_nan_and_infinity_travel_and_decide_nothing(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[Sample] = []
        ca.monitor("float", told.append)
        for value in (math.nan, math.inf):
            await ca.put("float", value)
            sample = await ca.get("float")
            assert isinstance(sample.value, float)
            assert not math.isfinite(sample.value)
            with pytest.raises(DataError):
                as_float("float", sample)
        await ca.put("floats", [1.0, math.nan])
        with pytest.raises(DataError):
            as_float_array("floats", await ca.get("floats"))
        await until(lambda: bool(told) and told[-1].value == math.inf)

    pvs.run(main())


def test_c11_a_frozen_server_looks_connected(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[object] = []
        ca.monitor("count-a", lambda sample: told.append(sample.value))
        await until(lambda: told == [0])
        pvs.freeze()
        pvs.table.post("count-a", 1)
        await asyncio.sleep(pvs.frozen_s)
        assert ca.connected("count-a")
        assert told == [0]
        with pytest.raises(CommunicationError, match="no answer"):
            await ca.get("count-a", timeout_s=0.4)
        pvs.thaw()
        await until(lambda: told[-1] == 1)

    pvs.run(main())


def test_c12_a_write_that_timed_out_may_still_take_effect(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        await ca.get("int")
        pvs.freeze()
        with pytest.raises(CommunicationError, match="no answer"):
            await ca.put("int", 55, timeout_s=0.3)
        assert pvs.table.values["int"] == 7
        await asyncio.sleep(pvs.frozen_s / 4)
        pvs.thaw()
        await until(lambda: pvs.table.values["int"] == 55)
        given_up = asyncio.ensure_future(ca.put("int", 56))
        await asyncio.sleep(0.0001)
        given_up.cancel()
        await until(lambda: pvs.table.values["int"] == 56)

    pvs.run(main())


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, [1, 2**31], "x" * 40, "ü" * 20, [[1, 2], [3, 4]], ["a"]])
def test_c13_what_does_not_fit_is_not_sent(pvs: ChannelsRig, value: object) -> None:
    async def main() -> None:
        ca = pvs.client()
        with pytest.raises(DataError):
            await ca.put("int", value)  # type: ignore[arg-type]
        assert pvs.table.writes == []

    pvs.run(main())


def test_c14_a_delivered_value_never_changes(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        source = np.array([1, 2], dtype=np.int32)
        pvs.table.post("ints", source)
        told: list[Sample] = []
        ca.monitor("ints", told.append)
        await until(lambda: bool(told) and np.array_equal(told[-1].value, [1, 2]))
        sample = await ca.get("ints")
        source[0] = 99
        for value in (sample.value, told[-1].value):
            assert isinstance(value, np.ndarray)
            assert value.tolist() == [1, 2]
            with pytest.raises(ValueError, match="read-only"):
                value[0] = 5

    pvs.run(main())


def test_c15_a_read_after_a_put_sees_what_the_put_did_and_monitors_are_told(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[object] = []
        ca.monitor("effect", lambda sample: told.append(sample.value))
        await until(lambda: told == [20])
        for value in range(4, 40, 2):
            await ca.put("choosy", value)
            assert as_int("effect", await ca.get("effect")) == 10 * value
            assert as_int("choosy", await ca.get("choosy")) == value
        await until(lambda: told[-1] == 380)

    pvs.run(main())


def test_c16_a_value_that_the_server_does_not_take_changes_nothing(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        refused = False
        try:
            await ca.put("choosy", 5)
        except DataError:
            refused = True
        shown = await ca.get("choosy")
        assert as_int("choosy", shown) == 2
        assert refused or shown.severity is Severity.INVALID
        assert as_int("effect", await ca.get("effect")) == 20
        await ca.put("choosy", 6)
        shown = await ca.get("choosy")
        assert (shown.value, shown.severity) == (6, Severity.NO_ALARM)

    pvs.run(main())


@pytest.mark.parametrize(
    ("name", "value"), [("int", 2.5), ("int", math.nan), ("int", "7"), ("int", [1, 2]), ("text", 7), ("floats", "x")]
)
def test_c17_what_is_of_another_type_than_the_variable_is_refused(pvs: ChannelsRig, name: str, value: PutValue) -> None:
    async def main() -> None:
        ca = pvs.client()
        with pytest.raises(DataError):
            await ca.put(name, value)
        assert pvs.table.writes == []

    pvs.run(main())


def test_c18_an_array_stays_one_however_few_elements_it_holds(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[Sample] = []
        ca.monitor("ints", told.append)
        await until(lambda: bool(told))
        for values in ([5], [], [6, 7, 8]):
            pvs.table.post("ints", np.array(values, dtype=np.int32))
            await until(lambda wanted=values: told[-1].value.tolist() == wanted)  # type: ignore[misc]
            assert as_int_array("ints", await ca.get("ints")).tolist() == values
        pvs.table.post("floats", np.array([]))
        ca.monitor("floats", told.append)
        await until(lambda: told[-1].value.dtype == np.float64 and told[-1].value.size == 0)

    pvs.run(main())


def test_c19_alarm_severity_comes_with_the_value(pvs: ChannelsRig) -> None:
    async def main() -> None:
        ca = pvs.client()
        told: list[tuple[object, Severity]] = []
        ca.monitor("int", lambda sample: told.append((sample.value, sample.severity)))
        await until(lambda: told == [(7, Severity.NO_ALARM)])
        for severity in (Severity.MINOR, Severity.MAJOR, Severity.INVALID):
            pvs.alarm("int", severity)
            await until(lambda wanted=severity: told[-1] == (7, wanted))  # type: ignore[misc]
            assert (await ca.get("int")).severity is severity
        pvs.table.post("int", 8)
        await until(lambda: told[-1] == (8, Severity.NO_ALARM))
        assert (await ca.get("int")).severity is Severity.NO_ALARM

    pvs.run(main())
