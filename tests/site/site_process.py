"""A simulator process as people start it, for tests: started, asked through its backdoor, ended, and what it left behind."""

import contextlib
from pathlib import Path

from iongantry_process import IongantryProcess, until

from drivers.hal.endpoints import load_endpoints, parse_endpoint
from simulators.backdoor_client import call_door

__all__ = ["SiteProcess", "alive", "descendants", "until"]
READY_S = 40.0


def alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descendants(pid):
    """Process ids of children and their children."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                found += [int(child), *descendants(int(child))]
    return found


class SiteProcess(IongantryProcess):
    """`iongantry simulate` in a directory of its own."""

    def __init__(self, directory, *arguments, log="simulate.log"):
        self.directory = Path(directory)
        self.file = self.directory / "endpoints.toml"
        super().__init__(self.directory / log, "simulate", "--directory", directory, *arguments)
        self.endpoints = None

    def ready(self):
        """Wait until it has written where it stands."""
        until(lambda: self.file.exists() or not self.runs, READY_S, self.said)
        assert self.runs, self.said()
        self.endpoints = load_endpoints(self.file)
        return self

    def ask(self, method, path, body=None):
        return call_door(self.endpoints.backdoor, self.endpoints.token, method, path, body)

    def room(self, name="G1"):
        return self.ask("GET", "/state")["rooms"][name]

    def servers(self):
        return self.ask("GET", "/state")["servers"]

    def at(self, device):
        return parse_endpoint(self.endpoints.devices[device].endpoint)
