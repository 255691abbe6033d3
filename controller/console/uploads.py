"""A plan on its way in: a stream of bytes into a file that nobody else reads, up to a size, under a name of ours.

Nothing is unpacked here: what is compressed as a whole is refused. The name that a client gives is a label and never a path.
Not responsible for what is in a plan (the room's process reads and judges it).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from controller.console.refused import Refused

BYTES_MAX = 64 * 1024 * 1024
CHUNK_S, WHOLE_S = 10.0, 300.0
BATCH_BYTES = 1024 * 1024
AT_ONCE = 2
NAME_MAX = 100
TYPES = ("application/octet-stream", "application/dicom")  # a plan as it is; without a type it is taken for the first
PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Rar!": "rar",
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that came in."""

    path: Path
    name: str
    sha256: str
    size_bytes: int


class Uploads:
    """`STATE/plans/.incoming`. Made inside the running loop."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "plans" / ".incoming"
        self._under_way = 0

    def clear(self) -> None:
        """Remove what an earlier process left. Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        for path in self.directory.iterdir():
            path.unlink()

    @contextlib.asynccontextmanager
    async def receive(self, chunks: AsyncIterator[bytes], name: str, declared: str | None) -> AsyncIterator[Upload]:
        """The file while the block lasts; whoever wants to keep it copies or moves it.

        Raises Refused: 408, 413, 415, 422, 429, 507.
        """
        if declared is not None and declared.isdigit() and int(declared[:20]) > BYTES_MAX:
            raise _too_large()
        if self._under_way >= AT_ONCE:
            raise Refused(429, f"{AT_ONCE} plans are on their way in already", "wait for them", headers={"Retry-After": "5"})
        self._under_way += 1
        path = self.directory / f"{secrets.token_hex(16)}.part"
        try:
            digest, size = await self._write(path, chunks)
            yield Upload(path, safe_name(name), digest, size)
        except OSError as error:
            raise Refused(507, f"the plan cannot be kept: {error.strerror}", "free the disk of the state directory") from error
        finally:
            self._under_way -= 1
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    async def _write(self, path: Path, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        digest, size, waiting = hashlib.sha256(), 0, bytearray()
        last_s = asyncio.get_running_loop().time() + WHOLE_S
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    async with asyncio.timeout(CHUNK_S):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    raise Refused(408, f"nothing more of the plan came for {CHUNK_S:g} s", "send it again") from None
                if asyncio.get_running_loop().time() > last_s:
                    raise Refused(408, f"the plan did not come within {WHOLE_S:g} s", "send it over a faster line")
                waiting += chunk or b""
                if size == 0 and (len(waiting) >= 8 or chunk is None):
                    _refuse_packed(bytes(waiting[:8]))
                if size + len(waiting) > BYTES_MAX:
                    raise _too_large()
                if len(waiting) >= BATCH_BYTES or chunk is None:
                    batch = bytes(waiting)
                    waiting.clear()
                    size += len(batch)
                    digest.update(batch)
                    await asyncio.to_thread(_write_all, fd, batch)
                if chunk is None:
                    break
        finally:
            os.close(fd)
        if size == 0:
            raise Refused(422, "the plan is empty", "send the bytes of the file as the body")
        return digest.hexdigest(), size


def check_type(told: str | None) -> None:
    """The media type that a client tells of a plan: of a form or an archive nothing would be taken out. Raises Refused 415."""
    if told is not None and told.partition(";")[0].strip().lower() not in TYPES:
        hint = f"send the bytes of the file as the body, with Content-Type: {TYPES[0]}"
        raise Refused(415, f"a plan comes as {' or '.join(TYPES)}, not as {told[:80]}", hint)


def safe_name(name: str) -> str:
    """The last part of whatever path somebody gives, in letters that harm nobody; never empty, never hidden."""
    last = re.split(r"[/\\]", unquote(name))[-1]
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", last).lstrip("._-")[-NAME_MAX:].lstrip("._-")
    return clean or "plan"


def _refuse_packed(head: bytes) -> None:
    for magic, kind in PACKED.items():
        if head.startswith(magic):
            raise Refused(415, f"the file is packed ({kind}); nothing is unpacked here", "send the plan itself")


def _too_large() -> Refused:
    return Refused(413, f"a plan has at most {BYTES_MAX} bytes", "is this a plan?")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
