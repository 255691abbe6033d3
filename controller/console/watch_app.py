"""`iongantry watch`: a room in a terminal, for a rig without a browser. The same essentials as the page, by keys.

F9 stops, always: in every dialog, signed in or not, whatever is shown; space does so wherever nothing is typed. A terminal
knows no key that is held and then let go, so what cannot be taken back (beam on, resume) is confirmed by typing a word that is
shown. Not responsible for judging a command (the room's desk) nor for the lines to the console (`watch_client`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from controller.console import watch_words as words
from controller.console.watch_client import Told, WatchClient
from controller.console.watch_dialogs import Choose, Credentials, SignIn, Sure, TypeWord

DRAW_S = 0.2  # five times a second: more than a terminal on a serial line takes
STAY_S = 60.0  # no more often than that a key says that somebody is here
FOLLOWED_BY_WORD = frozenset({"beam_on", "resume"})
# Commands of the menu that need nothing but their name.
PLAIN = {
    "pause": "interrupt the beam",
    "terminate": "end the field and record it",
    "cancel": "give up before beam",
    "acknowledge": "leave fault",
    "reset_interlock": "press the reset button of your role",
    "reset_dose_trip": "reset a latched dose unit",
    "unload_plan": "put the plan back",
    "self_test": "test the dose units",
    "reconcile": "sign what an open grant delivered",
    "enter_service": "leave treatment, with the key",
    "leave_service": "back to treatment",
}


class WatchApp(App[None]):
    """One room.

    Args:
        client: of the console.
        room: to be followed and stopped.
        credentials: tried first; None: asked for.
    """

    TITLE = "iongantry watch"
    ENABLE_COMMAND_PALETTE = False
    # What must never be out of sight has lines of its own that nothing takes away, fitted to 80 x 24: the screen itself never
    # scrolls, only what is behind the tabs does, and dialogs stand between those lines (5 above, 4 below).
    CSS = """
    Screen { overflow: hidden; }
    #banner { height: 2; background: $panel; }
    #alarm { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #state { height: 2; text-wrap: nowrap; text-overflow: ellipsis; }
    #tabs { height: 1fr; }
    #tabs ContentSwitcher { height: 1fr; }
    TabPane { height: 1fr; padding: 0; }
    #alarms { height: 1fr; }
    #said { height: 3; background: $boost; }
    .old #tabs { text-opacity: 60%; }
    .panel { border: round $primary; padding: 0 1; height: auto; }
    .column { width: 1fr; }
    .dialog { width: 76; margin: 5 0 4 0; max-height: 100%; height: auto; padding: 0 2;
        border: thick $warning; background: $surface; }
    .danger { border: thick $error; }
    .answer { dock: bottom; height: auto; background: $surface; }
    .ask { text-style: bold; margin-bottom: 1; }
    .keys { margin-top: 1; color: $text-muted; }
    SignIn Input { margin-bottom: 1; }
    SignIn, TypeWord, Sure, Choose { align: center middle; background: $background 0%; }
    OptionList { height: auto; max-height: 37vh; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f9", "stop", "STOP", priority=True),
        Binding("space", "stop", "STOP"),
        Binding("l", "sign_in", "sign in/out"),
        Binding("c", "control", "control"),
        Binding("o", "open_plan", "plan"),
        Binding("y", "answer", "yes", show=False),  # the question itself names these two
        Binding("n", "decline", "no", show=False),
        Binding("p", "plain('pause')", "pause"),
        Binding("t", "sure('terminate')", "terminate"),
        Binding("x", "sure('reset_interlock')", "reset", show=False),  # named beside what has tripped
        Binding("a", "seen", "seen"),
        Binding("m", "menu", "more"),
        Binding("q", "leave", "quit"),
    ]

    def __init__(self, client: WatchClient, room: str, credentials: Credentials | None = None) -> None:
        super().__init__()
        self.client = client
        self.animation_level = "none"  # nothing moves but the room
        client.room = room
        self._credentials = credentials
        self._new = True
        self._put_before: dict[str, Text] = {}
        self._alarms_before: list[tuple[str, ...]] = []
        self._stayed_s = 0.0
        client.changed = self._changed

    def compose(self) -> ComposeResult:
        """What is always in sight above and below; between them the room in two columns, and lists behind tabs."""
        yield Static(id="banner")
        yield Static(id="alarm")
        yield Static(id="state")
        with TabbedContent(id="tabs"):
            with TabPane("Room", id="tab-room"), Horizontal():
                with VerticalScroll(classes="column"):
                    for name in ("question", "checklist", "gantry"):
                        yield _panel(name)
                with VerticalScroll(classes="column"):
                    for name in ("interlocks", "beam", "progress"):
                        yield _panel(name)
            with TabPane("Alarms", id="tab-alarms"):
                yield DataTable(id="alarms", cursor_type="row")
            with TabPane("Devices", id="tab-devices"), VerticalScroll():
                yield Static(id="devices")
            with TabPane("Events", id="tab-events"), VerticalScroll():
                yield Static(id="events")
        yield Static(id="said")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to draw; ask who is here."""
        self.query_one("#alarms", DataTable).add_columns("severity", "state", "count", "what")
        self.set_interval(DRAW_S, self._draw)
        self._begin()

    async def on_unmount(self) -> None:
        """Sign out."""
        await self.client.close()

    def on_key(self) -> None:
        """Somebody is here."""
        now_s = asyncio.get_running_loop().time()
        if self.client.signed_in and now_s - self._stayed_s > STAY_S:
            self._stayed_s = now_s
            self._stay()

    # --- acts -------------------------------------------------------------------------------------------------------------

    def action_stop(self) -> None:
        """Stop, whatever else is going on."""
        self._stop()

    @work(group="stop")
    async def _stop(self) -> None:
        self._say(Text(" STOP is sent ", words.WARN))
        told = await self.client.stop()
        if told.accepted:
            self._say(Text(" STOP was taken by the room ", words.BAD))
        else:
            self._say(Text(f" {told} ", words.BAD))
            self.bell()

    @work(group="people", exclusive=True)
    async def action_sign_in(self) -> None:
        """Sign in, or out when somebody is signed in."""
        if self.client.signed_in:
            await self.client.sign_out()
            self._say(Text("signed out"))
        else:
            await self._sign_in()

    @work(group="people", exclusive=True)
    async def _begin(self) -> None:
        given, self._credentials = self._credentials, None
        if given is None or not await self._try(given):
            await self._sign_in()

    @work(group="stay", exclusive=True)
    async def _stay(self) -> None:
        await self.client.stay()

    async def _sign_in(self) -> None:
        why = f"signed out: {self.client.ended}" if self.client.ended else ""
        while (given := await self.push_screen_wait(SignIn(why))) is not None:
            if await self._try(given):
                return
            why = "not signed in; try again, or Esc"

    async def _try(self, given: Credentials) -> bool:
        told = await self.client.sign_in(given.name, given.password, given.role or None)
        if not told.accepted:
            self._say(Text(str(told), "red"))
            return False
        self._say(Text(f"signed in as {self.client.name}, {self.client.role}"))
        return True

    @work(group="command")
    async def action_control(self) -> None:
        """Take the room's control, or give it back."""
        await self._send("give_control" if self.client.in_control else "take_control")

    @work(group="answer", exclusive=True)
    async def action_answer(self) -> None:
        """Yes to what the room asks; what cannot be taken back needs its word."""
        question = (self.client.shown.view or {}).get("question")
        if not question:
            self._say(Text("the room asks nothing"))
            return
        facts = words.facts_of(question)
        grave = question["command"] in FOLLOWED_BY_WORD
        asked = TypeWord(question["text"], facts) if grave else Sure(question["text"], facts)
        if await self.push_screen_wait(asked) is None:
            self._say(Text("not answered"))
            return
        await self._send(question["command"], {"challenge": question["challenge"]})

    @work(group="answer", exclusive=True)
    async def action_decline(self) -> None:
        """No to what the room asks."""
        question = (self.client.shown.view or {}).get("question")
        if not question:
            self._say(Text("the room asks nothing"))
        elif await self.push_screen_wait(Sure(f"Say NO to: {question['text']}")) is not None:
            await self._send("decline", {"challenge": question["challenge"]})

    @work(group="command")
    async def action_plain(self, name: str) -> None:
        """Send a command that needs nothing but its name, at once."""
        await self._send(name)

    @work(group="answer", exclusive=True)
    async def action_sure(self, name: str) -> None:
        """The same, after a yes."""
        if await self.push_screen_wait(Sure(f"{name}: {PLAIN[name]}?")) is not None:
            await self._send(name)

    @work(group="answer", exclusive=True)
    async def action_menu(self) -> None:
        """Commands that are possible now, for this role."""
        possible = (self.client.shown.view or {}).get("commands", {})
        choices = [(name, f"{name}: {does}") for name, does in PLAIN.items() if self.client.role in possible.get(name, ())]
        if not choices:
            self._say(Text("no further command is possible now for this role"))
        elif (name := await self.push_screen_wait(Choose("what?", choices))) is not None:
            await self._send(name)

    @work(group="answer", exclusive=True)
    async def action_open_plan(self) -> None:
        """Choose a plan and its fraction, and load it."""
        told = await self.client.plans()
        if not told.accepted or not told.value:
            self._say(Text(str(told) or "the facility holds no plan", "" if told.accepted else "red"))
            return
        plans = {plan["id"]: plan for plan in told.value}
        choices = [(key, words.plan_line(plan, self.client.room)) for key, plan in plans.items()]
        chosen = await self.push_screen_wait(Choose("which plan?", choices))
        if chosen is None:
            return
        fraction = await self.push_screen_wait(Choose("which fraction?", words.fraction_choices(plans[chosen])))
        if fraction is not None:
            await self._send("load_plan", {"plan_id": chosen, **words.fraction_of(fraction)})

    @work(group="command")
    async def action_seen(self) -> None:
        """Acknowledge the alarm under the cursor of the list; elsewhere the most urgent that nobody has seen."""
        alarms = (self.client.shown.view or {}).get("alarms", ())
        waiting = [alarm["id"] for alarm in alarms if not alarm.get("acknowledged_by")]
        table = self.query_one("#alarms", DataTable)
        if self.query_one(TabbedContent).active == "tab-alarms" and table.row_count:
            waiting = [str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)]
        if waiting:
            await self._send("acknowledge_alarm", {"id": waiting[0]})
        else:
            self._say(Text("every alarm has been seen"))

    def action_leave(self) -> None:
        """Quit."""
        self.exit()

    async def _send(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        acted_s = asyncio.get_running_loop().time()
        told: Told = await self.client.command(name, arguments, acted_s=acted_s)
        self._say(Text(f"{name}: done", "green") if told.accepted else Text(f"{name}: {told}", "red"))
        if not told.accepted:
            self.bell()

    # --- drawing ----------------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._new = True

    def _say(self, text: Text) -> None:
        self._put("said", text)

    def _put(self, name: str, text: Text) -> None:
        """Show it, unless that is what is shown already: drawing is what costs a terminal time."""
        before = self._put_before.get(name)
        if before == text or not self.is_running:
            return
        self._put_before[name] = text
        panel = self.screen_stack[0].query_one(f"#{name}", Static)
        panel.update(text, layout=before is None or _height(before, panel) != _height(text, panel))

    def _draw(self) -> None:
        """What is new; the first line and the state always, because what is shown may have become old."""
        client = self.client
        view = client.shown.view
        if not self.is_running:
            return
        who = f"{client.name} as {client.role}" if client.signed_in else ""
        trouble = client.trouble or (f"signed out: {client.ended}" if client.ended and not client.signed_in else "")
        trouble = trouble or client.shown.trouble or ("" if client.shown.linked else "the room's process is not there")
        line = words.banner(view, room=client.room, stale=client.stale, trouble=trouble, who=who, in_control=client.in_control)
        self._put("banner", line)
        if view is None:
            return
        self.screen_stack[0].set_class(client.stale, "old")
        self._put("state", words.state_words(view, stale=client.stale))
        if not self._new:
            return
        self._new = False
        self._put("alarm", words.alarm_summary(view))
        active = self.screen_stack[0].query_one(TabbedContent).active
        if active == "tab-room":
            for name, said in _PANELS.items():
                self._put(name, said(view))
        elif active == "tab-alarms":
            self._draw_alarms(self.screen_stack[0].query_one("#alarms", DataTable), view)
        elif active == "tab-devices":
            self._put("devices", words.device_words(view))
        elif active == "tab-events":
            self._put("events", words.event_lines(client.shown.events))

    def _draw_alarms(self, table: DataTable[Text], view: Any) -> None:
        """The cursor stays on its alarm, wherever that goes in the list."""
        rows = {alarm["id"]: words.alarm_row(alarm) for alarm in view["alarms"]}
        said = [(key, *(cell.plain for cell in row)) for key, row in rows.items()]
        if said == self._alarms_before:
            return
        self._alarms_before = said
        kept = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value if table.row_count else None
        table.clear()
        for key, row in rows.items():
            table.add_row(*row, key=key)
        if kept in rows:
            table.move_cursor(row=list(rows).index(kept))


_PANELS: dict[str, Callable[[Any], Text]] = {
    "question": words.question_words,
    "checklist": words.checklist_words,
    "gantry": words.gantry_words,
    "interlocks": words.interlock_words,
    "beam": words.beam_words,
    "progress": words.progress_words,
}


def _height(text: Text, panel: Static) -> int:
    """Lines that it takes there."""
    width = max(panel.content_size.width, 1)
    return sum(max(1, -(-len(line) // width)) for line in text.plain.split("\n"))


def _panel(name: str) -> Static:
    panel = Static(id=name, classes="panel")
    panel.border_title = name
    return panel


def run_app(client: WatchClient, room: str, credentials: Credentials | None) -> None:
    """Until somebody quits."""
    WatchApp(client, room, credentials).run()
