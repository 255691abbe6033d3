"""What a treatment left on disk, read by other programs' readers, and what must be true of it."""

import functools
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pydicom
from witness import dciodvfy_errors, missing_attributes

FILES = {"record.dcm", "spots.parquet", "events.jsonl", "journal.bin", "summary.json", "report.html"}


class Treated:
    """One finished treatment."""

    def __init__(self, result):
        self.result = result
        self.output = result.output

    @functools.cached_property
    def summary(self):
        return json.loads((self.output / "summary.json").read_text(encoding="utf-8"))

    @functools.cached_property
    def table(self):
        return pq.read_table(self.output / "spots.parquet")

    @functools.cached_property
    def spots(self):
        """Columns of the spot table as arrays."""
        return {name: self.table[name].to_numpy(zero_copy_only=False) for name in self.table.column_names}

    @functools.cached_property
    def record(self):
        return pydicom.dcmread(self.output / "record.dcm")

    @functools.cached_property
    def events(self):
        return [json.loads(line) for line in (self.output / "events.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def status(self):
        return self.result.status

    def of(self, kind):
        """Events of a kind."""
        return [event for event in self.events if event["kind"] == kind]

    def per_spot(self, number):
        """Sums over the pieces of every spot of a beam: arrays layer, spot, x, y, planned, delivered, by layer and spot."""
        s = self.spots
        mine = s["beam_number"] == number
        keys = np.stack([s["layer_index"][mine], s["spot_index"][mine]], axis=1)
        spots, group = np.unique(keys, axis=0, return_inverse=True)
        group = group.ravel()
        weight = s["mu_primary"][mine]
        delivered = np.bincount(group, weight)
        planned = np.bincount(group, s["mu_planned"][mine])
        x, y = (np.bincount(group, weight * s[c][mine]) / np.where(delivered > 0, delivered, 1) for c in ("x_mm", "y_mm"))
        return spots[:, 0], spots[:, 1], x, y, planned, delivered


def assert_as_prescribed(treated):
    """Complete, and every beam within the design's figures of what the plan file says (as this program read it)."""
    assert (treated.status, treated.summary["termination"]) == ("complete", "NORMAL"), treated.summary
    assert {path.name for path in treated.output.iterdir()} >= FILES
    for beam, told in zip(treated.result.outcome.beams, treated.summary["beams"], strict=True):
        assert_beam(treated, beam.beam, told)
    assert treated.result.violation is None


def assert_beam(treated, beam, told):
    """Meterset within 0.5 %, spots p95 within 3 %, positions within 1 mm rms and free of bias, each where the plan has it."""
    planned = np.concatenate([layer.meterset for layer in beam.layers])
    x_plan, y_plan = (np.concatenate([getattr(layer, axis) for layer in beam.layers]) for axis in ("x_mm", "y_mm"))
    offsets = np.cumsum([0, *(layer.spots for layer in beam.layers)])
    assert (told["number"], told["layers"], told["spots"]) == (beam.number, len(beam.layers), beam.spots)
    assert told["meterset_planned"] == beam.meterset
    for monitor in ("primary", "secondary"):
        assert abs(told[f"meterset_delivered_{monitor}"] / beam.meterset - 1) < (0.005 if monitor == "primary" else 0.02)
    layer, spot, x, y, share, delivered = treated.per_spot(beam.number)
    flat = offsets[layer] + spot
    wanted = np.flatnonzero(planned > 0)
    assert np.array_equal(flat, wanted) and told["spots_delivered"] == wanted.size
    np.testing.assert_allclose(share, planned[flat], rtol=1e-9)
    assert np.quantile(np.abs(delivered / planned[flat] - 1), 0.95) < 0.03
    dx, dy = x - x_plan[flat], y - y_plan[flat]
    assert np.sqrt(np.mean(dx**2 + dy**2)) < 1.0
    assert abs(dx.mean()) < 0.2 and abs(dy.mean()) < 0.2


def assert_record(treated, *, foreign_judge=True):
    """The record tells the same as the spot table, and the standard's tables and dciodvfy find no fault with it."""
    record = treated.record
    assert missing_attributes(record) == []
    if foreign_judge and (shutil.which("dciodvfy") or not os.environ.get("CI")):
        assert dciodvfy_errors(treated.output / "record.dcm") == []
    assert foreign_judge is False or not os.environ.get("CI") or shutil.which("dciodvfy"), "CI needs dicom3tools"
    told = {beam["number"]: beam for beam in treated.summary["beams"]}
    for item in record.TreatmentSessionIonBeamSequence:
        beam, points = told[item.ReferencedBeamNumber], item.IonControlPointDeliverySequence
        assert float(item.DeliveredPrimaryMeterset) == round_trip(beam["meterset_delivered_primary"])
        assert float(item.SpecifiedPrimaryMeterset) == round_trip(beam["meterset_planned"])
        assert item.NumberOfControlPoints == len(points) == 2 * beam["layers"]
        spots = np.concatenate([np.atleast_1d(p.ScanSpotMetersetsDelivered) for p in points])
        assert np.isclose(spots.sum(), beam["meterset_delivered_primary"], rtol=1e-5)
        assert np.all(np.diff([float(p.DeliveredMeterset) for p in points]) >= 0)
        assert abs(float(points[-1].DeliveredMeterset) / beam["meterset_delivered_primary"] - 1) < 1e-6


def round_trip(value):
    """A number as 16 characters of DICOM carry it."""
    return float(pydicom.valuerep.format_number_as_ds(float(value)))
