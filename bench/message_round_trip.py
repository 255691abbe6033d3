"""What our client costs on MQTT: from publishing a message until another client has it, over bare aiomqtt on the same broker.

The broker is Mosquitto where it is installed, otherwise the embedded one; always a process of its own on the loopback. Each
pair of clients shares a loop, and the pairs take turns. Then the same number of messages at once: how many arrive per second.
Wall time.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.figures import Bench, Figure
from drivers.wire.messages import Message

AIM = 1.2
MESSAGES = 2000  # per sample, one after the other
AT_ONCE = 200  # per burst; as many bursts as make MESSAGES
PAYLOAD = b'{"value": 12.345, "unit": "deg", "quality": "good", "t_ns": 1234567890123, "seq": 4711, "simulated": true}'
US_PER_S = 1e6

Pass = Callable[[], Awaitable[None]]


def measure(bench: Bench) -> list[Figure]:
    """Ratio of wall times per message, and messages per second."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Figure]:
    async with AsyncExitStack() as stack:
        port, broker = await stack.enter_async_context(_broker(bench.directory))
        ours = await stack.enter_async_context(_ours(port))
        bare = await stack.enter_async_context(_bare(port))
        ratios, ours_us, bare_us = [], [], []
        ours_per_s, bare_per_s = [], []
        await _timed_s(ours[0], MESSAGES // 10), await _timed_s(bare[0], MESSAGES // 10)
        for _ in range(bench.repeat):
            ours_us.append(await _timed_s(ours[0], MESSAGES) / MESSAGES * US_PER_S)
            bare_us.append(await _timed_s(bare[0], MESSAGES) / MESSAGES * US_PER_S)
            ratios.append(ours_us[-1] / bare_us[-1])
            ours_per_s.append(MESSAGES / await _timed_s(ours[1], MESSAGES // AT_ONCE))
            bare_per_s.append(MESSAGES / await _timed_s(bare[1], MESSAGES // AT_ONCE))
    return [
        Figure(
            "MQTT publish to receive over bare aiomqtt",
            "",
            tuple(ratios),
            AIM,
            False,
            f"{broker}; {min(ours_us):.0f} us, bare {min(bare_us):.0f} us at best",
        ),
        Figure(
            "MQTT messages received",
            "1/s",
            tuple(ours_per_s),
            note=f"{broker}; {AT_ONCE} posted at once, none lost; bare aiomqtt {max(bare_per_s):.0f} at best",
        ),
    ]


async def _timed_s(action: Pass, times: int) -> float:
    start_s = time.perf_counter()
    for _ in range(times):
        await action()
    return time.perf_counter() - start_s


@asynccontextmanager
async def _broker(directory: Path) -> AsyncIterator[tuple[int, str]]:
    """Port and name of a broker."""
    from simulators.servers.broker import BrokerError, BrokerServer, free_port, greet

    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        embedded = BrokerServer()
        await embedded.start()
        try:
            yield embedded.port, "amqtt"
        finally:
            await embedded.stop()
        return
    port = free_port()
    configuration = directory / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n", encoding="utf-8")
    quiet = subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(program, "-c", str(configuration), stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        for _ in range(100):
            try:
                await greet("127.0.0.1", port)
                break
            except BrokerError:
                await asyncio.sleep(0.02)
        yield port, "Mosquitto"
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _ours(port: int) -> AsyncIterator[tuple[Pass, Pass]]:
    """One message, and a burst, through our client."""
    from drivers.wire.mqtt_messages import MqttMessages

    sender = await MqttMessages.open("127.0.0.1", port, "bench-sender")
    reader = await MqttMessages.open("127.0.0.1", port, "bench-reader")
    arrived = asyncio.Event()
    missing = 0

    def take(_message: Message) -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            arrived.set()

    async def one() -> None:
        nonlocal missing
        missing = 1
        arrived.clear()
        await sender.publish("bench/ours", PAYLOAD)
        await arrived.wait()

    async def burst() -> None:
        nonlocal missing
        missing = AT_ONCE
        arrived.clear()
        for _ in range(AT_ONCE):
            sender.post("bench/ours", PAYLOAD)
        await arrived.wait()

    try:
        reader.subscribe("bench/ours", take)
        await asyncio.sleep(0.1)
        yield one, burst
    finally:
        await sender.close()
        await reader.close()


@asynccontextmanager
async def _bare(port: int) -> AsyncIterator[tuple[Pass, Pass]]:
    """The same through aiomqtt as its documentation shows it."""
    import aiomqtt

    async with aiomqtt.Client("127.0.0.1", port) as sender, aiomqtt.Client("127.0.0.1", port) as reader:
        await reader.subscribe("bench/bare")
        messages = reader.messages

        async def one() -> None:
            await sender.publish("bench/bare", PAYLOAD)
            await anext(messages)

        async def burst() -> None:
            for _ in range(AT_ONCE):
                await sender.publish("bench/bare", PAYLOAD)
            for _ in range(AT_ONCE):
                await anext(messages)

        yield one, burst
