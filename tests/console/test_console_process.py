"""The console as a process: where it listens, when it refuses to, how it ends, and that a room does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import signal
import ssl
import stat
import sys
from pathlib import Path

import httpx
import pytest
from console_site import CHEAP, until, until_answer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from standin_room import StandinRoom, served

from controller.console.process import EXIT_ORPHAN, Options, check_exposure, listen, run
from controller.console.users import Users
from controller.record.store import Busy
from drivers.hal.errors import ConfigError

pytestmark = pytest.mark.xdist_group("wires")


def certificate(directory: Path, days: int = 1, name: str = "cert") -> tuple[Path, Path]:
    """A self-signed certificate for the loopback that ends in `days`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=10)).not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    cert_path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(*encoding))
    return cert_path, key_path


@contextlib.asynccontextmanager
async def console(state, *more, stdin=None):
    Users(state, CHEAP).open()  # their passwords cost a second otherwise
    command = [
        sys.executable,
        "-P",
        "-m",
        "controller.console.process",
        "--state",
        str(state),
        "--rooms",
        "G1",
        *map(str, more),
    ]
    process = await asyncio.create_subprocess_exec(*command, stdin=stdin, stderr=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def where(state, process, limit_s=30.0):
    path = state / "run" / "console.json"
    async with asyncio.timeout(limit_s):
        while not path.exists():
            assert process.returncode is None, (await process.stderr.read()).decode()
            await asyncio.sleep(0.02)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "console.example", ""])
def test_another_host_without_tls_is_refused(host):
    with pytest.raises(ConfigError, match="needs TLS"):
        check_exposure(host, None, None)


def test_the_loopback_needs_no_tls_and_others_a_good_certificate(tmp_path):
    assert [check_exposure(host, None, None) for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3")] == [False] * 4
    cert, key = certificate(tmp_path)
    assert check_exposure("0.0.0.0", cert, key) is True
    assert check_exposure("127.0.0.1", cert, key) is False
    with pytest.raises(ConfigError, match="both"):
        check_exposure("127.0.0.1", cert, None)
    old, old_key = certificate(tmp_path, days=-1, name="old")
    with pytest.raises(ConfigError, match="valid from") as error:
        check_exposure("127.0.0.1", old, old_key)
    assert "renew" in error.value.hint
    for wrong in ((cert, old_key), (tmp_path / "none.pem", key), (key, cert)):
        with pytest.raises(ConfigError, match="do not do"):
            check_exposure("0.0.0.0", *wrong)


async def test_what_may_not_be_reached_ends_before_it_listens(tmp_path):
    async with console(tmp_path, "--host", "0.0.0.0") as process, asyncio.timeout(30):
        _, errors = await process.communicate()
        assert process.returncode == 2 and b"needs TLS" in errors and b"Traceback" not in errors
    old, key = certificate(tmp_path, days=-1)
    with pytest.raises(ConfigError, match="valid from"):
        await run(Options(tmp_path, "asan", ("G1",), tls_cert=old, tls_key=key))
    with pytest.raises(ConfigError, match="no room G9"):
        await run(Options(tmp_path, "asan", ("G9",)))
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="cannot listen"):
        await run(Options(tmp_path, "asan", ("G1",), port=taken.getsockname()[1]))
    assert not (tmp_path / "run" / "console.json").exists()


def _listening(pid):
    """Addresses (hexadecimal, as the kernel tells) at which a process listens."""
    inodes = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            parts = line.split()
            if f"socket:[{parts[9]}]" in inodes and (table.startswith("udp") or parts[3] == "0A"):
                found.add((table, parts[1].split(":")[0]))
    return found


async def test_a_console_that_is_killed_costs_the_room_nothing_and_the_next_one_ends_in_order(tmp_path):
    room = StandinRoom(inert=True)
    async with served(room, tmp_path):
        async with console(tmp_path) as process:
            told = await where(tmp_path, process)
            assert told["pid"] == process.pid and told["url"] == f"http://127.0.0.1:{told['port']}"
            if sys.platform == "linux":
                assert _listening(process.pid) == {("tcp", "0100007F")}, "on the loopback, at one port"
            for name in ("users.json", "first-passwords.txt"):
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
            words = (tmp_path / "first-passwords.txt").read_text(encoding="utf-8")
            password = dict(line.split(" ", 1) for line in words.splitlines()[1:])["operator"]
            async with httpx.AsyncClient(base_url=told["url"], timeout=20.0) as http:
                await until_answer(lambda: http.get("/health"))
                assert (await http.get("/")).status_code == 200
                answer = await http.post("/api/login", json={"name": "operator", "password": password, "console": "c"})
                headers = {"Authorization": f"Bearer {answer.json()['token']}", "X-Console": "c", "Idempotency-Key": "1"}

                async def take_control():
                    headers["Idempotency-Key"] += "1"  # on a busy machine it may have become too old
                    return await http.post(
                        "/api/rooms/G1/commands", json={"name": "take_control", "boot_id": 1}, headers=headers
                    )

                await until_answer(take_control)
                assert room.desk.console_alive()
            with pytest.raises(Busy, match="in use by another process"):
                await run(Options(tmp_path, "asan", ("G1",)))
            process.kill()
            await process.wait()
        await until(lambda: not room.desk.console_alive() and not room.server.consoles)
        (tmp_path / "run" / "console.json").unlink()
        async with console(tmp_path) as process:
            told = await where(tmp_path, process)
            async with httpx.AsyncClient(base_url=told["url"], headers=headers, timeout=20.0) as http:
                assert (await http.get("/api/me")).status_code == 401, "a new process knows no token"
                answer = await http.post("/api/login", json={"name": "operator", "password": password, "console": "c"})
                assert answer.status_code == 200, "but the same users"
                assert (await http.post("/api/rooms/G1/stop")).json()["accepted"]
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                _, errors = await process.communicate()
            assert process.returncode == 0 and errors == b""
            assert not (tmp_path / "run" / "console.json").exists()
            assert [command.name for command in room.taken] == ["stop"]


async def test_a_console_without_its_keeper_is_gone_at_once_and_so_is_its_hold_of_the_port(tmp_path):
    room = StandinRoom(inert=True)
    async with served(room, tmp_path), console(tmp_path, "--kept", stdin=asyncio.subprocess.PIPE) as process:
        told = await where(tmp_path, process)
        reader, writer = await asyncio.open_connection("127.0.0.1", told["port"])
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readline()
        process.stdin.close()  # as the death of the process that holds it does, whatever killed that
        async with asyncio.timeout(5):
            await process.wait()
        assert process.returncode == EXIT_ORPHAN
        listen("127.0.0.1", told["port"]).close()  # although a browser is still connected
        writer.close()


async def test_with_tls_nothing_is_said_in_plain_text(tmp_path):
    cert, key = certificate(tmp_path)
    async with served(StandinRoom(inert=True), tmp_path), console(tmp_path, "--tls-cert", cert, "--tls-key", key) as process:
        told = await where(tmp_path, process)
        assert told["url"].startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        async with httpx.AsyncClient(base_url=f"https://localhost:{told['port']}", verify=trusted) as http:
            assert (await http.get("/")).status_code == 200
        async with httpx.AsyncClient(base_url=f"http://localhost:{told['port']}") as plain:
            with pytest.raises(httpx.HTTPError):
                await plain.get("/")
