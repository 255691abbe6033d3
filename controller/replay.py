"""Replays a recorded treatment: the recorded wires against the present program, without simulators, in virtual time.

The plan, the facility and what was asked come from the recording; ledger and journal are in memory, because the state of a
recorded treatment was fresh for its beams (`treat` refuses any other). Reports the first thing that the program does otherwise.

Not responsible for what "otherwise" means (`drivers.wire.tap`, docs/tap.md).
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from controller.admission import VIRTUAL, Admitted, TreatOptions
from controller.intake import Intake, Refused, take_in
from controller.room_devices import room_devices
from controller.stopping import Stops
from controller.taps import FACT_DEVICES, FACT_FACILITY, FACT_KEYS, FACT_LIBRARY, FACT_ORACLE, FACT_PLAN, VIRTUAL_CLOCK
from controller.treatment import treat_admitted
from controller.wires import CHANNELS, MESSAGES, RoomWires
from drivers.wire.tap.format import BadRecording, Recording, read_recording
from drivers.wire.tap.replay import Difference, Replay
from drivers.wire.tap.replay_elastic import ElasticReplay

if TYPE_CHECKING:
    from controller.room.ports import OperatorPort
    from drivers.hal.capabilities import RoomDevices
    from drivers.hal.endpoints import Endpoint
    from drivers.hal.events import EventBus, Listener
    from drivers.hal.facility import Device, Facility
    from drivers.wire.stream import StreamOpener
    from simulators.faults import TimedFault
    from simulators.invariants import Prescription, RecordProbe

T = TypeVar("T")

FRAMES, PUTS, MESSAGES_OUT = ("write",), ("put",), ("publish", "post")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a replay.

    Attributes:
        recording: what was replayed.
        difference: the first one; None: there is none.
        matched: outward entries that were the same, by kind.
        status, recorded_status: of the treatment, now and then.
    """

    recording: Recording
    difference: Difference | None
    matched: Mapping[str, int]
    status: str
    recorded_status: str

    @property
    def same(self) -> bool:
        """Whether the program did what it did then."""
        return self.difference is None

    def count(self, kinds: Iterable[str]) -> int:
        """Outward entries of some kinds that were the same."""
        return sum(self.matched.get(kind, 0) for kind in kinds)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "same": self.same,
            "difference": self.difference.report() if self.difference is not None else None,
            "matched": dict(sorted(self.matched.items())),
            "entries": len(self.recording.entries),
            "status": self.status,
            "recorded_status": self.recorded_status,
            "clock": self.recording.header["clock"],
            "program_then": self.recording.header["program"],
        }

    def lines(self) -> list[str]:
        """For people."""
        what = f"{self.count(FRAMES)} frames, {self.count(PUTS)} puts, {self.count(MESSAGES_OUT)} messages"
        if (found := self.difference) is None:
            return [f"no difference in {what}, {self.matched.get('ask', 0)} questions to the operator ({self.status})"]
        place = f"line {found.line}" if found.line else "after the last line"
        kind = {"content": "does something else", "time": "does it at another time", "missing": "does not do it"}
        lines = [
            f"first difference at {found.t_ns / 1e9:.9f} s on {found.wire} ({place} of the recording): the program "
            f"{kind.get(found.what, 'does something more')}",
            f"  recorded: {found.recorded or 'nothing'}",
            f"  present:  {found.present or 'nothing'}",
        ]
        if found.detail:
            lines.append(f"  that is:  {found.detail}")
        return [*lines, f"  before it {what} were the same"]


def run_replay(path: Path, listener: Listener | None = None) -> Replayed:
    """Replay a recording.

    Raises:
        Refused: it cannot be replayed: unreadable, damaged, cut off, of another version, or its plan is refused now; every
            reason.
    """
    try:
        recording = read_recording(path)
        reasons = _objections(path, recording)
    except BadRecording as bad:
        raise Refused(bad.reasons) from None
    if reasons:
        raise Refused(reasons)
    with tempfile.TemporaryDirectory(prefix="iongantry-replay-") as folder:
        options, intake = _prepared(recording, Path(folder))
        virtual = recording.header["clock"] == VIRTUAL_CLOCK
        replay = Replay(recording) if virtual else ElasticReplay(recording)
        facility = _placed(intake.facility, recording.facts.get(FACT_DEVICES, {}))
        rooms: list[ReplayedRoom] = []

        def around(bus: EventBus, stops: Stops) -> ReplayedRoom:
            rooms.append(ReplayedRoom(facility, intake.room.name, bus, replay, stops))
            return rooms[0]

        admitted = Admitted(intake, (), replays_wires=FACT_DEVICES in recording.facts)
        result = treat_admitted(options, admitted, None, listener, around=around)
    return Replayed(
        recording, replay.difference, replay.matched, str(result.summary["status"]), str(recording.end.get("status", ""))
    )


def _objections(path: Path, recording: Recording) -> list[str]:
    """Why a sound file cannot be replayed."""
    reasons = []
    if FACT_PLAN not in recording.facts:
        reasons.append(f"{path}: holds no plan; only recordings of treatments can be replayed")
    missing = [key for key in ("asked", "clock", "room", "facility") if key not in recording.header]
    if missing:
        reasons.append(f"{path}: its header lacks {', '.join(missing)}")
    if recording.end.get("violation"):
        reasons.append(f"{path}: the simulated plant broke an invariant and ended this run at once; there is no end to compare")
    if recording.end.get("error"):
        reasons.append(f"{path}: the run was refused before anything moved: {recording.end['error']}")
    if recording.facts.get("session"):
        reasons.append(f"{path}: is of a resumed session, which hangs on a ledger that is not in the recording")
    return reasons


def _prepared(recording: Recording, folder: Path) -> tuple[TreatOptions, Intake]:
    """The recorded request, with its files in a folder. Raises Refused when this program refuses it."""
    asked, facts = recording.header["asked"], recording.facts
    plan = folder / Path(asked["plan"]).name
    facility, library, keys = str(asked["facility"]), None, None
    try:
        plan.write_bytes(base64.b64decode(facts[FACT_PLAN], validate=True))
        if FACT_FACILITY in facts:
            text = folder / "facility.toml"
            text.write_text(facts[FACT_FACILITY], encoding="utf-8")
            facility = str(text)
        if FACT_LIBRARY in facts:
            library, keys = folder / "library.json", folder / "keys"
            library.write_bytes(base64.b64decode(facts[FACT_LIBRARY], validate=True))
            keys.mkdir()
            for name, key in facts[FACT_KEYS].items():
                (keys / f"{Path(name).name}.pub").write_text(f"{key}\n", encoding="ascii")
        options = TreatOptions(
            plan=plan,
            facility=facility,
            room=str(asked["room"]),
            beams=tuple(asked["beams"]),
            fraction=int(asked["fraction"]),
            seed=int(asked["seed"]),
            speed=VIRTUAL,
            overrides=dict(asked["overrides"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Refused([f"the recording's files cannot be unpacked: {type(error).__name__}: {error}"]) from None
    try:
        return options, take_in(plan, facility, options.room, options.beams, options.overrides, library, keys)
    except Refused as refused:
        raise Refused([f"this program refuses the recorded plan: {reason}" for reason in refused.reasons]) from None


def _placed(facility: Facility, devices: Mapping[str, Mapping[str, Any]]) -> Facility:
    """A facility whose devices answer where they did then."""
    if not devices:
        return facility
    there: dict[str, Device] = dict(facility.devices)
    for name, told in devices.items():
        if name in there:
            parts = {int(unit): endpoint for unit, endpoint in told["part_endpoints"].items()}
            changes = {"line": told["line"], "endpoint": told["endpoint"], "part_endpoints": parts}
            there[name] = there[name].model_copy(update=changes)
    return facility.model_copy(update={"devices": there})


class ReplayedWires(RoomWires):
    """The wires of a room out of a recording: nothing is opened, whatever the endpoints say."""

    def __init__(self, facility: Facility, room: str, replay: Replay) -> None:
        super().__init__(facility, room, tap=replay)
        self._replay = replay

    async def open(self) -> None:
        """Take the recorded variables and messages."""
        self._channels = self._replay.recorded_channels(CHANNELS)
        self._messages = self._replay.recorded_messages(MESSAGES)

    def _opener(self, endpoint: Endpoint, config: Device) -> StreamOpener:
        return _nobody


async def _nobody() -> Any:
    raise ConnectionRefusedError("a replay opens nothing")


class ReplayedRoom:
    """The surroundings of a treatment that is replayed; fulfils the same role as `assembly.SimulatedWorld`.

    Args:
        facility: with its devices where they answered.
        room: the room in use.
        bus: events of the devices.
        replay: the recorded wires.
        stops: functions that end the fraction, once there is one.
    """

    def __init__(self, facility: Facility, room: str, bus: EventBus, replay: Replay, stops: Stops) -> None:
        self.facility = facility
        self.room = room
        self.bus = bus
        self._replay = replay
        self._wires = ReplayedWires(facility, room, replay)
        self._stops = stops
        self.operator: OperatorPort = replay.recorded_operator()
        self.operator_name = str(replay.recording.facts.get("operator", "recorded operator"))

    def watch(self, prescription: Prescription, record: RecordProbe | None = None) -> None:
        """There is no plant to watch."""

    async def start(self) -> None:
        """Begin to serve."""
        self._replay.on_stop(self._stops)
        await self._wires.open()
        self._replay.start()

    def devices(self) -> RoomDevices:
        """The drivers of the room, not yet connected."""
        return room_devices(self.facility, self.room, self._wires, self.bus)

    async def inject(self, faults: Iterable[TimedFault]) -> None:
        """What was planted then is in what was recorded."""

    async def until_violated(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, or to the first difference: then it is told that every wire is gone."""
        return await work

    async def machine_limited_s(self, beam_number: int) -> float | None:
        """What the oracle said then."""
        told: Mapping[str, float | None] = self._replay.recording.facts.get(FACT_ORACLE, {})
        return told.get(str(beam_number))

    async def stop(self) -> None:
        """Let go of everything; what was recorded and never came is a difference."""
        await self._wires.close()
        await asyncio.sleep(0)
        self._replay.finish()
        self._replay.stop()
