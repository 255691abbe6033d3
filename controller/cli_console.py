"""Commands that are clients of the console: `watch`. Not responsible for the console itself (`cli_site`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli_common import EXIT_DELIVERED, JsonOption, refuse, say
from controller.early_end import begun

if TYPE_CHECKING:
    from controller.console.watch_client import WatchClient
    from controller.console.watch_dialogs import Credentials


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(watch)


def watch(
    url: Annotated[str, typer.Option(help="Address of the console. Default: what it wrote into the state directory.")] = "",
    state: Annotated[Path | None, typer.Option(help="State directory of the console. Default: run/state.")] = None,
    room: Annotated[str, typer.Option(help="Room to show. Default: the only one that is served.")] = "",
    name: Annotated[str, typer.Option(help="Sign in as this user. Default: asked for.")] = "",
    role: Annotated[str, typer.Option(help="One of the user's roles. Default: the first.")] = "",
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the password. Default: asked for.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates (PEM) that sign the console's own, for https.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what the room shows now, and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show and command a room in a terminal: a client of the console, for a rig without a browser. F9 stops, always.

    Exit codes: 0 left, 2 there is no such console, room or user.
    """
    import asyncio

    from controller.console.watch_client import WatchClient, console_url
    from drivers.hal.errors import BeamlineError

    if as_json and not once:
        refuse(["--json prints one view: give --once, too"])
    try:
        address = console_url(url, state)
        if not once:
            import controller.console.watch_app  # noqa: F401 - takes its time while nothing is on the screen yet

            begun()  # from now on there is a terminal to be put right
        credentials = _credentials(name, role, password_file, needed=once)
        client = WatchClient(address, ca)
        if once:
            view = asyncio.run(_once(client, room, credentials))
            say(json.dumps(view, indent=2) if as_json else view_words(view))
        else:
            _show(client, room, credentials)
    except BeamlineError as error:
        refuse([str(error)], as_json)
    raise typer.Exit(EXIT_DELIVERED)


def _credentials(name: str, role: str, password_file: Path | None, *, needed: bool) -> Credentials | None:
    """Who is to be signed in, as far as it was said; what is missing is asked for where there is no screen to ask."""
    from controller.console.watch_dialogs import Credentials
    from drivers.hal.errors import ConfigError

    if not name:
        if needed or password_file is not None:
            raise ConfigError("nobody is named", code=1094, hint="give --name, and the password in a --password-file")
        return None
    if password_file is None:
        if not needed:
            return None
        return Credentials(name, typer.prompt(f"password of {name}", hide_input=True, err=True), role)
    try:
        lines = password_file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        hint = "a text file whose first line is the password"
        raise ConfigError(f"{password_file} cannot be read: {error}", code=1094, hint=hint) from None
    return Credentials(name, lines[0] if lines else "", role)


def _show(client: WatchClient, room: str, credentials: Credentials | None) -> None:
    import asyncio
    import sys

    from controller.console.watch_app import WatchApp
    from controller.console.watch_client import chosen_room
    from drivers.hal.errors import ConfigError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("this is no terminal", code=1095, hint="run it in a terminal, or give --once")

    async def shown() -> None:
        try:
            chosen = await chosen_room(client, room)
            await WatchApp(client, chosen, credentials).run_async()
        finally:
            await client.close()

    asyncio.run(shown())


async def _once(client: WatchClient, room: str, credentials: Credentials | None) -> dict[str, object]:
    """One view. Raises BeamlineError."""
    from controller.console.watch_client import chosen_room
    from drivers.hal.errors import CommandRejected, CommunicationError

    try:
        chosen = await chosen_room(client, room)
        if credentials is not None:
            told = await client.sign_in(*credentials)
            if not told.accepted:
                raise CommandRejected(f"not signed in: {told.reason}", code=4472, hint=told.hint)
        told = await client.view(chosen)
        if not told.accepted:
            raise CommunicationError(told.reason, code=2072, device=chosen, hint=told.hint, retryable=True)
        view: dict[str, object] = told.value
        return view
    finally:
        await client.close()


def view_words(view: dict[str, object]) -> str:
    """What a room shows, in lines."""
    from controller.console import watch_words as words

    parts = [
        words.banner(view, room=str(view["room"]), stale=False, trouble="", who="-", in_control=False),
        words.alarm_summary(view),
        words.state_words(view),
        words.question_words(view),
        words.checklist_words(view),
        words.gantry_words(view),
        words.beam_words(view),
        words.interlock_words(view),
        words.progress_words(view),
    ]
    return "\n".join(part.plain for part in parts)
