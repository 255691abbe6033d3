"""What Prometheus may ask: is the room well, is its program in time, does the archive keep up, how many look at it.

Figures are made when somebody asks, from each room's last view, so that what is gone leaves nothing behind. Labels come from
closed lists or name equipment: rooms, devices, states, severities, commands; never a patient, a plan, a person or a console.
Not responsible for the treatment's own measures (summary and bench).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.console.shown import SEVERITIES, View
from controller.roles import RULES, Mode
from controller.room.states import State
from drivers.hal.clock import NS_PER_S, now_ns

CONTENT_TYPE = CONTENT_TYPE_LATEST
LAG_KEPT_S = 60.0  # the worst lag of the last minute: a scrape a minute misses none
OTHER = "other"  # a command that there is not, whatever somebody called it
_PERMITS = ("permit_a", "permit_b", "permit_r")


class ArchiveFigures(Protocol):
    """What is asked of the archive."""

    @property
    def rows(self) -> int: ...

    @property
    def lost(self) -> int: ...

    @property
    def unreadable(self) -> int: ...


class _Room:
    def __init__(self) -> None:
        self.view: View | None = None
        self.views = 0
        self.events = 0
        self.seen_ns = 0
        self.lags: deque[tuple[int, float]] = deque(maxlen=10_000)  # when, ms


class Metrics(Collector):
    """Of one console process, any number of rooms.

    Args:
        archive: where rows are kept, if they are.
        clients: how many are connected now, by room.
        connected: whether each room's process is, by room.
    """

    def __init__(
        self,
        archive: ArchiveFigures | None = None,
        clients: Callable[[], Mapping[str, int]] = dict,
        connected: Callable[[], Mapping[str, bool]] = dict,
    ) -> None:
        self.archive = archive
        self.clients = clients
        self.connected = connected
        self._rooms: dict[str, _Room] = {}
        self._commands: Counter[tuple[str, str, bool]] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def take(self, view: View) -> None:
        """A room's view, decoded."""
        room = self._rooms.setdefault(str(view["room"]), _Room())
        room.view, room.seen_ns = view, now_ns()
        room.views += 1

    def take_event(self, room_name: str, event: Mapping[str, Any]) -> None:
        """An event of a room, decoded."""
        room = self._rooms.setdefault(room_name, _Room())
        room.events += 1
        if event.get("kind") == "loop.lag":
            lag_ms = (event.get("data") or {}).get("lag_ms")
            if isinstance(lag_ms, int | float):
                room.lags.append((now_ns(), float(lag_ms)))

    def count_command(self, room: str, name: str, accepted: bool) -> None:
        """Somebody commanded something, or tried to."""
        self._commands[room, name if name in RULES else OTHER, accepted] += 1

    def text(self) -> bytes:
        """Everything, in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are not checked against other collectors, there are none."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The figures, now."""
        yield from self._of_rooms()
        yield from self._of_process()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _of_rooms(self) -> Iterator[Metric]:
        rooms = {name: room.view for name, room in self._rooms.items() if room.view is not None}
        states = GaugeMetricFamily("iongantry_room_state", "1 for the state of the room", labels=["room", "state"])
        modes = GaugeMetricFamily("iongantry_room_mode", "1 for the mode of the room", labels=["room", "mode"])
        permits = GaugeMetricFamily("iongantry_permit", "1: this contribution permits beam", labels=["room", "contribution"])
        beam = GaugeMetricFamily("iongantry_beam_enabled", "1: all contributions permit beam", labels=["room"])
        trips = GaugeMetricFamily("iongantry_interlocks_tripped", "interlocks that stand", labels=["room"])
        bypasses = GaugeMetricFamily("iongantry_bypasses", "bypasses, asked for or active", labels=["room"])
        alarms = GaugeMetricFamily(
            "iongantry_alarms", "alarms, acknowledged or not, shelved or not", labels=["room", "severity", "state"]
        )
        devices = GaugeMetricFamily("iongantry_device_connected", "1: the device is connected", labels=["room", "device"])
        simulated = GaugeMetricFamily("iongantry_room_simulated", "1: the room as a whole is simulated", labels=["room"])
        commanded = GaugeMetricFamily("iongantry_room_commanded", "1: a console commands the room", labels=["room"])
        for name, view in rooms.items():
            for state in State:
                states.add_metric([name, state.value], float(view["state"] == state.value))
            for mode in Mode:
                modes.add_metric([name, mode.value], float(view["mode"] == mode.value))
            for permit in _PERMITS:
                permits.add_metric([name, permit[-1]], float(bool(view["delivery"][permit])))
            beam.add_metric([name], float(bool(view["delivery"]["beam_enabled"])))
            trips.add_metric([name], float(view["interlocks"]["active_trips"]))
            bypasses.add_metric([name], float(len(view["interlocks"]["bypasses"])))
            counted = Counter((alarm["severity"], _alarm_state(alarm)) for alarm in view["alarms"])
            for severity in SEVERITIES:
                for alarm_state in ("unacknowledged", "acknowledged", "shelved"):
                    alarms.add_metric([name, severity, alarm_state], counted[severity, alarm_state])
            for device in view["devices"]:
                devices.add_metric([name, str(device["name"])], float(bool(device["connected"])))
            simulated.add_metric([name], float(bool(view["simulated"])))
            commanded.add_metric([name], float(view.get("control") is not None))
        yield from (states, modes, permits, beam, trips, bypasses, alarms, devices, simulated, commanded)

    def _of_process(self) -> Iterator[Metric]:
        at_ns = now_ns()
        age = GaugeMetricFamily("iongantry_view_age_seconds", "since the room was seen last", labels=["room"])
        lag = GaugeMetricFamily(
            "iongantry_room_loop_lag_seconds", f"worst lag that the room told of in the last {LAG_KEPT_S:g} s", labels=["room"]
        )
        views = CounterMetricFamily("iongantry_views", "views that came from the room", labels=["room"])
        events = CounterMetricFamily("iongantry_events", "events that came from the room", labels=["room"])
        for name, room in self._rooms.items():
            if room.view is not None:
                age.add_metric([name], (at_ns - room.seen_ns) / NS_PER_S)
            recent = [lag_ms for told_ns, lag_ms in room.lags if at_ns - told_ns <= LAG_KEPT_S * NS_PER_S]
            lag.add_metric([name], max((ms for ms in recent if math.isfinite(ms)), default=0.0) / 1e3)
            views.add_metric([name], room.views)
            events.add_metric([name], room.events)
        yield from (age, lag, views, events)
        linked = GaugeMetricFamily("iongantry_room_connected", "1: the room's process is there", labels=["room"])
        for name, there in self.connected().items():
            linked.add_metric([name], float(there))
        clients = GaugeMetricFamily("iongantry_clients", "clients that are connected", labels=["room"])
        for name, number in self.clients().items():
            clients.add_metric([name], number)
        commands = CounterMetricFamily(
            "iongantry_commands", "commands, by what became of them", labels=["room", "command", "outcome"]
        )
        for (name, command, accepted), number in self._commands.items():
            commands.add_metric([name, command, "accepted" if accepted else "refused"], number)
        yield from (linked, clients, commands)
        if self.archive is not None:
            yield CounterMetricFamily("iongantry_archive_rows", "rows that were archived", value=self.archive.rows)
            yield CounterMetricFamily("iongantry_archive_lost", "rows that could not be archived", value=self.archive.lost)
            yield CounterMetricFamily(
                "iongantry_archive_unreadable", "archived files that could not be read", value=self.archive.unreadable
            )


def _alarm_state(alarm: Mapping[str, Any]) -> str:
    if alarm.get("shelved_by"):
        return "shelved"
    return "acknowledged" if alarm.get("acknowledged_by") else "unacknowledged"
