"""Whatever happens in whatever order: no permit beside a cause, no trip later than its deadline, no latch lost.

Days are drawn from: causes and their end on any row, arming, requests, beam, presses of any button short, long or over other
events, service mode, bypasses and their expiry, lost links, dead counters, images of another node, stalls, a clock that is set
forward and back, a controller that dies, a proof test that grows old, and restarts. `Watch` looks after every step.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SOFTWARE, WITH_INPUTS, Case, bad_value, good_value, standing
from safety_room import MS, SAFE, Bench, armed, moving

ROLES = ("operator", "physicist", "service", "key")
SUDDEN = {name for name, row in WITH_INPUTS.items() if not row["when"].get("debounce_ms")}
BOOT = {name for name, row in SOFTWARE.items() if row["test"]["kind"] == "boot"}
STOPPING = {"MOTION_STOP", "EMERGENCY"}
MOVES_NOTHING = STOPPING | {"INHIBIT_MOTION"}
KINDS_WITH_HISTORY = ("drift", "rate", "window", "still")  # their causes are in the past, not in the values shown


def spoil(bench: Bench, row: str, which: int, good: bool) -> None:
    inputs = SOFTWARE[row]["test"]["inputs"]
    name = inputs[which % len(inputs)]
    pick = good_value if good else bad_value
    value = pick(SOFTWARE[row], which % len(inputs), SAFE[name])
    if SOFTWARE[row]["test"]["kind"] == "still":
        bench.room.controller_lives = good
    elif name not in ("permit_b", "motion_permit"):
        bench.room.values[name] = value


OPERATIONS = st.one_of(
    st.tuples(st.just("spoil"), st.sampled_from(sorted(WITH_INPUTS)), st.integers(0, 3)),
    st.tuples(st.just("mend"), st.sampled_from(sorted(WITH_INPUTS)), st.integers(0, 3)),
    st.tuples(st.just("mend all")),
    st.tuples(st.just("arm"), st.booleans(), st.booleans(), st.booleans()),
    st.tuples(st.just("wait"), st.integers(1, 700)),
    st.tuples(st.just("press"), st.sampled_from(ROLES)),
    st.tuples(st.just("service"), st.booleans()),
    st.tuples(st.just("bypass"), st.sampled_from(sorted(SOFTWARE)), st.integers(1, 900)),
    st.tuples(st.just("link"), st.booleans()),
    st.tuples(st.just("counter"), st.booleans()),
    st.tuples(st.just("quality"), st.booleans()),
    st.tuples(st.just("controller"), st.booleans()),
    st.tuples(st.just("proof test is older by"), st.integers(1000, 90_000)),
    st.tuples(st.just("stall"), st.integers(151, 2000)),
    st.tuples(st.just("clock"), st.one_of(st.integers(-5000, -1), st.integers(151, 100_000))),
    st.tuples(st.just("hold"), st.sampled_from(ROLES)),
    st.tuples(st.just("release"), st.sampled_from(ROLES)),
    st.tuples(st.just("restart")),
)


class Watch:
    """Checks one bench after each of its steps. The node has a clock of its own, which may be set; the plant's runs on."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.since_ns: dict[str, int] = {}
        self.latched: set[str] = set()
        self.withheld_since_ns = 0
        self.set_ns = 0  # the node's clock before the plant's
        self.back_ms = 0  # in all
        self.set_back_ns = 0  # when it was last set back, by the plant's clock
        self.motion_withheld_since_ns = 0
        self.sound = True
        self.pressed_ns: dict[str, int] = {}
        self.tripped_before: set[str] = set()
        read = bench.room.read_image

        def read_image() -> list[int]:
            image = list(read())
            return image if self.sound else [image[0] + 1, *image[1:]]

        bench.room.read_image = read_image  # type: ignore[method-assign]
        bench.start()

        def checked() -> None:
            bench.wake_ns = bench.node.step(self.node_ns) - self.set_ns
            self.check()

        bench.step = checked  # type: ignore[method-assign]

    @property
    def node_ns(self) -> int:
        return self.bench.room.now_ns + self.set_ns

    def check(self) -> None:
        bench, now_ns = self.bench, self.bench.room.now_ns
        decision = bench.node.decision
        assert decision is not None
        assert decision.permit == (not decision.tripped and not decision.withheld)
        self.check_first_out()
        bypassed = set(bench.node.engine.bypasses)
        seen_alive = bench.room.link_up and bench.room.counter_runs and self.sound
        if seen_alive and bench.room.values["service_mode"] == 0 and bypassed:
            assert not decision.permit, "treatment with a bypass"
        values = dict(bench.room.values)
        tripped, withheld = standing(Case("idle", "treat", "", {}), "idle", False, values, values, {})
        standing_now = {n for n in tripped | withheld if SOFTWARE[n]["test"]["kind"] not in KINDS_WITH_HISTORY}
        if bench.room.values["service_mode"] == 1:
            standing_now -= {n for n in bypassed if SOFTWARE[n]["reaction"]["bypassable_in"]}
        if seen_alive:
            self.since_ns = {name: self.since_ns.get(name, now_ns) for name in standing_now}
            for name, since_ns in self.since_ns.items():
                when = SOFTWARE[name]["when"]
                if when["trips"] == "requested":
                    continue  # depends on what was requested before
                # A debounce is measured by the node's clock: set back, it begins again, and lasts no longer than that.
                began_ns = max(since_ns, self.set_back_ns) if when.get("debounce_ms") else since_ns
                if now_ns - began_ns >= when.get("debounce_ms", 0) * MS:
                    assert not decision.permit, f"permit beside {name}"
                    assert name in decision.tripped + decision.withheld
        else:
            self.since_ns = {}
        assert self.latched <= set(decision.tripped), "a latch was lost"
        self.latched = set(bench.node.engine.latched())
        if decision.permit:
            self.withheld_since_ns = now_ns
        assert now_ns - self.withheld_since_ns <= 150 * MS or not bench.room.relay_closed(), "relay closed without a permit"
        stopping = {n for n in decision.tripped if STOPPING & set(SOFTWARE[n]["reaction"]["action"])}
        assert decision.motion_code or not stopping, f"motion permit beside {stopping}"
        assert not decision.motion_code or MOVES_NOTHING & {a.name for a in decision.actions}, "motion withheld by no row"
        if not decision.motion_code:
            self.motion_withheld_since_ns = now_ns
        open_by_now = now_ns - self.motion_withheld_since_ns > 150 * MS
        assert not (open_by_now and bench.room.motion_possible()), "motion relay closed without a permit"

    def check_first_out(self) -> None:
        """Numbers without a gap; the first of an episode is the only first, having started is none."""
        node = self.bench.node
        assert [trip.seq for trip in node.trips] == list(range(1, len(node.trips) + 1))
        new = [trip for trip in node.decision.new if trip.id not in BOOT]
        flags = [trip.first_out for trip in new]
        assert flags == [not self.tripped_before and index == 0 for index in range(len(new))], (flags, self.tripped_before)
        self.tripped_before = set(node.decision.tripped) - BOOT

    def press(self, role: str) -> None:
        self.pressed_ns.setdefault(role, self.node_ns)
        self.bench.node.reset(self.node_ns, role, True)

    def release(self, role: str) -> None:
        """A reset clears what is over, for its role, pressed after it, with no beam asked for; and it starts nothing."""
        bench, values = self.bench, self.bench.room.values
        engine, pressed_ns = bench.node.engine, self.pressed_ns.pop(role, None)
        tripped_ns = {trip.id: trip.t_ns for trip in bench.node.trips}
        before = bench.node.decision
        cleared = bench.node.reset(self.node_ns, role, False).cleared
        self.latched -= set(cleared)
        for name in cleared:
            assert pressed_ns is not None
            assert tripped_ns[name] < pressed_ns, "pressed before it tripped"
            assert role in (SOFTWARE[name]["reaction"]["reset_role"], "operator"), "another's button"
            if role != SOFTWARE[name]["reaction"]["reset_role"]:
                assert SOFTWARE[name]["test"].get("inputs"), "which could not be believed for a while"
        if cleared:
            assert engine._is("permit_r", 0), "beam was asked for"
            assert engine._is("beam_present", 0)
        bench.run(3)
        asked = values["permit_r"] and bench.room.link_up  # with the line cut nobody knows yet, and no pulse arrives
        assert not bench.node.decision.permit or before.permit or not asked, "a reset gave beam"

    def do(self, operation: tuple) -> None:
        bench = self.bench
        match operation:
            case ("spoil", row, which):
                spoil(bench, row, which, good=False)
            case ("mend", row, which):
                spoil(bench, row, which, good=True)
            case ("mend all",):
                bench.room.values.update(SAFE)
                bench.room.controller_lives = True
            case ("arm", arm, request, beam):
                bench.room.values.update(armed=int(arm), permit_r=int(request), beam_present=int(beam))
            case ("wait", ms):
                bench.run(ms)
            case ("press", role):
                bench.room.now_ns += MS
                self.press(role)
                bench.run(3)
                self.release(role)
                bench.run(50)
            case ("hold", role):
                self.press(role)
            case ("release", role):
                self.release(role)
            case ("service", on):
                bench.room.values["service_mode"] = int(on)
            case ("bypass", row, ms):
                try:
                    bench.node.bypass(self.node_ns, row, "Ada", "Bo", "because", float(ms))
                except ValueError:
                    pass
                else:
                    assert SOFTWARE[row]["sort"]["class"] != "PERS"
            case ("link", up):
                bench.room.link_up = up
            case ("counter", runs):
                bench.room.counter_runs = runs
            case ("quality", good):
                self.sound = good
            case ("controller", lives):
                bench.room.controller_lives = lives
            case ("proof test is older by", seconds):
                bench.room.values["proof_age_s"] = min(bench.room.values["proof_age_s"] + seconds, 1 << 30)
            case ("stall", ms):
                bench.room.now_ns += ms * MS
                bench.step()
                assert "LOOP_STALL" in bench.tripped
            case ("clock", ms):
                self.set_ns += ms * MS
                self.back_ms += max(0, -ms)
                self.set_back_ns = bench.room.now_ns if ms < 0 else self.set_back_ns
                bench.step()
                assert "LOOP_STALL" in bench.tripped
            case ("restart",):
                kept = latched_in(bench.records)
                assert kept == set(bench.node.engine.latched()), "the journal knows every latch"
                bench.start(latched=sorted(kept))
                self.pressed_ns.clear()
                self.tripped_before = set()
                for _ in range(2):
                    bench.room.now_ns += 10 * MS
                    bench.step()
                    assert not bench.permit
                assert {"POWER_UP", *kept} <= set(bench.tripped)
                assert kept <= set(bench.node.engine.latched())
                assert not bench.node.engine.bypasses
                assert not bench.node.engine.first_out.episodes
        if operation[0] in ("spoil", "mend", "mend all", "arm", "service", "link", "counter", "bypass", "quality"):
            bench.room.now_ns += MS
            bench.step()


def latched_in(records: list) -> set[str]:
    """What a new process would find in the journal."""
    return set(next((record["latched"] for record in reversed(records) if "latched" in record), ()))


def drive(operations: list) -> Watch:
    bench = Bench()
    watch = Watch(bench)
    bench.step()
    bench.run(150)
    assert not bench.permit
    watch.do(("press", "key"))
    for operation in operations:
        watch.do(operation)
    bench.run(700)
    return watch


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.lists(OPERATIONS, max_size=25))
def test_random_days_never_give_a_permit_beside_a_cause(operations):
    drive(operations)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.lists(OPERATIONS, max_size=12))
def test_the_same_day_twice_leaves_the_same_evidence(operations):
    first, second = drive(operations).bench, drive(operations).bench
    assert first.node.trips == second.node.trips
    assert [e.digest for e in first.node.engine.first_out.episodes] == [e.digest for e in second.node.engine.first_out.episodes]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(OPERATIONS, max_size=15))
def test_whatever_happened_people_can_always_come_back_to_a_permit(operations):
    watch = drive(operations)
    bench = watch.bench
    bench.room.link_up = bench.room.counter_runs = bench.room.controller_lives = watch.sound = True
    bench.room.values.update(SAFE)
    bench.node.engine.bypasses.clear()
    bench.run(1000 + watch.back_ms)  # after a clock that was set back, a button counts once its time is after the trip's
    for role in ROLES:
        watch.release(role)
        watch.do(("press", role))
    assert bench.permit, bench.tripped


@pytest.mark.parametrize(
    ("row", "offset_ms"),
    [
        (name, offset_ms)
        for name in WITH_INPUTS
        if SOFTWARE[name]["test"]["kind"] not in ("stale", "feedback")
        for offset_ms in ((0, 1, 17, 49) if SOFTWARE[name]["when"]["deadline_ms"] < 10_000 else (17,))
    ],
)
def test_a_cause_between_two_readings_withholds_within_the_deadline(row, offset_ms):
    phase = SOFTWARE[row]["when"]["trips"]
    bench = armed(beam=phase in ("beam", "requested"))
    if phase == "never":
        bench.set(armed=0)
        bench.run(100)
    elif phase == "moving":
        bench = moving()
    bench.run(1000)
    assert not bench.tripped
    bench.step()
    change_ns = min(bench.room.now_ns + offset_ms * MS, bench.wake_ns - 1)
    bench.room.now_ns = change_ns
    for index in range(SOFTWARE[row]["test"].get("vote", 1)):
        spoil(bench, row, index, good=False)
    while row not in bench.tripped + bench.withheld and bench.room.now_ns < change_ns + 400_000 * MS:
        bench.room.now_ns = max(bench.wake_ns, bench.room.now_ns + 1)
        bench.step()
    assert row in bench.tripped + bench.withheld
    assert not bench.permit
    assert bench.room.now_ns - change_ns <= SOFTWARE[row]["when"]["deadline_ms"] * MS
