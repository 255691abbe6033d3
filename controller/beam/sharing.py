"""Who may have the beam: one token for the whole facility, held by at most one room.

The decisions are `Allocation`, a frozen value with pure transitions; `BeamSupervisor` is the thin asynchronous shell with
deadlines and events. The rules follow the room allocation of clinical proton facilities (IBA operator manual, recalled): a room
releases before another gets the beam; requests wait in order of priority, then of time; a high request asks a normal holder to
release; a holder may keep the beam for the patient's next field; in manual mode the main control room allocates.

Not responsible for the beam path (the switchyard's route), for permits, or for proving that the beam is off: a token is a
necessary condition among others, and `force_release` has to be told that the beam was seen to be off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from drivers.hal.clock import NS_PER_S, now_ns
from drivers.hal.errors import CommandRejected
from drivers.hal.events import EventBus


class Priority(IntEnum):
    """How urgent a request is."""

    NORMAL = 0
    HIGH = 1


class Holding(Enum):
    """What the holder does with the token."""

    IN_USE = "in use"
    KEPT = "kept"  # between two fields; lapses at `kept_until_ns` when somebody waits


@dataclass(frozen=True, slots=True)
class Request:
    """A room that waits. `t_ns` is when it asked; `chosen` when the main control room put it first."""

    room: str
    priority: Priority
    t_ns: int
    chosen: bool = False

    @property
    def order(self) -> tuple[bool, int, int, str]:
        """Sort key: chosen, priority, then time, then name (so that equal times have one order)."""
        return (not self.chosen, -int(self.priority), self.t_ns, self.room)


@dataclass(frozen=True, slots=True)
class Lease:
    """The beam, given to a room. `token` grows by one with every lease and is never used twice."""

    room: str
    token: int
    priority: Priority
    granted_ns: int
    holding: Holding = Holding.IN_USE
    kept_until_ns: int = 0
    release_asked: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that changed, for the event bus: kind is `granted`, `released`, `lapsed`, `release.asked`, ..."""

    kind: str
    room: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Allocation:
    """The state of the beam token, and every decision about it. Immutable: a transition returns (state, decisions).

    A transition that is refused raises CommandRejected and changes nothing.
    """

    rooms: tuple[str, ...]
    lease: Lease | None = None
    queue: tuple[Request, ...] = ()
    last_token: int = 0
    manual: bool = False

    def request(self, room: str, priority: Priority, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """A room asks. Asking again raises its priority but keeps its place in time."""
        self._known(room)
        if self.lease is not None and self.lease.room == room:
            raise CommandRejected(f"room {room} holds the beam already", code=4201, device="beam", hint="release or resume it")
        waiting = {r.room: r for r in self.queue}
        before = waiting.get(room)
        waiting[room] = replace(before, priority=max(priority, before.priority)) if before else Request(room, priority, t_ns)
        state = replace(self, queue=tuple(sorted(waiting.values(), key=lambda r: r.order)))
        state, decisions = state.settle(t_ns)
        return state, [Decision("requested", room, waiting[room].priority.name.lower()), *decisions]

    def withdraw(self, room: str, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """A waiting room gives up; nothing happens when it does not wait."""
        if all(r.room != room for r in self.queue):
            return self, []
        state, decisions = replace(self, queue=tuple(r for r in self.queue if r.room != room)).settle(t_ns)
        return state, [Decision("withdrawn", room), *decisions]

    def release(self, token: int, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """The holder gives the beam back."""
        lease = self._held(token)
        state, decisions = replace(self, lease=None).settle(t_ns)
        return state, [Decision("released", lease.room), *decisions]

    def keep(self, token: int, until_ns: int, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """Between two fields of one patient: hold the token without using it, until `until_ns` if others wait."""
        lease = replace(self._held(token), holding=Holding.KEPT, kept_until_ns=until_ns)
        state, decisions = replace(self, lease=lease).settle(t_ns)
        return state, [Decision("kept", lease.room), *decisions]

    def resume(self, token: int, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """Use a kept token again. Refused when it has lapsed."""
        del t_ns
        lease = replace(self._held(token), holding=Holding.IN_USE, kept_until_ns=0)
        return replace(self, lease=lease), [Decision("resumed", lease.room)]

    def set_manual(self, manual: bool, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """In manual mode only `allocate` grants; back in automatic mode the queue moves again."""
        state, decisions = replace(self, manual=manual).settle(t_ns)
        return state, [Decision("manual" if manual else "automatic", ""), *decisions]

    def allocate(self, room: str, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """The main control room overrules the order: `room` is next. A holder is asked to release, never dispossessed."""
        self._known(room)
        if self.lease is not None and self.lease.room == room:
            return self, []
        rest = tuple(replace(r, chosen=False) for r in self.queue if r.room != room)
        asked = next((r for r in self.queue if r.room == room), None)
        if asked is None:
            raise CommandRejected(f"room {room} has not asked for the beam", code=4202, device="beam", hint="request it there")
        state = replace(self, queue=(replace(asked, chosen=True), *sorted(rest, key=lambda r: r.order)))
        if state.lease is None:
            return state._grant_first(t_ns)
        state, decisions = state._ask_release(f"the main control room gave the beam to {room}")
        return state, [Decision("allocated", room), *decisions]

    def force_release(self, reason: str, beam_is_off: bool, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """Take the token from a holder that no longer answers, once the beam was seen to be off."""
        if self.lease is None:
            return self, []
        if not beam_is_off:
            raise CommandRejected(
                f"the beam is not known to be off in {self.lease.room}", code=4203, device="beam", hint="close the route first"
            )
        lost = self.lease.room
        state, decisions = replace(self, lease=None).settle(t_ns)
        return state, [Decision("forced", lost, reason), *decisions]

    def settle(self, t_ns: int) -> tuple[Allocation, list[Decision]]:
        """What follows by itself: a lapsed keep, a request to release, the next grant."""
        if self.lease is not None and self.queue:
            lease = self.lease
            if lease.holding is Holding.KEPT and lease.kept_until_ns <= t_ns:
                state, decisions = replace(self, lease=None).settle(t_ns)
                return state, [Decision("lapsed", lease.room), *decisions]
            first = self.queue[0]
            if first.priority > lease.priority:
                return self._ask_release(f"{first.room} asks with {first.priority.name.lower()} priority")
            return self, []
        if self.lease is None and self.queue and (self.queue[0].chosen or not self.manual):
            return self._grant_first(t_ns)
        return self, []

    def next_ns(self) -> int | None:
        """When `settle` has something to do without being called, or None."""
        if self.lease is not None and self.lease.holding is Holding.KEPT and self.queue:
            return self.lease.kept_until_ns
        return None

    def _grant_first(self, t_ns: int) -> tuple[Allocation, list[Decision]]:
        first, rest = self.queue[0], self.queue[1:]
        lease = Lease(first.room, self.last_token + 1, first.priority, t_ns)
        return replace(self, lease=lease, queue=rest, last_token=lease.token), [
            Decision("granted", first.room, str(lease.token))
        ]

    def _ask_release(self, why: str) -> tuple[Allocation, list[Decision]]:
        if self.lease is None or self.lease.release_asked:
            return self, []
        return replace(self, lease=replace(self.lease, release_asked=True)), [Decision("release.asked", self.lease.room, why)]

    def _held(self, token: int) -> Lease:
        if self.lease is None or self.lease.token != token:
            holder = f"room {self.lease.room} holds it" if self.lease else "nobody holds it"
            raise CommandRejected(
                f"beam token {token} is not valid: {holder}", code=4204, device="beam", hint="request it again"
            )
        return self.lease

    def _known(self, room: str) -> None:
        if room not in self.rooms:
            raise CommandRejected(f"no room {room!r} shares this beam", code=4205, device="beam", hint=", ".join(self.rooms))


class BeamSupervisor:
    """Runs an `Allocation`: grants wake the rooms that wait, keeps lapse by a timer, every decision is an event.

    Args:
        rooms: rooms that share the beam.
        bus: decisions are emitted from source ``beam`` with kind ``beam.<decision>``.
    """

    def __init__(self, rooms: Iterable[str], bus: EventBus) -> None:
        self._state = Allocation(tuple(rooms))
        self._bus = bus
        self._waiting: dict[str, asyncio.Future[Lease]] = {}
        self._release_listeners: dict[int, Callable[[str], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> Allocation:
        """The allocation as it stands."""
        return self._state

    def holds(self, lease: Lease) -> bool:
        """Whether this lease is the one in force and in use."""
        current = self._state.lease
        return current is not None and current.token == lease.token and current.holding is Holding.IN_USE

    async def request(
        self,
        room: str,
        priority: Priority = Priority.NORMAL,
        *,
        timeout_s: float = 600.0,
        on_release_asked: Callable[[str], None] | None = None,
    ) -> Lease:
        """Wait for the beam.

        Args:
            room: who asks.
            priority: high requests go first and ask a normal holder to release.
            timeout_s: how long to wait; the request is withdrawn after that, or when the wait is cancelled.
            on_release_asked: called with the reason when, later, this room is asked to give the beam back.

        Raises:
            CommandRejected: unknown room, the room holds the beam or waits already, or the wait ran out (4206).
        """
        if room in self._waiting:
            raise CommandRejected(f"room {room} waits for the beam already", code=4207, device="beam", hint="one wait per room")
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[room] = future
        lease: Lease | None = None
        try:
            self._apply(self._state.request(room, priority, now_ns()))
            async with asyncio.timeout(timeout_s):
                lease = await future
        except TimeoutError:
            holder = self._state.lease.room if self._state.lease else "nobody (manual mode)"
            raise CommandRejected(
                f"room {room} did not get the beam within {timeout_s:g} s: {holder} holds it",
                code=4206,
                device="beam",
                hint="ask the other room to release, or ask the main control room",
                retryable=True,
            ) from None
        finally:
            self._waiting.pop(room, None)
            if lease is None:
                self._give_up(room, future)
        if on_release_asked is not None:
            self._release_listeners[lease.token] = on_release_asked
            current = self._state.lease
            if current is not None and current.token == lease.token and current.release_asked:
                on_release_asked("asked while the beam was being handed over")
        return lease

    def release(self, lease: Lease) -> None:
        """Give the beam back. Raises CommandRejected (4204) for a lease that is no longer in force."""
        self._apply(self._state.release(lease.token, now_ns()))

    def keep(self, lease: Lease, duration_s: float = 120.0) -> None:
        """Hold the beam for the patient's next field, for at most `duration_s` while others wait."""
        now = now_ns()
        self._apply(self._state.keep(lease.token, now + round(duration_s * NS_PER_S), now))

    def resume(self, lease: Lease) -> None:
        """Use a kept beam again. Raises CommandRejected (4204) when it has lapsed."""
        self._apply(self._state.resume(lease.token, now_ns()))

    def set_manual(self, manual: bool) -> None:
        """Switch between manual and automatic allocation."""
        self._apply(self._state.set_manual(manual, now_ns()))

    def allocate(self, room: str) -> None:
        """Manual override: give the beam to a waiting room next."""
        self._apply(self._state.allocate(room, now_ns()))

    def force_release(self, reason: str, *, beam_is_off: bool) -> None:
        """Free the beam of a holder that no longer answers."""
        self._apply(self._state.force_release(reason, beam_is_off, now_ns()))

    def _give_up(self, room: str, future: asyncio.Future[Lease]) -> None:
        """The waiter is gone: leave the queue, or give back what arrived in the same instant."""
        current = self._state.lease
        if current is not None and future.done() and not future.cancelled() and future.result().token == current.token:
            self._apply(self._state.release(current.token, now_ns()))
        else:
            self._apply(self._state.withdraw(room, now_ns()))

    def _apply(self, outcome: tuple[Allocation, list[Decision]]) -> None:
        self._state, decisions = outcome
        for decision in decisions:
            self._bus.emit("beam", f"beam.{decision.kind}", room=decision.room, detail=decision.detail)
            if decision.kind == "release.asked" and self._state.lease is not None:
                listener = self._release_listeners.get(self._state.lease.token)
                if listener is not None:
                    listener(decision.detail)
        lease = self._state.lease
        self._release_listeners = {t: f for t, f in self._release_listeners.items() if lease is not None and t == lease.token}
        if lease is not None:
            future = self._waiting.get(lease.room)
            if future is not None and not future.done():
                future.set_result(lease)
        self._arm_timer()

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._state.next_ns()
        if due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, (due - now_ns()) / NS_PER_S), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self._state.settle(now_ns()))
