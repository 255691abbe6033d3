"""Plants faults in the interlock system, one at a time, and sees which test notices: `make mutants`.

Each fault of `mutant_list` is one replacement in one file. A copy of the package with that replacement is put before the real
one, and the tests of tests/interlocks are run against it until the first fails: the test that noticed it the last time
(`mutants_noticed.json`, which decides the order and nothing else), those of the changed file, all others. A fault that no test
notices has survived: then a test is missing, and the exit code is 1. So it is when a replacement no longer fits its file, or
when the tests fail without any fault. `--remember` writes down who noticed.

Not responsible for faults of the room machine (its whole graph is walked) or of the simulated hardware.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
PACKAGE = ROOT / "interlocks"
LIMIT_S = 30  # of one test on a fault
NOTICED = TESTS / "mutants_noticed.json"
IMPORTED = (  # once, before any fault: what the tests use of others, and of ours what knows nothing of the package
    *("hypothesis.stateful", "_hypothesis_pytestplugin", "pytest_asyncio.plugin", "pytest_timeout"),
    *("cryptography.x509", "numpy", "pydicom", "rich.table", "typer.testing"),
    *("controller.plan.make", "controller.plan.reading", "drivers.hal.facility"),
)
PLUGINS = ("_hypothesis_pytestplugin", "pytest_asyncio.plugin", "pytest_timeout")  # no others: each costs its start
OWN = {  # tests of a file, if they are not called after it; all others follow
    "bypass.py": ("test_engine.py", "test_corners.py"),
    "conditions.py": ("test_conditions.py", "test_corners.py", "test_engine.py"),
    "daemon.py": (
        "test_late_pulses.py",
        "test_waiting_buttons.py",
        "test_daemon.py",
        "test_repeated_trips.py",
        "test_status_question.py",
        "test_engine.py",
        "test_plan_watch.py",
        "test_proof.py",
        "test_signature.py",
        "test_corners.py",
    ),
    "engine.py": ("test_engine.py", "test_unseen_relays.py", "test_known_later.py", "test_motion_permit.py", "test_corners.py"),
    "first_out.py": ("test_engine.py", "test_unseen_relays.py", "test_corners.py"),
    "modbus.py": ("test_daemon.py",),
    "overlay.py": ("test_overlay.py", "test_matrix.py"),
    "proof.py": ("test_proof.py", "test_corners.py"),
    "plan_watch.py": ("test_plan_watch.py", "test_corners.py"),
    "permit.py": ("test_inputs.py", "test_engine.py"),
}
DONE = "done "  # a child that says nothing has not run any test
LAST = ("test_properties.py", "test_truth_table.py")  # thorough, and longest
LEFT_OUT = (  # about the package's files and pages, about this list (they would notice any change at all), or about a panel
    "test_mutants.py",
    "test_explain.py",
    "test_shipped_signature.py",
    "test_standing_shown.py",
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


def unfitting(mutants: Sequence[Mutant]) -> Iterator[str]:
    """What no longer fits its file, or makes no program of it."""
    for mutant in mutants:
        try:
            compile(mutant.source(), mutant.file, "exec")
        except (ValueError, SyntaxError) as error:
            yield f"{mutant.name}: {error}"


def test_files() -> list[str]:
    """Every test file of the interlock system, the longest last."""
    files = [file.name for file in sorted(TESTS.glob("test_*.py")) if file.name not in LEFT_OUT]
    return sorted(files, key=lambda name: LAST.index(name) if name in LAST else -1)


def stages(mutant: Mutant) -> tuple[list[str], list[str]]:
    """Every test file: first those of the changed file, then all others."""
    files = test_files()
    own = OWN.get(mutant.file, (f"test_{mutant.file}",))
    return [name for name in own if name in files], [name for name in files if name not in own]


class _Noticed:
    """A pytest plugin that remembers the first failure; `only` is the one test to run, if there is such."""

    def __init__(self, only: str = "") -> None:
        self.by = self.how = ""
        self._only = only

    def pytest_collection_modifyitems(self, items: list[object]) -> None:
        items[:] = [item for item in items if getattr(item, "originalname", "") not in LEFT_OUT]
        if self._only:
            items[:] = [item for item in items if _short(item.nodeid) == self._only]  # type: ignore[attr-defined]

    def pytest_collectreport(self, report: object) -> None:
        if getattr(report, "failed", False):
            self.by = self.by or f"import of {report.nodeid}"  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: object) -> None:
        if getattr(report, "failed", False):
            self.by = self.by or _short(report.nodeid)  # type: ignore[attr-defined]
            self.how = self.how or str(report.longrepr)  # type: ignore[attr-defined]


def _short(node: str) -> str:
    return node.removeprefix("tests/interlocks/")


def _asked(files: Sequence[str], only: str = "", *, plainly: bool = True) -> tuple[_Noticed, int]:
    """Run the tests of some files until the first fails; who noticed, and pytest's exit code."""
    import pytest

    arguments = ["-x", "-q", "-m", "not slow", "-W", "ignore:Module already imported"]
    arguments += ["-p", "no:cacheprovider", *(word for name in PLUGINS for word in ("-p", name))]
    if plainly:  # on a fault: nobody reads why a test failed, and what goes on for ever was noticed by that
        arguments += ["--assert=plain", "-o", f"timeout={LIMIT_S}"]
    noticed, code = _Noticed(only), 0
    try:
        code = int(pytest.main([*arguments, *(str(TESTS / name) for name in files)], plugins=[noticed]))
    except Exception as error:  # noqa: BLE001 - an open socket, for example, noticed as the tests end
        noticed.by = noticed.by or f"the end of the tests: {type(error).__name__}"
    return noticed, code


def _who_noticed(mutant: Mutant, before: str) -> str:
    """The test that noticed; `before`: the one that did the last time."""
    if before:
        noticed, _ = _asked([before.partition("::")[0]], before)
        if noticed.by:
            return noticed.by
    for files in filter(None, stages(mutant)):
        noticed, code = _asked(files)
        if noticed.by or code != 0:
            return noticed.by or f"pytest, which ended with {code}"
    return ""


def _what_fails(files: Sequence[str]) -> str:
    """Without any fault: nothing should."""
    noticed, code = _asked(files, plainly=False)
    return f"{noticed.by}\n{noticed.how}" if noticed.by else f"pytest ended with {code}" * (code != 0)


@dataclass(frozen=True, slots=True)
class Job:
    """One process: a fault and the test that noticed it before, or (None) some files with the package as it is."""

    mutant: Mutant | None
    before: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a job: the test that noticed, or nothing."""

    job: Job
    noticed_by: str
    after_s: float


def _child(job: Job, copy: Path) -> str:
    """In a process of its own: put a copy before the real package, run the tests; who noticed."""
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(sink, stream)
    if job.mutant is None:
        return _what_fails(job.files)
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        package = Path(directory) / PACKAGE.name
        shutil.copytree(copy, package)
        sys.path.insert(0, directory)
        (package / job.mutant.file).write_text(job.mutant.source(), encoding="utf-8")
        for compiled in (package / "__pycache__").glob(f"{Path(job.mutant.file).stem}.*"):
            compiled.unlink()
        sys.dont_write_bytecode = True
        return _who_noticed(job.mutant, job.before)


def _start(job: Job, copy: Path) -> tuple[int, int]:
    """Fork; (process id, end of a pipe that will say who noticed)."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reader)
            os.write(writer, f"{DONE}{_child(job, copy)}".encode())
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


def fates(jobs: Sequence[Job], processes: int) -> Iterator[Fate]:
    """Do the jobs, a few at a time. In the order of their ends."""
    waiting = list(jobs)
    running: dict[int, tuple[Job, int, float]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        copy = Path(directory) / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(copy, quiet=1)
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                process, reader = _start(job, copy)
                running[reader] = (job, process, time.monotonic())
            for reader in select.select(list(running), [], [])[0]:
                job, process, start_s = running.pop(reader)
                by = _hear(process, reader)
                yield Fate(job, by, time.monotonic() - start_s)


def _prepare() -> None:
    """Import once what every child needs, but nothing of the package under test; and let no time go into smaller examples."""
    import hypothesis

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in IMPORTED:
        importlib.import_module(name)
    if PACKAGE.name in sys.modules:
        raise RuntimeError(f"{PACKAGE.name} is imported before any fault is in it")
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
    os.chdir(ROOT)


def _before() -> dict[str, str]:
    """By fault, the test that noticed it the last time."""
    return dict(json.loads(NOTICED.read_text(encoding="utf-8"))) if NOTICED.exists() else {}


def _jobs(chosen: Sequence[Mutant], before: Mapping[str, str], faults_only: bool) -> list[Job]:
    """The longest first: the package as it is, file by file, then faults that nobody knows, then the others."""
    sound = [] if faults_only else [Job(None, files=(name,)) for name in reversed(test_files())]
    return [*sound, *sorted((Job(m, before.get(m.name, "")) for m in chosen), key=lambda job: bool(job.before))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when a planted fault survived."""
    from mutant_list import MUTANTS

    parser = argparse.ArgumentParser(
        prog="mutants", description="Plants faults in the interlock system; tests must notice each."
    )
    parser.add_argument("words", nargs="*", help="files, or words of the names, to run (default: all)")
    parser.add_argument("--every", type=int, default=1, help="run each so-manieth only")
    parser.add_argument("--faults-only", action="store_true", help="leave out the run without any fault")
    parser.add_argument("--remember", action="store_true", help="write down who noticed: it is asked first the next time")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    given = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not given.words or any(word in m.name or word == m.file for word in given.words)]
    chosen = chosen[:: given.every]
    unfit = list(unfitting(chosen))
    for why in unfit:
        sys.stdout.write(f"does not fit: {why}\n")
    if unfit:
        return 1
    before = _before()
    _prepare()
    start_s, survivors, unsound = time.monotonic(), [], []
    for fate in fates(_jobs(chosen, before, given.faults_only), given.processes):
        mutant, after = fate.job.mutant, f"({fate.after_s:.1f} s)"
        if mutant is None:
            unsound += [fate.noticed_by] if fate.noticed_by else []
            verdict = f"NOT SOUND: {fate.noticed_by}" if fate.noticed_by else "all tests pass"
            sys.stdout.write(f"the package as it is: {', '.join(fate.job.files)}\n    {verdict} {after}\n")
        else:
            verdict = fate.noticed_by or "SURVIVED"
            sys.stdout.write(f"{mutant.name}\n    {mutant.change}\n    {verdict} {after}\n")
            survivors += [] if fate.noticed_by else [mutant.name]
            before |= {mutant.name: fate.noticed_by} if "::" in fate.noticed_by else {}
        sys.stdout.flush()
    took_s = time.monotonic() - start_s
    if given.remember:
        names = {mutant.name for mutant in MUTANTS}
        known = {name: by for name, by in sorted(before.items()) if name in names}
        NOTICED.write_text(json.dumps(known, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.writelines(f"survived: {name}\n" for name in survivors)
    sys.stdout.write(f"{len(chosen)} planted faults, {len(chosen) - len(survivors)} noticed, in {took_s:.0f} s\n")
    return int(bool(survivors or unsound))


if __name__ == "__main__":
    raise SystemExit(main())
