"""A server on a memory line without a task of its own: the same latency, order and silence as one that awaits bytes."""

from __future__ import annotations

import asyncio

import pytest

from drivers.wire.memory import MemoryLine
from simulators.clock import run


def test_answers_travel_back_in_order_after_the_time_of_the_wire() -> None:
    async def main() -> None:
        loop, line = asyncio.get_running_loop(), MemoryLine("line", latency_s=0.001, baud=11_000)
        seen: list[tuple[float, bytes]] = []

        def respond(data: bytes) -> list[bytes]:
            seen.append((loop.time(), data))
            return [data[:2], data[2:]]

        line.server.serve(respond)
        client = await line.connect()
        await client.write(b"abcd")
        assert await client.read() == b"ab"
        assert await client.read() == b"cd"
        assert seen == [(pytest.approx(0.005), b"abcd")]
        assert loop.time() == pytest.approx(0.010)

    run(main())


def test_what_is_not_answered_is_silence_and_a_closed_end_takes_nothing() -> None:
    async def main() -> None:
        line = MemoryLine("line")
        line.server.serve(lambda data: [])
        client = await line.connect()
        await client.write(b"?")
        with pytest.raises(TimeoutError):
            await client.read(timeout_s=0.1)
        heard: list[bytes] = []
        line.server.serve(lambda data: heard.append(data) or [])
        line.server.shut()
        await client.write(b"!")
        await asyncio.sleep(0.1)
        assert heard == []

    run(main())


def test_a_server_that_fails_answers_no_more() -> None:
    async def main() -> None:
        errors: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
        line, asked = MemoryLine("line"), []

        def respond(data: bytes) -> list[bytes]:
            asked.append(data)
            raise RuntimeError("broken")

        line.server.serve(respond)
        client = await line.connect()
        for _ in range(2):
            await client.write(b"?")
            with pytest.raises(TimeoutError):
                await client.read(timeout_s=0.1)
        assert asked == [b"?"]
        assert [str(error) for error in errors] == ["broken"]

    run(main())
