"""A question to the interlock system at the socket of its buttons, and the answer: one datagram each way.

The answer comes to a socket of our own in a directory that nobody else may enter, and may not come at all. Not responsible for
what is asked (`interlock_plan`, `bodies`, `interlock_standing`), nor for who may ask (the file system's affair).
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER_MAX = 65_536  # bytes; what is longer arrives cut off
NAMES = itertools.count(1)  # of questions: no answer to an earlier one is taken for this one's


@contextmanager
def answers() -> Iterator[socket.socket]:
    """A datagram socket with an address to which the interlock system can answer; never waits. Raises OSError."""
    with (
        tempfile.TemporaryDirectory(prefix="iongantry-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line,
    ):
        line.bind(f"{directory}/answer")
        line.setblocking(False)
        yield line


async def ask(path: str, message: str, within_s: float) -> str:
    """One question, and what is answered. Raises OSError: nobody takes it; TimeoutError: no answer within that time."""
    with answers() as line:
        line.sendto(message.encode(), path)
        answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(line, ANSWER_MAX), within_s)
    return answer.decode("utf-8", "replace")


async def answers_now(path: str, within_s: float) -> str:
    """Empty when the interlock system at this socket answers a question that was made now; else why it does not, in words."""
    word = f"now-{next(NAMES)}"
    try:
        answer = await ask(path, f"status {word}", within_s)
    except TimeoutError:
        return f"no answer within {within_s:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return "" if answer.startswith(f"status {word} ") else "its answer is not understood"
