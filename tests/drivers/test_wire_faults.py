"""Every driver against every wire fault, on the simulated plant in virtual time.

The fault strikes in the middle of what the driver is for. Then: it ends in a named error or gets through honestly, in bounded
time; readings are not GOOD while the wire is bad beyond its limit; no motion is commanded twice; equipment that was moving
comes to rest; and when the wire is sound again, the driver is, without anybody's help.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
import pytest
from wire_fault_bench import CARBON, ENERGY_KEV_U, Bench, on_bench

from drivers.devices.couch import SixAxisCouch
from drivers.devices.gantry import RotatingGantry
from drivers.hal.errors import BeamlineError, CommandRejected
from drivers.hal.reading import Quality
from drivers.wire.tap.faults import KINDS, WireFault, carrier_of

Act = Callable[[Bench], Awaitable[object]]

SOUND = {"duplicate", "shuffle", "flood", "retained"}  # a driver gets through these as if nothing was
LATE = {("channels", "delay"), ("messages", "delay"), ("stream", "reorder")}  # some of it still comes: both are honest


@dataclass(frozen=True)
class Case:
    """One driver.

    Attributes:
        device: attribute of `RoomDevices`; ``reference`` has no connection and no readings of its own.
        wire: that it is on.
        act: what it is for; takes longer than `strike_s`.
        strike_s: after the start of `act`.
        lasts_s: longer than the driver's limit for bad values.
        once: variables that may be put at most once per action.
    """

    device: str
    wire: str
    act: Act
    strike_s: float = 0.3
    lasts_s: float = 6.0
    once: tuple[str, ...] = ()


async def turn(bench: Bench) -> None:
    state = await bench.devices.gantry.read_state()
    await bench.devices.gantry.move_to(2.0 if abs(state.angle.value) < 1.0 else 0.0)


async def shift(bench: Bench) -> None:
    axes = await bench.devices.couch.read_axes()
    x = axes["lateral_mm"].value
    await bench.devices.couch.move_to({"lateral_mm": 20.0 if x < 10.0 else 0.0})


async def extend(bench: Bench) -> None:
    snout, _ = await bench.devices.snout.read_set_up()
    away = 300.0 if snout.value > 350.0 else 400.0
    await bench.devices.snout.set_up(away, ())


async def ask_for_beam(bench: Bench) -> None:
    access = bench.devices.access
    await access.preset(1, 0.0, CARBON, False)
    access.request_beam(True)
    try:
        for _ in range(20):
            await asyncio.sleep(0.1)
            await access.refresh()
            if not access.requested:
                raise CommandRejected("the request was dropped", code=4999, device="G1-safety", hint="ask again")
    finally:
        access.request_beam(False)


async def look_at_interlocks(bench: Bench) -> None:
    for _ in range(20):
        await asyncio.sleep(0.1)
        await bench.devices.interlock.refresh()


async def accelerate(bench: Bench) -> None:
    await bench.devices.accelerator.start_cycle(ENERGY_KEV_U / 1000.0)


async def ramp(bench: Bench) -> None:
    magnets = bench.devices.magnets
    _, dipole_a, quadrupole_a = await magnets.read_nameplate()
    share = 0.4 if magnets.status.settled_kev_u != 200_000 else 0.5
    await magnets.set_currents(200_000 if share == 0.4 else 250_000, dipole_a * share, quadrupole_a * share)


async def load_and_grant(bench: Bench) -> None:
    unit = bench.devices.unit
    for _ in range(10):
        await unit.load_map(bench.scanner_map())
        await asyncio.sleep(0.1)
    try:
        await unit.submit(bench.grant())
    except CommandRejected as refused:  # the unit's own no, in words: an answer as good as yes
        assert refused.code > 4120
    await unit.abort()


async def test_the_dose_channels(bench: Bench) -> None:
    await bench.devices.dose_monitor.start_field(1_000_000, 10_000)
    await bench.devices.dose_monitor.self_test()


async def measure(bench: Bench) -> None:
    for _ in range(10):
        await bench.reference.install(True)
        assert (await bench.reference.spots(1)).size == 0
        await asyncio.sleep(0.1)
    await bench.reference.install(False)


async def take_images(bench: Bench) -> None:
    correction = await bench.devices.imager.registered_correction()
    assert np.isfinite(list(correction.values())).all()


DRIVERS = {
    "gantry": Case("gantry", "G1-motion", turn),
    "couch": Case("couch", "G1-motion", shift),
    "nozzle": Case("snout", "G1-motion", extend),
    "room_access": Case("access", "G1-safety", ask_for_beam),
    "interlock_view": Case("interlock", "G1-safety", look_at_interlocks),
    "accelerator": Case("accelerator", "epics", accelerate, once=("ASAN:ACC:RING:CYCLE:SP",)),
    "magnets": Case("magnets", "epics", ramp, once=("ASAN:G1:MAG:CURRENT:SP",)),
    "delivery_unit": Case("unit", "epics", load_and_grant, once=("ASAN:G1:DU:GRANT:SP", "ASAN:G1:DU:START:SP")),
    "second_dose_unit": Case(
        "dose_monitor", "epics", test_the_dose_channels, once=("ASAN:G1:DU2:CEILING:SP", "ASAN:G1:DU2:SELFTEST:SP")
    ),
    "reference_detector": Case("reference", "epics", measure),
    "imager": Case("imager", "mqtt", take_images, lasts_s=20.0),
}
test_the_dose_channels.__test__ = False

MATRIX = [
    pytest.param(driver, kind.name, id=f"{driver}-{kind.name}", marks=[pytest.mark.slow] if kind.name == "flood" else [])
    for driver, case in DRIVERS.items()
    for kind in KINDS.values()
    if carrier_of(case.wire) in kind.carriers
]


def qualities(bench: Bench, case: Case) -> set[Quality]:
    if case.device == "reference":
        return set()
    return {reading.quality for reading in getattr(bench.devices, case.device).readings()}


async def ended(work: Awaitable[object], within_s: float) -> BaseException | None:
    """How it ended; hanging is a failure."""
    try:
        async with asyncio.timeout(within_s):
            await work
    except TimeoutError:
        pytest.fail(f"hangs: no end within {within_s} s")
    except BeamlineError as error:
        return error
    return None


def connected(case: Case) -> tuple[str, ...]:
    return () if case.device == "reference" else (case.device,)


@pytest.mark.parametrize(("driver", "kind"), MATRIX)
def test_a_driver_bears_a_wire_fault(driver: str, kind: str) -> None:
    case = DRIVERS[driver]
    fault = WireFault(case.wire, kind, duration_s=case.lasts_s, seed=3)

    async def body(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        assert await ended(case.act(bench), 120.0) is None  # it works where the wire is sound
        assert qualities(bench, case) <= {Quality.GOOD}
        bench.spy.clear()

        work = asyncio.ensure_future(ended(case.act(bench), 150.0))
        await asyncio.sleep(case.strike_s)
        struck_s = loop.time()
        bench.tap.strike(fault)
        await asyncio.sleep(struck_s + case.lasts_s - 0.05 - loop.time())
        seen = qualities(bench, case)
        error = await work

        # A named error, or an honest way through.
        carrier = carrier_of(case.wire)
        if kind in SOUND:
            assert error is None, f"{kind} is no reason to fail: {error}"
            assert seen <= {Quality.GOOD}
        elif (carrier, kind) not in LATE:
            assert Quality.GOOD not in seen, f"{kind} for {case.lasts_s} s and readings are still {seen}"
        if error is not None:
            assert isinstance(error, BeamlineError)
            assert error.code > error.family, f"no code of its own: {error}"
            assert error.device or "ASAN:" in error.message, f"says not where: {error}"
            assert error.message

        # Nothing is commanded twice.
        assert all(count <= 1 for count in bench.spy.targets.values()), dict(bench.spy.targets)
        assert all(count <= 1 for count in bench.spy.starts.values()), dict(bench.spy.starts)
        assert all(bench.spy.puts[name] <= 1 for name in case.once), dict(bench.spy.puts)

        # What moved has come to rest, and nothing asks for beam.
        await asyncio.sleep(10.0)
        assert bench.at_rest()
        assert not bench.world.plant.rooms["G1"].chain.permit_r.value
        assert bench.told("device.fault") == []

        # The wire is sound again: so is the driver, by itself.
        await asyncio.sleep(max(0.0, struck_s + case.lasts_s + 12.0 - loop.time()))
        assert qualities(bench, case) <= {Quality.GOOD}
        told = [event.kind for event in bench.events if event.kind in ("device.down", "device.up")]
        assert not told or told[-1] == "device.up", told
        assert all(one != other for one, other in itertools.pairwise(told)), f"told more than once: {told}"
        if isinstance(device := getattr(bench.devices, case.device, None), RotatingGantry | SixAxisCouch):
            await device.acknowledge()  # a drive that heard nothing for 200 ms has stopped by itself, and says so
        assert await ended(case.act(bench), 150.0) is None

    on_bench(body, connected(case))


MOMENTS = {"gantry": ("target", "start"), "couch": ("target", "start"), "nozzle": ("target",)}
COMMANDS = [
    pytest.param(driver, kind.name, moment, id=f"{driver}-{moment.rpartition('ASAN:')[2]}-{kind.name}")
    for driver, case in DRIVERS.items()
    for moment in (*MOMENTS.get(driver, ()), *case.once)
    for kind in KINDS.values()
    if carrier_of(case.wire) in kind.carriers and kind.name not in SOUND and not moment.endswith("START:SP")
]


@pytest.mark.parametrize(("driver", "kind", "moment"), COMMANDS)
def test_a_command_that_meets_a_fault_is_sent_once(driver: str, kind: str, moment: str) -> None:
    """The fault begins as the command leaves: whether it arrived is not known, and it is not sent again to find out."""
    case = DRIVERS[driver]
    fault = WireFault(case.wire, kind, duration_s=3.0, seed=4)

    async def body(bench: Bench) -> None:
        struck: list[str] = []

        def strike(what: str) -> None:
            if what == moment and not struck:
                struck.append(what)
                bench.tap.strike(fault)

        bench.spy.on_command = strike
        error = await ended(case.act(bench), 150.0)
        assert struck, "the command never left"
        assert all(count <= 1 for count in bench.spy.targets.values()), dict(bench.spy.targets)
        assert all(count <= 1 for count in bench.spy.starts.values()), dict(bench.spy.starts)
        assert all(bench.spy.puts[name] <= 1 for name in case.once), dict(bench.spy.puts)
        if error is not None:
            assert isinstance(error, BeamlineError) and error.code > error.family
        await asyncio.sleep(15.0)
        assert bench.at_rest()

    on_bench(body, connected(case))
