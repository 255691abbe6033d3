"""A room without a plant, for consoles: the real command desk on the real line, with values that are made up and change.

By hand: ``python tests/console/standin_room.py --port 8080 --state DIR`` (the room and a console process; passwords are in
DIR/first-passwords.txt). It walks through a whole treatment: load_plan, identify, accept_position, beam_on, pause, resume; a
stop ends the field with a trip that `acknowledge` clears.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.commands import Answer, Command, CommandDesk
from controller.console.link import LinkServer
from controller.console.views import (
    AlarmView,
    AxisView,
    BeamProgress,
    CheckItem,
    ControlView,
    DeliveryView,
    DeviceView,
    EventView,
    GantryView,
    InterlocksView,
    PlanView,
    QuestionView,
    RoomView,
    SignalView,
    SpotsView,
    TreatmentSummary,
    TreatmentView,
    TripView,
)
from controller.roles import RULES, Mode, judge
from controller.room.states import State
from drivers.hal.clock import now_ns
from drivers.hal.errors import CommandRejected

LAYERS, SPOTS = 12, 60
LAYER_S = 1.5
STEP_S = 1.0
ABOUT = ("set up", "image verified", "secured", "route", "tuned", "permit A", "permit B")
QUESTIONS = {
    State.STANDBY: ("identify", "identify", "Is this patient, plan, fraction and room right?"),
    State.IMAGING: ("positioned", "accept_position", "Is the residual of the image acceptable?"),
    State.ARMED: ("beam_on", "beam_on", "Beam on?"),
    State.INTERRUPTED: ("resume", "resume", "Go on with the field?"),
}


class StandinRoom:
    """A `RoomDesk`. `state` and `mode` may be set from outside; `taken` is every command that was executed."""

    def __init__(self, room: str = "G1", *, boot_id: int = 1, channels: int = 40, inert: bool = False) -> None:
        self.room = room
        self.facility = "asan"
        self.boot_id = boot_id
        self.inert = inert  # commands are taken and change nothing
        self.channels = channels
        self.state = State.STANDBY
        self.mode = Mode.TREAT
        self.taken: list[Command] = []
        self.journal: list[tuple[str, Mapping[str, Any]]] = []
        self.alarms: dict[str, AlarmView] = {}
        self.trip: TripView | None = None
        self.treatment: TreatmentView | None = None
        self.plans: dict[str, PlanView] = {"0123456789ab": _plan("0123456789ab", "sphere.dcm")}
        self.treatments: list[TreatmentSummary] = []
        self.server: LinkServer | None = None
        self.marks: dict[str, float] = {}
        self._layers: dict[int, SpotsView] = {}
        self._seq = self._event_seq = self._challenge = 0
        self._asked_ns = 0
        self._way: asyncio.Task[None] | None = None
        handlers = {name: self._does(name) for name in RULES if name not in {"view", "take_control", "give_control"}}
        self.desk = CommandDesk(room, boot_id, lambda: self.state, lambda: self.mode, self._note, handlers)

    # --- RoomDesk ---------------------------------------------------------------------------------------------------------

    def hello(self) -> Mapping[str, Any]:
        return {"room": self.room, "facility": self.facility, "boot_id": self.boot_id}

    async def submit(self, command: Command) -> Answer:
        return await self.desk.submit(command)

    def heartbeat(self, console: str, token: int) -> bool:
        return self.desk.heartbeat(console, token)

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        if what == "plans":
            return [plan.model_dump(mode="json") for plan in self.plans.values()]
        if what == "plan":
            if (plan := self.plans.get(str(arguments.get("id")))) is None:
                raise CommandRejected("there is no such plan", code=4443, device=self.room, hint="see the list of plans")
            return plan.model_dump(mode="json")
        if what == "treatment":
            for treatment in self.treatments:
                if treatment.id == arguments.get("id"):
                    return {**treatment.model_dump(mode="json"), "summary": {}, "sessions": [], "directory": "/"}
            raise CommandRejected("there is no such treatment", code=4482, device=self.room, hint="see the list of treatments")
        if what == "treatments":
            return [treatment.model_dump(mode="json") for treatment in self.treatments]
        if what == "audit":
            rows = [{"seq": seq, "kind": kind, **data} for seq, (kind, data) in enumerate(self.journal, 1)]
            return rows[-int(arguments.get("limit", 100)) :]
        raise CommandRejected(f"the room knows no question {what!r}", code=4401, device=self.room)

    def spots(self) -> Sequence[SpotsView]:
        return list(self._layers.values())

    def view(self) -> RoomView:
        self._seq += 1
        t_ns = now_ns()
        t_s = t_ns / 1e9
        beam_on = self.state is State.BEAM_ON
        control = self.desk.control
        reached = list(State).index(self.state)
        angle_deg = 90.0 + 80.0 * math.sin(t_s / 10.0)
        counts = sum(round(sum(layer.mu_delivered) * 1e4) for layer in self._layers.values())
        permit = self.state in {State.ARMED, State.BEAM_ON, State.HELD}
        return RoomView(
            facility=self.facility,
            room=self.room,
            boot_id=self.boot_id,
            seq=self._seq,
            t_ns=t_ns,
            utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
            simulated=True,
            banners=["SIMULATED", *(("SERVICE",) if self.mode is Mode.SERVICE else ())],
            mode=self.mode.value,
            state=self.state.value,
            why="" if self.trip is None else self.trip.cause,
            control=None
            if control is None
            else ControlView(console=control.console, actor=control.actor.name, role=control.actor.role.value, heard_ms=0.0),
            question=self._question(),
            treatment=self.treatment,
            checklist=[
                CheckItem(name=n.replace(" ", "_"), label=n, done=4 + i <= reached < 13, detail="") for i, n in enumerate(ABOUT)
            ],
            gantry=GantryView(
                angle_deg=angle_deg,
                target_deg=90.0,
                lower_deg=-185.0,
                upper_deg=185.0,
                speed_deg_s=8.0,
                moving=True,
                enabled=True,
            ),
            couch=[
                AxisView(name=n, unit="mm", value=10.0 * math.sin(t_s + i), target=0.0, lower=-300.0, upper=300.0)
                for i, n in enumerate(("lateral", "longitudinal", "vertical"))
            ],
            nozzle={"snout": "120 mm", "range shifter": "none"},
            delivery=DeliveryView(
                permit_a=permit,
                permit_b=permit,
                permit_r=permit,
                beam_enabled=beam_on,
                beam_present=beam_on,
                species="12C",
                energy_mev_u=200.0 + len(self._layers),
                layer=len(self._layers) or None,
                painting=1,
                spill=len(self._layers),
                counts1=counts,
                counts2=counts + 3,
                counts2_max=1_000_000,
                gate_open=math.sin(t_s * 1.6) > 0,
                breathing=5 + 5 * math.sin(t_s * 1.6),
                breathing_unit="mm",
            ),
            interlocks=InterlocksView(
                relay_closed=self.trip is None,
                active_trips=int(self.trip is not None),
                first_out=self.trip,
                trips=[] if self.trip is None else [self.trip],
                room_causes=[],
                bypasses=[],
            ),
            devices=self._devices(t_s),
            alarms=list(self.alarms.values()),
            commands=self._possible(),
        )

    # --- the made-up course -----------------------------------------------------------------------------------------------

    def go_to(self, state: State) -> None:
        """Change the state and say so."""
        before, self.state = self.state, state
        self._challenge += 1
        self._asked_ns = now_ns()
        self.event("state", before=before.value, state=state.value)

    def event(self, kind: str, **data: Any) -> None:
        """To every console."""
        self._event_seq += 1
        if self.server is not None:
            self.server.publish_event(
                EventView(seq=self._event_seq, t_ns=now_ns(), source=f"room.{self.room}", kind=kind, data=data)
            )

    async def end(self) -> None:
        if self._way is not None:
            self._way.cancel()
            await asyncio.gather(self._way, return_exceptions=True)

    def _question(self) -> QuestionView | None:
        if self.treatment is None or self.state not in QUESTIONS:
            return None
        kind, command, text = QUESTIONS[self.state]
        facts = {"patient": self.treatment.patient_name, "plan": self.treatment.plan_label, "fraction": self.treatment.fraction}
        return QuestionView(
            kind=kind, command=command, text=text, facts=facts, challenge=str(self._challenge), asked_t_ns=self._asked_ns
        )

    def _possible(self) -> dict[str, list[str]]:
        return {
            name: who
            for name, rule in RULES.items()
            if (
                who := [r.value for r in sorted(rule.roles.get(self.mode, ())) if judge(name, r, self.mode, self.state) is None]
            )
        }

    def _devices(self, t_s: float) -> list[DeviceView]:
        per_device = 10
        return [
            DeviceView(
                name=f"{self.room}-device-{d}",
                driver="standin",
                endpoint="memory",
                simulated=True,
                identity=f"stand-in {d}",
                connected=True,
                signals=[
                    SignalView(
                        name=f"value_{i}",
                        value=self.marks.get(f"{d}.{i}", round(math.sin(t_s + d + i), 6)),
                        unit="mm",
                        quality="good",
                        age_ms=12.5,
                        simulated=True,
                    )
                    for i in range(min(per_device, self.channels - d * per_device))
                ],
            )
            for d in range(math.ceil(self.channels / per_device))
        ]

    def _note(self, kind: str, data: Mapping[str, Any]) -> None:
        self.journal.append((kind, dict(data)))
        del self.journal[:-1000]

    def _does(self, name: str) -> Any:
        def handler(command: Command) -> Any:
            self.taken.append(command)
            if self.inert:
                return {"done": name}
            self._answered(command)
            return getattr(self, f"_{name}", lambda _command: {"done": name})(command)

        return handler

    def _answered(self, command: Command) -> None:
        question = self._question()
        if command.name in {"identify", "accept_position", "beam_on", "resume"} and question is not None:
            given = command.arguments.get("challenge")
            if question.command == command.name and given != question.challenge:
                raise CommandRejected(
                    "this answers an earlier question", code=4431, device=self.room, hint="read the question that stands now"
                )

    def _load_plan(self, command: Command) -> Any:
        plan = self.plans.get(str(command.arguments.get("plan_id", "0123456789ab")))
        if plan is None:
            raise CommandRejected("there is no such plan", code=4432, device=self.room, hint="see the list of plans")
        self._layers.clear()
        self.treatment = TreatmentView(
            id=f"20310101T080000Z-{self.room}-sphere-f1",
            plan_id=plan.id,
            plan_uid=plan.uid,
            plan_label=plan.label,
            plan_sha256=plan.sha256,
            patient_id=plan.patient_id,
            patient_name=plan.patient_name,
            fraction=int(command.arguments.get("fraction", 1)),
            remainder=False,
            beams=[self._beam("waiting")],
            current=1,
            status="loaded",
        )
        self._challenge += 1
        return {"treatment": self.treatment.id}

    def _beam(self, status: str) -> BeamProgress:
        done = sum(len(layer.mu_delivered) for layer in self._layers.values() if layer.complete)
        return BeamProgress(
            number=1,
            name="B1",
            gantry_angle_deg=90.0,
            meterset_planned=float(LAYERS * SPOTS) / 10,
            meterset_delivered=done / 10,
            unit="MU",
            layers=LAYERS,
            layer=len(self._layers),
            spots_planned=LAYERS * SPOTS,
            spots_delivered=done,
            status=status,
        )

    def _progress(self, status: str) -> None:
        if self.treatment is not None:
            beam = self._beam("current" if status in {"running", "loaded"} else status)
            self.treatment = self.treatment.model_copy(update={"beams": [beam], "status": status})

    def _identify(self, _command: Command) -> None:
        self.go_to(State.IDENTIFIED)
        self._start([State.POSITIONING, State.IMAGING])

    def _accept_position(self, _command: Command) -> None:
        self._start([State.POSITIONED, State.SECURED, State.ALLOCATED, State.TUNING, State.ARMED])

    def _beam_on(self, _command: Command) -> None:
        self.go_to(State.BEAM_ON)
        self._start_beam()

    def _pause(self, _command: Command) -> None:
        self._cancel_way()
        self.go_to(State.INTERRUPTED)

    def _resume(self, _command: Command) -> None:
        self.go_to(State.BEAM_ON)
        self._start_beam()

    def _terminate(self, _command: Command) -> None:
        self._finish(State.PARTIAL, "partial")

    def _cancel(self, _command: Command) -> None:
        self._finish(State.STANDBY, "refused")

    def _stop(self, command: Command) -> None:
        self._cancel_way()
        self.trip = TripView(
            id="STOP",
            code=1,
            cause=f"stop by {command.actor.name}",
            advice="acknowledge",
            first_out=True,
            t_ns=now_ns(),
            source=command.console,
        )
        self.alarms["stop"] = AlarmView(
            id="stop", severity="high", text="stopped", source=self.room, raised_t_ns=now_ns(), active=True
        )
        if self.state is not State.FAULT:
            self.go_to(State.FAULT)
            self._progress("fault")

    def _acknowledge(self, _command: Command) -> None:
        self.trip = None
        self.alarms.clear()
        self.treatment = None
        self.go_to(State.STANDBY)

    def _import_plan(self, command: Command) -> Any:
        plan_id = f"{len(self.plans):012x}"
        self.plans[plan_id] = _plan(plan_id, str(command.arguments["name"]))
        return {"id": plan_id, "file": command.arguments["file"]}

    def _finish(self, state: State, status: str) -> None:
        self._cancel_way()
        self._progress(status)
        self.go_to(state)
        if state is not State.STANDBY:
            self._start([State.STANDBY])

    def _cancel_way(self) -> None:
        if self._way is not None and self._way is not asyncio.current_task():
            self._way.cancel()

    def _start(self, states: list[State]) -> None:
        async def walk() -> None:
            for state in states:
                await asyncio.sleep(STEP_S)
                self.go_to(state)

        self._cancel_way()
        self._way = asyncio.create_task(walk())

    def _start_beam(self) -> None:
        async def deliver() -> None:
            for layer in range(len(self._layers), LAYERS):
                spots = _spots(layer)
                self._layers[layer] = spots
                self._progress("running")
                if self.server is not None:
                    self.server.publish_spots(spots)
                await asyncio.sleep(LAYER_S)
                self._layers[layer] = spots = spots.model_copy(
                    update={"mu_delivered": list(spots.mu_planned), "complete": True}
                )
                self._progress("running")
                if self.server is not None:
                    self.server.publish_spots(spots)
            self._finish(State.COMPLETE, "complete")

        self._cancel_way()
        self._way = asyncio.create_task(deliver())


def _spots(layer: int) -> SpotsView:
    around = [2 * math.pi * i / SPOTS for i in range(SPOTS)]
    radius_mm = 30.0 * math.sin(math.pi * (layer + 1) / (LAYERS + 1))
    return SpotsView(
        beam_number=1,
        layer_index=layer,
        energy_mev_u=200.0 + layer,
        painting=0,
        x_mm=[radius_mm * math.cos(a) for a in around],
        y_mm=[radius_mm * math.sin(a) for a in around],
        mu_planned=[0.1] * SPOTS,
        mu_delivered=[0.0] * SPOTS,
        complete=False,
    )


def _plan(plan_id: str, file: str) -> PlanView:
    return PlanView(
        id=plan_id,
        file=file,
        sha256=plan_id + "0" * 52,
        uid=f"1.2.3.{int(plan_id, 16)}",
        label="Sphere",
        patient_id="P-1",
        patient_name="Stand^In",
        species="12C",
        approval="APPROVED",
        machine="G1",
        fractions=10,
        beams=[{"number": 1, "name": "B1", "gantry_angle_deg": 90.0}],
        received_utc="2031-01-01T08:00:00+00:00",
        objections={"G1": []},
    )


@contextlib.asynccontextmanager
async def served(desk: StandinRoom, state: Path):
    """The room on its line at STATE/run/ROOM.sock."""
    desk.server = LinkServer(state / "run" / f"{desk.room}.sock", desk)
    await desk.server.start()
    try:
        yield desk.server
    finally:
        await desk.server.close()
        await desk.end()


async def _mark(desk: StandinRoom) -> None:
    """Change one signal at times that have nothing to do with the views; its value is when, by the computer's clock, s."""
    chance = random.Random(1)
    while True:
        await asyncio.sleep(chance.uniform(0.15, 0.35))
        desk.marks["0.0"] = time.monotonic()


async def _main(given: argparse.Namespace) -> None:
    rooms = given.rooms.split(",")
    given.state.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        desks = [StandinRoom(room, boot_id=os.getpid(), channels=given.channels) for room in rooms]
        for desk in desks:
            await stack.enter_async_context(served(desk, given.state))
        marking = [asyncio.create_task(_mark(desk)) for desk in desks if given.marks]
        command = [sys.executable, "-P", "-m", "controller.console.process", "--state", str(given.state), "--facility", "asan"]
        command += ["--rooms", given.rooms, "--port", str(given.port)]
        if given.room_only:
            await asyncio.gather(asyncio.Event().wait(), *marking)
        console = await asyncio.create_subprocess_exec(*command)
        try:
            await console.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                console.terminate()
            await console.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A room without a plant, for consoles.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--rooms", default="G1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--channels", type=int, default=40)
    parser.add_argument("--marks", action="store_true", help="one signal tells when it changed")
    parser.add_argument("--room-only", action="store_true", help="no console process")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))
