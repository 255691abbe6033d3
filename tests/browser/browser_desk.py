"""A person at the operator's page: a real Chromium, driven by Playwright, in front of the program as it is started by hand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect

IONGANTRY = (sys.executable, "-c", "from controller.cli import main; main()")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1280, "height": 800}
READY_S = 60.0
STEP_MS = 60_000.0
SPEED = 4 if os.environ.get("IONGANTRY_SCREENSHOTS") else 20  # pictures want time in which something can be seen
expect.set_options(timeout=STEP_MS)


class House:
    """`iongantry serve` in a process of its own, with a simulated world that runs `speed` times as fast as life."""

    def __init__(self, state: Path, *options: str, speed: int = SPEED) -> None:
        self.state = state
        command = [
            *IONGANTRY,
            "serve",
            "--speed",
            str(speed),
            "--staff",
            "quick",
            "--seed",
            "7",
            "--port",
            "0",
            "--state",
            str(state),
        ]
        self._log = (state.parent / f"{state.name}.log").open("wb")
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=self._log, start_new_session=True)
        try:
            self.url = self._ready()
        except BaseException:
            self.close()
            raise
        lines = (state / "first-passwords.txt").read_text(encoding="utf-8").splitlines()
        self.passwords = dict(line.split() for line in lines if len(line.split()) == 2)
        self.known: dict[str, dict[str, Any]] = {}

    def signed_in(self, role: str, console: str = "") -> dict[str, Any]:
        """What a page keeps of a sign-in; one for each console, for tests that are about something else."""
        console = console or f"desk-{role}"
        if console not in self.known:
            body = {"name": role, "password": self.passwords[role], "console": console}
            request = urllib.request.Request(
                f"{self.url}/api/login", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
            )
            with urllib.request.urlopen(request, timeout=READY_S) as answer:
                told = json.load(answer)
            person = {"name": told["name"], "role": told["role"], "roles": told["roles"], "first": told["first_password"]}
            self.known[console] = {"token": told["token"], "console": console, "person": person, "control": {}}
        return self.known[console]

    def _ready(self) -> str:
        assert self.process.stdout is not None
        until, said = time.monotonic() + READY_S, b""
        while time.monotonic() < until:
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                piece = os.read(self.process.stdout.fileno(), 4096)
                said += piece
                found = re.search(rb"console: (https?://\S+)", said)
                if found:
                    return found[1].decode()
                if not piece:
                    break
        raise AssertionError(f"serve did not become ready; it said {said.decode(errors='replace')!r}, and {self.errors()!r}")

    def errors(self) -> str:
        """What it wrote to its standard error."""
        self._log.flush()
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")[-3000:]

    def console_pid(self) -> int:
        """Of the process that answers HTTP."""
        return int(json.loads((self.state / "run" / "console.json").read_text(encoding="utf-8"))["pid"])

    def close(self) -> None:
        """As Ctrl-C ends it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(5)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


# Between the stream and the page, before anything of the page runs. It is in the page itself: ten views a second through the
# debugger of the browser, there and back, would cost more than what is tested.
BETWEEN = """(() => {
  const altered = (window.altered = %s);
  const laid = (below, above) => {
    const plain = (one) => one !== null && typeof one === "object" && !Array.isArray(one);
    if (!plain(below) || !plain(above)) return above;
    return { ...below, ...Object.fromEntries(Object.entries(above).map(([name, value]) => [name, laid(below[name], value)])) };
  };
  const { get, set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
  const changed = (event) => {
    const told = JSON.parse(event.data);
    if (told.kind !== "view") return event;
    return altered.silent ? null : { data: JSON.stringify({ ...told, view: laid(told.view, altered.patch) }) };
  };
  Object.defineProperty(WebSocket.prototype, "onmessage", {
    get,
    set(listener) {
      set.call(this, (event) => {
        const one = changed(event);
        if (one !== null) listener(one);
      });
    },
  });
})()"""


class Alter:
    """Views as the test wants them: `patch` is laid over each; `silent` lets none through."""

    def __init__(self, **patch: Any) -> None:
        self._patch, self._silent = patch, False
        self.page: Page | None = None

    def script(self) -> str:
        """For the page, before anything else of it runs."""
        return BETWEEN % json.dumps({"patch": self._patch, "silent": self._silent})

    @property
    def patch(self) -> dict[str, Any]:
        """Laid over each view; set it anew to change it."""
        return self._patch

    @patch.setter
    def patch(self, patch: dict[str, Any]) -> None:
        self._patch = patch
        self._tell()

    @property
    def silent(self) -> bool:
        """Whether no view comes."""
        return self._silent

    @silent.setter
    def silent(self, silent: bool) -> None:
        self._silent = silent
        self._tell()

    def _tell(self) -> None:
        assert self.page is not None
        self.page.evaluate("(told) => Object.assign(window.altered, told)", {"patch": self._patch, "silent": self._silent})


class Desk:
    """One page, signed in or not. What goes wrong in it is kept in `wrong`, and where it asked in `asked`.

    Args:
        size: of the window, CSS pixels.
        alter: changes views on their way to the page.
        scale: points of the screen for each CSS pixel; 2 with half the size is a zoom of 200 %.
    """

    def __init__(
        self,
        browser: Browser,
        house: House,
        *,
        size: dict[str, int] | None = None,
        alter: Alter | None = None,
        scale: int = 1,
    ) -> None:
        self.house = house
        shown: Any = {"viewport": size or SIZE, "device_scale_factor": scale}
        self.context = browser.new_context(**shown, reduced_motion="reduce")
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(STEP_MS)
        self.wrong: list[str] = []
        self.asked: set[str] = set()
        self.page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        self.page.on("console", lambda said: self.wrong.append(said.text) if "Content Security Policy" in said.text else None)
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.on("websocket", lambda socket: self.asked.add(socket.url))
        self.alter = alter or Alter()
        if alter is not None:
            alter.page = self.page
            self.page.add_init_script(alter.script())

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.context.close()

    def sign_in(self, role: str = "operator", console: str = "") -> Desk:
        """As the user that the first start makes for a role."""
        page = self.page
        page.goto(self.house.url)
        form = page.locator("form.sign-in")
        form.get_by_label("Name", exact=True).fill(role)
        form.get_by_label("Password").fill(self.house.passwords[role])
        if console:
            form.get_by_label("This console").fill(console)
        form.get_by_role("button", name="Sign in").click()
        expect(page.locator(".card").first).to_be_visible()
        return self

    def known(self, role: str = "operator", console: str = "") -> Desk:
        """Signed in already, as after a reload of the page."""
        self.open("", role, console)
        expect(self.page.locator(".card").first).to_be_visible()
        return self

    def open(self, place: str, role: str, console: str = "") -> None:
        """At a place, signed in already, without a wait for what it shows."""
        kept = json.dumps(self.house.signed_in(role, console))
        self.page.add_init_script(f"sessionStorage.setItem('iongantry.session', {json.dumps(kept)})")
        self.page.goto(f"{self.house.url}/{place}", wait_until="commit")

    def go(self, name: str) -> Desk:
        """To a page by its link."""
        self.page.get_by_role("navigation").get_by_role("link", name=re.compile(f"^{name}")).click()
        return self

    def room(self) -> Desk:
        """To the room's screen, until it shows something fresh."""
        self.go("G1")
        expect(self.page.locator(".state[data-tone]:not([data-tone=unknown])")).to_be_visible()
        return self

    def take_control(self) -> Desk:
        """Become the commanding console."""
        self.page.get_by_role("button", name="Take control").click()
        expect(self.page.locator(".control")).to_contain_text("you command")
        return self

    def asks(self, kind: str) -> Locator:
        """The button that answers the question, once the room asks it."""
        expect(self.page.locator(f".question[data-asks={kind}]")).to_be_visible()
        button = self.page.locator(".answer")
        expect(button).to_be_enabled()
        return button

    def hold(self, key: str, for_ms: float) -> None:
        """A key that is held down."""
        self.page.keyboard.down(key)
        self.page.wait_for_timeout(for_ms)
        self.page.keyboard.up(key)

    def beam_on(self, kind: str = "beam_on") -> None:
        """Hold the key until beam is asked for; readiness lapses quickly where time runs fast, and is asked for anew."""
        for _attempt in range(5):
            self.asks(kind)
            self.hold("F9", 1150)
            with contextlib.suppress(AssertionError):
                self.state("Beam on", "Beam held", "Interrupted", timeout_ms=2_000)
                return
        raise AssertionError(f"no beam: {self.page.locator('.state').inner_text()}")

    def state(self, *words: str, timeout_ms: float = STEP_MS) -> None:
        """Wait for one of these words as the state of the room."""
        expect(self.page.locator(".state .state-word")).to_have_text(re.compile("|".join(words)), timeout=timeout_ms)

    def load_example(self, *, remainder: bool = False) -> None:
        """Load the example plan in the room."""
        self.go("Plans")
        self.page.locator(".choice", has_text="carbon sphere").first.click()
        self.page.get_by_label("only what an earlier delivery left").set_checked(remainder)
        load = self.page.get_by_role("button", name="Load in G1")
        expect(load).to_be_enabled()
        load.evaluate("(button) => { button.click(); button.click(); }")  # a hand that presses twice
        expect(self.page).to_have_url(re.compile("#/room/"))
        expect(self.page.locator(".patient-name")).to_have_text("Phantom, Water")

    def prepare(self) -> None:
        """From a loaded plan to the question for beam."""
        self.asks("identify").click()
        self.asks("positioned").click()
        self.asks("beam_on")

    def view(self) -> dict[str, Any]:
        """What the room shows, as a program asks for it."""
        return self.get("/api/rooms/G1")

    def get(self, path: str) -> Any:
        """Ask as this page's person."""
        kept = json.loads(self.page.evaluate("() => sessionStorage.getItem('iongantry.session')"))
        answer = self.page.request.get(
            f"{self.house.url}{path}", headers={"Authorization": f"Bearer {kept['token']}", "X-Console": kept["console"]}
        )
        assert answer.ok, answer.text()
        return answer.json()
