"""Our driver moves a ring of two drives that pymodbus serves, and tells the plant's model what they read."""

from __future__ import annotations

import asyncio

import pytest
from foreign_rig import foreign_drives

from drivers.devices.gantry import RotatingGantry
from drivers.devices.ring import DriveSample, RingReader, RingSample
from drivers.devices.shadowed import shadow_values
from drivers.hal.clock import now_ns
from drivers.hal.endpoints import EndpointMap, apply
from drivers.hal.errors import CommandRejected, CommunicationError, DeviceError
from drivers.hal.events import EventBus
from drivers.hal.facility import load_facility
from drivers.hal.reading import Quality
from drivers.wire.codecs.cia402 import Safety
from drivers.wire.modbus import ModbusClient
from drivers.wire.serial_stream import serial_opener
from drivers.wire.stream import Stream
from simulators.plant.facility import FacilityPlant
from simulators.plant.kernel import Kernel
from simulators.shadow import Shadow

pytestmark = pytest.mark.xdist_group("wires")
ASAN = load_facility("asan")


async def test_our_driver_moves_a_drive_pair_served_by_pymodbus() -> None:
    for last in (False, False, True):
        try:
            await move_a_foreign_pair()
        except (CommunicationError, DeviceError):  # a computer that stands still for 200 ms lets drives stop by themselves
            if last:
                raise
        else:
            break


async def move_a_foreign_pair() -> None:
    with foreign_drives(["pair"]) as ttys:
        facility = apply(ASAN, EndpointMap.model_validate({"devices": {"G1-gantry": {"endpoint": f"serial://{ttys['pair']}"}}}))
        room = facility.room("G1")
        assert room.gantry is not None
        fast = room.gantry.model_copy(update={"acceleration_deg_s2": 20.0, "jerk_deg_s3": 1000.0, "settle_s": 0.5})
        client = ModbusClient("G1-motion", serial_opener(ttys["pair"], 115200))
        config = facility.devices["G1-gantry"]
        bus = EventBus()
        gantry = RotatingGantry("G1-gantry", config, room.model_copy(update={"gantry": fast}), client, facility.registers, bus)
        await gantry.connect()
        try:
            state = await gantry.move_to(1.5)
            assert state.angle.value == pytest.approx(1.504, abs=0.01)
            assert state.brake_applied and state.standstill and not state.enabled
            state = await gantry.move_to(0.0)
            assert state.angle.value == pytest.approx(0.004, abs=0.01)
            moving = asyncio.ensure_future(gantry.move_to(30.0))
            while not (gantry.sample and gantry.sample.speed_deg_s > 1.0):  # noqa: ASYNC110 - it polls by itself
                await asyncio.sleep(0.02)
            await gantry.stop()
            with pytest.raises(CommandRejected, match="stopped by command"):
                await moving
            state = await gantry.read_state()
            assert state.brake_applied and state.standstill and not state.enabled
            assert 0.0 < float(state.angle.value) < 3.0
            plant = FacilityPlant.shipped(Kernel(1), "asan")
            payload = shadow_values(facility, [gantry], now_ns())
            assert set(payload["parts"]) == {"G1-drive-A", "G1-drive-B", "G1-load-encoder"}
            Shadow(plant).take(payload)
            shown = plant.rooms["G1"].gantry.load_encoder_mdeg(plant.kernel.now_ns)
            assert shown == pytest.approx(1000 * state.angle.value, abs=3)
        finally:
            await gantry.close()
            await client.close()


def test_only_what_is_real_drives_the_model() -> None:
    """A real load encoder beside simulated drives: nothing of the drives is sent."""
    overlay = {
        "devices": {
            "G1-gantry": {"endpoint": "serial:///dev/simulated", "simulated": True},
            "G1-load-encoder": {"endpoint": "serial:///dev/ttyUSB0"},
        }
    }
    facility = apply(ASAN, EndpointMap.model_validate(overlay))
    assert facility.devices["G1-gantry"].simulated
    assert facility.devices["G1-gantry"].real_parts == ("G1-load-encoder",)
    assert shadow_values(facility, [], 0) == {}


async def test_a_reading_says_simulated_when_a_simulator_had_a_part_in_it() -> None:
    """With a real load encoder the ring's angle is real; what is made of simulated drives is not."""
    overlay = {
        "devices": {
            "G1-gantry": {"endpoint": "serial:///dev/simulated", "simulated": True},
            "G1-load-encoder": {"endpoint": "serial:///dev/ttyUSB0"},
        }
    }
    config = apply(ASAN, EndpointMap.model_validate(overlay)).devices["G1-gantry"]
    reader = RingReader("G1-gantry", config, ModbusClient("unused", nobody), ASAN.registers, lambda _error: None)
    drive = DriveSample(0, 0x250, 0.0, 0.0, 0.0, 0, Safety.SBC)
    reader.sample = RingSample(0, (drive, drive), 0.0, True)
    said = {reading.name.rpartition(".")[2]: reading.simulated for reading in reader.readings(Quality.GOOD)}
    assert [name for name, simulated in said.items() if not simulated] == ["angle"]
    state = reader.state(reader.sample, Quality.GOOD)
    assert not state.angle.simulated and state.motor_angle.simulated


async def nobody() -> Stream:
    raise ConnectionError
