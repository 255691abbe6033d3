"""What comes in and goes out as files: bounded, under names of ours, from one directory."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import stat
import zipfile

import pytest
from console_site import console_site, until

from controller.console import uploads
from controller.console.uploads import safe_name

PLAN = b"\0" * 128 + b"DICM" + b"\1" * 5000


async def upload(caller, content, name="plan.dcm", **headers):
    said = {**caller.headers, "X-File-Name": name, "Content-Type": "application/octet-stream", **headers}
    return await caller.http.post("/api/plans", content=content, headers=said)


def incoming(site):
    return list((site.state / "plans" / ".incoming").iterdir())


async def test_a_plan_reaches_the_room_as_a_file_that_is_gone_afterwards(site):
    caller, seen = await site.sign_in("physicist"), []
    submit = site.room.submit

    async def look(command):
        (path,) = incoming(site)
        seen.append((path.read_bytes(), stat.S_IMODE(path.stat().st_mode), command.arguments))
        return await submit(command)

    site.room.submit = look
    answer = await upload(caller, PLAN, "../../etc/My%20plan%20%C3%A4.dcm")
    ((content, mode, arguments),) = seen
    assert content == PLAN and mode == 0o600
    assert arguments["name"] == "My_plan_.dcm" and "/" not in arguments["file"]
    assert answer.status_code == 200 and answer.json()["accepted"]
    assert incoming(site) == []


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("plan.dcm", "plan.dcm"),
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("%2e%2e%2f%2e%2e%2fshadow", "shadow"),
        ("/", "plan"),
        ("..", "plan"),
        ("", "plan"),
        (".hidden", "hidden"),
        ("a\0b\n<script>.dcm", "a_b_script_.dcm"),
        ("ä" * 300 + ".dcm", "dcm"),
        ("x" * 500, "x" * 100),
    ],
)
def test_a_name_is_a_label_and_never_a_path(given, label):
    assert safe_name(given) == label


async def test_a_plan_that_is_too_large_is_cut_off_whatever_it_declares(site, monkeypatch):
    monkeypatch.setattr(uploads, "BYTES_MAX", 100_000)
    monkeypatch.setattr(uploads, "BATCH_BYTES", 10_000)
    caller = await site.sign_in("physicist")
    assert (await upload(caller, b"x" * 100_001)).status_code == 413
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield b"x" * 10_000

    assert (await upload(caller, endless())).status_code == 413
    assert len(sent) < 20
    assert incoming(site) == [] and site.room.taken == []


async def test_nothing_is_unpacked(site):
    caller, bomb = await site.sign_in("physicist"), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plan.dcm", b"\0" * 10_000_000)
    for content in (gzip.compress(b"\0" * 10_000_000), bomb.getvalue()):
        answer = await upload(caller, content)
        assert answer.status_code == 415 and "packed" in answer.json()["reason"]
    for encoding in ("gzip", "br, gzip", "zstd", "deflate"):
        answer = await upload(caller, PLAN, **{"Content-Encoding": encoding})
        assert answer.status_code == 415 and "compressed" in answer.json()["reason"]
        login = await site.http.post("/api/login", content=b"{}", headers={"Content-Encoding": encoding})
        assert login.status_code == 415
    assert incoming(site) == [] and site.room.taken == []


async def test_an_empty_plan_and_one_that_does_not_come_are_refused(site, monkeypatch):
    monkeypatch.setattr(uploads, "CHUNK_S", 0.05)
    caller = await site.sign_in("physicist")
    assert (await upload(caller, b"")).status_code == 422

    async def stuck():
        yield b"x" * 100
        await asyncio.sleep(1.0)

    assert (await upload(caller, stuck())).status_code == 408
    monkeypatch.setattr(uploads, "WHOLE_S", 0.1)

    async def dripping():
        while True:
            yield b"x"
            await asyncio.sleep(0.02)

    assert (await upload(caller, dripping())).status_code == 408
    assert incoming(site) == [] and site.room.taken == []


async def test_few_plans_come_in_at_once(site):
    caller, release = await site.sign_in("physicist"), asyncio.Event()

    async def slow():
        yield PLAN
        await release.wait()

    waiting = [asyncio.create_task(upload(caller, slow())) for _ in range(2)]
    await until(lambda: len(incoming(site)) == 2)
    assert (await upload(caller, PLAN)).status_code == 429
    release.set()
    assert all("accepted" in answer.json() for answer in await asyncio.gather(*waiting)), "the room answered"


async def test_what_an_earlier_process_left_half_is_removed(tmp_path):
    (tmp_path / "plans" / ".incoming").mkdir(parents=True)
    (tmp_path / "plans" / ".incoming" / "old.part").write_bytes(b"half")
    async with console_site(tmp_path) as site:
        assert incoming(site) == []


async def test_a_body_has_a_limit(site):
    for size, status in ((63_000, 422), (70_000, 413)):
        content = json.dumps({"name": "x" * size}).encode()
        answer = await site.http.post("/api/login", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status

    async def undeclared():
        for _ in range(100):
            yield b" " * 1000

    assert (await site.http.post("/api/login", content=undeclared())).status_code == 413
    deep = b"[" * 30_000
    assert (await site.http.post("/api/login", content=deep, headers={"Content-Type": "application/json"})).status_code in (
        400,
        422,
    )


@pytest.fixture
async def treated(site):
    """One treatment with a report, and things beside it that are nobody's business."""
    folder = site.state / "treatments" / "20310101T080000Z-G1-sphere-f1"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<!doctype html><style>p{}</style><p>report", encoding="utf-8")
    (folder / "record-2.dcm").write_bytes(PLAN)
    (folder / "journal.bin").write_bytes(b"secret")
    (folder / "summary.json").symlink_to(site.state / "users.json")
    (site.state / "treatments" / "away").symlink_to(folder)
    return site, folder.name


async def test_files_of_a_treatment_are_given_by_exact_names(treated):
    site, treatment = treated
    caller = await site.sign_in("observer")
    report = await caller.get(f"/api/treatments/{treatment}/files/report.html")
    assert report.status_code == 200 and "report" in report.text
    assert (
        "sandbox" in report.headers["content-security-policy"]
        and "default-src 'none'" in report.headers["content-security-policy"]
    )
    assert (await caller.get(f"/api/treatments/{treatment}/files/record-2.dcm")).content == PLAN


async def test_no_path_leads_out_of_a_treatment(treated):
    site, treatment = treated
    caller = await site.sign_in("observer")
    for path in (
        f"{treatment}/files/journal.bin",
        f"{treatment}/files/summary.json",  # a link to the file of users
        f"{treatment}/files/..%2f..%2fusers.json",
        f"{treatment}/files/%2e%2e/users.json",
        f"{treatment}/files/../../../users.json",
        "..%2f..%2f/files/users.json",
        "%2e%2e/files/report.html",
        "away/files/report.html",
        "nothing/files/report.html",
        f"{treatment}%00/files/report.html",
        f"{treatment}/files/report.html%00",
        f"{treatment}/files/record-0.dcm",
    ):
        answer = await caller.get(f"/api/treatments/{path}")
        assert answer.status_code in (404, 422), path
        assert "argon2" not in answer.text and "secret" not in answer.text


async def test_no_path_leads_out_of_the_page(site, tmp_path):
    page = await site.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    again = await site.http.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    script = await site.http.get("/page/main.js")
    assert script.headers["content-type"].startswith("text/javascript") and script.headers["cache-control"] == "no-cache"
    for path in (
        "/page/../views.py",
        "/page/%2e%2e/views.py",
        "/page/..%2fviews.py",
        "/page//etc/passwd",
        "/page/nothing.js",
        "/page/",
        "/docs",
        "/redoc",
    ):
        answer = await site.http.get(path)
        assert answer.status_code == 404, path


async def test_a_browser_is_told_to_keep_to_this_place(site):
    for path in ("/", "/page/main.js", "/api/me", "/health", "/nothing", "/openapi.json"):
        headers = (await site.http.get(path)).headers
        assert "default-src 'self'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert not {"set-cookie", "server", "access-control-allow-origin"} & set(headers), path
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in (await site.http.options("/api/rooms", headers=asked)).headers


async def test_a_name_that_was_made_to_point_here_is_not_served(site):
    others = ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "")
    own = ("127.0.0.1:8080", "localhost", "[::1]:80")
    for host, status in [*((host, 421) for host in others), *((host, 200) for host in own)]:
        assert (await site.http.get("/health", headers={"Host": host})).status_code == status, host
