"""What a wire fault does to a wire, kind by kind; when it begins and ends; and what is not a fault at all."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest

from drivers.hal.errors import CommunicationError
from drivers.wire.framing import ClientFramer, ServerFramer
from drivers.wire.memory import MemoryBroker, MemoryChannels, MemoryLine
from drivers.wire.tap import TapChain
from drivers.wire.tap.disturb import DELAY_S, Disturber
from drivers.wire.tap.faults import KINDS, Start, WireFault, carrier_of, parse_wire_fault
from simulators import clock

IDENTITY = (0x1009, 0xD1, 1, 7)


def responder(kind):
    """A node that answers reads: its identity, or a rising number in every register."""
    framer, counter = ServerFramer(kind), itertools.count(1)

    def respond(data):
        for request in framer.feed(data):
            first = next(counter)
            values = IDENTITY if request.read_address == 0 else [first % 0x10000] * request.read_count
            yield framer.answer(request, values)

    return respond


async def asked(stream, framer, address=32, count=4, timeout_s=0.05):
    """The registers that come back, or None where nothing sound does."""
    loop = asyncio.get_running_loop()
    query = framer.read(1, address, count)
    stream.discard_input()
    framer.expect(query)
    await stream.write(query.frame)
    until_s = loop.time() + timeout_s
    try:
        while True:
            data = await stream.read(512, until_s - loop.time())
            if not data:
                raise ConnectionResetError
            if (answer := framer.feed(data)) is not None:
                return answer.registers
    except TimeoutError:
        return None


@pytest.mark.parametrize("kind", ["rtu", "tcp"])
@pytest.mark.parametrize("fault", [name for name, kind in KINDS.items() if "stream" in kind.carriers])
def test_streams(kind, fault):
    async def main():
        line, tap = MemoryLine("G1-motion"), Disturber()
        line.server.serve(responder(kind))
        opener = tap.stream("G1-motion", line.connect)
        stream, framer = await opener(), ClientFramer(kind)
        assert await asked(stream, framer) is not None
        strike = WireFault("G1-motion", fault, duration_s=2.0, seed=2)
        tap.strike(strike)
        if fault in ("disconnect", "identity"):
            with pytest.raises(ConnectionResetError):
                await asked(stream, framer)
            with pytest.raises(ConnectionRefusedError):
                await opener()
            await asyncio.sleep(0.5)
            if fault == "identity":
                other = await opener()
                vendor, *rest = await asked(other, framer, 0, 4)
                assert vendor != IDENTITY[0] and tuple(rest) == IDENTITY[1:]
                assert await asked(other, framer) is not None  # only who it is differs
                await asyncio.sleep(2.0)
                with pytest.raises(ConnectionResetError):  # the right one comes back over a new connection
                    await asked(other, framer)
            await asyncio.sleep(2.0)
            stream = await opener()
            assert await asked(stream, framer, 0, 4) == IDENTITY
            return
        answers = [await asked(stream, framer) for _ in range(4)]
        if fault == "duplicate":
            assert None not in answers and answers == sorted(answers)
        elif fault != "reorder":
            assert answers == [None] * 4
        await asyncio.sleep(2.0 + 2 * DELAY_S)
        assert await asked(stream, framer) is not None

    clock.run(main())


def test_a_fault_may_touch_one_node_alone():
    async def main():
        line, tap = MemoryLine("G1-motion"), Disturber()
        line.server.serve(responder("rtu"))
        stream, framer = await tap.stream("G1-motion", line.connect)(), ClientFramer("rtu")
        tap.strike(WireFault("G1-motion", "silence", part="2"))
        assert await asked(stream, framer) is not None
        query = framer.read(2, 32, 1)
        await stream.write(query.frame)
        with pytest.raises(TimeoutError):
            await stream.read(64, 0.1)

    clock.run(main())


class Table:
    """Two variables and an identity."""

    def __init__(self):
        self.values = {"A:X:RB": 1, "A:Y:RB": 1.5, "A:ID:RB": "the device"}
        self.listener = None

    def names(self):
        return tuple(self.values)

    def read(self, name):
        return self.values[name]

    def write(self, name, value):
        self.post(name, value)

    def subscribe(self, listener, names=()):
        self.listener = listener

    def post(self, name, value):
        self.values[name] = value
        self.listener(name, value)


@pytest.mark.parametrize("fault", [name for name, kind in KINDS.items() if "channels" in kind.carriers])
def test_channels(fault):
    async def main():
        table, tap = Table(), Disturber()
        channels = tap.channels("epics", MemoryChannels(table))
        seen = {name: [] for name in table.names()}
        for name, values in seen.items():
            channels.monitor(name, lambda sample, values=values: values.append(sample.value))
        await asyncio.sleep(0.01)
        for values in seen.values():
            values.clear()
        connections = channels.connections("A:X:RB")
        tap.strike(WireFault("epics", fault, duration_s=2.0, part="A:*"))
        lost = channels.connections("A:X:RB")
        await asyncio.sleep(0.6)
        for value in range(2, 6):
            table.post("A:X:RB", value)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.6)
        x = seen["A:X:RB"]
        if fault in ("silence", "disconnect", "vanish"):
            assert x == []
            assert channels.connected("A:X:RB") is (fault == "silence")
            with pytest.raises(CommunicationError):
                await channels.get("A:X:RB", 0.2)
            with pytest.raises(CommunicationError):
                await channels.put("A:X:RB", 99, 0.2)
            assert table.values["A:X:RB"] == 5  # what was lost did not arrive
        elif fault == "nan":
            assert x and all(math.isnan(value) for value in x)
        elif fault == "text":
            assert set(x) == {"not a number"}
        elif fault == "identity":
            assert (await channels.get("A:ID:RB")).value == "somebody else"
            assert lost == connections + 1
        else:
            assert [value for i, value in enumerate(x) if not i or value != x[i - 1]] == [2, 3, 4, 5]  # never older after newer
            assert len(x) == (8 if fault == "duplicate" else 4)
        await asyncio.sleep(2.0)
        assert channels.connected("A:X:RB") and (await channels.get("A:X:RB")).value == 5
        assert (await channels.get("A:ID:RB")).value == "the device"
        assert channels.connections("A:X:RB") - connections == {"disconnect": 1, "vanish": 1, "identity": 2}.get(fault, 0)
        assert x[-1] == 5  # told again after a loss

    clock.run(main())


@pytest.mark.parametrize("fault", [name for name, kind in KINDS.items() if "messages" in kind.carriers])
def test_messages(fault):
    async def main():
        broker, tap = MemoryBroker(), Disturber()
        client, other = tap.messages("mqtt", broker.client()), broker.client()
        got, up = [], []
        client.subscribe("a/#", lambda message: got.append((message.payload, message.retained)))
        client.watch(up.append)
        await asyncio.sleep(0.1)
        await other.publish("a/b", b"before")
        await asyncio.sleep(0.1)
        got.clear()
        tap.strike(WireFault("mqtt", fault, duration_s=1.0))
        await asyncio.sleep(0.01)
        await other.publish("a/b", b"within")
        await asyncio.sleep(0.1)
        sound = (b"within", False)
        if fault in ("silence", "disconnect"):
            assert got == []
            assert client.connected is (fault == "silence")
            assert up == ([False] if fault == "disconnect" else [])
        elif fault == "garbage":
            assert len(got) == 1 and got[0] != sound
        elif fault == "duplicate":
            assert got == [sound, sound]
        elif fault == "delay":
            assert got == []
        elif fault == "retained":
            assert got == [(b"before", True), sound]
        elif fault == "flood":
            assert len(got) > 900 and sound in got
        await asyncio.sleep(1.5)
        if fault == "delay":
            assert got == [sound]
        got.clear()
        await other.publish("a/b", b"after")
        await asyncio.sleep(0.1)
        assert got == [(b"after", False)] and client.connected
        await client.close()
        await other.close()

    clock.run(main())


def test_faults_begin_by_time_and_by_what_passes():
    async def main():
        loop, told = asyncio.get_running_loop(), []
        faults = [
            WireFault("epics", "duplicate", Start("t", 2.0), 1.0),
            WireFault("epics", "shuffle", Start("grant", 2.0)),
            WireFault("epics", "nan", Start("beam", 0.5)),
            WireFault("mqtt", "silence"),
        ]
        tap = Disturber(faults, lambda fault, begins: told.append((round(loop.time(), 3), fault.kind, begins)))
        chain = TapChain(tap)
        chain.messages("mqtt", MemoryBroker().client())
        assert told == [(0.0, "silence", True)]
        await asyncio.sleep(5.0)
        assert told[1:] == [(2.0, "duplicate", True), (3.0, "duplicate", False)]
        for name in ("A:G1:DU:GRANT:SP", "A:G1:DU:START:SP", "A:G1:DU:GRANT:SP", "A:G1:DU:START:SP"):
            tap.passes(name)
            await asyncio.sleep(1.0)
        assert told[3:] == [(5.0 + 1.5, "nan", True), (7.0, "shuffle", True)]
        tap.stop()

    clock.run(main())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("wire-silence:G1-motion", WireFault("G1-motion", "silence")),
        ("wire-silence:G1-motion+2", WireFault("G1-motion", "silence", Start(), 2.0)),
        ("wire-garbage:G1-motion/2@t=3.5+0.5", WireFault("G1-motion", "garbage", Start("t", 3.5), 0.5, part="2")),
        ("wire-nan:epics/ASAN:G1:DU:*@beam", WireFault("epics", "nan", Start("beam"), part="ASAN:G1:DU:*")),
        ("wire-delay:epics@beam+2", WireFault("epics", "delay", Start("beam", 2.0))),
        ("wire-delay:epics@beam+0+2", WireFault("epics", "delay", Start("beam", 0.0), 2.0)),
        ("wire-flood:mqtt@grant=3+1", WireFault("mqtt", "flood", Start("grant", 3.0), 1.0)),
        ("wire-flood:mqtt@start+1", WireFault("mqtt", "flood", Start(), 1.0)),
    ],
)
def test_a_fault_is_read_as_it_is_written(text, fault):
    assert parse_wire_fault(text) == fault
    assert carrier_of(fault.wire) in KINDS[fault.kind].carriers


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("wire-fire:G1-motion", "is unknown"),
        ("wire-silence:", "needs a wire"),
        ("wire-nan:G1-motion", "only on channels"),
        ("wire-checksum:epics", "only on stream"),
        ("wire-silence:mqtt@soon", "when 'soon'"),
        ("wire-silence:mqtt@t=1+0", "above 0"),
        ("wire-silence:mqtt@t=-1", "expected start"),
        ("wire-silence:mqtt@beam+1+2+3", "expected start"),
    ],
)
def test_what_is_no_fault_is_told(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_wire_fault(text)
