"""The outputs are a contract: names, keys, columns, units, order, sameness. Also of runs that end early."""

import asyncio
import itertools
import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from outputs import FILES, assert_as_prescribed, assert_record, round_trip
from witness import missing_attributes

from controller.record.entries import Kind
from controller.record.journal import read_journal
from controller.record.store import DiskStore

SUMMARY = {
    "status", "termination", "simulated", "facility", "room", "seed", "plan", "beams", "interlocks", "loop_lag_ms", "wall_s",
}  # fmt: skip
ADDED = {"reason", "research", "fraction", "overrides", "intervals"}
BEAM = {
    "number", "name", "gantry_angle_deg", "meterset_planned", "meterset_delivered_primary", "meterset_delivered_secondary",
    "unit", "layers", "spots", "spots_delivered", "beam_on_s", "irradiation_s", "machine_limited_s",
}  # fmt: skip
COLUMNS = [
    ("beam_number", "int32", ""),
    ("layer_index", "int32", ""),
    ("spot_index", "int32", ""),
    ("painting", "int32", ""),
    ("attempt", "int32", ""),
    ("grant_id", "int32", ""),
    ("spill", "int32", ""),
    ("energy_mev_u", "double", "MeV/u"),
    ("intensity_per_s", "int32", "1/s"),
    ("x_planned_mm", "double", "mm"),
    ("y_planned_mm", "double", "mm"),
    ("mu_planned", "double", "MU"),
    ("x_mm", "double", "mm"),
    ("y_mm", "double", "mm"),
    ("sigma_x_mm", "double", "mm"),
    ("sigma_y_mm", "double", "mm"),
    ("mu_primary", "double", "MU"),
    ("mu_secondary", "double", "MU"),
    ("t_start_ns", "int64", "ns"),
    ("t_end_ns", "int64", "ns"),
    ("gantry_angle_deg", "double", "deg"),
    ("gate", "bool", ""),
    ("interlock", "dictionary<values=string, indices=int32, ordered=0>", ""),
]
RECORD_LIKE = ("record*.dcm", "spots.parquet", "report.html")


def test_a_small_plan_is_delivered_and_recorded(treated_once):
    assert_as_prescribed(treated_once)
    assert_record(treated_once)


def test_the_summary_has_the_keys_of_the_contract(treated_once):
    summary = treated_once.summary
    assert set(summary) == SUMMARY | ADDED
    assert set(summary["plan"]) == {"uid", "label", "species"}
    assert set(summary["loop_lag_ms"]) == {"p50", "p99", "max"}
    assert [set(beam) for beam in summary["beams"]] == [BEAM]
    assert (summary["seed"], summary["simulated"], summary["research"], summary["interlocks"]) == (5, True, False, [])
    (beam,) = summary["beams"]
    assert 0 < beam["beam_on_s"] <= beam["irradiation_s"]
    assert 0 < beam["machine_limited_s"] <= beam["irradiation_s"]
    assert beam["irradiation_s"] <= 1.02 * beam["machine_limited_s"] + 0.05  # round trips, in a field of seconds


def test_the_spot_table_has_the_columns_types_and_units_of_the_contract(treated_once):
    schema = treated_once.table.schema
    found = [(field.name, str(field.type), (field.metadata or {}).get(b"unit", b"").decode()) for field in schema]
    assert found == COLUMNS
    about = {key.decode(): value.decode() for key, value in schema.metadata.items() if not key.startswith(b"ARROW")}
    assert (about["facility"], about["room"], about["simulated"], about["fraction"]) == ("asan", "G1", "true", "1")
    assert about["plan_uid"] == treated_once.summary["plan"]["uid"]
    assert not any(treated_once.table[name].null_count for name in treated_once.table.column_names)


def test_summary_spot_table_record_and_unit_tell_the_same_dose(treated_once):
    spots, (beam,) = treated_once.spots, treated_once.summary["beams"]
    assert beam["meterset_delivered_primary"] == pytest.approx(spots["mu_primary"].sum(), rel=1e-12)
    assert beam["meterset_delivered_secondary"] == pytest.approx(spots["mu_secondary"].sum(), rel=1e-12)
    (item,) = treated_once.record.TreatmentSessionIonBeamSequence
    assert float(item.DeliveredSecondaryMeterset) == round_trip(beam["meterset_delivered_secondary"])
    told = sum(event["data"]["meterset"] for event in treated_once.of("pass.ended"))
    assert told == pytest.approx(beam["meterset_delivered_primary"], rel=1e-3)


def test_measured_places_in_the_record_are_those_of_the_spot_table(treated_once):
    spots, (item,) = treated_once.spots, treated_once.record.TreatmentSessionIonBeamSequence
    for index, point in enumerate(item.IonControlPointDeliverySequence[::2]):
        mine = spots["layer_index"] == index
        places = np.reshape(point.ScanSpotPositionMap, (-1, 2))
        np.testing.assert_allclose(places[:, 0], spots["x_mm"][mine], atol=1e-5)
        np.testing.assert_allclose(places[:, 1], spots["y_mm"][mine], atol=1e-5)
        np.testing.assert_allclose(point.ScanSpotMetersetsDelivered, spots["mu_primary"][mine], rtol=1e-6)


def test_spots_come_one_after_another_in_closed_gates_of_spills(treated_once):
    spots = treated_once.spots
    assert np.all(spots["t_end_ns"] > spots["t_start_ns"])
    assert np.all(spots["t_start_ns"][1:] >= spots["t_end_ns"][:-1])
    assert spots["gate"].all() and set(spots["interlock"]) == {""}
    assert np.all(spots["spill"] >= 1) and np.all(np.diff(spots["grant_id"]) >= 0)


def test_events_are_whole_in_order_and_without_gaps(treated_once):
    events = treated_once.events
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert all(set(event) == {"seq", "t_ns", "source", "kind", "data"} for event in events)
    assert all(a["t_ns"] <= b["t_ns"] for a, b in itertools.pairwise(events))
    assert events[0]["kind"] == "treatment.started" and events[0]["data"]["simulated"] is True
    states = [event["data"]["state"] for event in treated_once.of("room.state")]
    assert states[-2:] == ["terminated.complete", "standby"] and "ready.armed" in states
    assert treated_once.of("trip") == []


def test_the_interlock_system_starts_tripped_and_is_reset_by_key_and_operator_alone(treated_once):
    trips = treated_once.of("interlock.trip")
    assert [trip["data"]["id"] for trip in trips] == ["POWER_UP"]
    resets = {event["data"]["role"]: event["data"]["cleared"] for event in treated_once.of("interlock.reset")}
    assert set(resets) == {"key", "operator"} and resets["key"] == ["POWER_UP"]


def test_the_report_needs_nothing_from_elsewhere(treated_once):
    html = (treated_once.output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html, re.IGNORECASE)
    assert not re.search(r"@import|url\(\s*['\"]?https?:", html, re.IGNORECASE)
    for word in ("simulated", treated_once.summary["plan"]["label"], "<svg", "</html>"):
        assert word in html


def test_the_journal_can_be_read_and_tells_the_grants(treated_once):
    scan = read_journal(DiskStore(), treated_once.output / "journal.bin")
    assert scan.torn_bytes == 0
    records = scan.records
    grants = {int(r.data["grant_id"]) for r in records if "grant_id" in r.data}
    assert grants == set(treated_once.spots["grant_id"])
    assert [r.seq for r in records] == list(range(1, len(records) + 1))


def test_one_seed_gives_the_same_bytes_and_another_seed_others(treat, made, treated_once):
    again, other = treat(made(), seed=5), treat(made(), seed=6)
    for name in ("record.dcm", "spots.parquet", "events.jsonl"):
        mine, twin, foreign = ((done.output / name).read_bytes() for done in (treated_once, again, other))
        assert mine == twin, name
        assert mine != foreign, name
    timeless = [{k: v for k, v in done.summary.items() if k != "wall_s"} for done in (treated_once, again)]
    assert timeless[0] == timeless[1]


# --- endings ------------------------------------------------------------------------------------------------------------


def test_a_field_that_the_unit_ends_is_partial_with_a_record_and_the_causes_in_order(treat, made):
    done = treat(made(), faults=("mu1-gain:1.3@beam+0.4",))
    assert (done.status, done.summary["termination"]) == ("partial", "MACHINE")
    (beam,) = done.summary["beams"]
    assert 0 < beam["meterset_delivered_primary"] < 0.9 * beam["meterset_planned"]
    trips = done.summary["interlocks"]
    assert [trip["first_out"] for trip in trips] == [True] + [False] * (len(trips) - 1)
    assert [trip["t_ns"] for trip in trips] == sorted(trip["t_ns"] for trip in trips)
    assert any(trip["device"] == "G1-interlocks" for trip in trips)
    assert all(len(trip["description"]) > 20 for trip in trips)
    (item,) = done.record.TreatmentSessionIonBeamSequence
    assert item.TreatmentTerminationStatus == "MACHINE" and item.TreatmentTerminationDescription
    told = [i.InterlockDescription for i in item.InterlockSequence]
    assert len(told) == len(trips) and "(first out)" in told[0] and trips[0]["description"] in told[0]
    assert all("(consequential)" in text for text in told[1:])
    assert missing_attributes(done.record) == []
    assert set(done.spots["interlock"]) - {""}
    assert {path.name for path in done.output.iterdir()} >= FILES


def test_what_moved_and_gave_no_beam_is_recorded_with_zero(treat, made):
    done = treat(made(), faults=("wrong-energy",))
    assert (done.status, done.summary["termination"]) == ("partial", "MACHINE")
    (beam,) = done.summary["beams"]
    assert beam["meterset_delivered_primary"] == 0 and beam["spots_delivered"] == 0
    (item,) = done.record.TreatmentSessionIonBeamSequence
    assert float(item.DeliveredPrimaryMeterset) == 0 and item.TreatmentTerminationStatus == "MACHINE"
    assert done.table.num_rows == 0 and [f.name for f in done.table.schema] == [name for name, *_ in COLUMNS]
    assert missing_attributes(done.record) == []


def test_what_was_refused_before_it_moved_leaves_nothing_that_looks_like_a_record(treat, made):
    done = treat(made(), faults=("estop",))
    assert done.status == "refused"
    assert not [path for pattern in RECORD_LIKE for path in done.output.glob(pattern)]
    assert set(done.summary) == SUMMARY | ADDED and "E-stop" in done.summary["reason"]
    assert done.summary["interlocks"][0]["name"] == "ESTOP"


def test_beams_that_were_not_reached_are_told_with_nothing_given(treat, dataset):
    done = treat(dataset(shape="pancreas", diameter_mm=14.0), faults=("estop@beam+0.1",))
    assert done.status == "partial"
    first, second = done.summary["beams"]
    assert 0 < first["meterset_delivered_primary"] < first["meterset_planned"]
    assert second["meterset_planned"] > 0 and second["meterset_delivered_primary"] == 0
    assert [item.ReferencedBeamNumber for item in done.record.TreatmentSessionIonBeamSequence] == [1]


def test_a_violated_invariant_is_a_fault_by_its_name_and_what_was_given_is_recorded(treat, made, monkeypatch):
    from simulators import invariant_monitor, invariants

    def judge(_truth, event, _room, known):
        return "planted for this test" if known.counts1 > 500_000 else None

    rule = invariant_monitor.Invariant("X9", "planted", frozenset({"delivery.segment"}), 0, judge)
    monkeypatch.setitem(invariants.CATALOGUE, "X9", rule)
    done = treat(made())
    assert (done.status, done.summary["termination"]) == ("fault", "MACHINE")
    assert done.summary["reason"].startswith("X9 at ") and "planted for this test" in done.summary["reason"]
    assert done.summary["interlocks"][0]["name"] == "invariant X9" and done.summary["interlocks"][0]["first_out"]
    assert done.spots["mu_primary"].sum() >= 500
    assert float(done.record.TreatmentSessionIonBeamSequence[0].DeliveredPrimaryMeterset) >= 500


def test_an_error_that_nobody_foresaw_is_a_fault_and_what_was_given_is_recorded(treat, made, monkeypatch):
    from controller.fraction import Fraction

    def broken(*_arguments):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Fraction, "_close", broken)
    done = treat(made())
    assert done.status == "fault" and done.summary["reason"] == "ZeroDivisionError: planted"
    assert done.spots["mu_primary"].sum() > 0 and done.record.TreatmentSessionIonBeamSequence
    (told,) = done.of("program.exception")
    assert any("ZeroDivisionError" in line for line in told["data"]["trace"])


def test_an_error_that_nobody_awaits_is_a_fault_too(treat, made, monkeypatch):
    from controller.fraction import Fraction

    original = Fraction.run

    async def run(self):
        asyncio.get_running_loop().call_later(60.0, lambda: 1 // 0)
        await original(self)

    monkeypatch.setattr(Fraction, "run", run)
    done = treat(made())
    assert done.status == "fault" and done.summary["reason"].startswith("ZeroDivisionError")
    assert [event["data"]["why"] for event in done.of("room.state") if event["data"].get("event") == "cancel"]
    assert done.summary["beams"][0]["meterset_delivered_primary"] == 0 and done.record


def test_a_file_that_cannot_be_written_does_not_keep_the_others(treat, made, monkeypatch):
    from controller.record import dicom_record

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dicom_record, "write_records", full)
    done = treat(made(diameter_mm=8.0))
    assert done.status == "fault"
    assert done.result.failures == [f"{done.output / 'record.dcm'} cannot be written: No space left on device"]
    assert {path.name for path in done.output.iterdir()} >= FILES - {"record.dcm"}


def test_a_full_disk_leaves_no_file_that_looks_whole(treat, made, monkeypatch):
    """The operating system itself cuts every file at 3 kB, as a full disk would."""
    import resource
    import signal

    import controller.outputs

    write, before = controller.outputs.write_outputs, resource.getrlimit(resource.RLIMIT_FSIZE)

    def cut(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        try:
            return write(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(controller.outputs, "write_outputs", cut)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        done = treat(made(diameter_mm=8.0))
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert done.status == "fault"
    lost = {"record.dcm", "spots.parquet", "events.jsonl", "report.html"}
    assert {failure.partition(" cannot be written")[0] for failure in done.result.failures} == {
        str(done.output / name) for name in lost
    }
    assert {path.name for path in done.output.iterdir()} == {"journal.bin", "plan.dcm", "state", "summary.json"}
    assert done.summary["status"] == "complete"  # what was delivered is not changed by what could be written


def test_the_journal_holds_every_trip_beside_the_grant_that_it_ended(treat, made):
    done = treat(made(), faults=("quench@beam+0.5",))
    records = read_journal(DiskStore(), done.output / "journal.bin").records
    journalled = [(r.t_ns, r.data["name"]) for r in records if r.kind == Kind.INTERLOCK]
    told = [(trip["t_ns"], trip["name"]) for trip in done.summary["interlocks"]]
    assert sorted(journalled) == sorted(told) and journalled
    first = min(r.seq for r in records if r.kind == Kind.INTERLOCK)
    assert first > max(r.seq for r in records if r.kind == Kind.STARTED), "after the grant was started"
    assert first < max(r.seq for r in records if r.kind == Kind.CLOSED), "before the beam was closed"


def test_each_grant_has_the_gantry_angle_that_was_read_as_it_began(treat, made, monkeypatch):
    """The ring slips by less than anything stops for: the angle of positioning is true of the first grant at most."""
    import controller.assembly

    worlds, truth = [], {}

    class Seen(controller.assembly.SimulatedWorld):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            worlds.append(self)

    def listen(event):
        if event.kind == "pass.started":
            ring = worlds[0].plant.rooms["G1"].gantry
            truth[event.data["grant_id"]] = ring.body.angle_deg(worlds[0].plant.kernel.now_ns)

    monkeypatch.setattr(controller.assembly, "SimulatedWorld", Seen)
    done = treat(made(diameter_mm=20.0, angles_deg=(30.0,)), listen, faults=("gantry-creeps:0.004@beam",))
    assert done.status == "complete" and len(truth) > 3
    first, *_, last = (truth[grant] for grant in sorted(truth))
    assert last - first > 0.015
    angles = [float(done.spots["gantry_angle_deg"][done.spots["grant_id"] == grant][0]) for grant in sorted(truth)]
    assert angles == pytest.approx([truth[grant] for grant in sorted(truth)], abs=0.012)  # a noisy encoder on a sagging ring


def test_a_device_that_does_not_answer_refuses_the_treatment(treat, made, monkeypatch):
    from drivers.devices.nozzle import Nozzle
    from drivers.hal.errors import CommunicationError

    async def connect(self):
        raise CommunicationError("no answer to the identity", code=2003, device=self.name, hint="check the line")

    monkeypatch.setattr(Nozzle, "connect", connect)
    done = treat(made())
    assert done.status == "refused" and "G1-nozzle: no answer to the identity (check the line)" in done.summary["reason"]
    assert not [path for pattern in RECORD_LIKE for path in done.output.glob(pattern)]


def test_outputs_are_read_where_they_lie(treated_once, tmp_path):
    """A moved directory is as good: nothing in the files points to where they were written."""
    moved = shutil.copytree(treated_once.output, tmp_path / "moved")
    assert pq.read_table(moved / "spots.parquet").num_rows == treated_once.table.num_rows
    text = (moved / "summary.json").read_text(encoding="utf-8") + (moved / "report.html").read_text(encoding="utf-8")
    assert str(treated_once.output) not in text
    assert json.loads((moved / "summary.json").read_text(encoding="utf-8")) == treated_once.summary
