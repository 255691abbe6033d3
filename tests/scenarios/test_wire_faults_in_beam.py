"""A wire that goes wrong in the middle of beam, as `--fault wire-...` plants it through the tap: beam goes off, the record
tells what the plant gave, or the interval it must lie in."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage import Stage, at_beam, treat

from controller.cli_common import EXIT_ENDED_EARLY, EXIT_OF

RELAY_MS = 110.0  # the request relay falls 100 ms after its last pulse, which is up to 50 ms old; and the plant's own delays


def gives_up(stage: Stage) -> None:
    """The operator does not wait the five minutes after which an interrupted field is ended."""
    at_beam(stage, lambda: stage.fraction.stop("the operator gives up"), 5.0)


@pytest.fixture(scope="module")
def sound(turned: Path) -> Stage:
    """The same treatment with sound wires."""
    return treat(turned)


@pytest.mark.parametrize("kind", ["silence", "checksum", "delay", "identity"])
def test_the_safety_line(turned: Path, kind: str) -> None:
    """No pulse arrives: the relay takes the beam away, the count of every spot is known."""
    run = treat(turned, f"wire-{kind}:G1-safety@beam+0.3", hook=gives_up)
    run.check_record(settled=True)
    assert run.violation is None
    run.check_quiet()
    assert EXIT_OF[run.result.status] == EXIT_ENDED_EARLY
    struck_ns = run.said("fault.planted")[0].t_ns
    assert run.beam_off_after_ns(struck_ns) / 1e6 <= RELAY_MS if kind == "silence" else True
    assert not run.room.chain.beam_enable.value and not run.room.chain.permit_r.value


@pytest.mark.parametrize("kind", ["truncation", "disconnect"])
def test_the_motion_line(turned: Path, kind: str) -> None:
    """Where the ring stands is not known any more: the grant may run out, the next one is not given."""
    run = treat(turned, f"wire-{kind}:G1-motion@beam+0.3")
    run.check_trouble(settled=True)
    assert EXIT_OF[run.result.status] == EXIT_ENDED_EARLY
    assert "gantry" in run.result.summary["reason"]
    assert run.room.gantry.brake_applied


@pytest.mark.parametrize("kind", ["silence", "identity", "nan"])
def test_the_process_variables(turned: Path, kind: str) -> None:
    """The unit cannot be asked: what its open grant gave lies in an interval, which record and ledger state."""
    run = treat(turned, f"wire-{kind}:epics@beam+0.3")
    run.check_quiet()
    run.check_record(settled=False)
    assert run.violation is None
    assert EXIT_OF[run.result.status] == EXIT_ENDED_EARLY
    assert run.recorded_counts1() <= run.given_counts1() <= run.recorded_counts1() + run.probe.open_counts1()
    assert run.probe.open_counts1() > 0 and "THIS RECORD LACKS" in run.result.summary["reason"]
    assert not run.room.unit.delivering and not run.room.chain.permit_r.value


@pytest.mark.parametrize("kind", ["garbage", "flood", "disconnect"])
def test_the_messages_neither_hold_nor_release_beam(turned: Path, sound: Stage, kind: str) -> None:
    run = treat(turned, f"wire-{kind}:mqtt@beam+0.3" + ("+0.2" if kind == "flood" else ""))
    assert run.status == "complete"
    run.check_record(settled=True)
    assert run.given_counts1() == sound.given_counts1()
    off = [s.happened("beam.off")[-1].t_ns - s.happened("beam.on")[0].t_ns for s in (sound, run)]
    assert off[0] == off[1]


@pytest.mark.parametrize("wire", ["G1-safety", "G1-motion", "epics"])
def test_a_wire_that_is_back_in_time_costs_no_dose(turned: Path, wire: str) -> None:
    """Half a second of silence: the room interrupts and goes on, and the plan is given as prescribed."""
    run = treat(turned, f"wire-silence:{wire}@beam+0.3+0.5")
    assert run.status == "complete", run.result.summary["reason"]
    run.check_record(settled=True)
    assert [event.data["name"] for event in run.said("fault.over")] == [f"wire-silence:{wire}"]


def test_wires_that_delay_double_and_shuffle_give_the_same_dose(turned: Path, sound: Stage) -> None:
    run = treat(
        turned, "wire-duplicate:G1-motion", "wire-duplicate:G1-safety", "wire-duplicate:epics", "wire-shuffle:epics@beam"
    )
    assert run.status == "complete", run.result.summary["reason"]
    run.check_record(settled=True)
    assert run.given_counts1() == pytest.approx(sound.given_counts1(), rel=1e-3)
