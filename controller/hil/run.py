"""`hil check` from options to a result with its report: finds the target, opens its lines, runs the procedure, writes.

Ctrl-C stops the drive, disables it and still writes the report. Not responsible for the procedures or for words on a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from controller.hil.drive_bench import DriveBench, Lines, Opener
from controller.hil.drive_parts import Episode
from controller.hil.drive_procedure import DriveProcedure
from controller.hil.passive import PassiveProcedure
from controller.hil.target import DRIVE, Place, Target, Unsuited, find_target
from controller.hil.trace import Trace
from controller.hil.verdict import Check, Verdict
from drivers.hal.clock import now_ns, seconds
from drivers.hal.endpoints import load_endpoints
from drivers.hal.errors import BeamlineError
from drivers.hal.facility import load_facility
from drivers.wire.stream import StreamOpener

EXIT_PASS, EXIT_FAILED = 0, 3
JOINED_DIRECTORIES = 1000


@dataclass(frozen=True, slots=True)
class HilOptions:
    """Arguments of `hil check`."""

    overlay: Path
    facility: str = ""  # empty: the one the overlay names, or asan
    device: str | None = None
    output: Path | None = None
    output_parent: Path = Path()


@dataclass(frozen=True, slots=True)
class HilResult:
    """One run.

    Attributes:
        checks: every requirement of the procedure, in order.
        traces: per drive, all samples; empty for a device that was only looked at.
        left: how the device was left.
        interrupted: the technician ended it.
        values, series: of a device that was only looked at.
    """

    target: Target
    started_utc: datetime
    duration_s: float
    checks: Sequence[Check]
    identity: dict[str, str]
    answers_s: Sequence[float]
    left: str
    interrupted: bool
    block: int  # registers of one status read
    traces: Sequence[Trace] = ()
    episodes: Sequence[Episode] = ()
    values: dict[str, str] = field(default_factory=dict)
    series_name: str = ""
    series: Sequence[tuple[float, float]] = ()

    def of(self, verdict: Verdict) -> Sequence[Check]:
        """The checks with a verdict."""
        return [check for check in self.checks if check.verdict is verdict]

    @property
    def passed(self) -> bool:
        """Whether nothing failed, nothing was cut short and the device was left safe."""
        return not self.of(Verdict.FAIL) and not self.interrupted and not self.left.startswith("NOT SAFE")

    @property
    def exit_code(self) -> int:
        """0 or 3."""
        return EXIT_PASS if self.passed else EXIT_FAILED


def line_opener(place: Place) -> StreamOpener:
    """What opens the real line of a node."""
    endpoint = place.endpoint
    if endpoint.scheme == "tcp":
        from drivers.wire.tcp_stream import tcp_opener

        return tcp_opener(endpoint.host, endpoint.port)
    from drivers.wire.serial_stream import serial_opener

    options = endpoint.options
    return serial_opener(
        endpoint.path,
        baudrate=place.baud or 19200,
        parity=options.get("parity", "E"),
        stopbits=int(options.get("stopbits", "1")),
    )


async def check_target(target: Target, open_line: Opener = line_opener, tell: Callable[[str], None] | None = None) -> HilResult:
    """Run the procedure of a target to its end. Cancelling it makes the device safe and still returns a result."""
    started_utc, began_ns = datetime.now(UTC), now_ns()
    lines = Lines(target.places, open_line)
    interrupted = False
    procedure: DriveProcedure | PassiveProcedure
    bench = None
    if target.kind == DRIVE:
        bench = DriveBench(target, lines)
        procedure = DriveProcedure(bench, tell=tell)
    else:
        procedure = PassiveProcedure(target, lines, tell)
    try:
        await procedure.run()
    except asyncio.CancelledError:
        interrupted = True
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    finally:
        await lines.close()
    passive = procedure if isinstance(procedure, PassiveProcedure) else None
    return HilResult(
        target=target,
        started_utc=started_utc,
        duration_s=seconds(now_ns() - began_ns),
        checks=procedure.notes.finish("the procedure ended before"),
        identity=procedure.identity,
        answers_s=bench.answers_s if bench is not None else passive.answers_s if passive is not None else (),
        left=procedure.left,
        interrupted=interrupted,
        block=bench.block if bench is not None else passive.block if passive is not None else 0,
        traces=bench.traces if bench is not None else (),
        episodes=procedure.episodes if isinstance(procedure, DriveProcedure) else (),
        values=passive.values if passive is not None else {},
        series_name=passive.series_name if passive is not None else "",
        series=passive.series if passive is not None else (),
    )


def find(options: HilOptions) -> Target:
    """The target of the options. Raises Unsuited with every reason; nothing has been opened."""
    try:
        overlay = load_endpoints(options.overlay)
        facility = load_facility(options.facility or overlay.facility or "asan")
    except BeamlineError as error:
        raise Unsuited(str(error).splitlines()) from None
    return find_target(facility, overlay, options.device)


def run_check(target: Target, options: HilOptions, tell: Callable[[str], None]) -> tuple[HilResult, Path]:
    """Check a target and write DIR/hil.json and DIR/report.html.

    Raises:
        Unsuited: the output directory cannot be made; nothing has been opened.
        OSError: a file cannot be written.
    """
    from controller.hil.report import write_report

    output = _directory(target, options)
    with asyncio.Runner() as runner:
        result = runner.run(_until_stopped(target, tell))
    write_report(result, output)
    return result, output


async def _until_stopped(target: Target, tell: Callable[[str], None]) -> HilResult:
    """Ctrl-C and SIGTERM end the procedure in order."""
    task = asyncio.ensure_future(check_target(target, tell=tell))
    loop = asyncio.get_running_loop()
    with _signals(loop, lambda: task.cancel() if not task.cancelling() else None):
        return await task


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> Iterator[None]:
    wanted = (signal.SIGINT, signal.SIGTERM)
    for number in wanted:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


def _directory(target: Target, options: HilOptions) -> Path:
    """The output directory: the one asked for, which must be empty or new, or a new one named after the device."""
    if options.output is not None:
        path = options.output
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise Unsuited([f"--output {path}: is not empty; a report is never overwritten"])
        except OSError as error:
            raise Unsuited([f"--output {path}: {error.strerror or error}"]) from None
        return path
    for number in range(1, JOINED_DIRECTORIES):
        path = options.output_parent / (f"hil-{target.name}" if number == 1 else f"hil-{target.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise Unsuited([f"{path}: {error.strerror or error}; give --output"]) from None
        return path
    raise Unsuited([f"{options.output_parent}: too many reports of {target.name} here; give --output"])
