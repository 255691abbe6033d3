"""Bodies and answers of the HTTP interface, for its document. Not responsible for what a room shows (`views`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from controller.console.archive_query import SignalInfo
from controller.console.users import PASSWORD_MAX, PASSWORD_MIN
from controller.console.views import RoleName, TreatmentSummary, View

CONSOLE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
ConsoleName = Annotated[str, StringConstraints(pattern=CONSOLE_PATTERN)]
UserName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Password = Annotated[str, StringConstraints(min_length=1, max_length=PASSWORD_MAX)]
NewPassword = Annotated[str, StringConstraints(min_length=PASSWORD_MIN, max_length=PASSWORD_MAX)]


class Body(BaseModel):
    """What a client sends; a field that is not asked for is refused."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ErrorView(View):
    """Why something was not done, for the one who asked."""

    code: int | None = Field(default=None, description="of the beamline's own error, if one is behind it")
    reason: str
    hint: str = ""


class LoginBody(Body):
    """A sign-in at one console."""

    name: UserName
    password: Password = Field(repr=False)
    console: ConsoleName = Field(description="of this browser or program, one of its own; the token works for it alone")
    role: RoleName | None = Field(default=None, description="one of the user's; default: the first")


class TokenView(View):
    """A sign-in."""

    token: str = Field(repr=False, description="send it as `Authorization: Bearer`, with `X-Console`")
    expires_s: float = Field(description="if it is not used until then, s")
    name: str
    role: RoleName
    roles: list[RoleName]
    console: str
    first_password: bool = Field(description="the password is still the one made at the start: change it")


class MeView(View):
    """Who asks."""

    name: str
    role: RoleName
    roles: list[RoleName]
    console: str
    expires_s: float
    first_password: bool


class PasswordBody(Body):
    """A change of one's own password."""

    old: Password = Field(repr=False)
    new: NewPassword = Field(repr=False)


def _once(roles: list[RoleName]) -> list[RoleName]:
    """Raises ValueError."""
    if len(set(roles)) < len(roles):
        raise ValueError("a role is named more than once")
    return roles


class NewUserBody(Body):
    """Somebody new."""

    name: UserName
    roles: Annotated[list[RoleName], AfterValidator(_once)] = Field(
        min_length=1, max_length=5, json_schema_extra={"uniqueItems": True}
    )
    password: NewPassword | None = Field(
        default=None, repr=False, description="to be changed by its owner; absent: one is made"
    )


class UserView(View):
    """Somebody who may sign in."""

    name: str
    roles: list[RoleName]
    first_password: bool
    made_utc: str


class NewUserView(View):
    """Somebody new, with the password to hand over. It is shown once."""

    name: str
    roles: list[RoleName]
    password: str | None = Field(repr=False, description="the one that was made")


class RoomSummary(View):
    """One room of the facility."""

    name: str
    kind: str
    machine_names: list[str]
    ports_deg: list[float]
    served: bool = Field(description="a process of this facility treats in it")
    connected: bool = Field(description="that process is reached")
    state: str | None = None
    mode: str | None = None
    banners: list[str] = Field(default_factory=list)
    patient_name: str | None = None
    control: str | None = Field(default=None, description="console that commands it")
    view_age_ms: float | None = None


class FacilityView(View):
    """The facility and its rooms."""

    name: str
    title: str
    purpose: str
    species: list[str]
    rooms: list[RoomSummary]


class RuleView(View):
    """One row of the table role x command x mode."""

    name: str
    does: str
    roles: dict[str, list[RoleName]] = Field(description="by mode: who")
    states: list[str]
    needs_control: bool


class HealthView(View):
    """Whether the console process reaches its rooms."""

    status: str = Field(description="ok, or degraded: a room is not reached")
    version: str
    rooms: dict[str, bool]
    streams: int
    signed_in: int


class TreatmentDetail(TreatmentSummary):
    """One treatment with its summary file and those of later sessions."""

    summary: dict[str, Any] = Field(description="the file summary.json; empty while there is none")
    sessions: list[dict[str, Any]] = Field(description="later sessions of the same fraction: directory, files, summary")


class AuditView(View):
    """Entries, the newest first."""

    source: str = Field(description="a room's commands, or the console's sign-ins")
    entries: list[dict[str, Any]]


class SignedOut(View):
    """Done."""

    signed_out: bool = True


class Changed(View):
    """Done."""

    changed: bool = True


class Removed(View):
    """Done."""

    removed: str


class SignalsView(View):
    """Names of what the archive holds."""

    signals: list[SignalInfo]
