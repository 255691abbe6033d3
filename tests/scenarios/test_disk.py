"""A disk that fails in the middle of beam: never retried as if nothing had happened, no dose without a record or a bound."""

from __future__ import annotations

import errno

import pytest
from stage import at_beam, treat


def failing(plan, primitive: int, number: int):
    """A treatment whose disk refuses the n-th primitive from 0.3 s of beam on."""

    def hook(stage):
        def fail():
            stage.store.errors[stage.store.operations + primitive] = number

        at_beam(stage, fail, 0.3)

    return treat(plan, hook=hook)


@pytest.mark.parametrize(("primitive", "number"), [(1, errno.EIO), (2, errno.EIO), (3, errno.ENOSPC), (4, errno.EIO)])
def test_a_disk_that_fails_ends_the_fraction_as_a_fault(sphere, primitive, number):
    run = failing(sphere, primitive, number)
    run.check_trouble(settled=False)
    assert run.status == "fault"
    assert "cannot append to" in run.result.outcome.reason
    assert ("check the disk" if number == errno.EIO else "free space") in run.result.outcome.reason
    told = next(event.t_ns for event in run.said("trip"))
    assert not [event for event in run.happened("beam.on") if event.t_ns > told]


@pytest.mark.slow
def test_a_disk_that_fails_at_every_primitive(sphere):
    for primitive in range(1, 41):
        for number in (errno.EIO, errno.ENOSPC):
            run = failing(sphere, primitive, number)
            run.check_safe()
            assert run.violation is None, str(run.result.violation)
            run.check_record(settled=False)
            assert run.status in ("fault", "complete")
            if run.status == "complete":  # it failed after everything was durable
                run.check_record()
