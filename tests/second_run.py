"""Which tests that failed beside others `make test` runs once more by themselves (docs/decisions/0018): hooks of pytest."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

CLOCKS = ("browser", "console", "console_out", "rig", "site", "wires")  # folders whose tests wait on real clocks
GROUPS = ("browser", "sites", "wires")  # and groups of tests that do, wherever they are
LATE = 10  # so many failures may be a computer that was too slow for real clocks; more are not (assumed)


def pytest_addoption(parser: pytest.Parser) -> None:
    told = f"list the tests that failed, if they are up to {LATE} on real clocks and no others; else there is no such file"
    parser.addoption("--failed-to", type=Path, metavar="FILE", help=told)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    listed = session.config.getoption("failed_to")
    if listed is None or hasattr(session.config, "workerinput"):
        return
    listed.unlink(missing_ok=True)
    said = session.config.pluginmanager.get_plugin("terminalreporter").stats
    failed = {report.nodeid for kind in ("failed", "error") for report in said.get(kind, ())}
    if exitstatus == pytest.ExitCode.TESTS_FAILED and (again := run_again(failed)):
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{name}\n" for name in again), encoding="utf-8")


def run_again(failed: Collection[str]) -> list[str]:
    """Their names as pytest takes them, in order. None of them where one failed that no clock can have failed, or too many."""
    split = [_split(nodeid) for nodeid in failed]
    if len(split) > LATE or not all(_waits_on_clocks(name, group) for name, _, group in split):
        return []
    return sorted({name + parameters for name, parameters, _ in split})


def _waits_on_clocks(name: str, group: str) -> bool:
    return Path(name.partition("::")[0]).parent.name in CLOCKS or any(part in GROUPS for part in group.split("_"))


def _split(nodeid: str) -> tuple[str, str, str]:
    """A test's name, its parameters in brackets, and the group that pytest-xdist puts behind both."""
    name, bracket, rest = nodeid.partition("[")
    if not bracket:
        name, _, group = nodeid.partition("@")
        return name, "", group
    parameters, _, group = rest.rpartition("]")
    return name, f"[{parameters}]", group.removeprefix("@")
