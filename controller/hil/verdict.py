"""A check of the rig procedure: what is required and by whom, what was measured, what came of it, what to do.

The catalogue below is the procedure in the order in which it runs. Not responsible for measuring (`drive_procedure`, `passive`)
or judging (`judge_drive`, `judge_line`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

CIA402 = "CiA 402 (IEC 61800-7-201)"
WIRES = "docs/wires.md"
SAFETY = "IEC 61800-5-2 functions as in docs/wires.md, register 40"
FACILITY = "facility file"
OVERLAY = "overlay, [rig]"


class Verdict(StrEnum):
    """What came of a check."""

    PASS = "pass"
    FAIL = "fail"
    NOT_DONE = "not done"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of the procedure.

    Attributes:
        id: short name, as in the JSON.
        name: words for people.
        text: what must be true.
        source: who says so.
        advice: what to do when it is not.
        vital: going on after a failure would be dangerous or meaningless.
    """

    id: str
    name: str
    text: str
    source: str
    advice: str
    vital: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """A requirement and what came of it; `reason` says why it failed or was not done."""

    requirement: Requirement
    verdict: Verdict
    measured: str = ""
    limit: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        """For the JSON file."""
        told = asdict(self.requirement)
        told.update(verdict=self.verdict.value, measured=self.measured, limit=self.limit, reason=self.reason)
        return told


def _table(*rows: Requirement) -> Mapping[str, Requirement]:
    return {row.id: row for row in rows}


IDENTITY = Requirement(
    "identity",
    "Identity",
    "vendor and product code are the ones expected at this place",
    f"{WIRES}, registers 0 to 3; {FACILITY}, identity",
    "check endpoint and node number; another device answers here",
    vital=True,
)
LIVENESS = Requirement(
    "liveness",
    "Liveness counter",
    "the device counts its cycles by itself",
    f"{WIRES}, counter",
    "restart the device; a device whose counter stands still shows old values",
    vital=True,
)
REGISTERS = Requirement(
    "registers",
    "Register map",
    "every register of the map can be read, and every set-point holds what was written",
    f"{WIRES}; {FACILITY}, [registers]",
    "compare the firmware's register map with the facility file",
    vital=True,
)
RESPONSE = Requirement(
    "response",
    "Response time of the line",
    "answers come as fast as the baud rate allows, and none is lost",
    f"Modbus over Serial Line V1.02, section 2.5; {FACILITY}, poll_deadline_ms",
    "check baud rate, termination and cable; take slow nodes off this line",
)

DRIVE_CHECKS = _table(
    IDENTITY,
    REGISTERS,
    LIVENESS,
    Requirement(
        "rest",
        "At rest before anything",
        "it stands, the brake is applied, operation is not enabled, torque is not held off (STO)",
        SAFETY,
        "release the emergency stop, acknowledge the drive's fault, look at the brake",
        vital=True,
    ),
    Requirement(
        "old_commands",
        "Old commands",
        "a command that was sent more than 200 ms ago by the drive's own count is refused and changes nothing",
        f"{WIRES}, old commands",
        "without this a frame that a network kept back can start a motion later: use a line that keeps nothing",
    ),
    Requirement(
        "limits",
        "Travel limits",
        "a target beyond the soft limit is refused or reported, and nothing moves towards it",
        f"{WIRES}, fault 0x6320; {FACILITY}, gantry.angle_deg",
        "set the soft limits in the drive; take the axis off the machine until they hold",
        vital=True,
    ),
    Requirement(
        "enable",
        "Enable sequence",
        "shutdown, switch on, enable operation lead to ready, switched on, operation enabled, and the axis stays where it is",
        f"{CIA402}, state machine",
        "look at the error code and the safety word in hil.json",
        vital=True,
    ),
    Requirement(
        "torque_proof",
        "Torque before brake",
        "torque is proven before the brake is released, and operation is enabled only with both done",
        SAFETY,
        "the axis can fall: do not use this drive; correct its brake control",
        vital=True,
    ),
    Requirement(
        "move",
        "Move",
        "a small move ends at its target in time, and stays inside the travel declared for it",
        f"{CIA402}, profile position mode; {OVERLAY} travel_deg",
        "check scale, sign and mechanics of the axis",
        vital=True,
    ),
    Requirement(
        "target_reached",
        "Target reached",
        "bit 10 of the statusword is set only inside the position window",
        f"{CIA402}, statusword bit 10; {FACILITY}, gantry.in_position_deg",
        "narrow the position window of the drive (object 6067h) and give it a window time (6068h)",
    ),
    Requirement(
        "settling",
        "Settling and overshoot",
        "it comes into the window, does not swing over it, and says so within the settling time",
        f"{FACILITY}, gantry.settle_s and in_position_deg",
        "tune the position loop",
    ),
    Requirement(
        "velocity",
        "Velocity profile",
        "the speed never exceeds the profile velocity that was commanded",
        f"{CIA402}, object 6081h",
        "check the velocity unit and the profile of the drive",
    ),
    Requirement(
        "following",
        "Following error",
        "the position stays near the commanded profile and bit 13 of the statusword stays clear",
        f"{CIA402}, statusword bit 13, object 6065h; {OVERLAY} following_deg",
        "tune the drive; check acceleration and load",
    ),
    Requirement(
        "disable",
        "Brake before disable",
        "on the way down the brake is applied before torque is taken away",
        f"{SAFETY}; {CIA402}, object 605Ch",
        "the axis can fall: correct the brake control or the disable option code",
        vital=True,
    ),
    Requirement(
        "quick_stop",
        "Quick stop",
        "in motion it stops within the distance of its stated ramp; it ends in quick stop active or switch on disabled, braked",
        f"{CIA402}, object 6085h; {OVERLAY} quick_stop_deg_s2",
        "this axis has no safe stop by command: correct its quick stop option and deceleration before anything else",
        vital=True,
    ),
    Requirement(
        "polling_lost",
        "Halt when polling stops",
        "it stops by itself 200 ms after the last word from the line, sets the brake and says 0x8700",
        f"{WIRES}, supervision; {FACILITY}, poll_deadline_ms",
        "set the communication watchdog of the drive; without it a dead controller leaves the axis running",
        vital=True,
    ),
    Requirement(
        "link_return",
        "Loss of link and return",
        "after the line was closed and opened again the same device answers, is not enabled, and does not move",
        WIRES,
        "switch off every automatic restart of the drive",
        vital=True,
    ),
    Requirement(
        "reset_edge",
        "Fault reset",
        "a fault stays until bit 7 of the controlword rises, and is cleared by that edge when its cause is gone",
        f"{CIA402}, controlword bit 7",
        "set the fault reset of the drive to edge",
    ),
    Requirement(
        "held",
        "Always held",
        "at every sample of the whole procedure the axis is held by proven torque or by its brake",
        SAFETY,
        "the axis was free for a time: correct the brake control before anything hangs on this axis",
    ),
    Requirement(
        "statuswords",
        "Statuswords",
        "every statusword codes a state of the profile, and voltage enabled (bit 4) agrees with it",
        f"{CIA402}, statusword bits 0 to 6",
        "the firmware deviates from the profile: do not trust its states",
    ),
    RESPONSE,
)

_PLAUSIBLE = Requirement(
    "plausible",
    "Values make sense",
    "what it measures lies inside the travel, agrees with its own switches, and says that it is valid",
    f"{WIRES}; {FACILITY}, limits of the room",
    "check wiring and zero of the sensors",
)
_STEADY = Requirement(
    "steady",
    "Quiet at rest",
    "what it measures does not wander while nothing is commanded",
    "noise of an encoder, assumed",
    "check shield and supply of the sensor; is something moving it?",
)
_RETURN = Requirement(
    "link_return",
    "Loss of link and return",
    "after the line was closed and opened again the same device answers with the same state",
    WIRES,
    "the device restarts with the line, or another one answers",
)
PASSIVE_CHECKS = _table(IDENTITY, REGISTERS, LIVENESS, _PLAUSIBLE, _STEADY, _RETURN, RESPONSE)


class Notes:
    """What has been judged so far, in the order of a catalogue.

    Args:
        catalogue: the procedure.
    """

    def __init__(self, catalogue: Mapping[str, Requirement]) -> None:
        self._catalogue = catalogue
        self._done: dict[str, Check] = {}

    def judge(self, name: str, good: bool, measured: str, limit: str, reason: str = "") -> Check:
        """Note a verdict. A failure stays, whatever is found later; what passes more than once is told as often."""
        before = self._done.get(name)
        if before is not None and before.verdict is Verdict.FAIL:
            return before
        if good and before is not None and before.measured and measured not in before.measured:
            measured = f"{before.measured}; {measured}"
        verdict = Verdict.PASS if good else Verdict.FAIL
        check = Check(self._catalogue[name], verdict, measured, limit, "" if good else reason or measured)
        self._done[name] = check
        return check

    def skip(self, name: str, reason: str) -> None:
        """Note why a check was not done; a verdict stays."""
        self._done.setdefault(name, Check(self._catalogue[name], Verdict.NOT_DONE, reason=reason))

    def finish(self, reason: str) -> Sequence[Check]:
        """All checks of the catalogue; what nobody got to was not done for `reason`."""
        for name in self._catalogue:
            self.skip(name, reason)
        return [self._done[name] for name in self._catalogue]

    @property
    def failed(self) -> Sequence[Check]:
        """The failures so far."""
        return [check for check in self._done.values() if check.verdict is Verdict.FAIL]

    def requirement(self, name: str) -> Requirement:
        """A line of the catalogue."""
        return self._catalogue[name]
