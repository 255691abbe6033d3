"""A session walks a beam to its end, and leaves the room safe whatever happens at whatever point."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from room_fakes import World, beam, job, until

from controller.plan.model import CouchTargets
from controller.room.causes import Cause, Severity
from controller.room.ports import BeamEnded, DeliveryContext, DeliveryResult
from controller.room.session import Outcome, SessionResult
from controller.room.states import ENDED, IRRADIATING, State
from controller.room.supervision import Timing
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected, CommunicationError, DeviceError
from drivers.hal.reading import Quality
from simulators.clock import run

CHAIN = [
    (4, "chain.dose_1"),
    (8, "chain.dose_2"),
    (16, "chain.standstill"),
    (32, "chain.torque_off"),
    (64, "chain.quench"),
]


def treat(world: World, meddle: Any = None) -> SessionResult:
    """Run a session with a meddler beside it, in virtual time; nothing may be left running."""

    async def both() -> SessionResult:
        other = asyncio.ensure_future(meddle(world)) if meddle is not None else None
        try:
            return await world.run()
        finally:
            if other is not None:
                other.cancel()
                await asyncio.wait({other})
                if not other.cancelled() and other.exception() is not None:
                    raise other.exception() or AssertionError
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            assert not rest, rest

    return run(both())


async def when(world: World, state: State, seconds: float = 0.0) -> None:
    await until(lambda: world.room.state is state)
    await asyncio.sleep(seconds)


# --- the good day -----------------------------------------------------------------------------------------------------


def test_a_beam_is_treated_and_the_room_is_left_as_it_was_found() -> None:
    world = World()
    result = treat(world)
    assert result.outcome is Outcome.COMPLETE
    assert result.delivery is not None
    assert result.delivery.counts1 == 400
    assert result.causes == ()
    assert result.problems == ()
    assert world.safe() == []
    assert world.room.state is State.STANDBY


def test_everything_is_proven_in_order_before_the_request_goes_up() -> None:
    world = World()
    treat(world)
    order = [
        "gantry.move_to 30",
        "imager.image",
        "beam.request G1",
        "source.select_route G1",
        "tuner.tune",
        "dose.self_test",
        "dose.start_field",
        "access.preset",
    ]
    positions = [world.log.index(item) for item in order]
    assert positions == sorted(positions)
    states = world.states()
    assert states[:9] == [
        "preparatory.identified",
        "preparatory.positioning",
        "preparatory.imaging",
        "preparatory.positioned",
        "preparatory.secured",
        "preparatory.allocated",
        "preparatory.tuning",
        "ready.armed",
        "irradiating.beam_on",
    ]
    assert world.access.presets[0] == (1, 30.0, 6012, True)
    assert world.dose.ceilings == [(5000, 900)]
    assert world.operator.asked == ["identify", "positioned", "beam_on"]


def test_a_fixed_room_opens_its_port_and_moves_no_gantry() -> None:
    world = World("fixed", beam(gantry_deg=90.0))
    world.gantry.angle_deg = 0.0

    world.source.arrived = lambda route: setattr(world.gantry, "angle_deg", float(route.split(":")[1]))
    result = treat(world)
    assert result.outcome is Outcome.COMPLETE
    assert world.source.route == "F1:90"
    assert not [call for call in world.log if call.startswith("gantry.move_to")]


def test_a_second_beam_follows_in_the_same_room() -> None:
    world = World()

    async def two() -> list[SessionResult]:
        first = await world.run()
        world.delivered = 0
        from controller.room.session import Session

        second = Session(
            world.room,
            world.belief,
            world.devices,
            world.operator,
            world.beam,
            world.tuner,
            world.deliver,
            job(beam(2, 60.0)),
            world.bus,
        )
        return [first, await second.run()]

    first, second = run(two())
    assert [first.outcome, second.outcome] == [Outcome.COMPLETE, Outcome.COMPLETE]
    assert world.gantry.angle_deg == 60.0


def test_two_runs_are_identical() -> None:
    def trace() -> list[tuple[int, str, str]]:
        world = World()
        treat(world)
        return [(e.t_ns, e.kind, str(dict(e.data))) for e in world.events]

    assert trace() == trace()


# --- declined ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["identify", "positioned", "beam_on"])
def test_what_the_operator_declines_is_refused_before_beam(kind: str) -> None:
    world = World()
    world.operator.answers[kind] = False
    result = treat(world)
    assert result.outcome is Outcome.REFUSED
    assert kind in result.reason
    assert not result.beam_given
    assert result.moved == (kind != "identify")
    assert True not in world.access.requests
    assert world.safe() == []
    assert world.room.state is State.STANDBY


def test_an_unreachable_couch_is_refused_before_any_motion() -> None:
    world = World(of=beam(couch=CouchTargets(vertical_mm=-800.0, angle_deg=150.0)))
    result = treat(world)
    assert result.outcome is Outcome.REFUSED
    assert not result.moved
    assert "vertical -800.0 mm is outside -500 to 300 mm" in result.reason
    assert "angle 150.0 deg" in result.reason


def test_a_snout_that_would_hit_the_couch_is_refused_with_numbers_and_nothing_moves() -> None:
    world = World(of=beam(gantry_deg=180.0, snout_mm=60.0))
    result = treat(world)
    assert result.outcome is Outcome.REFUSED
    assert "at least 50 mm" in result.reason
    assert not [call for call in world.log if "move_to" in call or "set_up" in call]


def test_too_large_a_correction_is_refused_and_the_couch_stays() -> None:
    world = World()
    world.imager.offset["longitudinal_mm"] = 25.0
    result = treat(world)
    assert result.outcome is Outcome.REFUSED
    assert "longitudinal +25.00 mm (limit 20 mm)" in result.reason
    assert "couch.move_to" not in world.log


def test_a_correction_is_applied_verified_and_armed_with() -> None:
    world = World()
    world.imager.offset |= {"lateral_mm": 4.0, "pitch_deg": 1.5}
    result = treat(world)
    assert result.outcome is Outcome.COMPLETE
    assert result.correction["lateral_mm"] == 4.0
    assert world.couch.axes["lateral_mm"] == 4.0
    assert world.couch.axes["pitch_deg"] == 1.5


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_armed_lapses_after_60_s_and_ends_after_five_times() -> None:
    world = World()
    world.operator.never.add("beam_on")
    result = treat(world)
    assert result.outcome is Outcome.REFUSED
    assert "armed 5 times" in result.reason
    times = [e.t_ns / 1e9 for e in world.events if e.kind == "room.state"]
    armed = [t for t, state in zip(times, world.states(), strict=True) if state == "ready.armed"]
    left = [t for t, state in zip(times, world.states(), strict=True) if state == "preparatory.tuning"][1:]
    assert [round(b - a, 6) for a, b in zip(armed, left, strict=True)] == [60.0] * 5
    assert True not in world.access.requests
    assert world.safe() == []


def test_held_for_30_s_interrupts_and_300_s_of_that_ends_the_field() -> None:
    world = World()
    world.operator.never.add("resume")

    async def stuck(context: DeliveryContext) -> DeliveryResult:
        await context.control.permission()
        context.control.held("refill")
        try:
            while True:
                await asyncio.sleep(1.0)
                await context.control.permission()
        except BeamEnded as ended:
            return DeliveryResult(False, reason=str(ended))

    world.session._activities._deliver = stuck
    result = treat(world)
    states = dict(zip(world.states(), [e.t_ns / 1e9 for e in world.events if e.kind == "room.state"], strict=True))
    assert states["interrupted"] - states["irradiating.held"] == pytest.approx(30.0, abs=0.01)
    assert states["terminated.partial"] - states["interrupted"] == pytest.approx(300.0, abs=0.01)
    assert result.outcome is Outcome.PARTIAL
    assert "interrupted for more than 300 s" in result.reason
    assert world.safe() == []


def test_an_activity_that_never_returns_is_a_fault() -> None:
    world = World(timing=Timing(state_s={State.TUNING: 100.0}))

    async def forever(*_: object) -> None:
        await asyncio.Event().wait()

    world.tuner.tune = forever  # type: ignore[method-assign, assignment]
    result = treat(world)
    assert result.outcome is Outcome.FAULT
    assert result.causes[0].name == "program.timeout"
    assert world.safe() == []
    assert world.room.state is State.FAULT


def test_beam_on_without_a_count_for_30_s_is_a_fault() -> None:
    world = World()

    async def idle(context: DeliveryContext) -> DeliveryResult:
        await context.control.permission()
        await asyncio.sleep(1000.0)
        return DeliveryResult(True)

    world.session._activities._deliver = idle
    result = treat(world)
    assert result.outcome is Outcome.FAULT
    assert result.causes[0].name == "delivery.stalled"
    assert world.safe() == []


# --- pause, resume, stop ----------------------------------------------------------------------------------------------


def test_a_pause_stops_the_counts_and_a_fresh_beam_on_delivers_the_rest() -> None:
    world = World()
    counts: dict[str, int] = {}

    async def pausing(world: World) -> None:
        await when(world, State.BEAM_ON, 0.5)
        world.operator.never.add("resume")
        assert world.session.pause()
        assert not world.access.r
        counts["at pause"] = world.unit.counts
        await asyncio.sleep(40.0)
        counts["later"] = world.unit.counts
        assert world.room.state is State.INTERRUPTED
        assert not world.unit.gate_open
        world.operator.never.clear()

    async def with_late_answer(world: World) -> None:
        await pausing(world)

    world.operator.hooks["resume"] = lambda: None
    # The question for resume is asked once conditions hold; answer it only after the pause was looked at.
    original = world.operator.confirm

    async def confirm(kind: str, facts: dict[str, Any]) -> bool:
        if kind == "resume":
            await asyncio.sleep(60.0)
            world.operator.asked.append(kind)
            return True
        return await original(kind, facts)

    world.operator.confirm = confirm  # type: ignore[method-assign]
    result = treat(world, with_late_answer)
    assert counts["at pause"] == counts["later"] > 0
    assert result.outcome is Outcome.COMPLETE
    assert world.delivered == 4
    assert "resume" in world.operator.asked
    assert world.unit.aborts == 1
    assert world.dose.ceilings == [(5000, 900)], "a resumed field keeps its ceilings and totals"
    assert world.safe() == []


def test_an_interrupted_room_is_not_resumed_while_a_condition_is_missing() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.5)
        world.interlock.relay_closed, world.interlock.code = False, 17
        world.access.b = False
        await when(world, State.INTERRUPTED, 100.0)
        assert world.room.state is State.INTERRUPTED
        assert "resume" not in world.operator.asked
        world.interlock.relay_closed, world.interlock.code = True, 0
        world.access.b = True

    result = treat(world, meddle)
    assert result.outcome is Outcome.COMPLETE
    assert world.operator.asked[-1] == "resume"


def test_further_causes_do_not_prolong_an_interruption() -> None:
    world = World()
    world.operator.never.add("resume")

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.5)
        world.session.pause()
        for _ in range(4):
            await asyncio.sleep(90.0)
            world.room.trip(Cause("again", Severity.PAUSE, "planted", t_ns=now_ns()))

    treat(world, meddle)
    times = {str(e.data["state"]): e.t_ns / 1e9 for e in world.events if e.kind == "room.state"}
    assert times["terminated.partial"] - times["interrupted"] == pytest.approx(300.0, abs=0.01)


def test_each_interruption_needs_a_beam_on_of_its_own() -> None:
    world = World()
    confirmed: list[bool] = []

    async def meddle(world: World) -> None:
        for _ in range(2):
            await when(world, State.BEAM_ON, 0.3)
            world.session.pause()
            await asyncio.sleep(1.0)
            assert world.room.state is State.INTERRUPTED
            confirmed.append(world.session.facts().confirmed)

    assert treat(world, meddle).outcome is Outcome.COMPLETE
    assert confirmed == [False, False]
    assert world.operator.asked.count("resume") == 2


def test_what_moved_during_an_interruption_is_noticed_before_beam() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.5)
        world.session.pause()
        world.snout.snout_mm += 10.0

    result = treat(world, meddle)
    assert result.outcome is Outcome.PARTIAL
    assert "snout 310.000 mm, target 300.000 mm" in result.reason
    assert world.states().count("irradiating.beam_on") == 1


def test_whoever_declines_to_resume_ends_the_field() -> None:
    world = World()
    world.operator.answers["resume"] = False

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.5)
        world.session.pause()

    result = treat(world, meddle)
    assert result.outcome is Outcome.PARTIAL
    assert result.delivery is not None
    assert 0 < result.delivery.counts1 < 400
    assert world.safe() == []


@pytest.mark.parametrize("state", [s for s in State if s not in ENDED and s.family not in ("service", "interrupted")])
def test_stop_ends_the_session_from_every_state(state: State) -> None:
    world = World()

    def stop() -> None:
        assert world.session.stop("test")
        assert not world.access.r
        assert world.room.state not in IRRADIATING

    if state is State.STANDBY:
        world.operator.hooks["identify"] = stop
    world.on_entering(state, stop)
    result = treat(world)
    in_beam = state in IRRADIATING
    assert result.outcome is (Outcome.PARTIAL if in_beam else Outcome.REFUSED)
    assert result.reason == "stopped: test"
    assert world.safe() == []
    assert world.room.state is State.STANDBY


def test_a_stop_during_motion_stops_gantry_and_couch() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await until(lambda: world.gantry.moving)
        await asyncio.sleep(1.0)
        world.session.stop()

    treat(world, meddle)
    assert world.gantry.stops == 1
    assert world.couch.stops == 1
    assert world.gantry.brake


@pytest.mark.parametrize("state", [s for s in State if s not in ENDED and s.family not in ("service", "interrupted")])
def test_cancelling_the_session_leaves_the_room_safe_from_every_state(state: State) -> None:
    world = World()

    async def body() -> None:
        task = asyncio.ensure_future(world.run())
        if state is State.STANDBY:
            asyncio.get_running_loop().call_later(1.0, task.cancel)
        world.on_entering(state, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(body())
    assert world.safe() == []
    assert world.room.state is State.STANDBY


def test_a_session_is_refused_unless_the_room_is_in_standby() -> None:
    world = World()

    async def body() -> None:
        world.room.trip(Cause("earlier", Severity.FAULT, "planted"))
        await world.run()

    with pytest.raises(CommandRejected, match="fault, not standby"):
        run(body())


# --- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        State.IDENTIFIED,
        State.POSITIONING,
        State.IMAGING,
        State.POSITIONED,
        State.SECURED,
        State.ALLOCATED,
        State.TUNING,
        State.ARMED,
    ],
)
def test_an_edit_before_beam_proves_everything_again_with_the_new_values(state: State) -> None:
    world = World()

    world.on_entering(state, lambda: world.session.edit("gantry angle", job(beam(1, 45.0))))
    result = treat(world)
    assert result.outcome is Outcome.COMPLETE
    assert world.gantry.angle_deg == 45.0
    assert world.access.presets[-2][:2] == (world.beam.given, 45.0)
    assert world.operator.asked.count("identify") >= 2
    if state is State.ARMED:
        first_armed = world.states().index("ready.armed")
        assert world.states()[first_armed + 1] == "preparatory.identified"


def test_an_edit_between_the_question_and_the_answer_is_not_confirmed_by_the_answer() -> None:
    world = World()
    world.operator.hooks["beam_on"] = lambda: (
        world.session.edit("tolerance") if world.operator.asked.count("beam_on") == 1 else None
    )
    result = treat(world)
    assert result.outcome is Outcome.COMPLETE
    assert world.operator.asked.count("beam_on") == 2
    assert world.operator.asked.count("identify") == 2


def test_nothing_is_edited_in_beam() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.2)
        with pytest.raises(CommandRejected, match="cannot be edited in beam"):
            world.session.edit("meterset")

    assert treat(world, meddle).outcome is Outcome.COMPLETE


def test_an_edit_that_slips_in_past_the_command_terminates() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.2)
        world.session.proofs.edit_version += 1

    result = treat(world, meddle)
    assert result.outcome is Outcome.PARTIAL
    assert result.causes[0].name == "edit.in_beam"
    assert world.safe() == []


# --- supervision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.SECURED, State.ALLOCATED, State.TUNING, State.ARMED])
def test_a_door_opened_before_beam_needs_a_new_search(state: State) -> None:
    world = World()
    world.operator.never.add("beam_on")

    world.on_entering(state, world.access.open_door)

    async def meddle(world: World) -> None:
        await until(lambda: not world.access.door_closed and world.access.armed is False and state.value in world.states())
        await until(lambda: world.room.state is State.POSITIONED)
        await asyncio.sleep(30.0)
        assert world.room.state is State.POSITIONED
        assert not world.access.armed
        world.operator.never.clear()
        world.access.secure()

    result = treat(world, meddle)
    assert result.outcome is Outcome.COMPLETE
    assert world.states().count("preparatory.positioned") == 2
    assert world.safe() == []


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    ("plant", "name"),
    [
        *[(f"chain {bit}", name) for bit, name in CHAIN],
        ("door", "room.unsecured"),
        ("gantry angle", "gantry.moved"),
        ("gantry brake", "gantry.moved"),
        ("encoders", "gantry.encoders"),
        ("couch", "couch.moved"),
        ("latch", "unit.latched"),
        ("dose 2", "dose_2.tripped"),
        ("dose 2 hv", "dose_2.hv"),
        ("key", "room.service_key"),
    ],
)
def test_what_is_lost_in_beam_ends_the_field_with_its_name(plant: str, name: str, held: bool) -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.HELD if held else State.BEAM_ON, 0.2)
        match plant.split():
            case ["chain", bit]:
                world.access.chain &= ~int(bit)
            case ["door"]:
                world.access.open_door()
            case ["gantry", "angle"]:
                world.gantry.angle_deg += 0.15
            case ["gantry", "brake"]:
                world.gantry.brake = False
            case ["encoders"]:
                world.gantry.motor_error_deg = 0.3
            case ["couch"]:
                world.couch.axes["vertical_mm"] -= 0.6
            case ["latch"]:
                world.unit.latched = True
            case ["dose", "2"]:
                world.dose.tripped = True
            case ["dose", "2", "hv"]:
                world.dose.hv_good = False
            case ["key"]:
                world.access.service = True

    result = treat(world, meddle)
    assert result.outcome is Outcome.PARTIAL
    assert result.causes[0].name == name
    assert result.causes[0].hint
    assert result.delivery is not None
    assert result.delivery.counts1 < 400
    assert world.safe() == []


@pytest.mark.parametrize("state", [State.POSITIONING, State.POSITIONED, State.TUNING, State.ARMED, State.BEAM_ON])
def test_an_e_stop_is_a_fault_from_every_state_until_acknowledged(state: State) -> None:
    world = World()

    async def meddle(world: World) -> None:
        await until(lambda: world.room.state is state)
        world.access.estop_healthy = False

    async def body() -> tuple[SessionResult, bool, bool]:
        other = asyncio.ensure_future(meddle(world))
        result = await world.run()
        await other
        assert world.room.state is State.FAULT
        pressed = await world.session.acknowledge()
        world.access.estop_healthy = True
        return result, pressed, await world.session.acknowledge()

    result, *acknowledged = run(body())
    assert result.outcome is Outcome.FAULT
    assert result.causes[0].name == "room.estop"
    assert world.safe() == []
    assert acknowledged == [False, True]
    assert world.room.state is State.STANDBY


@pytest.mark.parametrize("what", ["access", "interlock", "unit", "dose"])
def test_a_status_that_grows_stale_interrupts_and_resumes_when_it_is_back(what: str) -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.2)
        device = getattr(world, what)
        device.silent = True
        await until(lambda: world.room.state is State.INTERRUPTED, 3.0)
        await asyncio.sleep(20.0)
        assert "resume" not in world.operator.asked
        device.silent = False

    world.slices = 8
    result = treat(world, meddle)
    assert result.outcome is Outcome.COMPLETE
    assert "status.stale" in [e.data.get("cause") for e in world.events]


def test_a_device_that_hangs_is_stale() -> None:
    world = World()
    world.slices = 8

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.2)
        world.access.hangs.add("refresh")
        await until(lambda: world.room.state is State.INTERRUPTED, 3.0)
        world.access.hangs.clear()

    assert treat(world, meddle).outcome is Outcome.COMPLETE


def test_a_gantry_angle_that_is_not_a_number_is_not_small() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.2)
        world.gantry.angle_deg = float("nan")

    result = treat(world, meddle)
    assert result.causes[0].name == "gantry.moved"


def test_a_lost_console_interrupts() -> None:
    world = World()
    alive = True
    world.session._console_alive = lambda: alive
    world.operator.answers["resume"] = False

    async def meddle(world: World) -> None:
        nonlocal alive
        await when(world, State.BEAM_ON, 0.2)
        alive = False
        await until(lambda: world.room.state is State.INTERRUPTED, 1.0)

    assert treat(world, meddle).outcome is Outcome.PARTIAL


def test_a_condition_lost_while_armed_disarms() -> None:
    world = World()
    world.operator.never.add("beam_on")

    async def meddle(world: World) -> None:
        await when(world, State.ARMED, 1.0)
        world.access.b = False
        await until(lambda: world.room.state is State.TUNING, 1.0)
        world.operator.never.clear()
        await asyncio.sleep(20.0)
        world.access.b = True

    result = treat(world, meddle)
    assert result.outcome is Outcome.COMPLETE
    assert world.states().count("ready.armed") == 2


def test_a_permission_that_does_not_come_ends_the_field_with_what_is_missing() -> None:
    world = World()
    world.access.b = False
    world.interlock.code = 42
    result = treat(world)
    assert result.outcome is Outcome.PARTIAL
    assert not result.beam_given
    assert "first-out code 42" in result.reason
    assert world.safe() == []


def test_a_request_that_is_not_answered_ends_the_field() -> None:
    world = World()
    world.access.answers = False
    result = treat(world)
    assert result.causes[0].name == "error.3305"
    assert "contribution R missing" in result.reason
    assert world.unit.counts == 0
    assert world.safe() == []


def test_a_latched_unit_is_not_armed() -> None:
    world = World()
    world.unit.latched = True
    result = treat(world)
    assert result.outcome is Outcome.PARTIAL
    assert "not reconciled" in result.reason
    assert not result.beam_given


def test_a_second_unit_that_fails_its_self_test_keeps_the_room_from_arming() -> None:
    world = World()
    world.dose.faults["self_test"] = DeviceError("monitor 2 counts nothing from its source", code=3090, device="dose-2")
    result = treat(world)
    assert result.causes[0].name == "error.3090"
    assert "ready.armed" not in world.states()


def test_a_gantry_that_arrives_elsewhere_is_noticed_before_imaging() -> None:
    world = World()
    world.gantry.error_deg = 0.3
    result = treat(world)
    assert result.outcome is Outcome.PARTIAL
    assert "gantry 30.300 deg, target 30.000 deg, tolerance 0.2 deg" in result.reason
    assert not result.beam_given


def test_a_gantry_that_creeps_between_imaging_and_arming_is_noticed() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.POSITIONED)
        world.gantry.angle_deg += 0.3

    result = treat(world, meddle)
    assert "ready.armed" not in world.states()
    assert "tolerance 0.2 deg" in result.reason


def test_a_stale_encoder_is_not_moved_with() -> None:
    world = World()
    world.gantry.quality = Quality.STALE
    result = treat(world)
    assert "cannot be read" in result.reason
    assert not [call for call in world.log if "move_to" in call]


# --- the way out ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_closed_is_told_and_can_be_tried_again() -> None:
    world = World()
    world.unit.faults["abort"] = CommunicationError("no answer", code=2001)

    async def body() -> tuple[SessionResult, tuple[str, ...], tuple[str, ...]]:
        task = asyncio.ensure_future(world.run())
        await when(world, State.BEAM_ON, 0.2)
        stubborn = world.unit.last_grant

        async def keep(context: DeliveryContext) -> DeliveryResult:
            return DeliveryResult(False)

        del keep
        world.session.stop()
        world.unit.open_grant = stubborn
        result = await task
        world.unit.open_grant = stubborn
        again = await world.session.close_out()
        world.unit.faults.clear()
        last = await world.session.close_out()
        return result, again, last

    result, again, last = run(body())
    assert any("quiet the delivery unit" in problem for problem in result.problems)
    assert any("quiet the delivery unit" in problem for problem in again)
    assert last == ()
    assert world.unit.open_grant == 0


def test_a_delivery_that_does_not_wind_up_is_cancelled_after_its_grace() -> None:
    world = World()

    async def deaf(context: DeliveryContext) -> DeliveryResult:
        await context.control.permission()
        await asyncio.sleep(10_000.0)
        return DeliveryResult(True)

    world.session._activities._deliver = deaf

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.2)
        world.session.stop()

    result = treat(world, meddle)
    assert "did not wind up within 10 s" in " ".join(result.problems)
    assert result.delivery is None
    assert world.safe() == []


def test_a_delivery_that_raises_is_a_fault_with_beam_off() -> None:
    world = World()

    async def broken(context: DeliveryContext) -> DeliveryResult:
        await context.control.permission()
        raise ZeroDivisionError("planted")

    world.session._activities._deliver = broken
    result = treat(world)
    assert result.outcome is Outcome.FAULT
    assert "ZeroDivisionError" in result.reason
    assert world.safe() == []


def test_supervision_that_dies_is_a_fault() -> None:
    world = World()

    async def meddle(world: World) -> None:
        await when(world, State.BEAM_ON, 0.2)
        world.session._console_alive = lambda: 1 // 0 == 0

    result = treat(world, meddle)
    assert result.outcome is Outcome.FAULT
    assert world.safe() == []


# --- a trip at every await point --------------------------------------------------------------------------------------


def short_world() -> World:
    """A session with everything in it, in as little time as possible."""
    world = World()
    world.slices = 2
    world.search_s = 1.0
    world.imager.offset["lateral_mm"] = 4.0
    return world


def await_points() -> list[tuple[str, str, int]]:
    """Every (state, call) at which a session waits for a device, with how often before it the same call was made there."""
    world = short_world()
    seen: dict[tuple[str, str], int] = {}
    _record(world, lambda key: seen.__setitem__(key, seen.get(key, 0) + 1))
    treat(world)
    return sorted(
        {(state, call, n) for (state, call), count in seen.items() for n in ({0, count - 1} if "irradiating" in state else {0})}
    )


def _record(world: World, told: Any) -> None:
    for device in world.devices.all():
        original = device.call  # type: ignore[attr-defined]

        async def call(what: str, duration_s: float = 0.0, *, original: Any = original, name: str = device.name) -> None:
            told((world.room.state.value, f"{name}.{what}"))
            await original(what, duration_s)
            told((world.room.state.value, f"{name}.{what} done"))

        device.call = call  # type: ignore[attr-defined]


POINTS = await_points()


def test_a_trip_at_every_await_point_ends_safe() -> None:
    for number, (state, call, nth) in enumerate(POINTS):
        severity = (Severity.TERMINATE, Severity.FAULT)[number % 2]
        world = short_world()
        count = 0

        def told(
            key: tuple[str, str],
            world: World = world,
            point: tuple[str, str] = (state, call),
            nth: int = nth,
            severity: Severity = severity,
        ) -> None:
            nonlocal count
            if key == point:
                if count == nth:
                    world.room.trip(Cause("planted", severity, "at an await point", t_ns=now_ns()))
                    assert not world.access.r
                    assert world.room.state in ENDED
                count += 1

        _record(world, told)
        result = treat(world)
        where = (state, call, nth)
        assert count > nth, where
        assert world.safe() == [], where
        begun = State(state) not in (State.STANDBY, *ENDED)
        if severity is Severity.FAULT or State(state) is State.STANDBY:
            assert world.room.state is State.FAULT, where
        elif begun:
            assert result.outcome is Outcome.PARTIAL, where
        assert world.unit.open_grant == 0


def test_the_await_points_cover_every_state_that_does_something() -> None:
    covered = {state for state, _, _ in POINTS}
    assert {
        "preparatory.positioning",
        "preparatory.imaging",
        "preparatory.positioned",
        "preparatory.secured",
        "preparatory.tuning",
        "ready.armed",
        "irradiating.beam_on",
        "irradiating.held",
    } <= covered
