"""Who answers over Channel Access after a server was lost: asked anew, refused by both names, told once."""

from __future__ import annotations

import asyncio

import pytest
from epics_bench import facility_bench, in_real_time, until

from drivers.devices.delivery_unit import DeliveryUnitClient
from drivers.hal.errors import BeamlineError
from drivers.hal.facility import load_facility
from drivers.wire.channels import CountsConnections

pytestmark = pytest.mark.xdist_group("wires")

NAME = "G1-delivery-unit"
OURS = "iongantry simulated delivery unit G1"


def test_another_unit_on_the_port_of_ours_is_refused_until_ours_is_back() -> None:
    async def main() -> None:
        async with facility_bench() as bench:
            unit = DeliveryUnitClient(NAME, load_facility("asan").devices[NAME], bench.channels, bench.bus)
            assert isinstance(bench.channels, CountsConnections)
            await unit.connect()
            before = bench.channels.connections("ASAN:G1:DU:ID:RB")
            assert before == 1 and unit.readings()[0].good

            bench.ioc.kill()
            # Who comes back before the loss was told (it takes a heartbeat) is the loss, and named in it.
            await until(lambda: "device.down" in bench.kinds(NAME), "the loss")
            assert not unit.readings()[0].good
            bench.plant.rooms["G1"].unit.identity = "a stranger"
            await bench.ioc.start()
            await until(lambda: "device.refused" in bench.kinds(NAME), "the refusal", 20.0)
            assert bench.channels.connections("ASAN:G1:DU:ID:RB") > before
            for _ in range(100):
                assert not any(reading.good for reading in unit.readings())
                await asyncio.sleep(0.02)
            (refused,) = [event for event in bench.events if event.kind == "device.refused"]
            assert "'a stranger'" in refused.data["error"] and repr(OURS) in refused.data["error"]
            with pytest.raises(BeamlineError, match="a stranger"):
                await unit.set_gate(True)
            assert bench.kinds(NAME).count("device.down") == 1

            bench.ioc.kill()
            bench.plant.rooms["G1"].unit.identity = OURS
            await bench.ioc.start()
            await until(lambda: unit.readings()[0].good, "ours", 20.0)
            assert [kind for kind in bench.kinds(NAME) if kind.startswith("device.")] == [
                "device.down",
                "device.refused",
                "device.up",
            ]
            await unit.set_gate(True)
            await unit.close()

    in_real_time(main())
