"""A terminal shows a room and commands it like a page does; its stop key works whatever else does not.

What must never be out of sight (whether all this is now, the alarm, the state, the answer, the stop key) is looked for where
the terminal draws it: inside its edges, beneath no dialog, from 80 x 24 on.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import standin_room
from console_site import Site, console_site, real_server
from rich.text import Text
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, OptionList, Static, TabbedContent
from typer.testing import CliRunner

from controller import commands
from controller.cli import app as command_line
from controller.cli_console import view_words
from controller.console import watch_client
from controller.console.views import AlarmView
from controller.console.watch_app import WatchApp
from controller.console.watch_client import Told, WatchClient, chosen_room, console_url
from controller.console.watch_dialogs import Choose, Credentials, SignIn, Sure, TypeWord
from controller.console.watch_words import state_words
from controller.room.states import State
from drivers.hal.clock import NS_PER_S
from drivers.hal.errors import CommandRejected, CommunicationError, ConfigError

ALWAYS = ("#banner", "#alarm", "#state", "#said", "Footer")
STALE_SEEN_S = 2.0  # after the last view
SIZES = ((80, 24), (120, 40), (200, 60))

pytestmark = pytest.mark.xdist_group("wires")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_room, "STEP_S", 0.02)
    monkeypatch.setattr(standin_room, "LAYER_S", 0.3)
    monkeypatch.setattr(commands, "AGE_MAX_NS", 10 * NS_PER_S)  # a loaded machine is no reason here


class Terminal:
    """A terminal in front of a site: keys in, words out."""

    def __init__(self, site: Site, app: WatchApp, pilot: Pilot[None]) -> None:
        self.site, self.app, self.pilot = site, app, pilot

    async def keys(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, true: Callable[[], object], what: str = "it") -> None:
        async with asyncio.timeout(10.0):
            while not true():
                await self.pilot.pause(0.02)
        assert true(), what

    async def fill(self, name: str, password: str) -> None:
        """Name and password in the sign-in that is open."""
        self.app.screen.query_one("#name", Input).value = name
        await self.keys("enter")
        self.app.screen.query_one("#password", Input).value = password
        await self.keys("enter")

    def words(self, name: str) -> str:
        return str(self.app.screen_stack[0].query_one(f"#{name}", Static).content)

    async def says(self, name: str, *parts: str) -> None:
        try:
            await self.until(lambda: all(part in self.words(name) for part in parts))
        except TimeoutError:
            said = self.words("said")
            raise AssertionError(f"{name} does not say {parts}: {self.words(name)}; {said}") from None

    def in_sight(self) -> None:
        """Every line that must never be out of sight is drawn whole, and nothing stands on it or hangs over the edge."""
        base, top = self.app.screen_stack[0], self.app.screen
        assert base.scroll_offset == (0, 0) and base.max_scroll_y == 0, "the screen itself does not scroll"
        edges = base.region
        for name in ALWAYS:
            widget = base.query_one(name)
            shown, whole = base.find_widget(widget).visible_region, widget.region
            assert whole.area and shown == whole and edges.contains_region(whole), f"{name} at {whole} in {edges}: seen {shown}"
            for dialog in top.query(".dialog"):
                assert not dialog.region.overlaps(whole), f"{name} is beneath {top}: {dialog.region} on {whole}"
        for dialog in top.query(".dialog"):
            assert edges.contains_region(dialog.region), f"{top} hangs over the edge: {dialog.region}"
        assert base.query_one("#tabs").region.height >= 10, "and between them there is room for the rest"

    def drawn(self) -> str:
        """What the terminal shows, as one line, dialogs on top."""
        pieces = re.findall(r"<text[^>]*>([^<]*)</text>", self.app.export_screenshot())
        return re.sub(r"\s+", " ", html.unescape(" ".join(pieces)))

    async def shows(self, *parts: str) -> None:
        """It is not enough that a line holds the words: they are drawn."""
        end_s = asyncio.get_running_loop().time() + 5.0
        while not all(part in (drawn := self.drawn()) for part in parts):
            assert asyncio.get_running_loop().time() < end_s, f"the terminal does not show {parts}: {drawn}"
            await self.pilot.pause(0.15)  # a picture takes a while

    async def asks(self, kind: type[Any], but: Any = None) -> Any:
        """The dialog, when keys reach it."""
        await self.until(lambda: isinstance(self.app.screen, kind) and self.app.screen is not but)
        wants = bool(self.app.screen.query("Input, OptionList"))
        await self.until(lambda: isinstance(self.app.screen.focused, Input | OptionList) or not wants)
        return self.app.screen


@asynccontextmanager
async def terminal(state: Path, role: str = "operator", size: tuple[int, int] = (110, 40)) -> AsyncIterator[Terminal]:
    """Signed in, and the room is shown; with role empty nobody is signed in."""
    async with console_site(state) as site, real_server(site.app) as port:
        credentials = Credentials(role, site.password(role), "") if role else None
        app = WatchApp(WatchClient(f"http://127.0.0.1:{port}"), "G1", credentials)
        async with app.run_test(size=size) as pilot:
            made = Terminal(site, app, pilot)
            if role:
                await made.until(lambda: app.client.shown.view is not None)
            yield made


async def test_a_field_is_treated_by_keys_and_beam_on_needs_its_word_and_the_question_of_now(tmp_path: Path) -> None:
    async with terminal(tmp_path, size=SIZES[0]) as t:
        await t.says("banner", "G1 of asan", "SIMULATED", "operator as operator")
        await t.keys("c")
        await t.says("banner", "IN CONTROL")
        await t.keys("o")
        choose = await t.asks(Choose)
        assert choose.query_one(OptionList).option_count == 1
        await t.keys("enter")
        await t.asks(Choose, but=choose)
        await t.keys("enter")
        await t.says("progress", "Stand^In", "Sphere", "fraction 1", "layer 0/12")
        await t.says("question", "Is this patient, plan, fraction and room right?", "patient: Stand^In")
        await t.keys("y")
        await t.asks(Sure)
        await t.keys("y")
        await t.says("question", "residual of the image")
        await t.keys("y")
        await t.asks(Sure)
        await t.keys("y")
        await t.says("question", "Beam on?")
        assert t.site.room.state is State.ARMED

        await t.keys("y")
        dialog = await t.asks(TypeWord)
        await t.keys(*"wrong", "enter", "enter", "enter")
        assert t.app.screen is dialog and t.site.room.state is State.ARMED, "Enter held down turns nothing on"
        await t.keys(*dialog.word, "enter")
        await t.says("state", "irradiating.beam_on", "commanded by watch-")
        await t.shows(
            "SIMULATED", "IN CONTROL", "operator as operator", "irradiating.beam_on", "commanded by watch-", "f9 STOP"
        )
        await t.says("beam", "BEAM ENABLED", "A yes", "MeV/u")
        await t.keys("p")
        await t.says("state", "interrupted")
        await t.keys("y")
        dialog = await t.asks(TypeWord)
        await t.keys("escape")
        await t.says("said", "not answered")
        assert t.site.room.state is State.INTERRUPTED
        names = [command.name for command in t.site.room.taken]
        assert names == ["load_plan", "identify", "accept_position", "beam_on", "pause"]

        t.site.room.go_to(State.ARMED)
        await t.says("question", "Beam on?")
        await t.keys("y")
        dialog = await t.asks(TypeWord)
        t.site.room.go_to(State.ARMED)  # the same question, asked anew
        await t.keys(*dialog.word, "enter")
        await t.says("said", "beam_on", "earlier question")
        assert t.site.room.state is State.ARMED, "an answer to a question that has changed is refused by the room"


async def test_control_is_kept_by_heartbeats_and_what_must_be_seen_is_seen_at_every_size(tmp_path: Path) -> None:
    async with terminal(tmp_path, size=SIZES[0]) as t:
        t.site.room.alarms["a"] = AlarmView(
            id="a", severity="high", text="long " * 60, source="x", raised_t_ns=0, active=True, count=1
        )
        await t.keys("c")
        await t.says("banner", "IN CONTROL")
        await t.says("alarm", "!!!", "long")
        for size in SIZES:
            await t.pilot.resize_terminal(*size)
            await t.until(lambda size=size: t.app.screen.size == size)
            for tab in ("tab-alarms", "tab-devices", "tab-events", "tab-room")[3 if size > SIZES[0] else 0 :]:
                t.app.query_one(TabbedContent).active = tab
                await t.pilot.pause()
                t.in_sight()
        await t.until(lambda: "STALE" not in t.drawn() and "last known" not in t.drawn())
        desk, end_s = t.site.room.desk, asyncio.get_running_loop().time() + 1.6
        while asyncio.get_running_loop().time() < end_s:
            assert desk.console_alive()
            await asyncio.sleep(0.05)
        await t.keys("c")
        await t.until(lambda: desk.control is None)
        await t.until(lambda: "IN CONTROL" not in t.words("banner"))

        t.app.client._take = lambda message: None  # type: ignore[method-assign]
        last_s = t.app.client.shown.at_s  # the line stands, and no view comes any more
        await t.says("banner", "STALE")
        assert asyncio.get_running_loop().time() - last_s < STALE_SEEN_S
        await t.shows("STALE", "nothing new has come", "SIMULATED", "last known: standby")


async def test_stop_works_before_anybody_has_signed_in_and_a_wrong_password_is_asked_again(tmp_path: Path) -> None:
    async with terminal(tmp_path, role="") as t:
        await t.asks(SignIn)
        await t.keys(*"ana", "enter", *"se", "space", *"cret")
        assert t.app.screen.query_one("#password", Input).value == "se cret", "a space in a password is a space"
        assert t.site.room.state is State.STANDBY
        await t.keys("f9")
        await t.says("said", "STOP was taken")
        assert t.site.room.state is State.FAULT
        assert isinstance(t.app.screen, SignIn), "and the dialog is still there"

        await t.keys("escape", "l")
        first = await t.asks(SignIn)
        await t.fill("operator", "wrong")
        await t.asks(SignIn, but=first)
        await t.says("said", "name or password is wrong")
        await t.fill("operator", t.site.password("operator"))
        await t.says("banner", "operator as operator")
        await t.keys("l")
        await t.says("said", "signed out")
        await t.says("banner", "STALE", "nobody is signed in")


async def test_stop_works_in_every_dialog_and_its_answer_is_seen(tmp_path: Path) -> None:
    async with terminal(tmp_path, size=SIZES[0]) as t:
        for kind, key in ((TypeWord, "f9"), (Sure, "space"), (Choose, "space")):
            if kind is TypeWord:
                many = [("patient", "[b]Stand^In[/b]"), *((f"fact {number}", "x") for number in range(30))]
                t.app.push_screen(TypeWord("Beam on?", many))
            else:
                await t.keys("t" if kind is Sure else "o")
            dialog = await t.asks(kind)
            await t.keys(key)
            await t.says("said", "STOP was taken")
            assert t.site.room.state is State.FAULT
            assert isinstance(t.app.screen, kind), "and what was asked is still asked"
            await t.shows("SIMULATED", " fault ", "STOP was taken by the room", "f9 STOP")
            t.in_sight()
            if kind is TypeWord:
                await t.shows("Beam on?", f"type {dialog.word} and press Enter")
                assert dialog.find_widget(dialog.query_one("#word")).visible_region.area, "where it is typed, too"
            t.app._say(Text(""))
            await t.keys("escape")
            await t.until(lambda kind=kind: not isinstance(t.app.screen, kind))
            t.site.room.go_to(State.STANDBY)


async def test_a_console_that_is_gone_makes_it_stale_and_stop_says_that_it_is_not_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_client, "STOP_TRIES", 1)
    async with console_site(tmp_path) as site, contextlib.AsyncExitStack() as server:
        port = await server.enter_async_context(real_server(site.app))
        client = WatchClient(f"http://127.0.0.1:{port}")
        app = WatchApp(client, "G1", Credentials("operator", site.password("operator"), ""))
        async with app.run_test(size=SIZES[0]) as pilot:
            t = Terminal(site, app, pilot)
            await t.until(lambda: client.shown.view is not None)
            last_s = client.shown.at_s
            await site.rooms[0].server.close()  # the room's process ends
            assert asyncio.get_running_loop().time() - last_s < STALE_SEEN_S
            await t.shows("STALE", "room's process is not there", "SIMULATED", "last known: standby")
            await t.keys("space")
            await t.shows("STOP IS NOT CONFIRMED")
            await server.aclose()  # and now the console's
            await t.keys("space")
            await t.says("said", "STOP IS NOT CONFIRMED", "the console does not answer", "press the emergency stop")
            await t.shows("STALE", "last known: standby", "STOP IS NOT CONFIRMED", "press the emergency stop", "f9 STOP")
            t.in_sight()


async def test_alarms_are_listed_and_the_one_under_the_cursor_is_acknowledged(tmp_path: Path) -> None:
    async with terminal(tmp_path) as t:
        for number, severity in enumerate(("high", "low")):
            t.site.room.alarms[f"a{number}"] = AlarmView(
                id=f"a{number}", severity=severity, text=f"[red]text[/] {number}", source="x", raised_t_ns=0, active=True
            )
        await t.says("alarm", "!!!", "[red]text[/] 0", "and 1 more")
        sent: list[tuple[str, Any]] = []

        async def command(name: str, arguments: Any = None, **_: Any) -> Told:
            sent.append((name, arguments))
            return Told(False, "not offered here", "see the room's own console")

        t.app.client.command = command  # type: ignore[method-assign]
        await t.keys("a")
        await t.says("said", "acknowledge_alarm: not offered here; see the room's own console")
        t.app.query_one("#tabs").active = "tab-alarms"  # type: ignore[attr-defined]
        table = t.app.query_one("#alarms", DataTable)
        await t.until(lambda: table.row_count == 2)
        table.move_cursor(row=1)
        await t.pilot.pause(0.3)
        await t.keys("a")
        await t.until(lambda: len(sent) == 2)
        assert sent == [("acknowledge_alarm", {"id": "a0"}), ("acknowledge_alarm", {"id": "a1"})]


async def test_devices_events_the_menu_of_the_role_and_stop_when_the_sign_in_has_ended(tmp_path: Path) -> None:
    async with terminal(tmp_path) as t:
        t.app.query_one("#tabs").active = "tab-devices"  # type: ignore[attr-defined]
        await t.says("devices", "G1-device-0", "connected", "value_0")
        t.app.query_one("#tabs").active = "tab-events"  # type: ignore[attr-defined]
        t.site.room.event("trip", cause="test.cause", message="[bold]told[/bold]")
        await t.says("events", "room.G1", "trip", "test.cause", "[bold]told[/bold]")
        t.app.query_one("#tabs").active = "tab-room"  # type: ignore[attr-defined]
        await t.keys("f9")
        await t.says("interlocks", "FIRST-OUT", "STOP", "stop by operator", "do: acknowledge")
        await t.keys("c")
        await t.says("banner", "IN CONTROL")
        await t.keys("m")
        choose = await t.asks(Choose)
        assert [choose.query_one(OptionList).get_option_at_index(0).id] == ["acknowledge"]
        await t.keys("enter")
        await t.says("state", "standby")

        for session in list(t.site.hub.tokens._alive.values()):
            t.site.hub.tokens.end(session, "this sign-in lapsed after 15 minutes without use")
        await t.says("banner", "STALE", "lapsed after 15 minutes", "nobody is signed in")
        assert not t.app.client.in_control
        await t.keys("space")
        await t.says("said", "STOP was taken")
        assert t.site.room.state is State.FAULT
        await t.keys("y")
        await t.keys("p")
        await t.says("said", "pause", "sign")


async def test_one_view_is_printed_for_scripts_and_what_is_wrong_is_said(tmp_path: Path) -> None:
    async with console_site(tmp_path / "state") as site, real_server(site.app) as port:
        secret = tmp_path / "password"
        secret.write_text(site.password("observer") + "\n")
        who = ("--name", "observer", "--password-file", str(secret))
        url = ("--url", f"http://127.0.0.1:{port}")

        async def watched(*more: str) -> tuple[int, str]:
            script = "from controller.cli import main; main()"
            command = [sys.executable, "-c", script, "watch", *url, "--once", *more]
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await process.communicate()
            return process.returncode or 0, said.decode()

        code, said = await watched("--json", *who)
        assert code == 0
        view = json.loads(said)
        assert (view["room"], view["state"]) == ("G1", "standby")
        none = await asyncio.to_thread(CliRunner().invoke, command_line, ["watch", *url, "--once", "--room", "G9", *who])
        refused = none.output + none.stderr
        assert none.exit_code == 2 and "no room G9 is served; served: G1" in refused and "Traceback" not in refused
        said = view_words(view)
        assert "standby" in said and "SIMULATED" in said and "permit relay closed" in said
        assert not site.hub.tokens._alive, "nobody stays signed in"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--once"], "nobody is named"),
        (["--json"], "give --once"),
        (["--url", "ftp://x"], "no address of a console"),
        (["--state", "/nowhere"], "no console has written its address"),
        (["--url", "https://127.0.0.1:1", "--ca", "/nowhere", "--name", "x"], "cannot be read as certificates"),
        (["--once", "--name", "x", "--password-file", "/nowhere"], "cannot be read"),
    ],
)
def test_the_command_refuses_with_words(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    given = (
        ["--url", "http://127.0.0.1:1", *arguments] if "--url" not in arguments and "--state" not in arguments else arguments
    )
    result = CliRunner().invoke(command_line, ["watch", *given])
    assert result.exit_code == 2
    assert words in result.output or words in result.stderr


async def test_a_line_that_the_console_is_about_to_close_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_client, "KEEP_S", 0.05)

    lines: list[Any] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request of a line, and lets go of it without an answer to the second."""
        lines.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await reader.read(1)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    client = WatchClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert (await client.health()).accepted
    await asyncio.sleep(0.1)
    told = await client.health()
    assert told.accepted, told
    await client.close()
    await asyncio.gather(*lines)
    server.close()
    await server.wait_closed()


async def test_which_room(tmp_path: Path) -> None:
    async with console_site(tmp_path, ("G1", "F1")) as site, real_server(site.app) as port:
        client = WatchClient(f"http://127.0.0.1:{port}")
        assert await chosen_room(client, "F1") == "F1"
        with pytest.raises(CommandRejected, match=r"which room.*served: G1, F1"):
            await chosen_room(client, "")
        await client.close()
    nobody = WatchClient("http://127.0.0.1:1")
    with pytest.raises(CommunicationError, match="no console at"):
        await chosen_room(nobody, "G1")
    told = await nobody.stop()
    assert not told.accepted and "NOT CONFIRMED" in str(told)
    await nobody.close()


def test_the_address_is_what_the_console_wrote(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    written = tmp_path / "run" / "console.json"
    written.write_text('{"url": "http://127.0.0.1:8123", "pid": 1, "port": 8123}')
    assert console_url("", tmp_path) == "http://127.0.0.1:8123"
    assert console_url("http://127.0.0.1:1", tmp_path) == "http://127.0.0.1:1"
    written.write_text("{")
    with pytest.raises(ConfigError, match=r"console\.json"):
        console_url("", tmp_path)


def test_a_commanding_console_that_is_not_heard_is_said_to_be_so_at_the_terminal() -> None:
    control = {"console": "api2", "actor": "ana", "role": "operator"}
    for heard_ms, said in ((63_400.0, True), (400.0, False)):
        words = state_words({"state": "standby", "why": "", "control": {**control, "heard_ms": heard_ms}}).plain
        assert ("not heard for 63 s: control may be taken" in words) is said
