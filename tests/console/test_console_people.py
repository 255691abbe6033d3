"""Signing in: nothing without a token, a token for one console and one time, secrets that show nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
import stat

import pytest
from console_site import CHEAP, console_site, until

from controller.console import tokens as tokens_module
from controller.console.hub import Exposure
from controller.console.limits import Buckets, Failures
from controller.console.tokens import IDLE_S, LIFE_S, Tokens
from controller.console.users import Users
from controller.record.journal import read_journal
from controller.record.store import DiskStore
from controller.roles import Role
from drivers.hal.errors import ConfigError

READS = ["me", "facility", "rooms", "rooms/G1", "rooms/G1/devices", "plans", "treatments", "history/signals", "audit", "rules"]
ACTS = ["plans", "users", "rooms/G1/commands", "logout", "renew", "me/password", "rooms/G1/stop/", "nothing"]
CLOSED = [
    *(("GET", f"/api/{path}") for path in READS),
    *(("POST", f"/api/{path}") for path in ACTS),
    ("GET", "/api"),
    ("DELETE", "/api/users/operator"),
    ("PUT", "/api/rooms/G1/stop"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_nothing_is_done_or_shown_without_a_sign_in(site, method, path):
    for headers in ({}, {"Authorization": "Bearer nonsense", "X-Console": "c"}, {"Authorization": "Basic b3BlcmF0b3I6eA=="}):
        answer = await site.http.request(method, path, headers=headers, json={"name": "stop"})
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["reason"]
    assert site.room.taken == []


async def test_a_forged_a_replayed_and_a_strange_token_are_refused_with_words(site):
    ann = await site.sign_in("operator")
    forged = ann.token[:-1] + ("A" if ann.token[-1] != "A" else "B")
    answers = {
        "forged": await site.http.get("/api/me", headers={"Authorization": f"Bearer {forged}"}),
        "other console": await site.http.get(
            "/api/me", headers={"Authorization": f"Bearer {ann.token}", "X-Console": "another"}
        ),
        "other peer": await site.client("192.0.2.7").get("/api/me", headers=ann.headers),
    }
    assert "not known" in answers["forged"].json()["reason"]
    assert "another console" in answers["other console"].json()["reason"]
    assert "another console" in answers["other peer"].json()["reason"]
    assert {answer.status_code for answer in answers.values()} == {401}
    unsaid = await site.http.post("/api/logout", headers={"Authorization": f"Bearer {ann.token}"})
    assert unsaid.status_code == 401 and "X-Console" in unsaid.json()["hint"]
    assert (await ann.get("/api/me")).json()["name"] == "operator", "none of this ended the real sign-in"


async def test_a_token_that_was_renewed_or_signed_out_is_worth_nothing(site):
    ann = await site.sign_in("operator")
    old = dict(ann.headers)
    ann.token = (await ann.post("/api/renew")).json()["token"]
    replayed = await site.http.get("/api/me", headers=old)
    assert replayed.status_code == 401 and "newer one" in replayed.json()["reason"]
    assert (await ann.get("/api/me")).status_code == 200
    assert (await ann.post("/api/logout")).json() == {"signed_out": True}
    after = await ann.get("/api/me")
    assert after.status_code == 401 and "signed out" in after.json()["reason"]


def test_a_token_lapses_by_disuse_and_by_age_whatever_the_clock_on_the_wall_says():
    now_s = [1000.0]
    tokens = Tokens(lambda: now_s[0])
    token, session = tokens.issue("ann", Role.OPERATOR, "desk", "::1")
    for _ in range(30):
        now_s[0] += IDLE_S * 0.9
        assert tokens.find(token, "desk", "::1") is session
    now_s[0] += IDLE_S * 1.01
    with pytest.raises(tokens_module.Refused, match="not used for 15 min"):
        tokens.find(token, "desk", "::1")
    token, session = tokens.issue("ann", Role.OPERATOR, "desk", "::1")
    until_s = now_s[0] + LIFE_S
    while now_s[0] < until_s - 600:
        now_s[0] += 600
        tokens.find(token, "desk", "::1")
    now_s[0] += 700
    with pytest.raises(tokens_module.Refused, match="older than 8 h"):
        tokens.find(token, "desk", "::1")
    assert not tokens.alive(session) and tokens.count == 0


async def test_a_console_has_one_person(site):
    ann = await site.sign_in("operator", "desk-1")
    bob = await site.sign_in("physicist", "desk-1")
    gone = await ann.get("/api/me")
    assert gone.status_code == 401 and "physicist signed in at this console" in gone.json()["reason"]
    site.hub.tokens.find(bob.token, "desk-1", "127.0.0.1").streams = 1  # bob looks at a room
    answer = await site.http.post(
        "/api/login", json={"name": "operator", "password": site.password("operator"), "console": "desk-1"}
    )
    assert answer.status_code == 409 and "physicist works at the console desk-1" in answer.json()["reason"]
    assert (await bob.get("/api/me")).status_code == 200


async def test_wrong_passwords_cost_time_and_say_nothing_of_the_name(site):
    def body(name, password="wrong wrong"):
        return {"name": name, "password": password, "console": "c"}

    right_name = await site.http.post("/api/login", json=body("operator"))
    no_name = await site.http.post("/api/login", json=body("nobody"))
    assert right_name.status_code == no_name.status_code == 401
    assert right_name.json() == no_name.json()
    for _ in range(3):
        last = await site.http.post("/api/login", json=body("operator"))
    assert last.status_code == 401
    waiting = await site.http.post("/api/login", json=body("operator", site.password("operator")))
    assert waiting.status_code == 429 and int(waiting.headers["retry-after"]) >= 1
    assert waiting.json()["hint"] == f"wait {waiting.headers['retry-after']} s, then try again"
    assert (await site.sign_in("physicist")).told["role"] == "physicist", "others are not kept waiting"


def test_the_wait_after_wrong_passwords_grows_to_a_limit():
    now_s = [0.0]
    failures = Failures(lambda: now_s[0])
    waits = []
    for _ in range(12):
        failures.failed("ann", "::1")
        waits.append(failures.wait_s("ann", "::1"))
        now_s[0] += waits[-1]
    assert waits == [0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert failures.wait_s("ann", "192.0.2.1") == 0.0
    failures.succeeded("ann", "::1")
    failures.failed("ann", "::1")
    assert failures.wait_s("ann", "::1") == 0.0


def test_a_bucket_passes_its_burst_and_then_its_rate():
    now_s = [0.0]
    bucket = Buckets(10.0, 5.0, lambda: now_s[0])
    assert [bucket.take("a") for _ in range(5)] == [0.0] * 5
    assert bucket.take("a") == pytest.approx(0.1)
    assert bucket.take("b") == 0.0
    now_s[0] += 0.2
    assert [bucket.take("a") > 0 for _ in range(3)] == [False, False, True]


async def test_a_name_that_does_not_exist_is_hashed_like_one_that_does(tmp_path, monkeypatch):
    users = Users(tmp_path, CHEAP)
    users.open()
    tried = []
    verify = users._verify
    monkeypatch.setattr(users, "_verify", lambda hashed, password: tried.append(hashed) or verify(hashed, password))
    assert await users.check("nobody", "x") is None
    assert await users.check("operator", "x") is None
    assert len(tried) == 2 and all(hashed.startswith("$argon2id$") for hashed in tried)


async def test_one_password_is_tried_at_a_time_and_few_wait(tmp_path, monkeypatch):
    import time

    users = Users(tmp_path, CHEAP)
    users.open()
    at_once, most = [0], [0]

    def slow(_hashed, _password):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1
        return False

    monkeypatch.setattr(users, "_verify", slow)
    told = await asyncio.gather(*(users.check("operator", "x") for _ in range(40)), return_exceptions=True)
    assert most[0] == 1
    assert sum(isinstance(one, Exception) and one.status == 429 for one in told) == 40 - 16


async def test_the_first_start_makes_a_user_for_each_role_and_a_password_of_ones_own_ends_that(site):
    path, first = site.state / "users.json", site.state / "first-passwords.txt"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(first.stat().st_mode) == 0o600
    for role in Role:
        caller = await site.sign_in(role.value)
        assert caller.told["role"] == role.value and caller.told["first_password"]
    ann, other = await site.sign_in("operator", "desk-1"), await site.sign_in("operator", "desk-2")
    old = site.password("operator")
    body = {"old": old, "new": "four words that do not"}
    assert (await ann.post("/api/me/password", {**body, "old": "wrong"})).status_code == 403
    assert (await ann.post("/api/me/password", {**body, "new": "short"})).status_code == 422
    assert (await ann.post("/api/me/password", {**body, "new": "my operator password"})).status_code == 409
    assert (await ann.post("/api/me/password", body)).json() == {"changed": True}
    assert (await other.get("/api/me")).status_code == 401, "other sign-ins of that person end"
    assert (await ann.get("/api/me")).json()["first_password"] is False
    assert "operator " not in first.read_text(encoding="utf-8")
    refused = await site.http.post("/api/login", json={"name": "operator", "password": old, "console": "c"})
    assert refused.status_code == 401
    again = Users(site.state, CHEAP)
    assert again.open() is False
    assert (await again.check("operator", body["new"])).name == "operator", "it is in the file"


async def test_users_are_made_by_the_security_admin_while_rooms_are_idle(site):
    from controller.room.states import State

    admin, ann = await site.sign_in("security_admin"), await site.sign_in("operator")
    body = {"name": "eve", "roles": ["observer", "physicist"]}
    assert (await ann.post("/api/users", body)).status_code == 403
    assert (await ann.get("/api/users")).status_code == 403
    both = await admin.post("/api/users", {"name": "eve", "roles": ["service", "physicist"]})
    assert both.status_code == 409 and "at once" in both.json()["reason"]
    assert (await admin.post("/api/users", {**body, "hash": "x"})).status_code == 422
    assert (await admin.post("/api/users", {"name": "eve", "roles": ["observer", "observer"]})).status_code == 422
    made = await admin.post("/api/users", body)
    assert made.status_code == 201
    assert (await admin.post("/api/users", body)).status_code == 409
    password = made.json()["password"]
    signed = await site.http.post("/api/login", json={"name": "eve", "password": password, "console": "c", "role": "physicist"})
    assert signed.json()["role"] == "physicist"
    wrong = await site.http.post("/api/login", json={"name": "eve", "password": password, "console": "c", "role": "service"})
    assert wrong.status_code == 403
    site.room.state = State.BEAM_ON
    await until(lambda: json.loads(site.hub.shown("G1"))["state"] == State.BEAM_ON.value)
    busy = await admin.delete("/api/users/eve")
    assert busy.status_code == 409 and "not possible in" in busy.json()["reason"]
    site.room.state = State.STANDBY
    await until(lambda: json.loads(site.hub.shown("G1"))["state"] == State.STANDBY.value)
    assert (await admin.delete("/api/users/eve")).json() == {"removed": "eve"}
    eve = {"Authorization": f"Bearer {signed.json()['token']}", "X-Console": "c"}
    gone = await site.http.get("/api/me", headers=eve)
    assert gone.status_code == 401 and "removed" in gone.json()["reason"]
    last = await admin.delete("/api/users/security_admin")
    assert last.status_code == 409


async def test_a_file_of_users_that_gives_somebody_both_roles_is_not_taken(tmp_path):
    users = Users(tmp_path, CHEAP)
    users.open()
    document = json.loads(users.path.read_text(encoding="utf-8"))
    document["users"]["service"]["roles"] = ["service", "physicist"]
    users.path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match="at once"):
        Users(tmp_path, CHEAP).open()


async def test_sign_ins_stand_in_an_audit_that_is_chained(site):
    admin = await site.sign_in("security_admin", "desk-9")
    await site.http.post("/api/login", json={"name": "eve", "password": "something", "console": "c"})
    await admin.post("/api/users", {"name": "eve", "roles": ["observer"]})
    entries = (await admin.get("/api/audit")).json()["entries"]
    assert [entry["kind"] for entry in entries] == ["user.add", "sign_in.refused", "sign_in"]
    assert entries[1]["name"] == "eve" and entries[1]["peer"] == "127.0.0.1"
    records = read_journal(DiskStore(), site.state / "people.bin").records  # verifies the chain
    assert [record.data["kind"] for record in records if record.kind] == ["sign_in", "sign_in.refused", "user.add"]


async def test_secrets_show_in_no_log_no_error_and_no_repr(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    async with console_site(tmp_path) as site:
        admin = await site.sign_in("security_admin")
        password = site.password("operator")
        ann = await site.sign_in("operator")
        await ann.command("take_control")
        told = [
            await site.http.post("/api/login", json={"name": "operator", "password": password, "console": "c", "extra": 1}),
            await site.http.post("/api/login", json={"name": "operator", "password": [password], "console": "c"}),
            await ann.post("/api/me/password", {"old": password, "new": {"x": password}}),
            await site.http.get("/api/me", headers={"Authorization": f"Bearer {ann.token}", "X-Console": "other"}),
            await admin.post("/api/users", {"name": "eve", "roles": ["service", "physicist"], "password": password}),
        ]
        assert {answer.status_code for answer in told} == {409, 422, 401}
        session = site.hub.tokens.find(ann.token, None, "127.0.0.1")
        shown = [answer.text for answer in told]
        shown += [repr(session), repr(site.hub.users.all()), repr(vars(site.hub.tokens)), caplog.text]
        shown += [
            (await admin.get("/api/users")).text,
            (await admin.get("/api/audit")).text,
            (await admin.get("/metrics")).text,
        ]
        hashes = [user.hash for user in site.hub.users.all()]
        for secret in (password, ann.token, admin.token, *hashes):
            assert not any(secret in text for text in shown), "a secret shows"


async def test_metrics_need_a_sign_in_where_others_can_ask(tmp_path):
    async with console_site(tmp_path, exposure=Exposure(remote=True, host="0.0.0.0")) as site:
        assert (await site.http.get("/metrics")).status_code == 401
        ann = await site.sign_in("observer")
        assert (await ann.get("/metrics")).status_code == 200
        assert "strict-transport-security" in (await site.http.get("/health")).headers
