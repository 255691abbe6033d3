"""Makes the one value with everything that a room shows, ten times a second, from what is known without asking anybody.

Readings are the devices' last ones; no wire is touched here. Not responsible for passing it on (`controller.console.link`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from controller.commands import CommandDesk
from controller.console.alarm_table import RULES as RULES_OF_ALARMS
from controller.console.alarms import AlarmList
from controller.console.views import (
    AxisView,
    Banner,
    CheckItem,
    ControlView,
    DeliveryView,
    DeviceView,
    GantryView,
    RoleName,
    RoomView,
    SignalView,
)
from controller.roles import RULES, Mode
from controller.room.states import (
    ACCEPTED,
    CEILINGS,
    DEADLINES,
    FRESH,
    IDENTIFIED,
    IMAGED,
    PERMIT_A,
    PERMIT_B,
    PRESET,
    ROUTE,
    SECURED,
    SERVICE,
    SET_UP,
    TESTED,
    TOKEN,
    TUNED,
    RoomFacts,
    State,
)
from controller.serving.devices_book import DevicesBook
from controller.serving.ground import Ground
from controller.serving.interlock_book import InterlockBook
from controller.serving.questions import Questions
from controller.serving.treating import Treating
from drivers.hal.capabilities import COUCH_AXES, Connectable, Hold, UnitState
from drivers.hal.clock import NS_PER_MS, NS_PER_S, now_ns
from drivers.hal.events import Event
from drivers.hal.ions import IONS
from drivers.hal.reading import Reading

LABELS = (
    (IDENTIFIED, "patient, plan, fraction and room confirmed"),
    (SET_UP, "couch, gantry and nozzle in place"),
    (IMAGED, "position verified by image"),
    (ACCEPTED, "position accepted"),
    (SECURED, "room searched and closed"),
    (TOKEN, "beam allocated to this room"),
    (ROUTE, "beam path open to this room"),
    (TUNED, "accelerator and magnets tuned"),
    (TESTED, "dose channels tested"),
    (CEILINGS, "second dose unit loaded"),
    (PRESET, "angle and species preset in the safety system"),
    (PERMIT_A, "hard-wired chain permits"),
    (PERMIT_B, "interlock system permits"),
    (FRESH, "every supervised status fresh"),
)
SPECIES = {ion.token: ion.symbol for ion in IONS.values()}
MOVING_DEG_S = 0.01  # above the noise of a standing encoder; assumed
ARRAY_MAX = 64  # elements of a value that are shown
STATE_DEADLINE_NS = {deadline.state: deadline.after_ns for deadline in DEADLINES}


class RoomViewer:
    """One per room. All arguments are what it looks at."""

    def __init__(
        self,
        ground: Ground,
        desk: CommandDesk,
        mode: Callable[[], Mode],
        facts: Callable[[], RoomFacts],
        questions: Questions,
        treating: Treating,
        interlocks: InterlockBook,
        alarms: AlarmList,
        devices: DevicesBook,
    ) -> None:
        self._ground = ground
        self._desk = desk
        self._mode = mode
        self._facts = facts
        self._questions = questions
        self._treating = treating
        self._interlocks = interlocks
        self._alarms = alarms
        self._devices = devices
        self._seq = 0
        self._why = ""
        self._cut_off: dict[str, str] = {}  # by treatment: what has to be done before the room is as if nothing had happened
        self._since_ns = now_ns()
        self._target_deg: float | None = None
        self._couch_targets: dict[str, float] = {}
        self._possible: dict[tuple[State, Mode], dict[str, list[RoleName]]] = {}

    def take(self, event: Event) -> None:
        """Fold one event in: why the room is in its state, and where its axes are going."""
        data = event.data
        if event.kind == "room.state":
            tripped = self._why if data.get("event") == "trip" else ""  # told just before, with its cause
            self._why, self._since_ns = str(data.get("why") or "") or tripped, event.t_ns
        elif event.kind == "treatment.cut_off":
            self._cut_off[str(data.get("id"))] = RULES_OF_ALARMS[event.kind].words(event)
        elif event.kind == "treatment.settled":
            self._cut_off.pop(str(data.get("id")), None)
        elif event.kind == "trip":
            self._why = str(data.get("message") or data.get("cause") or "")
        elif event.kind == "motion.start" and "to_deg" in data:
            self._target_deg = float(data["to_deg"])
        elif event.kind == "motion.start":
            self._couch_targets |= {k.removeprefix("to_"): float(v) for k, v in data.items() if k.startswith("to_")}
        elif event.kind == "jog.ended":
            self._target_deg, self._couch_targets = None, {}  # it ended where the button was let go of

    def _unsettled(self, state: State) -> str:
        return next(iter(self._cut_off.values()), "") if state is State.STANDBY else ""

    def _standing_by(self, state: State) -> str:
        """A room in standby has nothing selected, or somebody has to confirm what is, or a fraction has ended here."""
        return self._treating.standing_by(asked=self._questions.view() is not None) if state is State.STANDBY else ""

    def view(self) -> RoomView:
        """Everything, now."""
        self._seq += 1
        ground, state, mode, at_ns = self._ground, self._ground.machine.state, self._mode(), now_ns()
        readings = {device.name: list(device.readings()) for device in ground.devices.all()}
        control = self._desk.control
        treatment = self._treating.loaded
        return RoomView(
            facility=ground.facility.name,
            room=ground.room,
            boot_id=ground.boot_id,
            seq=self._seq,
            t_ns=at_ns,
            utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
            speed=ground.speed,
            simulated=ground.simulated,
            real=list(ground.real),
            banners=self._banners(state),
            mode=mode.value,
            state=state.value,
            why=self._questions.doing
            or self._waiting(state)
            or self._unsettled(state)
            or self._standing_by(state)
            or self._why,
            deadline_s=self._deadline_s(state, at_ns),
            control=ControlView(
                console=control.console,
                actor=control.actor.name,
                role=control.actor.role.value,
                heard_ms=round(self._desk.heard_ns / NS_PER_MS, 1),
            )
            if control is not None
            else None,
            question=self._questions.view(),
            treatment=treatment.view() if treatment is not None else None,
            checklist=self._checklist(),
            gantry=self._gantry(readings[ground.devices.gantry.name]),
            couch=self._couch(readings[ground.devices.couch.name]),
            nozzle={_signal(r): _words(r.value) for r in readings[ground.devices.snout.name]},
            delivery=self._delivery(state),
            interlocks=self._interlocks.view(ground.machine.causes),
            devices=[self._device(device, readings[device.name], at_ns) for device in ground.devices.all()],
            alarms=self._alarms.view(at_ns),
            commands=self._commands(state, mode),
        )

    def _banners(self, state: State) -> list[Banner]:
        found: list[Banner] = ["SIMULATED"] if self._ground.simulated else []
        if state in SERVICE or self._ground.devices.access.status.service_mode:
            found.append("SERVICE")
        if any(bypass.approver for bypass in self._interlocks.shown_bypasses()):
            found.append("BYPASS")
        if self._ground.facility.purpose == "research":
            found.append("RESEARCH")
        if self._ground.limits_unsigned:
            found.append("LIMITS UNSIGNED")
        return found

    def _waiting(self, state: State) -> str:
        """What a room that would arm waits for, where somebody has to do something about it."""
        access = self._ground.devices.access.status
        if state not in (State.TUNING, State.INTERRUPTED) or access.permit_b:
            return ""
        if silent := self._interlocks.silent():
            return f"waits for the interlock system: {silent}"
        stands = [
            f"{trip.id} (reset by: {trip.reset_role or 'nobody, it goes by itself'})" for trip in self._interlocks.standing()
        ]
        return f"waits for the interlock system: {', '.join(stands)}" if stands else ""

    def _deadline_s(self, state: State, at_ns: int) -> float | None:
        after_ns = STATE_DEADLINE_NS.get(state)
        return None if after_ns is None else round(max(0.0, (self._since_ns + after_ns - at_ns) / NS_PER_S), 1)

    def _checklist(self) -> list[CheckItem]:
        facts, silent = self._facts(), self._interlocks.silent()
        found = []
        for guard, label in LABELS:
            reason = guard.reason(facts)
            if guard is PERMIT_B and silent:
                reason = silent
            found.append(CheckItem(name=guard.name, label=label, done=reason is None, detail=reason or ""))
        return found

    def _gantry(self, readings: Sequence[Reading[object]]) -> GantryView:
        belief = self._ground.belief
        if belief.gantry is None:
            ports = belief.ports_deg
            return GantryView(angle_deg=None, lower_deg=min(ports), upper_deg=max(ports), fixed_deg=ports[0])
        known = {_signal(r): r for r in readings}
        angle, speed, enabled = known.get("angle"), known.get("speed"), known.get("enabled")
        speed_deg_s = float(speed.value) if speed is not None and isinstance(speed.value, int | float) else None
        session = self._treating.session if self._treating.under_way else None
        planned = session.proofs.targets.gantry_deg if session is not None and session.proofs.targets is not None else None
        return GantryView(
            angle_deg=round(float(angle.value), 3) if angle is not None and isinstance(angle.value, int | float) else None,
            target_deg=planned if planned is not None else self._target_deg,
            lower_deg=belief.gantry.angle_deg.minimum,
            upper_deg=belief.gantry.angle_deg.maximum,
            speed_deg_s=speed_deg_s,
            moving=speed_deg_s is not None and abs(speed_deg_s) > MOVING_DEG_S,
            enabled=bool(enabled.value) if enabled is not None and enabled.good else None,
            quality=angle.quality.value if angle is not None else "disconnected",
        )

    def _couch(self, readings: Sequence[Reading[object]]) -> list[AxisView]:
        known = {_signal(r): r for r in readings}
        found = []
        for axis in COUCH_AXES:
            reading, limits = known.get(axis), getattr(self._ground.belief.couch, axis)
            value = reading.value if reading is not None and isinstance(reading.value, int | float) else None
            found.append(
                AxisView(
                    name=axis,
                    unit=axis.rsplit("_", maxsplit=1)[1],
                    value=round(float(value), 3) if value is not None else None,
                    target=self._couch_targets.get(axis),
                    lower=limits.minimum,
                    upper=limits.maximum,
                    quality=reading.quality.value if reading is not None else "disconnected",
                )
            )
        return found

    def _delivery(self, state: State) -> DeliveryView:
        devices = self._ground.devices
        access, unit, source = devices.access.status, devices.unit.status, devices.accelerator.status
        loaded = self._treating.loaded
        session = self._treating.session if self._treating.under_way else None
        tuned = session.proofs.tuned if session is not None else None
        picture = loaded.picture if loaded is not None else None
        breathing = self._devices.breathing()
        return DeliveryView(
            permit_a=access.permit_a,
            permit_b=access.permit_b,
            permit_r=access.permit_r,
            beam_enabled=access.beam_enabled,
            beam_present=access.beam_present,
            species=SPECIES.get(source.species_token, ""),
            energy_mev_u=source.energy_kev_u / 1000.0 if source.energy_kev_u else None,
            layer=picture.layer if picture is not None else None,
            painting=picture.painting if picture is not None else None,
            spill=source.spill,
            held_why=self._why if state is State.HELD else "",
            counts1=max(0, unit.counts1_total - loaded.counts_base[0]) if loaded is not None else None,
            counts2=max(0, unit.counts2_total - loaded.counts_base[1]) if loaded is not None else None,
            counts2_max=tuned.field_counts2_max if tuned is not None else None,
            gate_open=not unit.hold & Hold.GATE if unit.state in (UnitState.DELIVERING, UnitState.HELD) else None,
            breathing=breathing[0],
            breathing_unit=breathing[1],
        )

    def _device(self, device: Connectable, readings: Sequence[Reading[object]], at_ns: int) -> DeviceView:
        config = self._ground.facility.devices.get(device.name)
        connected, error = self._devices.state_of(device.name)
        return DeviceView(
            name=device.name,
            driver=config.driver if config is not None else "fixed port",
            endpoint=config.endpoint if config is not None else "",
            simulated=config is None or config.simulated,
            identity=config.identity if config is not None else "",
            connected=connected,
            error=error,
            signals=[
                SignalView(
                    name=_signal(reading),
                    value=_plain(reading.value),
                    unit=reading.unit,
                    quality=reading.quality.value,
                    age_ms=round(reading.age_ns(at_ns) / NS_PER_MS, 1) if reading.t_ns else None,
                    simulated=reading.simulated,
                )
                for reading in readings
            ],
        )

    def _commands(self, state: State, mode: Mode) -> dict[str, list[RoleName]]:
        known = self._possible.get((state, mode))
        if known is None:
            known = self._possible[state, mode] = {
                name: sorted(role.value for role in rule.roles.get(mode, ()))
                for name, rule in RULES.items()
                if state in rule.states and rule.roles.get(mode)
            }
        return known


def _signal(reading: Reading[Any]) -> str:
    return reading.name.rpartition(".")[2]


def _plain(value: object) -> Any:
    """A value as JSON has it; arrays by their first elements, numbers that are none as nothing."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return [float(item) if np.isfinite(item) else 0.0 for item in value.ravel()[:ARRAY_MAX]]
    if isinstance(value, Mapping):
        return str(dict(value))
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value[:ARRAY_MAX])
    return str(getattr(value, "name", value))


def _words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)
