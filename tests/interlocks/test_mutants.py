"""The tests are tested: each planted fault of engine, conditions, pulse or reader must be noticed by the battery below."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import test_daemon
import test_engine
import test_inputs
import test_properties
import test_truth_table
from oracle import WITH_INPUTS

from interlocks import bypass, conditions, engine, first_out, inputs, permit
from interlocks.bypass import Bypass
from interlocks.engine import Engine, Reset

ELSEWHERE = (  # about the package's files, not its behaviour
    "test_nothing_but_the_standard_library_is_imported",
    "test_the_package_stays_small_enough_to_read",
)


def battery() -> Iterator[Callable[[], None]]:
    """What a mutant must fail: the scenarios, and the truth table of one row of each kind."""
    modules = (test_engine, test_inputs, test_daemon, test_properties)
    for module in modules:
        for name, test in vars(module).items():
            if name.startswith("test_") and name not in ELSEWHERE and not inspect.signature(test).parameters:
                yield test
    for signal in (849, 1151):
        yield lambda signal=signal: test_engine.test_the_signal_per_ion_may_neither_fall_nor_rise(signal)
    for sign in (1, -1):
        yield lambda sign=sign: test_engine.test_a_deviation_counts_on_both_sides("spot_error_um", "SPOT_POSITION", sign)
    yield lambda: test_engine.test_a_node_that_does_not_live_is_a_trip("counter stands still")
    yield lambda: test_engine.test_a_node_that_does_not_live_is_a_trip("half an answer")
    kinds = {table["test"]["kind"]: row for row, table in WITH_INPUTS.items() if len(table["test"]["inputs"]) <= 2}
    for row in kinds.values():
        yield lambda row=row: test_truth_table.test_each_combination_does_what_the_file_says(row)


def patched(target: Any, name: str, new: Any) -> Callable[[], Any]:
    return lambda: mock.patch.object(target, name, new)


def in_kinds(table: str, kind: str, new: Any) -> Callable[[], Any]:
    return lambda: mock.patch.dict(getattr(engine, table), {kind: new})


def phases_forgotten(self: Engine) -> None:
    original_phases(self)
    self._phase.update(armed=self._is("armed", 1), requested=False, beam=self._is("beam_present", 1))


def request_not_remembered(self: Engine) -> None:
    original_phases(self)
    self._phase.update(requested=self._phase["armed"] and not self._is("permit_r", 0))


def reset_by_anyone(self: Engine, role: str, pressed_ns: int) -> Reset:
    return Reset(tuple(r.row.id for r in self._rows if r.latched and not r.active and not r.withheld), ())


original_phases = Engine._judge_phases
original_resettable = Engine.resettable
original_judge = Engine._judge
original_decide = Engine._decide
original_condition = Engine._condition
original_take = Engine._take
original_note = first_out.FirstOut.note


def judge_without_latch(self: Engine, r: Any, now_ns: int, new: list[Any]) -> None:
    original_judge(self, r, now_ns, new)
    r.latched = False


def judge_without_debounce(self: Engine, r: Any, now_ns: int, new: list[Any]) -> None:
    r.debounce_ns = 0
    original_judge(self, r, now_ns, new)


def judge_forgets_due(self: Engine, r: Any, now_ns: int, new: list[Any]) -> None:
    original_judge(self, r, now_ns, new)
    r.due_ns = conditions.NEVER_NS


def judge_ignores_withholding(self: Engine, r: Any, now_ns: int, new: list[Any]) -> None:
    original_judge(self, r, now_ns, new)
    r.withheld = False


def condition_believes_everything(self: Engine, r: Any, now_ns: int) -> tuple[bool, bool, int]:
    _, by_value, due_ns = original_condition(self, r, now_ns)
    return by_value, by_value, due_ns


def condition_forgets_feedback(self: Engine, r: Any, now_ns: int) -> tuple[bool, bool, int]:
    return original_condition(self, r, now_ns) if r.row.kind != "feedback" else (False, False, conditions.NEVER_NS)


def decide_by_first_row(self: Engine) -> None:
    original_decide(self)
    self._decision = self._decision._replace(permit=not any(r.tripped for r in self._rows[:-1]))


def decide_with_old_first_out(self: Engine) -> None:
    with mock.patch.object(self.first_out, "all_clear"):
        original_decide(self)


def take_ignores_quality(self: Engine, now_ns: int, samples: Any) -> list[str]:
    return original_take(self, now_ns, {name: sample._replace(good=True) for name, sample in samples.items()})


def take_renews_age(self: Engine, now_ns: int, samples: Any) -> list[str]:
    return original_take(self, now_ns, {name: sample._replace(t_ns=now_ns) for name, sample in samples.items()})


def reset_during_request(self: Engine, role: str, pressed_ns: int) -> Reset:
    with mock.patch.object(self, "_is", lambda name, value: True):
        return original_resettable(self, role, pressed_ns)


def held_button_resets(self: Engine, role: str, pressed_ns: int) -> Reset:
    return original_resettable(self, role, 1 << 61)


def clear_without_asking(self: Engine, cleared: Any) -> None:
    for r in self._rows:
        r.latched = False
    self._decision_due = True
    self._pending.update(self._rows)


def bypass_always_honoured(self: Engine, row: Any) -> bool:
    return row.id in self.bypasses


def any_grant(row: Any, owner: str, approver: str, reason: str, now_ns: int, duration_ns: int, *_: Any) -> Bypass:
    return Bypass(row.id, owner, approver, reason, now_ns + duration_ns)


def endless_grant(*arguments: Any) -> Bypass:
    return bypass.grant(*arguments)._replace(expires_ns=conditions.NEVER_NS)


def boots_clear(self: Engine, *arguments: Any) -> None:
    original_init(self, *arguments)
    self._boot_latches = set()


def boots_without_latches(self: Engine, limits: Any, latched: Any = ()) -> None:
    original_init(self, limits)


original_init = Engine.__init__


def pulse_from_zero(self: permit.PermitPulse, present: int) -> None:
    """Does not go on from what the relay holds."""


def pulse_always(self: permit.PermitPulse, permitted: bool) -> permit.Pulse:
    self._last = self._last._replace(value=(self._last.value + 1) & 0xFFFF)
    return self._last


def pulse_drops_to_zero(self: permit.PermitPulse, permitted: bool) -> permit.Pulse:
    self._last = self._last._replace(value=self._last.value ^ 1 if permitted else 0)
    return self._last


def decode_without_identity(self: inputs.ImageReader, image: Any, now_ns: int) -> Any:
    return original_decode(self, [*image, *[0] * (inputs.IMAGE_SIZE - len(image))], now_ns)


original_decode = inputs.ImageReader.decode


def decode_forgets_changes(self: inputs.ImageReader, image: Any, now_ns: int) -> Any:
    decoded = original_decode(self, image, now_ns)
    decoded.changed = ()
    return decoded


def note_nothing(self: first_out.FirstOut, now_ns: int, states: Any) -> None:
    """Keeps no ring."""


def note_for_ever(self: first_out.FirstOut, now_ns: int, states: Any) -> None:
    self._ring.append((now_ns, states))


def every_trip_first(self: first_out.FirstOut, now_ns: int, row: Any, states: Any) -> Any:
    self.first = None
    return original_trip(self, now_ns, row, states)


original_trip = first_out.FirstOut.trip

MUTANTS: dict[str, Callable[[], Any]] = {
    "boots without POWER_UP": patched(Engine, "__init__", boots_clear),
    "a restart forgets latches": patched(Engine, "__init__", boots_without_latches),
    "a latch forgets": patched(Engine, "_judge", judge_without_latch),
    "no debounce": patched(Engine, "_judge", judge_without_debounce),
    "time alone changes nothing": patched(Engine, "_judge", judge_forgets_due),
    "an open door withholds only when armed": patched(Engine, "_judge", judge_ignores_withholding),
    "missing and stale pass": patched(Engine, "_condition", condition_believes_everything),
    "a welded relay passes": patched(Engine, "_condition", condition_forgets_feedback),
    "the last row is not asked, nor who withholds": patched(Engine, "_decide", decide_by_first_row),
    "the first-out never ends": patched(Engine, "_decide", decide_with_old_first_out),
    "quality is ignored": patched(Engine, "_take", take_ignores_quality),
    "age is ignored": patched(Engine, "_take", take_renews_age),
    "unknown means unarmed": patched(Engine, "_judge_phases", phases_forgotten),
    "the lost request is not remembered": patched(Engine, "_judge_phases", request_not_remembered),
    "anyone resets": patched(Engine, "resettable", reset_by_anyone),
    "an active cause is reset": patched(Engine, "clear", clear_without_asking),
    "reset while beam is requested": patched(Engine, "resettable", reset_during_request),
    "a held button resets": patched(Engine, "resettable", held_button_resets),
    "bypass outside service mode": patched(Engine, "_bypassed", bypass_always_honoured),
    "anything can be bypassed": patched(engine, "grant", any_grant),
    "a bypass never expires": patched(engine, "grant", endless_grant),
    "a vote needs one channel more": patched(engine, "vote", lambda bad, needed: sum(bad) > needed),
    "stale is never": patched(engine, "stale", lambda *_: False),
    "the future is believed": patched(engine, "stale", lambda t, now, age: now - t > age),
    "delay ends at once": patched(engine, "delay_on", lambda raw, *_: (raw, None, conditions.NEVER_NS)),
    "equal is inverted": in_kinds("CHANNEL", "equal", lambda p, value, was, wanted: value == wanted),
    "limit has no sign": in_kinds("CHANNEL", "limit", lambda p, value, was, wanted: value > p["limit"]),
    "band has no floor": in_kinds("CHANNEL", "band", lambda p, value, was, wanted: value > p["high"]),
    "difference has a sign": in_kinds(
        "JOINT",
        "difference",
        lambda p, v, m, now: conditions.Verdict(v[0] - v[1] > p["limit"] and v[0] != p.get("neutral"), None),
    ),
    "drift follows": in_kinds("JOINT", "drift", lambda p, v, m, now: conditions.drift(p, v, None, now)),
    "window compares totals": in_kinds(
        "JOINT", "window", lambda p, v, m, now: conditions.Verdict(abs(v[0] - v[1]) > 0.05 * max(v), None)
    ),
    "pattern never matches": in_kinds("JOINT", "pattern", lambda *_: conditions.Verdict(False, None)),
    "contacts may disagree": in_kinds("JOINT", "discrepancy", lambda *_: conditions.Verdict(False, None)),
    "the pulse starts at zero": patched(permit.PermitPulse, "follow", pulse_from_zero),
    "the pulse never stops": patched(permit.PermitPulse, "next", pulse_always),
    "withholding writes zero": patched(permit.PermitPulse, "next", pulse_drops_to_zero),
    "half an image passes": patched(inputs.ImageReader, "decode", decode_without_identity),
    "what changed is not said": patched(inputs.ImageReader, "decode", decode_forgets_changes),
    "no news is always good news": patched(Engine, "_follows", lambda self, image, now_ns: self._number > 0),
    "a window is judged only when something comes": patched(
        conditions, "judge_window", lambda history, window_ns, bad: (bad[0], conditions.NEVER_NS)
    ),
    "no ring buffer": patched(first_out.FirstOut, "note", note_nothing),
    "the ring never forgets": patched(first_out.FirstOut, "note", note_for_ever),
    "every trip is first": patched(first_out.FirstOut, "trip", every_trip_first),
}


@contextmanager
def planted(mutant: str) -> Iterator[None]:
    with MUTANTS[mutant]():
        yield


def test_the_battery_passes_without_a_mutant():
    for check in battery():
        check()


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_planted_fault_is_noticed(mutant):
    with planted(mutant):
        for check in battery():
            try:
                check()
            except (Exception, pytest.fail.Exception):  # noqa: BLE001 - however it shows, it was noticed
                return
    pytest.fail(f"survived: {mutant}")
