"""How long a person waits for the operator's page: from opening it in Chromium to the first view of the room that is drawn.

The room and its console process run beside the browser, as they do on a desk with one computer. The person is signed in already
(the page is opened again after a break); the password's own time, which is made to be long, is not part of it. Without Chromium
there is no figure.
"""

from __future__ import annotations

import json
import re
import select
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.figures import IONGANTRY, Bench, Figure

AIM_S = 2.0
READY_S = 60.0
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SIZES = ((1280, 800), (3840, 2160))
DRAWN = ".state[data-tone]:not([data-tone=unknown])"


def measure(bench: Bench) -> list[Figure]:
    """Wall s for each size of screen; the browser is started once, its cache is empty each time."""
    chromium = shutil.which("chromium")
    if chromium is None:
        bench.tell("page-ready: chromium is not installed; no figure")
        return []
    state = bench.directory / "page-ready"
    command = [*IONGANTRY, "serve", "--state", str(state), "--port", "0", "--staff", "quick"]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        url = _ready(serving)
        return [_opened(chromium, url, state, size, max(bench.repeat, 5)) for size in SIZES]
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(30)
        if serving.stdout is not None:
            serving.stdout.close()


def _ready(serving: subprocess.Popen[bytes]) -> str:
    """The address that it tells. Raises RuntimeError."""
    until_s, said = time.monotonic() + READY_S, b""
    while serving.stdout is not None and time.monotonic() < until_s and serving.poll() is None:
        if select.select([serving.stdout], [], [], 0.2)[0]:
            said += serving.stdout.read1()
            if found := re.search(rb"console: (\S+)", said):
                return found[1].decode()
    raise RuntimeError(f"serve does not become ready: {said.decode(errors='replace')}")


def _opened(chromium: str, url: str, state: Path, size: tuple[int, int], repeat: int) -> Figure:
    from playwright.sync_api import sync_playwright

    kept = json.dumps(_sign_in(url, state))
    samples = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for _ in range(repeat):
            context = browser.new_context(viewport={"width": size[0], "height": size[1]})
            page = context.new_page()
            page.add_init_script(f"sessionStorage.setItem('iongantry.session', {json.dumps(kept)})")
            start_s = time.perf_counter()
            page.goto(f"{url}/#/room/G1")
            page.wait_for_selector(DRAWN)
            samples.append(time.perf_counter() - start_s)
            context.close()
        browser.close()
    note = "from opening the address to the first view drawn, nothing cached"
    return Figure(f"page ready at {size[0]} x {size[1]}", "s", tuple(samples), AIM_S, False, note)


def _sign_in(url: str, state: Path) -> dict[str, Any]:
    """What the page keeps of a sign-in."""
    lines = (state / "first-passwords.txt").read_text(encoding="utf-8").splitlines()
    password = next(line.split()[1] for line in lines if line.startswith("observer "))
    body = json.dumps({"name": "observer", "password": password, "console": "bench"}).encode()
    request = urllib.request.Request(f"{url}/api/login", body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=READY_S) as answer:
        told = json.load(answer)
    person = {"name": told["name"], "role": told["role"], "roles": told["roles"], "first": False}
    return {"token": told["token"], "console": told["console"], "person": person, "control": {}, "expires_s": told["expires_s"]}
