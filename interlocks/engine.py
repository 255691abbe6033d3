"""The decision: may beam be? `Engine.step(now_ns, samples) -> (decision, wake_at_ns)`; no I/O, no clock of its own.

A row is judged when one of its inputs changed, grew stale, or a time of it ran out; otherwise it keeps its state. Per row:
inputs that are missing, stale or of bad quality count as bad; a phase says when it matters; then debounce, hold, bypass, latch.
The permit is given only while nothing is tripped and nothing withholds; the motion permit while no row that is tripped asks for
motion to stop. Boots tripped. Not responsible for reading or pulsing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from interlocks.bypass import Bypass, grant
from interlocks.conditions import CHANNEL, JOINT, NEVER_NS, NS_PER_MS, delay_off, delay_on, latch, offender, stale, vote
from interlocks.first_out import NO_INPUT, UNBELIEVED, FirstOut, State, Trip
from interlocks.inputs import Image, Sample
from interlocks.matrix import PHASES, Action, Interlock, Limits, wanted
from interlocks.permit import RELAY_MS

STOPS = frozenset({Action.MOTION_STOP, Action.EMERGENCY})
NOISE_NS = 1_000_000_000  # a debounce up to here is for noise; a longer one is a time that a value may last (assumed)
OWN_INPUTS = frozenset({"armed", "permit_r", "beam_present", "standstill", "service_mode"})  # phases, bypasses, resets


class Decision(NamedTuple):
    """What follows from everything known now."""

    permit: bool
    tripped: tuple[str, ...]  # active or latched, in file order
    withheld: tuple[str, ...]  # rows that keep the permit off without having tripped
    actions: frozenset[Action]
    first_out: Trip | None  # of those still tripped: the first-out, or the oldest once that was reset
    motion_code: int  # of the first row in the file that withholds the motion permit; 0: it is given
    new: tuple[Trip, ...] = ()  # tripped in this very step


class Reset(NamedTuple):
    """What a reset would do: rows that clear, and rows that do not with the reason."""

    cleared: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


class _Row:
    """A row and its state."""

    def __init__(self, row: Interlock) -> None:
        self.row = row
        self.wanted, self.joint = wanted(row), JOINT.get(row.kind)
        self.debounce_ns, self.hold_ns = round(row.debounce_ms * NS_PER_MS), round(row.hold_ms * NS_PER_MS)
        self.memory: Any = None  # of the condition
        self.since_ns: int | None = None  # begin of the raw cause, for the debounce
        self.held_ns: int | None = None  # end of the debounced cause, for the hold
        self.bad = self.active = self.withheld = self.latched = self.asleep = False
        self.by_value = False  # latched on a value, not only on invalid inputs
        self.told = False  # its latest trip says what a value showed, not that it is not known
        self.trip: Trip | None = None  # the latest
        self.latched_ns, self.due_ns = 0, NEVER_NS

    @property
    def tripped(self) -> bool:
        return self.active or self.latched

    @property
    def stops_motion(self) -> bool:
        """MOTION_STOP and EMERGENCY until somebody has looked; INHIBIT_MOTION as long as its cause: people must get out."""
        inhibits = self.active and Action.INHIBIT_MOTION in self.row.actions
        return inhibits or (self.tripped and not STOPS.isdisjoint(self.row.actions))


class Engine:
    """All rows of one room.

    Args:
        limits: a validated matrix.
        latched: ids of rows that were latched before a restart; they stay so.
    """

    def __init__(self, limits: Limits, latched: Iterable[str] = ()) -> None:
        self.limits = limits
        self.first_out = FirstOut()
        self.bypasses: dict[str, Bypass] = {}
        self._rows = [_Row(row) for row in limits.software]
        self._by_id = {r.row.id: r for r in self._rows}
        self._kind = {r.row.kind: r for r in self._rows}  # used for kinds of which there is one row each
        self._concerned: dict[tuple[str, ...], list[_Row]] = {}  # rows in file order, by the inputs that changed together
        self._values: dict[str, int] = {}
        self._times_ns: dict[str, int] = {}
        # Of the last image after which every input was believed (0 when one is not), and when it was seen.
        self._number = self._seen_ns = 0
        self._valid = dict.fromkeys([*OWN_INPUTS, *(name for r in self._rows for name in r.row.inputs)], False)
        self._phase = {**dict.fromkeys(PHASES, True), "never": False}  # nothing is known yet
        self._requested = False
        self._last_ns: int | None = None
        self._expiry_ns = self._due_ns = 0  # nothing can grow stale, and no row is due, before
        self._pending = set(self._rows)  # to judge in the next step, whatever else happens
        times_ms = limits.stale_ms, limits.stall_ms, limits.poll_ms
        self._stale_ns, self._stall_ns, self._poll_ns = (round(ms * NS_PER_MS) for ms in times_ms)
        self._decision = Decision(False, (), (), frozenset(), None, 0xFFFF)  # nothing is given before the first step
        self._decision_due = True  # the state of a row changed
        self._boot_latches = {self._kind["boot"].row.id, *(self._by_id[name].row.id for name in latched)}

    # --- the one function -------------------------------------------------------------------------------------------

    def step(self, now_ns: int, samples: Mapping[str, Sample]) -> tuple[Decision, int]:
        """Take new samples (all, some, none), judge what they or the time changed, decide.

        Returns the decision and the latest time for the next step. Time must never fall; if it does, that is a stall, and so is
        a time without pulses in which the relay of a permit that was given has fallen.
        """
        new: list[Trip] = []
        gap = samples.get("pulse_gap_ms")
        if self._last_ns is None:
            for r in self._rows:
                if r.row.id in self._boot_latches:
                    self._latch(r, now_ns, new)
        elif not 0 <= now_ns - self._last_ns <= self._stall_ns or (gap is not None and gap.value > RELAY_MS):
            self._latch(self._kind["stall"], now_ns, new)
            self._pending.update(self._rows)  # a clock that was set back: what was due then would be late
        if self._last_ns is not None and (not samples or now_ns - self._last_ns > RELAY_MS * NS_PER_MS):
            for r in [r for r in self._rows if r.row.kind == "feedback"]:  # time without a look at a relay proves nothing of it
                r.since_ns = None if r.since_ns is None else r.since_ns + now_ns - self._last_ns
        self._last_ns = now_ns
        changed = self._take(now_ns, samples)
        if changed:
            self.first_out.note(now_ns, tuple([self._state(name) for name in changed]))
            if not OWN_INPUTS.isdisjoint(changed):
                self._judge_phases()
        if self.bypasses and any(now_ns >= bypass.expires_ns for bypass in self.bypasses.values()):
            self.bypasses = {name: bypass for name, bypass in self.bypasses.items() if now_ns < bypass.expires_ns}
            self._pending.update(self._rows)
        rows = self._rows_of(changed)
        if self._pending or now_ns >= self._due_ns:
            dirty, self._pending = self._pending.union(rows), set()
            rows = [r for r in self._rows if r in dirty or r.due_ns <= now_ns]
        for r in rows:  # in file order: of causes seen together the first row is the first-out
            if not r.asleep:
                self._judge(r, now_ns, new)
        if self._due_ns < NEVER_NS or any([r.due_ns < NEVER_NS for r in rows]):
            self._due_ns = min([r.due_ns for r in self._rows])
        if self._decision_due:
            self._decide()
        self.first_out.close_due(now_ns)
        decision = self._decision._replace(new=tuple(new)) if new else self._decision
        return decision, min(self._expiry_ns, self._due_ns, now_ns + self._poll_ns)

    def _rows_of(self, changed: tuple[str, ...]) -> list[_Row]:
        """Rows that look at one of these inputs; a phase concerns every row."""
        rows = self._concerned.get(changed)
        if rows is None:
            names, every = set(changed), not OWN_INPUTS.isdisjoint(changed)
            rows = self._concerned[changed] = [r for r in self._rows if every or not names.isdisjoint(r.row.inputs)]
        return rows

    def _take(self, now_ns: int, samples: Mapping[str, Sample]) -> tuple[str, ...]:
        """Store samples; the names of inputs whose value or validity changed."""
        image = samples if isinstance(samples, Image) else None
        if image is not None and self._follows(image, now_ns):
            self._number, self._seen_ns, self._expiry_ns = image.number, image.t_ns, image.t_ns + self._stale_ns + 1
            self._values = image.now
            return image.changed
        changed: list[str] = []
        values, times_ns, valid = {**self._values}, self._times_ns, self._valid
        for name, (value, good, t_ns, _) in samples.items():
            believed = good and not stale(t_ns, now_ns, self._stale_ns)
            if name not in values or value != values[name] or believed != valid[name]:
                changed.append(name)
            values[name], times_ns[name], valid[name] = value, t_ns, believed
            if believed:
                self._expiry_ns = min(self._expiry_ns, t_ns + self._stale_ns + 1)
        if now_ns >= self._expiry_ns:
            seen_ns = {name: max(t_ns, self._seen_ns) for name, t_ns in times_ns.items() if valid[name]}
            late = [name for name, t_ns in seen_ns.items() if stale(t_ns, now_ns, self._stale_ns)]
            changed += late
            valid.update(dict.fromkeys(late, False))
            self._expiry_ns = min((t_ns + self._stale_ns + 1 for n, t_ns in seen_ns.items() if valid[n]), default=NEVER_NS)
        self._values = values
        if image is not None:
            self._number, self._seen_ns = (image.number, image.t_ns) if all(valid.values()) else (0, 0)
        elif changed:
            self._number = 0
        return tuple(changed)

    def _follows(self, image: Image, now_ns: int) -> bool:
        """Whether a sound image comes next after one of which everything was, and is, believed: only what differs is news."""
        if not image.good or image.number != self._number + 1 or not self._number or now_ns >= self._expiry_ns:
            return False
        return image.t_ns >= self._seen_ns and not stale(image.t_ns, now_ns, self._stale_ns)

    def _is(self, name: str, value: int) -> bool:
        """Whether an input is believed and has this value."""
        return self._valid[name] and self._values[name] == value

    def _state(self, name: str) -> State:
        return name, self._values.get(name), self._valid[name]

    def _judge_phases(self) -> None:
        """When rows matter. What is not known counts as the phase in which more matters."""
        for r in self._rows:
            r.asleep = False
        armed = not self._is("armed", 0)
        self._requested = armed and (self._requested or not self._is("permit_r", 0))
        self._phase.update(armed=armed, requested=self._requested)
        self._phase.update(beam=not self._is("beam_present", 0), moving=not self._is("standstill", 1))

    def _judge(self, r: _Row, now_ns: int, new: list[Trip]) -> None:
        """Phase, condition, debounce, hold, bypass, latch of one row."""
        row = r.row
        in_phase = self._phase[row.trips]
        raw, by_value, due_ns = False, False, NEVER_NS
        if in_phase or row.withholds:
            raw, by_value, due_ns = self._condition(r, now_ns)
        else:
            r.memory, r.asleep = None, not r.bad  # nothing can become of it until a phase changes
        if not raw and not r.bad:  # as it was: nothing below would change anything
            r.since_ns, r.due_ns = None, due_ns
            return
        # Only a value can be noise: what cannot be believed is bad at once, but shows no value to have lasted. Bad when it is
        # believed again, it was not good in between and stays bad; not so a value that may last for longer than noise does.
        lasting, r.since_ns, on_ns = delay_on(by_value, r.since_ns, now_ns, r.debounce_ns)
        cause = lasting or (raw and (not by_value or (r.bad and r.debounce_ns <= NOISE_NS)))
        r.bad, r.held_ns, off_ns = delay_off(cause, r.bad, r.held_ns, now_ns, r.hold_ns)
        r.due_ns = min(due_ns, on_ns, off_ns)
        bad = r.bad and not self._bypassed(row)
        was_active, was_tripped, was_withheld = r.active, r.tripped, r.withheld
        r.active, r.withheld = bad and in_phase, bad and row.withholds
        known, told = r.by_value and was_tripped, r.told and was_tripped
        # What was latched as not known is told anew when a value shows its cause, be it outside of the row's phase.
        r.told = told or (lasting and (r.active or (r.withheld and r.latched)))
        if r.active:
            r.by_value = lasting or known
            # Before the key was turned nothing is permitted: inputs that are still missing need not be reset one by one.
            counts = row.latch and (lasting or not self._kind["boot"].latched)
            r.latched = latch(counts, r.latched, reset=False)
            if not was_active:
                r.latched_ns = now_ns
        if (r.active and (not was_tripped or r.by_value != known)) or r.told != told:
            states = tuple(self._state(name) for name in row.inputs)
            first = was_tripped and r.trip is not None and r.trip.first_out  # it stays that, in other words
            trip = self.first_out.trip(now_ns, row, states, self._shown(r, states, lasting))
            r.trip = trip._replace(first_out=trip.first_out or first)
            new.append(r.trip)
            self._decision_due = True
        if (r.active, r.tripped, r.withheld) != (was_active, was_tripped, was_withheld):
            self._decision_due = True

    def _condition(self, r: _Row, now_ns: int) -> tuple[bool, bool, int]:
        """(bad, bad by value, due) of one row; not believed is bad."""
        row, kind = r.row, r.row.kind
        if kind == "bypass":
            bad = bool(self.bypasses) and not self._is("service_mode", 1)
            return bad, bad, NEVER_NS
        if r.joint is not None and (self._number or all([self._valid[name] for name in row.inputs])):
            bad, r.memory, due_ns = r.joint(row.params, [self._values[name] for name in row.inputs], r.memory, now_ns)
            return bad, bad, due_ns
        valid = [self._valid[name] for name in row.inputs]
        if kind in CHANNEL:
            was = r.memory or (False,) * len(valid)
            judge, needed = CHANNEL[kind], row.params.get("vote", 1)
            channels = zip(row.inputs, valid, was, r.wanted, strict=True)
            flags = tuple([judge(row.params, self._values[name], w, good) if ok else w for name, ok, w, good in channels])
            r.memory = flags
            by_value = vote([flag and ok for flag, ok in zip(flags, valid, strict=True)], needed)
            return by_value or vote([flag or not ok for flag, ok in zip(flags, valid, strict=True)], needed), by_value, NEVER_NS
        if not all(valid):
            r.memory = None
            return True, False, NEVER_NS
        withheld = self._decision.motion_code != 0 if row.inputs == ("motion_permit",) else not self._decision.permit
        bad = kind == "feedback" and self._values[row.inputs[0]] == 1 and withheld
        return bad, bad, NEVER_NS  # boot and stall are latched by `step`; stale inputs are dealt with above

    def _shown(self, r: _Row, states: tuple[State, ...], by_value: bool) -> tuple[int, int, int]:
        """Which input of a row shows why it tripped, its value, and what is allowed."""
        if by_value and r.row.inputs:
            return offender(r.row.kind, r.row.params, [value or 0 for _, value, _ in states], r.wanted, r.memory)
        return next(((i + UNBELIEVED, v or 0, 0) for i, (_, v, believed) in enumerate(states) if not believed), NO_INPUT)

    def _latch(self, r: _Row, now_ns: int, new: list[Trip]) -> None:
        """Trip a row for a cause that is an event, not a condition."""
        if not r.tripped:
            r.trip = self.first_out.trip(now_ns, r.row, ())
            new.append(r.trip)
        r.latched, r.by_value, r.told, r.latched_ns = True, True, True, now_ns
        self._decision_due = True

    def _decide(self) -> None:
        self._decision_due = False
        tripped = [r.row for r in self._rows if r.tripped]
        trips = [r.trip for r in self._rows if r.tripped and r.trip is not None]
        first = min(trips, key=lambda trip: (not trip.first_out, trip.seq), default=None)
        withheld = tuple(r.row.id for r in self._rows if r.withheld and not r.tripped)
        if all(row.kind == "boot" for row in tripped):
            self.first_out.all_clear()
        permit = not tripped and not withheld
        motion_code = next((r.row.code for r in self._rows if r.stops_motion), 0)
        if (permit, motion_code) != (self._decision.permit, self._decision.motion_code):
            self._pending.update(r for r in self._rows if r.row.kind == "feedback")  # the relay has to follow
        actions = frozenset(action for row in tripped for action in row.actions)
        self._decision = Decision(permit, tuple(row.id for row in tripped), withheld, actions, first, motion_code)

    @property
    def idle(self) -> bool:
        """Whether it is known that nothing is armed (or nothing was ever seen)."""
        return self._last_ns is None or self._is("armed", 0)

    # --- people -----------------------------------------------------------------------------------------------------

    def resettable(self, role: str, pressed_ns: int) -> Reset:
        """What a reset by `role`, pressed at that time, would clear. Never while beam is requested or present."""
        cleared, refused = [], []
        quiet = self._is("permit_r", 0) and self._is("beam_present", 0)
        for r in [r for r in self._rows if r.latched]:
            needed = r.row.reset_role if r.by_value else self.limits.invalid_reset_role
            if r.active or r.withheld:
                refused.append((r.row.id, "its cause is still there"))
            elif not quiet:
                refused.append((r.row.id, "beam is requested, present or not known to be absent: withdraw the request first"))
            elif role != needed:
                refused.append((r.row.id, f"needs the role {needed}, not {role}"))
            elif pressed_ns <= r.latched_ns:
                refused.append((r.row.id, "the button was pressed before it tripped: press again"))
            else:
                cleared.append(r.row.id)
        return Reset(tuple(cleared), tuple(refused))

    def clear(self, cleared: Iterable[str]) -> None:
        """Clear the latches that `resettable` named; takes effect in the next step."""
        for name in cleared:
            r = self._by_id[name]
            r.latched, r.by_value = latch(r.active, r.latched, reset=True), False
        self._decision_due = True
        self._pending.update(self._rows)

    def latched(self) -> tuple[str, ...]:
        """Ids to be kept over a restart."""
        return tuple(r.row.id for r in self._rows if r.latched)

    def bypass(self, now_ns: int, interlock: str, owner: str, approver: str, reason: str, duration_ms: float) -> Bypass:
        """Set a bypass; BypassRefused says why not, KeyError that there is no such row."""
        row, service = self._by_id[interlock].row, self._is("service_mode", 1)
        duration_ns, longest_ns = round(duration_ms * NS_PER_MS), round(self.limits.bypass_max_h * 3.6e12)
        bypass = self.bypasses[interlock] = grant(row, owner, approver, reason, now_ns, duration_ns, longest_ns, service)
        self._pending.update(self._rows)
        return bypass

    def end_bypass(self, interlock: str) -> None:
        """End a bypass early; always allowed."""
        self.bypasses.pop(interlock, None)
        self._pending.update(self._rows)

    def _bypassed(self, row: Interlock) -> bool:
        return row.id in self.bypasses and "service" in row.bypassable_in and self._is("service_mode", 1)
