"""Runs a command that dies with its parent: `python -m simulators.leash PARENT_PID COMMAND...`.

The system is asked to kill this process when its parent is gone (Linux; elsewhere the command runs without a leash), and then
it becomes the command: a killed simulator leaves no server behind. Not responsible for what the command does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def leashed(command: Sequence[str]) -> list[str]:
    """The command as a child of this process that dies with the thread that starts it."""
    return [sys.executable, "-P", "-m", "simulators.leash", str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the command; SystemExit only when the parent has gone already."""
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)  # it died before it could be asked about
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
