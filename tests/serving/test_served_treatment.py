"""A treatment by commands: what it leaves is what `treat` leaves; the next one needs nothing but the next patient."""

import asyncio
import json

import numpy as np
import pyarrow.parquet as pq
import pydicom
from served import serving

from controller.admission import TreatOptions, open_ledger
from controller.record.entries import Kind
from controller.record.journal import read_journal
from controller.record.ledger import BeamState
from controller.record.store import DiskStore
from controller.room.states import State
from controller.treatment import run_treatment

FILES = ("record.dcm", "spots.parquet", "events.jsonl", "summary.json", "report.html", "journal.bin", "plan.dcm")


def received(state, uid, fraction=1, beam=1):
    with open_ledger(state, boot_id=1) as ledger:
        return ledger.delivered(uid, fraction, beam)


def test_a_treatment_by_commands_leaves_what_treat_leaves(made, state, tmp_path, virtually):
    plan = tmp_path / "plan.dcm"
    plan.write_bytes(made())

    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            name = await room.treat(operator, await room.file(made()))
            assert room.state is State.STANDBY
            return name, room.room.treating.loaded, room.room.plans.plans()[0].uid, room.spots

    name, loaded, uid, spots = virtually(main())
    assert (loaded.status, loaded.reason, loaded.failures) == ("complete", "", [])
    there = state / "treatments" / name
    assert all((there / file).is_file() for file in FILES)

    other = run_treatment(TreatOptions(plan=plan, output=tmp_path / "out", state=tmp_path / "other"))
    assert other.status == "complete"
    mine, theirs = (json.loads((d / "summary.json").read_text()) for d in (there, tmp_path / "out"))
    for key in ("status", "termination", "facility", "room", "fraction", "plan", "overrides", "intervals", "simulated"):
        assert mine[key] == theirs[key], key
    for ours, its in zip(mine["beams"], theirs["beams"], strict=True):
        assert {k: ours[k] for k in ("number", "layers", "spots", "spots_delivered", "meterset_planned")} == {
            k: its[k] for k in ("number", "layers", "spots", "spots_delivered", "meterset_planned")
        }
        assert abs(ours["meterset_delivered_primary"] - its["meterset_delivered_primary"]) < 0.002 * its["meterset_planned"]
    ledgers = received(state, uid), received(tmp_path / "other", uid)
    assert [r.state for r in ledgers] == [BeamState.COMPLETE] * 2
    assert np.array_equal(ledgers[0].planned, ledgers[1].planned)
    assert (
        ledgers[0].lower.sum()
        == ledgers[0].upper.sum()
        == round(1000 * sum(pq.read_table(there / "spots.parquet")["mu_primary"].to_pylist()))
    ), "ledger and record hold the same counts"
    records = [pydicom.dcmread(d / "record.dcm") for d in (there, tmp_path / "out")]
    assert {e.tag for e in records[0]} == {e.tag for e in records[1]}
    assert records[0].PatientID == records[1].PatientID
    assert records[0].ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == uid
    kinds = [[r.kind for r in read_journal(DiskStore(), d / "journal.bin").records] for d in (there, tmp_path / "out")]
    assert kinds[0].count(Kind.GRANT) == kinds[1].count(Kind.GRANT) > 0
    assert kinds[0].count(Kind.DONE) == kinds[0].count(Kind.GRANT)
    layers = {(layer.beam_number, layer.layer_index, layer.painting): layer for layer in spots}
    shown = sum(sum(layer.mu_delivered) for layer in layers.values())
    assert all(layer.complete for layer in layers.values())
    assert abs(shown - mine["beams"][0]["meterset_delivered_primary"]) < 0.01, "the spot map shows what was delivered"


def test_the_next_treatment_follows_in_the_same_world(made, state, virtually):
    """Devices stay connected, the gantry stays where it is, the invariants judge the second by itself."""

    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(angles_deg=(4.0,)))
            first = await room.treat(operator, plan, fraction=1)
            angle = room.room.view().gantry.angle_deg
            assert abs(angle - 4.0) < 0.3
            await asyncio.sleep(3.0)
            assert abs(room.room.view().gantry.angle_deg - angle) < 0.01
            refused = await operator.refused("load_plan", plan_id=plan, fraction=1)
            assert "complete in the ledger" in refused
            beds = len(room.said_of("treatment.ended"))
            second = await room.treat(operator, plan, fraction=2)
            assert first != second
            assert len(room.said_of("treatment.ended")) == beds + 1
            assert not room.said_of("device.down")
            assert not room.said_of("violation")
            assert room.world._monitor.violation is None and room.world._monitor.judged > 1000
            moves = [e for e in room.said_of("motion.start") if e.source == "G1-gantry"]
            assert len(moves) == 1, "the second fraction found the gantry in place"
            return [room.room.treating.loaded.status] + [t["status"] for t in await room.room.ask("treatments", {})]

    assert virtually(main()) == ["complete"] * 3


def test_what_a_stopped_fraction_left_is_treated_as_its_remainder(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            plan = await room.file(made(diameter_mm=24.0))
            name = await room.to_armed(operator, plan)
            await operator.answer()
            await room.until(lambda: len(room.said_of("pass.ended")) >= 3, 60, "three layers")
            await operator.do("terminate")
            loaded = await room.ended()
            assert loaded.status == "partial"
            uid = room.room.plans.get(plan).about["uid"]
            before = received(state, uid)
            assert before.state is BeamState.PARTIAL
            refused = await operator.refused("load_plan", plan_id=plan, fraction=1)
            assert "partial in the ledger" in refused
            again = await room.treat(operator, plan, remainder=True)
            assert again == name
            loaded = room.room.treating.loaded
            assert loaded.status == "complete", loaded.reason
            assert loaded.view().remainder
            after = received(state, uid)
            assert after.state is BeamState.COMPLETE
            short = after.planned.sum() - after.lower.sum()
            assert abs(short) < 0.005 * after.planned.sum()
            assert (state / "treatments" / name / "resume-1" / "record.dcm").is_file()
            given = room.world.plant.rooms["G1"].unit.counts()[0]
            assert given == after.lower.sum(), "what the plant gave, and not more"
            (listed,) = await room.room.ask("treatments", {})
            assert listed["status"] == "complete"
            assert abs(listed["meterset_delivered"] / listed["meterset_planned"] - 1.0) < 0.005, "of both sessions"
            assert "no remainder" in await operator.refused("load_plan", plan_id=plan, fraction=2, remainder=True)
            assert "nothing is left" in await operator.refused("load_plan", plan_id=plan, fraction=1, remainder=True)

    virtually(main())


def test_a_plan_is_refused_with_every_reason_and_nothing_moves(made, state, virtually):
    async def main():
        async with serving(state) as room:
            operator = room.console()
            await operator.control()
            moved = len(room.events)
            unapproved = await room.file(made(approval="UNAPPROVED", label="draft", fractions=1), approved=False)
            assert "not approved here" in await operator.refused("load_plan", plan_id=unapproved)
            assert "not for the role operator" in await operator.refused("approve_plan", plan_id=unapproved)
            await room.physicist().do("approve_plan", plan_id=unapproved)
            words = await operator.refused("load_plan", plan_id=unapproved, fraction=3)
            assert "the plan is not approved" in words and "--fraction 3: the plan has 1 fraction" in words
            assert "override" in await operator.refused("load_plan", plan_id=unapproved, overrides={"approval": " "})
            assert "holds no plan" in await operator.refused("load_plan", plan_id="0123456789ab")
            assert "a whole number from 1" in await operator.refused("load_plan", plan_id=unapproved, fraction="1")
            other = await room.file(made(room="G1", label="far"), approved=True)
            room.room.plans.get(other).path.write_bytes(b"changed")
            assert "no longer the one that was filed" in await operator.refused("load_plan", plan_id=other)
            assert not [e for e in room.events[moved:] if e.kind.startswith("motion")]
            assert room.state is State.STANDBY and not room.room.treating.under_way
            assert not list((state / "treatments").iterdir())
            value = await operator.do("load_plan", plan_id=unapproved, overrides={"approval": "phantom"})
            await room.asked("identify")
            assert room.room.view().treatment.overrides == {"approval": "phantom"}
            await operator.do("unload_plan")
            assert (await room.ended()).status == "refused"
            assert (state / "treatments" / value["treatment"] / "summary.json").is_file()
            assert not (state / "treatments" / value["treatment"] / "record.dcm").exists()

    virtually(main())
