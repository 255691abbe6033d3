"""One controller per room: the second one is told who has it, and a dead one blocks nobody."""

import multiprocessing
import os

import pytest

from controller.room_lock import RoomLock
from drivers.hal.endpoints import EndpointMap, apply
from drivers.hal.errors import CommandRejected
from drivers.hal.facility import load_facility


@pytest.fixture
def facility(tmp_path):
    line = {"endpoint": f"tcp://127.0.0.1:{20000 + os.getpid() % 20000}", "simulated": True}
    return apply(load_facility("asan"), EndpointMap.model_validate({"devices": {"G1-safety": line}}))


def hold(facility, taken, leave):
    RoomLock(facility, "G1", "another program").take()
    taken.set()
    leave.wait(30)
    os._exit(9)


def test_a_room_is_held_by_one_process_and_free_when_it_dies(facility):
    context = multiprocessing.get_context("spawn")
    taken, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(facility, taken, leave))
    other.start()
    try:
        assert taken.wait(30)
        with pytest.raises(CommandRejected, match=rf"in use by another program, process {other.pid}"):
            RoomLock(facility, "G1", "this program").take()
    finally:
        leave.set()
        other.join(30)
    lock = RoomLock(facility, "G1", "this program")
    lock.take()
    lock.release()
    lock.take()
    lock.release()
