"""Requests that are not what they say they are, on a real port: each is answered in words or hung up, and nothing is done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import zlib

import pytest
from console_site import console_site, real_server, until

PLAN = b"\0" * 128 + b"DICM" + b"\1" * 3000
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="p.dcm"\r\n\r\n' + PLAN + b"\r\n--x--\r\n"
LOGIN = b'{"name": "operator", "password": "wrong", "console": "desk-1"}'
HANG_UP_S = 5.0

pytestmark = pytest.mark.xdist_group("wires")


@pytest.fixture
async def served(tmp_path, caplog):
    """A console on a real port, and a physicist's headers; afterwards nothing has come in and no fault was told."""
    caplog.set_level(logging.ERROR, "iongantry.console")
    async with console_site(tmp_path) as site, real_server(site.app) as port:
        caller = await site.sign_in("physicist")
        site.caller, site.port = caller, port
        yield site
        await until(lambda: not list((site.state / "plans" / ".incoming").iterdir()))
        assert site.room.taken == [], "nothing reached the room"
        assert caplog.records == [], "what strangers send is no fault of the program"
        assert (await caller.get("/api/me")).status_code == 200, "and everybody else goes on"


def head(site, path, *lines):
    own = [f"{name}: {value}" for name, value in site.caller.headers.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *own, *lines, "", ""]).encode()


async def answered(site, sent, *, then_leave=False):
    """Status, content type and words of the answer to these bytes; None when it hung up without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        with contextlib.suppress(ConnectionError):  # hung up while it was still being told
            for part in sent:
                writer.write(part)
                await writer.drain()
        if then_leave:
            return None
        async with asyncio.timeout(HANG_UP_S):
            top = await reader.readuntil(b"\r\n\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:-2])
            if b"content-length" in headers:
                body = await reader.readexactly(int(headers[b"content-length"]))
            else:
                body = await reader.read()
        return int(top.split(b" ", 2)[1]), headers, body
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def in_words(answer, *statuses):
    status, headers, body = answer
    assert status in statuses, (status, body)
    assert headers[b"content-type"] == b"application/json", headers
    told = json.loads(body)
    assert set(told) == {"code", "reason", "hint"} and told["reason"], told
    return told["reason"]


def chunked(*parts):
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


BINARY = "Content-Type: application/octet-stream"
JSON = "Content-Type: application/json"
ASKED = {
    "gzip that is none": ("/api/plans", [BINARY, "Content-Encoding: gzip"], PLAN, 415, "compressed"),
    "deflate": ("/api/plans", [BINARY, "Content-Encoding: deflate"], zlib.compress(PLAN), 415, "compressed"),
    "a form": ("/api/plans", ["Content-Type: multipart/form-data; boundary=x"], FORM, 415, "multipart/form-data"),
    "a form of a page": ("/api/plans", ["Content-Type: application/x-www-form-urlencoded"], PLAN, 415, "octet-stream"),
    "a form as a sign-in": ("/api/login", ["Content-Type: multipart/form-data; boundary=x"], FORM, 422, "body"),
    "no length, no body": ("/api/plans", [BINARY], None, 422, "empty"),
    "a length of nothing": ("/api/plans", [BINARY], b"", 422, "empty"),
    "a sign-in of nothing": ("/api/login", [JSON], b"", 422, "body"),
    "text that is no JSON": ("/api/login", [JSON], b"\xff\xfe{", 400, "read"),
    "JSON that is called text": ("/api/login", ["Content-Type: text/plain"], LOGIN, 422, "body"),
    "a query of nobody": ("/api/plans?rooom=G1", [BINARY], PLAN, 422, "'rooom'"),
    "a query twice": ("/api/plans?room=G1&room=G2", [BINARY], PLAN, 422, "more than once"),
}


LIES = [
    ["Content-Length: many"],
    ["Content-Length: -5"],
    ["Content-Length: 5", "Content-Length: 6"],
    ["Content-Length: 99999999999999999999999999"],
    ["Transfer-Encoding: gzip, chunked"],
    ["Transfer-Encoding: cow"],
    ["X-File-Name : before a colon"],
]


async def test_what_cannot_be_meant_is_answered_in_words(served):
    for case, (path, lines, body, status, word) in ASKED.items():
        length = [f"Content-Length: {len(body)}"] if body is not None else []
        reason = in_words(await answered(served, [head(served, path, *lines, *length), body or b""]), status)
        assert word in reason, case


async def test_a_request_that_lies_about_itself_is_answered_in_words(served):
    for path in ("/api/plans", "/api/login"):
        for wrong in LIES:
            in_words(await answered(served, [head(served, path, BINARY, *wrong), PLAN]), 400, 413, 501)
        sent = head(served, path, BINARY, "Transfer-Encoding: chunked")
        in_words(await answered(served, [sent, b"400\r\n" + PLAN[:100], b"\r\nnonsense\r\n" + PLAN]), 400)
    # What is longer than it says ends where it said: what follows is another request, and none that can be read.
    sent = head(served, "/api/login", JSON, f"Content-Length: {len(LOGIN) - 5}")
    in_words(await answered(served, [sent, LOGIN]), 400, 422)


async def test_chunks_without_end_are_cut_off(served):
    part = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
    endless = [head(served, "/api/login", JSON, "Transfer-Encoding: chunked"), *([part] * 2000)]  # 16 MB
    answer = await answered(served, endless)
    assert answer is None or "at most" in in_words(answer, 413), "hung up while it was told, or told"


async def test_whoever_leaves_in_the_middle_has_done_nothing(served):
    """A body that did not come whole is not acted on, even if what came could be read."""
    command = b'{"name": "take_control", "arguments": {}, "boot_id": 1, "control_token": 0}'
    lines = [JSON, "Idempotency-Key: k-1", f"Content-Length: {len(command) + 10}"]
    await answered(served, [head(served, "/api/rooms/G1/commands", *lines), command], then_leave=True)
    await answered(served, [head(served, "/api/plans", BINARY, "Content-Length: 4000"), PLAN], then_leave=True)
    chunks = [head(served, "/api/plans", BINARY, "Transfer-Encoding: chunked"), b"100\r\n" + PLAN[:0x100] + b"\r\n"]
    await answered(served, chunks, then_leave=True)
    await until(lambda: served.hub.counts["left in the middle"] == 3)


async def test_a_plan_in_chunks_is_a_plan(served):
    sent = head(served, "/api/plans", "Content-Type: application/dicom", "Transfer-Encoding: chunked")
    status, _headers, body = await answered(served, [sent, chunked(PLAN[:1000], PLAN[1000:])])
    assert status == 200 and json.loads(body)["accepted"]
    assert [command.name for command in served.room.taken] == ["import_plan"]
    served.room.taken.clear()
