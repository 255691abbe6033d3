"""Plants faults in the interlock system, one at a time, and sees which test notices: `make mutants`.

Each fault of `mutant_list` is one replacement in one file. A copy of the package with that replacement is put before the real
one, and the tests of tests/interlocks are run against it until the first fails, those of the changed file first. A fault that
no test notices has survived: then a test is missing, and the exit code is 1. So it is when a replacement no longer fits its
file, or when the tests fail without any fault.

Not responsible for faults of the room machine (its whole graph is walked) or of the simulated hardware.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
PACKAGE = ROOT / "interlocks"
LIMIT_S = 30  # of one test: a fault that makes it go on for ever was noticed by that
OWN = {  # tests of a file, if they are not called after it; all others follow
    "bypass.py": ("test_engine.py", "test_corners.py"),
    "conditions.py": ("test_conditions.py", "test_corners.py", "test_engine.py"),
    "daemon.py": (
        "test_daemon.py",
        "test_engine.py",
        "test_plan_watch.py",
        "test_proof.py",
        "test_signature.py",
        "test_corners.py",
    ),
    "engine.py": ("test_engine.py", "test_corners.py"),
    "first_out.py": ("test_engine.py", "test_corners.py"),
    "modbus.py": ("test_daemon.py",),
    "overlay.py": ("test_overlay.py", "test_matrix.py"),
    "proof.py": ("test_proof.py", "test_corners.py"),
    "plan_watch.py": ("test_plan_watch.py", "test_corners.py"),
    "permit.py": ("test_inputs.py", "test_engine.py"),
}
DONE = "done "  # a child that says nothing has not run any test
LAST = ("test_properties.py", "test_truth_table.py")  # thorough, and longest
LEFT_OUT = (  # about the package's files and pages, or about this list: they would notice any change at all
    "test_mutants.py",
    "test_explain.py",
    "test_shipped_signature.py",
    "test_nothing_but_the_standard_library_is_imported",
    "test_the_package_stays_small_enough_to_read",
    "test_the_table_in_the_docs_is_that_of_the_file",
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted fault: in `file`, the only occurrence of `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    def source(self) -> str:
        """The file with the fault in it. Raises ValueError when the replacement does not fit."""
        text = (PACKAGE / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.old!r} is {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)

    @property
    def change(self) -> str:
        """What was changed, on one line."""
        short = [" ".join(text.split()) for text in (self.old, self.new)]
        return f"{self.file}: {short[0]}  ->  {short[1] or '(nothing)'}"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a mutant (None: the package as it is): the test that noticed, or nothing."""

    mutant: Mutant | None
    noticed_by: str
    after_s: float


def unfitting(mutants: Sequence[Mutant]) -> Iterator[str]:
    """What no longer fits its file, or makes no program of it."""
    for mutant in mutants:
        try:
            compile(mutant.source(), mutant.file, "exec")
        except (ValueError, SyntaxError) as error:
            yield f"{mutant.name}: {error}"


def stages(mutant: Mutant | None) -> tuple[list[str], list[str]]:
    """Every test file of the interlock system: first those of the changed file, then all others."""
    files = [file.name for file in sorted(TESTS.glob("test_*.py")) if file.name not in LEFT_OUT]
    files.sort(key=lambda name: LAST.index(name) if name in LAST else -1)
    own = OWN.get(mutant.file, (f"test_{mutant.file}",)) if mutant is not None else ()
    return [name for name in own if name in files], [name for name in files if name not in own]


class _Noticed:
    """A pytest plugin that remembers the first failure."""

    def __init__(self) -> None:
        self.by = self.how = ""

    def pytest_collection_modifyitems(self, items: list[object]) -> None:
        items[:] = [item for item in items if getattr(item, "originalname", "") not in LEFT_OUT]

    def pytest_collectreport(self, report: object) -> None:
        if getattr(report, "failed", False):
            self.by = self.by or f"import of {report.nodeid}"  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: object) -> None:
        if getattr(report, "failed", False):
            self.by = self.by or str(report.nodeid).removeprefix("tests/interlocks/")  # type: ignore[attr-defined]
            self.how = self.how or str(report.longrepr)  # type: ignore[attr-defined]


def _child(mutant: Mutant | None, answer: int) -> None:
    """In a process of its own: put the copy before the real package, run the tests, write who noticed."""
    import pytest

    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(sink, stream)
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        shutil.copytree(PACKAGE, Path(directory) / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        sys.path.insert(0, directory)
        if mutant is not None:
            (Path(directory) / PACKAGE.name / mutant.file).write_text(mutant.source(), encoding="utf-8")
        noticed = _Noticed()
        sys.dont_write_bytecode = True
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "-o", f"timeout={LIMIT_S}"]
        arguments += ["-W", "ignore:Module already imported"]
        code: object = 0
        for files in filter(None, stages(mutant)):
            try:
                code = pytest.main([*arguments, *(str(TESTS / name) for name in files)], plugins=[noticed])
            except Exception as error:  # noqa: BLE001 - an open socket, for example, noticed as the tests end
                noticed.by = noticed.by or f"the end of the tests: {type(error).__name__}"
            if noticed.by or code != 0:
                break
        if mutant is None and noticed.by:
            noticed.by += f"\n{noticed.how}"
        by = noticed.by or ("" if code == 0 else f"pytest, which ended with {code}")
    os.write(answer, f"{DONE}{by}".encode())


def _start(mutant: Mutant | None) -> tuple[int, int]:
    """Fork; (process id, end of a pipe that will say who noticed)."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reader)
            _child(mutant, writer)
        except BaseException as error:  # noqa: BLE001 - told by the parent
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    return process, reader


def _hear(process: int, reader: int) -> str:
    """Who noticed, when the process has ended; empty for nobody. Raises RuntimeError when it did not run the tests."""
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(process, 0)
    if not said.startswith(DONE):
        raise RuntimeError(f"no test was run: {said or 'the process died'}")
    return said.removeprefix(DONE)


def fates(mutants: Sequence[Mutant | None], processes: int) -> Iterator[Fate]:
    """Run the tests against each mutant, a few at a time; None is the package as it is. In the order of their ends."""
    waiting = list(mutants)
    running: dict[int, tuple[Mutant | None, int, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop(0)
            process, reader = _start(mutant)
            running[reader] = (mutant, process, time.monotonic())
        for reader in select.select(list(running), [], [])[0]:
            mutant, process, start_s = running.pop(reader)
            by = _hear(process, reader)
            yield Fate(mutant, by, time.monotonic() - start_s)


def _prepare() -> None:
    """Import once what every child needs, but nothing of the package under test; and let no time go into smaller examples."""
    import hypothesis
    import hypothesis.stateful
    import pytest  # noqa: F401

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
    os.chdir(ROOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when a planted fault survived."""
    from mutant_list import MUTANTS

    parser = argparse.ArgumentParser(
        prog="mutants", description="Plants faults in the interlock system; tests must notice each."
    )
    parser.add_argument("words", nargs="*", help="files, or words of the names, to run (default: all)")
    parser.add_argument("--every", type=int, default=1, help="run each so-manieth only")
    parser.add_argument("--faults-only", action="store_true", help="leave out the run without any fault")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    given = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not given.words or any(word in m.name or word == m.file for word in given.words)]
    chosen = chosen[:: given.every]
    unfit = list(unfitting(chosen))
    for why in unfit:
        sys.stdout.write(f"does not fit: {why}\n")
    if unfit:
        return 1
    _prepare()
    start_s, survivors, sound = time.monotonic(), [], given.faults_only
    for fate in fates(chosen if given.faults_only else [None, *chosen], given.processes):
        if fate.mutant is None:
            sound = not fate.noticed_by
            verdict = "all tests pass" if sound else f"NOT SOUND: {fate.noticed_by}"
            sys.stdout.write(f"the package as it is\n    {verdict} ({fate.after_s:.1f} s)\n")
        else:
            verdict = fate.noticed_by or "SURVIVED"
            sys.stdout.write(f"{fate.mutant.name}\n    {fate.mutant.change}\n    {verdict} ({fate.after_s:.1f} s)\n")
            survivors += [] if fate.noticed_by else [fate.mutant.name]
        sys.stdout.flush()
    took_s = time.monotonic() - start_s
    sys.stdout.writelines(f"survived: {name}\n" for name in survivors)
    sys.stdout.write(f"{len(chosen)} planted faults, {len(chosen) - len(survivors)} noticed, in {took_s:.0f} s\n")
    return int(bool(survivors) or not sound)


if __name__ == "__main__":
    raise SystemExit(main())
