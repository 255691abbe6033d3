"""What the terminal asks a person: name and password, yes or no, a word to be typed, one of a list.

Every dialog lets STOP through: that key belongs to the application and comes before any input. Not responsible for what is done
with an answer (`watch_app`).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

# Short, unlike each other, on every keyboard: typed by somebody who means it, never by an elbow.
WORDS = ("carbon", "gantry", "nozzle", "helium", "couch", "spill", "magnet", "proton")


class Credentials(NamedTuple):
    """What somebody typed."""

    name: str
    password: str
    role: str


class _Dialog(ModalScreen[str | None]):
    """Given up with escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "give_up", "give up")]

    def action_give_up(self) -> None:
        """No answer."""
        self.dismiss(None)


class SignIn(ModalScreen[Credentials | None]):
    """Name, password and, if somebody holds several roles, which."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "give_up", "give up")]

    def __init__(self, why: str = "") -> None:
        super().__init__()
        self._why = why

    def compose(self) -> ComposeResult:
        """Three lines to fill in."""
        with Vertical(classes="dialog"):
            yield Static(self._why or "sign in", classes="ask")
            yield Input(placeholder="name", id="name", max_length=64, compact=True)
            yield Input(placeholder="password", password=True, id="password", max_length=256, compact=True)
            yield Input(placeholder="role (empty: your first)", id="role", max_length=20, compact=True)
            yield Static("Enter: next, then sign in    Esc: give up", classes="keys")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The next line, or done."""
        fields = {each.id: each for each in self.query(Input)}
        if event.input.id == "name":
            fields["password"].focus()
        else:
            self.dismiss(Credentials(fields["name"].value, fields["password"].value, fields["role"].value.strip()))

    def action_give_up(self) -> None:
        """No answer."""
        self.dismiss(None)


class TypeWord(_Dialog):
    """Something that cannot be taken back: a word is shown and has to be typed. A key that is held down types no word."""

    AUTO_FOCUS = "Input"  # not what scrolls around it

    def __init__(self, text: str, facts: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.word = secrets.choice(WORDS)
        self._text, self._facts = text, facts

    def compose(self) -> ComposeResult:
        """The question, what it is about, the word."""
        with VerticalScroll(classes="dialog danger"):
            yield Static(self._text, classes="ask", markup=False)
            for name, value in self._facts:
                yield Static(f"{name}: {value}", markup=False)
            with Vertical(classes="answer"):  # in sight however long the list above is; up and down move that
                yield Static(f"type  {self.word}  and press Enter    Esc: give up", classes="keys", markup=False)
                yield Input(id="word", max_length=20, compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Only the word counts."""
        if event.value.strip().lower() == self.word:
            self.dismiss(self.word)
        else:
            event.input.value = ""


class Sure(_Dialog):
    """Yes or no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "yes"),
        Binding("n,escape", "give_up", "no"),
        Binding("space", "app.stop", "STOP"),
    ]

    def __init__(self, text: str, facts: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__()
        self._text, self._facts = text, facts

    def compose(self) -> ComposeResult:
        """The question and what it is about."""
        with VerticalScroll(classes="dialog"):
            yield Static(self._text, classes="ask", markup=False)
            for name, value in self._facts:
                yield Static(f"{name}: {value}", markup=False)
            yield Static("y: yes    n: no", classes="keys")

    def action_yes(self) -> None:
        """Yes."""
        self.dismiss("yes")


class Choose(_Dialog):
    """One of a list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("space", "app.stop", "STOP")]

    def __init__(self, text: str, choices: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._text, self._choices = text, choices

    def compose(self) -> ComposeResult:
        """The list; each choice has a key of its own that is the answer."""
        from rich.text import Text

        with Vertical(classes="dialog"):
            yield Static(self._text, classes="ask", markup=False)
            yield OptionList(*(Option(Text(words), id=key) for key, words in self._choices))
            yield Static("Enter: this one    Esc: give up", classes="keys")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Chosen."""
        self.dismiss(event.option_id)
