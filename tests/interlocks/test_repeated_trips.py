"""Rows that come and go with a starved computer: the journal counts them, memory is bounded, and one first-out is on top."""

import json

from safety_room import LIMITS, MS, Bench, ready

from interlocks import daemon
from interlocks.first_out import UNBELIEVED


def trips_of(bench, row=None):
    return [r for r in bench.records if r["kind"] == "trip" and row in (None, r["id"])]


def flap(bench, times, lost_ms=200, back_ms=200):
    """The room is lost and comes back."""
    for _ in range(times):
        bench.room.link_up = False
        bench.run(lost_ms)
        bench.room.link_up = True
        bench.run(back_ms)


def test_rows_that_come_and_go_are_counted_and_not_written_each_time():
    bench = Bench()
    bench.step()
    flap(bench, 100)  # 40 s; before the key is turned nothing of this latches
    rows = {trip.id for trip in bench.node.trips}
    assert len(rows) > 40
    assert all(len(trips_of(bench, row)) == 1 for row in rows - {"PLANT_STALE"}), "the first is written whole"
    firsts = trips_of(bench, "PLANT_STALE")
    assert len(firsts) == 100 and all(record["first_out"] for record in firsts), "a first-out is always written"
    assert firsts[0]["repeats"] == {}
    assert firsts[-1]["repeats"] == dict.fromkeys(rows - {"PLANT_STALE", "POWER_UP"}, 1), "and what came again is counted"
    counted = sum(sum(record["repeats"].values()) for record in trips_of(bench)) + sum(bench.node._repeats.values())
    assert counted + len(trips_of(bench)) == bench.node.trips[-1].seq, "each is written or counted"


def test_what_comes_again_after_a_while_is_written_again():
    bench = Bench()
    bench.step()
    flap(bench, 2)
    bench.run(daemon.REPEATS_NS / MS + 100)
    flap(bench, 1)
    assert len(trips_of(bench, "ESTOP")) == 2


def test_a_value_is_written_however_soon_it_follows_what_was_not_known():
    bench = Bench()
    bench.step()
    flap(bench, 3)
    bench.set(estop_healthy=0, chain_estop=0)
    first, second = trips_of(bench, "ESTOP")
    assert first["shown"][0] & UNBELIEVED and not second["shown"][0] & UNBELIEVED
    assert "ESTOP" in second["latched"]


def test_a_row_that_is_reset_and_trips_again_at_once_as_a_consequence_is_written_with_its_latch():
    bench = ready()
    bench.set(motor_angle_mdeg=-30_500)
    bench.set(area_dose_rate=60_000)
    bench.run(1000)
    bench.set(area_dose_rate=8)
    bench.run(200)
    assert "AREA_MONITOR" in bench.press(LIMITS.row("AREA_MONITOR").reset_role)
    bench.set(area_dose_rate=60_000)
    bench.run(1000)
    assert [record["first_out"] for record in trips_of(bench, "AREA_MONITOR")] == [False, False]
    assert all("AREA_MONITOR" in record["latched"] for record in trips_of(bench, "AREA_MONITOR"))


def test_what_is_not_known_again_is_counted_though_it_was_reset_in_between_and_its_latches_are_kept():
    bench = ready()
    bench.set(motor_angle_mdeg=-30_500)  # the first-out; only the service role resets it
    flap(bench, 1)
    first = [record["id"] for record in trips_of(bench)]
    for _ in range(3):
        assert len(bench.press("operator")) > 40
        before = len(bench.records)
        flap(bench, 1)
        (record,) = bench.records[before:]
        assert record["id"] == "PLANT_STALE" and set(record["latched"]) == set(bench.node.engine.latched())
        assert len(record["latched"]) > 40
    assert [record["id"] for record in trips_of(bench)] == [*first, *["PLANT_STALE"] * 3]
    assert record["repeats"]["ESTOP"] == bench.node._repeats["ESTOP"] == 1


def test_the_memory_of_trips_is_bounded(monkeypatch):
    monkeypatch.setattr(daemon, "TRIPS_KEPT", 100)
    bench = Bench()
    bench.step()
    flap(bench, 5)
    kept = bench.node.trips
    assert len(kept) == 100 and kept[-1].seq > 200
    assert [trip.seq for trip in kept] == list(range(kept[-1].seq - 99, kept[-1].seq + 1))


def told(bench):
    return {row["id"]: row["first_out"] for row in json.loads(bench.node.status(bench.room.now_ns))["rows"]}


def test_one_row_is_told_as_the_first_out_and_it_is_the_one_of_the_status_line():
    bench = Bench()
    bench.step()
    bench.run(100)
    bench.room.now_ns += 400 * MS
    bench.step()
    assert [trip.first_out for trip in bench.node.trips] == [True, True], "having started is an episode of its own"
    assert told(bench) == {"POWER_UP": True, "LOOP_STALL": False}
    assert bench.room.first_out_code == LIMITS.row("POWER_UP").code
    assert bench.press("key") == ("POWER_UP",)
    assert told(bench) == {"LOOP_STALL": True}
    assert bench.room.first_out_code == LIMITS.row("LOOP_STALL").code


def test_what_followed_is_not_told_as_the_first_out_when_that_was_reset():
    bench = ready()
    bench.room.now_ns += 400 * MS
    bench.step()
    bench.set(motor_angle_mdeg=-30_500)
    assert told(bench) == {"LOOP_STALL": True, "RING_ENCODERS": False}
    assert bench.press("operator") == ("LOOP_STALL",)
    assert told(bench) == {"RING_ENCODERS": False}
