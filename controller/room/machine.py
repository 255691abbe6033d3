"""The room machine: `transitions` carries the table of `states`, and every event enters by one door, `Room.fire`.

What the door guarantees, whatever a guard, a callback or a listener does:

* a trip first drops the request line and stores its cause, two assignments, even from inside another event;
* before `fire` returns, a stored cause has led to its state; an exception is a cause; no state is half entered;
* an event that is not in the table, or whose guards refuse, leaves the state as it was and the reasons in `refusal`;
* after an edit the room is disarmed before the next event is looked at.

Not responsible for time (the session owns the deadlines), for devices, or for what a state does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from controller.room.causes import Cause, Severity, cause_of
from controller.room.states import (
    IRRADIATING,
    PREPARATORY,
    TABLE,
    TRIPS,
    Guard,
    RoomFacts,
    State,
    Transition,
    Trigger,
)
from drivers.hal.errors import CommandRejected
from drivers.hal.events import EventBus

CAUSES_KEPT = 64  # history of one cycle; the event file has all of them
ROUNDS_MAX = 4  # a listener that trips on every trip ends here; each round can only make the state more severe


class RequestLine(Protocol):
    """Contribution R of this room; `drivers.hal.capabilities.RoomAccess` is one."""

    def request_beam(self, on: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class StateChange:
    """What a listener is told, after the new state is entered."""

    source: State
    dest: State
    trigger: Trigger
    cause: Cause | None


Listener = Callable[[StateChange], None]
_BY_SOURCE: dict[tuple[str, str], Transition] = {(source, row.trigger): row for row in TABLE for source in row.sources}

_STATES = {state.value: state for state in State}


class _Model:
    """What `transitions` moves; nobody else may call the triggers it hangs on it."""

    state: str


def _build_machine(model: _Model, condition: Callable[[Guard, Any], bool], enter: Any, leave: Any) -> Any:
    """The hierarchical machine of `TABLE`.

    Measured on transitions 0.9.3: with its default separator `beam_on` would be read as a child of `beam`; with '.' the naming
    hooks (`on_enter_...`) are silently never called, so callbacks are given explicitly; `auto_transitions` would add triggers
    past every guard. Imported here because command lines that only check a plan need no machine.
    """
    from transitions.extensions.nesting import HierarchicalMachine, NestedState

    class DottedState(NestedState):
        separator = "."

    class DottedMachine(HierarchicalMachine):
        state_cls = DottedState

    children: dict[str, list[str]] = {}
    for state in State:
        children.setdefault(state.family, [])
        if "." in state.value:
            children[state.family].append(state.value.split(".")[1])
    states: list[dict[str, Any]] = []
    for name, below in children.items():
        entry: dict[str, Any] = {"name": name, "children": below} if below else {"name": name}
        if name == State.BEAM_ON.family:
            entry |= {"on_enter": [enter], "on_exit": [leave]}
        states.append(entry)
    rows = [
        {
            "trigger": row.trigger.value,
            "source": source.value,
            "dest": row.dest.value,
            "conditions": [partial(condition, guard) for guard in row.guards],
        }
        for row in TABLE
        for source in row.sources
    ]
    return DottedMachine(
        model=model,
        states=states,
        transitions=rows,
        initial=State.STANDBY.value,
        auto_transitions=False,
        send_event=True,
        queued=False,
    )


class Room:
    """The state of one treatment room.

    Args:
        name: the room, for example ``"G1"``.
        line: its request contribution.
        bus: events `room.state`, `room.refused`, `trip` go here; None keeps silent (graph searches).
        facts: makes the snapshot that guards judge; `attach` replaces it. By default nothing is known and nothing is allowed.
    """

    def __init__(
        self, name: str, line: RequestLine, bus: EventBus | None = None, facts: Callable[[], RoomFacts] = RoomFacts
    ) -> None:
        self.name = name
        self.refusal: CommandRejected | None = None
        self._line = line
        self._bus = bus
        self._source = facts
        self._listeners: list[Listener] = []
        self._inside = False
        self._pending: list[Cause] = []
        self._causes: list[Cause] = []
        self._facts = RoomFacts()
        self._reasons: list[str] = []
        self._armed_ns: int | None = None
        self._model = _Model()
        self._machine = _build_machine(self._model, self._condition, self._raise_line, self._leave_beam)

    @property
    def state(self) -> State:
        """Where the room is. Always a state of the table, never between two."""
        return _STATES[self._model.state]

    @property
    def cause(self) -> Cause | None:
        """The first cause of the state the room is in, or None when nothing tripped it."""
        return self._causes[0] if self._causes else None

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Every cause since the last one that was cleared, in order of arrival."""
        return tuple(self._causes)

    def attach(self, facts: Callable[[], RoomFacts]) -> None:
        """Let `facts` answer for the room from now on."""
        self._source = facts

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of every change, after it; returns the function that removes it. A listener never fires."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def trip(self, cause: Cause) -> None:
        """Drop the request line, store the cause, and be in its state before returning (or before the outer `fire` does)."""
        self.fire(Trigger.TRIP, cause=cause)

    def fire(self, event: Trigger | str, /, **data: Any) -> bool:
        """The one door.

        Args:
            event: a trigger; an unknown one is refused like any that is not in the table for this state.
            data: details for the event file; `TRIP` takes ``cause``.

        Returns:
            True when the transition took place and nothing tripped the room meanwhile; for a trip always True. After False,
            `refusal` says why.
        """
        tripped = event == Trigger.TRIP
        if tripped:
            self._store(_checked(data.get("cause"), self._facts.t_ns))
        if self._inside:
            if not tripped:
                message = f"event {event!s} fired from inside another event"
                self._store(Cause("program.nested_event", Severity.FAULT, message, t_ns=self._facts.t_ns))
            return tripped
        self._inside = True
        before, moved, settled = self.state, False, False
        self.refusal = None
        changes: list[StateChange] = []
        try:
            if not tripped:
                moved = self._attempt(event, changes)
        except BaseException as error:
            # Cancellation and interrupts pass on, but only after the room is in a safe state.
            self._store(cause_of(error, f"event {event!s} in {before}", self._facts.t_ns))
            if not isinstance(error, Exception):
                raise
        finally:
            try:
                settled = self._settle(before, changes)
                settled = self._tell(changes, data) or settled
            finally:
                self._inside = False
        if settled and not tripped:
            self.refusal = CommandRejected(
                f"event {event!s} was overtaken by a trip: {self.cause}", code=4105, device=self.name, hint="see the cause"
            )
        if self.refusal is not None:
            self._emit("room.refused", {"event": str(event), "state": self.state.value, "reason": str(self.refusal)})
        return tripped or (moved and not settled)

    # --- inside the door ---------------------------------------------------------------------------------------------

    def _attempt(self, event: Trigger | str, changes: list[StateChange]) -> bool:
        self._facts = facts = self._snapshot()
        state = self.state
        if facts.edit_version != facts.proven_version and state is not State.STANDBY:
            self._disarm_after_edit(facts, state, changes)
            if self._pending:
                return False
            state = self.state
        if event == Trigger.EDITED and changes:
            return True  # the edit itself was this event
        row = _BY_SOURCE.get((state, event))
        if row is None:
            self._refuse(str(event), state, ["there is no such event in this state"])
            return False
        self._reasons = []
        self._move(row.trigger, changes)
        if self._reasons:
            self._refuse(str(event), state, self._reasons)
            return False
        return self.state is row.dest

    def _disarm_after_edit(self, facts: RoomFacts, state: State, changes: list[StateChange]) -> None:
        if state in IRRADIATING or state is State.INTERRUPTED:
            self._store(
                Cause(
                    "edit.in_beam",
                    Severity.TERMINATE,
                    "plan, beam or set-up was edited while irradiating",
                    value=f"version {facts.edit_version}",
                    limit=f"version {facts.proven_version}",
                    hint="close this field, then start again with the edited values",
                    t_ns=facts.t_ns,
                )
            )
        elif state in (*PREPARATORY[1:], State.ARMED):
            self._move(Trigger.EDITED, changes)
            self._facts = self._snapshot()

    def _move(self, trigger: Trigger, changes: list[StateChange]) -> None:
        source = self.state
        self._machine.trigger_event(self._model, trigger.value)
        dest = self.state
        if dest is source:
            return
        if dest is State.ARMED:
            self._armed_ns = self._facts.t_ns
        elif dest.family in (State.IDENTIFIED.family, State.STANDBY.family, State.COMPLETE.family):
            self._armed_ns = None
        if dest is State.STANDBY or trigger is Trigger.RESUME:
            self._causes.clear()
        changes.append(StateChange(source, dest, trigger, None))

    def _store(self, cause: Cause) -> None:
        """A trip: the request line is dropped, the cause is stored. Order of arrival is kept, the first one names the trip."""
        stuck = self._drop_line()
        self._pending.append(cause)
        if stuck is not None:
            self._pending.append(stuck)

    def _settle(self, source: State, changes: list[StateChange]) -> bool:
        """Enter the state that the stored causes ask for. Nothing of `transitions` runs here that could stand in the way."""
        if not self._pending:
            return False
        pending, self._pending = self._pending, []
        stuck = self._drop_line()
        if stuck is not None and all(cause.name != stuck.name for cause in pending):
            pending.append(stuck)
        dest = TRIPS[(source, max(cause.severity for cause in pending))]
        self._model.state = dest.value
        self._armed_ns = None
        self._causes = self._causes + pending if dest is source else pending + self._causes
        del self._causes[CAUSES_KEPT:]
        changes[:] = [StateChange(source, dest, Trigger.TRIP, pending[0])]
        return True

    def _tell(self, changes: list[StateChange], data: dict[str, Any]) -> bool:
        """Tell bus and listeners. One that raises or trips is a cause like any other; True when that changed what was told."""
        settled = False
        for _ in range(ROUNDS_MAX):
            for change in changes:
                self._announce(change, data)
            changes = []
            if not self._settle(self.state, changes):
                return settled
            settled = True
        return settled

    def _announce(self, change: StateChange, data: dict[str, Any]) -> None:
        if change.cause is not None:
            self._emit("trip", {"source": change.source.value, "state": change.dest.value, **change.cause.as_data()})
        if change.dest is not change.source:
            details = {key: value for key, value in data.items() if isinstance(value, str | int | float | bool)}
            details |= {"state": change.dest.value, "source": change.source.value, "event": change.trigger.value}
            self._emit("room.state", details)
        for listener in tuple(self._listeners):
            try:
                listener(change)
            except Exception as error:  # noqa: BLE001 - becomes a cause; the other listeners are still told
                self._store(cause_of(error, f"a listener of {change.trigger}", self._facts.t_ns))

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        if self._bus is not None:
            self._bus.emit(f"room.{self.name}", kind, **data)

    def _snapshot(self) -> RoomFacts:
        facts = self._source()
        armed_for = facts.t_ns - self._armed_ns if self._armed_ns is not None else -1
        return replace(facts, armed_for_ns=armed_for)

    def _refuse(self, event: str, state: State, reasons: list[str]) -> None:
        self.refusal = CommandRejected(
            f"event {event} refused in {state}: {'; '.join(reasons)}", code=4101, device=self.name, hint="nothing has changed"
        )

    def _condition(self, guard: Guard, _event: Any) -> bool:
        """One guard, inside `transitions`. A cause that arrived meanwhile refuses everything."""
        reason = guard.reason(self._facts)
        if reason is not None:
            self._reasons.append(reason)
            return False
        return not self._pending

    def _raise_line(self, _event: Any) -> None:
        if not self._pending:
            self._line.request_beam(True)

    def _leave_beam(self, _event: Any) -> None:
        """Runs before `transitions` writes the new state: beam off goes to the line before any state changes."""
        self._line.request_beam(False)

    def _drop_line(self) -> Cause | None:
        """Request off. A line that cannot be dropped must not keep the room from tripping: it is a cause of its own."""
        try:
            self._line.request_beam(False)
        except Exception as error:  # noqa: BLE001 - becomes a cause
            message = f"the request line could not be dropped: {error}; its relay falls after 100 ms without a pulse"
            return Cause("request.stuck", Severity.FAULT, message, device=self.name, t_ns=self._facts.t_ns)
        return None


def _checked(cause: object, t_ns: int) -> Cause:
    if isinstance(cause, Cause):
        return cause
    return Cause("program.no_cause", Severity.FAULT, f"a trip without a cause ({cause!r})", t_ns=t_ns)
