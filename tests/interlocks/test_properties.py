"""Whatever happens in whatever order: no permit beside a cause, no trip later than its deadline, no latch lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SOFTWARE, WITH_INPUTS, Case, bad_value, good_value, standing
from safety_room import MS, SAFE, Bench, armed, moving

ROLES = ("operator", "physicist", "service", "key")
SUDDEN = {name for name, row in WITH_INPUTS.items() if not row["when"].get("debounce_ms")}
KINDS_WITH_HISTORY = ("drift", "rate", "window")  # their causes are in the past, not in the values shown


def spoil(bench: Bench, row: str, which: int, good: bool) -> None:
    inputs = SOFTWARE[row]["test"]["inputs"]
    name = inputs[which % len(inputs)]
    pick = good_value if good else bad_value
    value = pick(SOFTWARE[row], which % len(inputs), SAFE[name])
    if name != "permit_b":
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
    st.tuples(st.just("stall"), st.integers(151, 2000)),
    st.tuples(st.just("restart")),
)


class Watch:
    """Checks one bench after each of its steps."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.since_ns: dict[str, int] = {}
        self.latched: set[str] = set()
        self.withheld_since_ns = 0
        step = bench.step

        def checked() -> None:
            step()
            self.check()

        bench.step = checked  # type: ignore[method-assign]

    def check(self) -> None:
        bench, now_ns = self.bench, self.bench.room.now_ns
        decision = bench.node.decision
        assert decision is not None
        assert decision.permit == (not decision.tripped and not decision.withheld)
        bypassed = set(bench.node.engine.bypasses)
        seen_alive = bench.room.link_up and bench.room.counter_runs
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
                if now_ns - since_ns >= when.get("debounce_ms", 0) * MS:
                    assert not decision.permit, f"permit beside {name}"
                    assert name in decision.tripped + decision.withheld
        else:
            self.since_ns = {}
        assert self.latched <= set(decision.tripped), "a latch was lost"
        self.latched = set(bench.node.engine.latched())
        if decision.permit:
            self.withheld_since_ns = now_ns
        assert now_ns - self.withheld_since_ns <= 150 * MS or not bench.room.relay_closed(), "relay closed without a permit"

    def do(self, operation: tuple) -> None:
        bench = self.bench
        match operation:
            case ("spoil", row, which):
                spoil(bench, row, which, good=False)
            case ("mend", row, which):
                spoil(bench, row, which, good=True)
            case ("mend all",):
                bench.room.values.update(SAFE)
            case ("arm", arm, request, beam):
                bench.room.values.update(armed=int(arm), permit_r=int(request), beam_present=int(beam))
            case ("wait", ms):
                bench.run(ms)
            case ("press", role):
                bench.room.now_ns += MS
                bench.node.reset(bench.room.now_ns, role, True)
                bench.run(3)
                self.latched -= set(bench.node.reset(bench.room.now_ns, role, False).cleared)
                bench.run(50)
            case ("service", on):
                bench.room.values["service_mode"] = int(on)
            case ("bypass", row, ms):
                try:
                    bench.node.bypass(bench.room.now_ns, row, "Ada", "Bo", "because", float(ms))
                except ValueError:
                    pass
                else:
                    assert SOFTWARE[row]["sort"]["class"] != "PERS"
            case ("link", up):
                bench.room.link_up = up
            case ("counter", runs):
                bench.room.counter_runs = runs
            case ("stall", ms):
                bench.room.now_ns += ms * MS
                bench.step()
                assert "LOOP_STALL" in bench.tripped
            case ("restart",):
                kept = bench.node.engine.latched()
                bench.start(latched=kept)
                bench.step()
                assert {"POWER_UP", *kept} <= set(bench.tripped)
                assert not bench.node.engine.bypasses
        if operation[0] in ("spoil", "mend", "mend all", "arm", "service", "link", "counter", "bypass"):
            bench.room.now_ns += MS
            bench.step()


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
    bench.room.link_up = bench.room.counter_runs = True
    bench.room.values.update(SAFE)
    bench.node.engine.bypasses.clear()
    bench.run(1000)
    for role in ROLES:
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
