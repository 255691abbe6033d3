"""What a room shows: one value with everything a screen, a terminal or a program may see of it, and what a command is told.

Shared by the room process, which makes these values, the console process, which passes them on, and every client: the interface
document (`/openapi.json`) is made from them. Not responsible for making them (`controller.serving`) nor for who may see them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RoleName = Literal["observer", "operator", "physicist", "service", "security_admin"]
ModeName = Literal["treat", "qa", "service"]
FractionStatus = Literal["complete", "given", "partial", "under_way", "reconcile", "signature"]
Banner = Literal["SIMULATED", "SERVICE", "BYPASS", "RESEARCH", "LIMITS UNSIGNED", "STALE"]


class View(BaseModel):
    """A value that is shown and never edited."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ControlView(View):
    """Who commands the room. The token itself is told to that console alone."""

    console: str
    actor: str
    role: RoleName
    heard_ms: float = Field(description="since that console was last heard, ms")


class QuestionView(View):
    """What the room waits for a person to say. `command` answers it and has to carry `challenge`."""

    kind: Literal["identify", "move_on", "positioned", "beam_on", "resume"]
    command: str = Field(description="name of the command that answers yes")
    text: str
    facts: dict[str, Any]
    challenge: str = Field(description="changes with every question: an answer to an earlier one is refused")
    asked_t_ns: int


class CheckItem(View):
    """One condition of the way to beam, as the room's own guards see it."""

    name: str
    label: str
    done: bool
    detail: str = Field(default="", description="why not, with numbers")


class AxisView(View):
    """A moving axis. Values are None where nothing sound is known."""

    name: str
    unit: str
    value: float | None
    target: float | None = None
    lower: float | None = None
    upper: float | None = None
    quality: str = "good"


class GantryView(View):
    """The ring, IEC 61217 gantry angle; a fixed port has `fixed_deg` and nothing that moves."""

    angle_deg: float | None
    target_deg: float | None = None
    lower_deg: float
    upper_deg: float
    speed_deg_s: float | None = None
    moving: bool = False
    enabled: bool | None = Field(default=None, description="torque on")
    fixed_deg: float | None = None
    quality: str = "good"


class BeamProgress(View):
    """One beam of the treatment and how far it is."""

    number: int
    name: str
    gantry_angle_deg: float
    meterset_planned: float
    meterset_delivered: float
    unit: str
    layers: int
    layer: int = Field(description="layers begun, 0 before the first")
    spots_planned: int
    spots_delivered: int
    status: str = Field(description="waiting, current, complete, partial, refused, fault")


class TreatmentView(View):
    """The fraction that is treated now, or the last one until another is loaded."""

    id: str
    plan_id: str
    plan_uid: str
    plan_label: str
    plan_sha256: str
    patient_id: str
    patient_name: str
    fraction: int
    remainder: bool = Field(description="what an earlier, partial delivery of this fraction left")
    beams: list[BeamProgress]
    current: int | None = Field(default=None, description="number of the beam that is treated")
    status: str = Field(description="loaded, running, writing, complete, partial, refused, fault")
    reason: str = ""
    overrides: dict[str, str] = Field(default_factory=dict)
    started_utc: str = ""


class DeliveryView(View):
    """Beam, dose and gate, now."""

    permit_a: bool
    permit_b: bool
    permit_r: bool
    beam_enabled: bool
    beam_present: bool
    species: str = ""
    energy_mev_u: float | None = None
    layer: int | None = None
    painting: int | None = None
    spill: int | None = None
    held_why: str = ""
    counts1: int | None = Field(default=None, description="monitor 1, counts of this treatment")
    counts2: int | None = Field(default=None, description="monitor 2, counts of this treatment")
    counts2_max: int | None = Field(default=None, description="ceiling of the second dose unit for the field")
    gate_open: bool | None = None
    breathing: float | None = Field(default=None, description="amplitude of the surrogate, in `breathing_unit`")
    breathing_unit: str = ""


class TripView(View):
    """One interlock that stands, or the first-out of what happened."""

    id: str
    code: int = 0
    cause: str
    value: str = ""
    limit: str = ""
    advice: str = ""
    reset_role: str = Field(default="", description="who may reset it; empty: it needs no reset")
    latched: bool = False
    first_out: bool = False
    t_ns: int = 0
    source: str = ""


class BypassView(View):
    """A bypass that is asked for or active."""

    interlock: str
    owner: str
    approver: str = Field(default="", description="empty until it is approved")
    reason: str
    remaining_s: float


class InterlocksView(View):
    """What the interlock system shows, and what tripped the room."""

    relay_closed: bool
    active_trips: int
    first_out: TripView | None
    trips: list[TripView] = Field(description="that are active or latched, first-out first")
    rest_unknown: str = Field(
        default="", description="why no more than the first-out is known to stand; empty: all that stands is listed"
    )
    silent: bool = Field(
        default=False, description="the interlock system is asked and does not answer; `rest_unknown` says how"
    )
    withheld: list[str] = Field(default=[], description="ids of rows that keep the permit off without having tripped")
    proof_age_s: int | None = Field(
        default=None, description="since the last proof test that passed; 0: none is required; null: none, or not known"
    )
    room_causes: list[TripView] = Field(description="what tripped the room machine, first first")
    bypasses: list[BypassView]


class SignalView(View):
    """One signal of a device."""

    name: str
    value: float | int | str | bool | list[float] | None
    unit: str
    quality: str
    age_ms: float | None
    simulated: bool


class DeviceView(View):
    """One device of the room."""

    name: str
    driver: str
    endpoint: str
    simulated: bool
    identity: str
    connected: bool
    error: str = ""
    signals: list[SignalView]


class AlarmView(View):
    """Something a person has to take notice of."""

    id: str
    severity: Literal["high", "medium", "low"]
    text: str
    source: str
    raised_t_ns: int
    count: int = 1
    active: bool = Field(description="the condition stands now")
    acknowledged_by: str = ""
    shelved_by: str = ""
    shelved_s: float = Field(default=0.0, description="for how long yet, s")


class FractionView(View):
    """One fraction of a plan that was begun, by the ledger."""

    number: int
    status: FractionStatus = Field(
        description="given: all of it, known only within bounds; reconcile, signature: what a physicist has to do before "
        "anything more of it is given"
    )
    share: float | None = Field(description="of the fraction's meterset that was given, 0 to 1; null: known only within bounds")
    low: float = Field(default=0.0, description="of the fraction's meterset, at least, 0 to 1")
    high: float = Field(default=0.0, description="at most; above 1 where more than the plan cannot be ruled out")
    treatment: str = Field(default="", description="id of its last treatment")
    words: str = Field(default="", description="status and share, as they are said everywhere")


class NextFraction(View):
    """What may be loaded next of a plan: a proposal, nothing more."""

    fraction: int
    remainder: bool = Field(description="what an earlier delivery left of it")
    beams: list[int] = Field(default_factory=list, description="empty: all of them")


class PlanView(View):
    """A plan that the facility holds."""

    id: str
    file: str
    sha256: str
    uid: str
    label: str
    patient_id: str
    patient_name: str
    species: str
    approval: str
    approved_by: str = Field(default="", description="who approved it here; empty: nobody")
    machine: str
    fractions: int
    beams: list[dict[str, Any]]
    received_utc: str
    objections: dict[str, list[str]] = Field(description="by room: why it cannot be treated there; empty list: it can")
    history: list[FractionView] = Field(default_factory=list, description="fractions that were begun, by number")
    next: NextFraction | None = Field(
        default=None, description="null: everything is given, or something has to be settled first"
    )
    standing: str = Field(default="", description="history and what comes next, in words")


class RoomView(View):
    """Everything of one room."""

    facility: str
    room: str
    boot_id: int
    seq: int
    t_ns: int = Field(description="loop time of the room process, ns")
    utc: str
    speed: float = Field(default=1.0, description="seconds of the room per second of a wall clock")
    simulated: bool
    real: list[str] = Field(default_factory=list, description="devices that are hardware")
    banners: list[Banner]
    mode: ModeName
    state: str
    why: str = ""
    deadline_s: float | None = Field(default=None, description="until this state lapses by itself, s")
    control: ControlView | None
    question: QuestionView | None
    treatment: TreatmentView | None
    checklist: list[CheckItem]
    gantry: GantryView
    couch: list[AxisView]
    nozzle: dict[str, str] = Field(default_factory=dict)
    delivery: DeliveryView
    interlocks: InterlocksView
    devices: list[DeviceView]
    alarms: list[AlarmView]
    commands: dict[str, list[RoleName]] = Field(description="commands that are possible now, and for whom")


class EventView(View):
    """One event of the bus (`drivers.hal.events.Event`)."""

    seq: int
    t_ns: int
    source: str
    kind: str
    data: dict[str, Any]


class SpotsView(View):
    """One layer for the spot map: planned when it begins, delivered as results arrive. Arrays of equal length, at isocentre."""

    treatment: str = Field(default="", description="id of the treatment that it belongs to")
    session: int = Field(default=0, description="of that treatment: 0 the first, n the n-th delivery of what was left")
    earlier: bool = Field(
        default=False,
        description="what all sessions before gave of the layer, in all paintings; `mu_planned` is then the whole plan's",
    )
    beam_number: int
    layer_index: int
    energy_mev_u: float
    painting: int
    x_mm: list[float]
    y_mm: list[float]
    mu_planned: list[float]
    mu_delivered: list[float]
    complete: bool


class CommandBody(BaseModel):
    """A command as a client sends it; who sends it comes from the sign-in, never from here."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=64)
    arguments: dict[str, Any] = Field(default_factory=dict)
    control_token: int = Field(default=0, description="as `take_control` answered; 0: none")
    boot_id: int = Field(description="of the room as the client knows it")
    age_ms: float = Field(default=0.0, ge=0.0, description="since the person acted, by the client's own clock")


class AnswerView(View):
    """What became of a command."""

    accepted: bool
    value: Any = None
    code: int | None = None
    reason: str = ""
    hint: str = ""
    repeated: bool = False


class TreatmentSummary(View):
    """One line of the treatment history."""

    id: str
    room: str
    plan_label: str
    patient_id: str
    fraction: int
    status: str = Field(description="open (being treated), cut_off, locked, unbegun, complete, given, partial, refused, fault")
    termination: str = ""
    started_utc: str
    simulated: bool
    meterset_planned: float | None = Field(description="null: not known")
    meterset_delivered: float | None = Field(description="null: not known, or known only within bounds")
    unit: str
    files: list[str]
    needs: Literal["", "reconcile", "signature"] = Field(default="", description="what a physicist has to do, if anything")
    bounds: list[str] = Field(default_factory=list, description="what the ledger knows of its beams, where no summary says it")
    reason: str = Field(default="", description="why its last session ended early")
    standing: str = Field(
        default="", description="how its fraction stands and what may follow, as the room and the plan say it"
    )
