"""Edits of a plan dataset that keep it whole, and what a plan says as pydicom reads it, apart from our own reader."""

import copy
from dataclasses import dataclass

import numpy as np
from pydicom.valuerep import format_number_as_ds

GEOMETRY = (
    "GantryAngle",
    "GantryRotationDirection",
    "PatientSupportAngle",
    "PatientSupportRotationDirection",
    "TableTopVerticalPosition",
    "TableTopLongitudinalPosition",
    "TableTopLateralPosition",
    "TableTopPitchAngle",
    "TableTopPitchRotationDirection",
    "TableTopRollAngle",
    "TableTopRollRotationDirection",
    "GantryPitchAngle",
    "GantryPitchRotationDirection",
    "IsocenterPosition",
    "SnoutPosition",
)


@dataclass
class Layer:
    """One layer: energy, spots at the isocentre plane, weights, paintings."""

    energy: float
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    paintings: int = 1

    def take(self, rows):
        return Layer(self.energy, self.x[rows], self.y[rows], self.weight[rows], self.paintings)


def layers_of(item):
    """The layers of a beam item."""
    found, energy = [], None
    for point in item.IonControlPointSequence:
        energy = float(point.get("NominalBeamEnergy", energy))
        weight = np.atleast_1d(np.array(point.ScanSpotMetersetWeights, dtype=float))
        if point.ControlPointIndex % 2 == 0:
            places = np.reshape(np.array(point.ScanSpotPositionMap, dtype=float), (-1, 2))
            found.append(Layer(energy, places[:, 0], places[:, 1], weight, int(point.NumberOfPaintings)))
    return found


def put_layers(dataset, index, layers, *, omit_second_energy=False):
    """Write layers into a beam: pairs of control points, running weights, the beam's meterset in proportion."""
    item = dataset.IonBeamSequence[index]
    reference = next(
        r for r in dataset.FractionGroupSequence[0].ReferencedBeamSequence if r.ReferencedBeamNumber == item.BeamNumber
    )
    scale = float(reference.BeamMeterset) / float(item.FinalCumulativeMetersetWeight)
    first, second = item.IonControlPointSequence[:2]
    points, running = [], 0.0
    for layer in layers:
        single = np.asarray(layer.weight, dtype=np.float32)
        for half in (0, 1):
            point = copy.deepcopy(second if points else first)
            for keyword in GEOMETRY if points else ():
                if keyword in point:
                    delattr(point, keyword)
            running += float(single.sum(dtype=np.float64)) if half else 0.0
            point.ControlPointIndex = len(points)
            point.NominalBeamEnergy = format_number_as_ds(layer.energy)
            if half and omit_second_energy:
                del point.NominalBeamEnergy
            point.CumulativeMetersetWeight = format_number_as_ds(running)
            point.NumberOfScanSpotPositions = single.size
            point.ScanSpotPositionMap = np.stack([layer.x, layer.y], axis=1).astype(np.float32).ravel().tolist()
            point.ScanSpotMetersetWeights = (single * (1 - half)).tolist()
            point.NumberOfPaintings = layer.paintings
            points.append(point)
    item.IonControlPointSequence = points
    item.NumberOfControlPoints = len(points)
    item.FinalCumulativeMetersetWeight = format_number_as_ds(running)
    reference.BeamMeterset = format_number_as_ds(running * scale)
    return dataset


def rescaled(dataset, factor):
    """The same plan with other weights: spots keep their meterset because BeamMeterset stays."""
    meterset = [r.BeamMeterset for r in dataset.FractionGroupSequence[0].ReferencedBeamSequence]
    for index, item in enumerate(dataset.IonBeamSequence):
        layers = layers_of(item)
        for layer in layers:
            layer.weight = layer.weight * factor
        put_layers(dataset, index, layers)
    for reference, value in zip(dataset.FractionGroupSequence[0].ReferencedBeamSequence, meterset, strict=True):
        reference.BeamMeterset = value
    return dataset


def renumbered(dataset, numbers):
    """Other beam numbers, in the file's order of beams."""
    for item, reference, number in zip(
        dataset.IonBeamSequence, dataset.FractionGroupSequence[0].ReferencedBeamSequence, numbers, strict=True
    ):
        item.BeamNumber = reference.ReferencedBeamNumber = number
    return dataset


def joined(first, *others):
    """One plan with the beams of several, numbered from 1."""
    group = first.FractionGroupSequence[0]
    for other in others:
        first.IonBeamSequence.append(other.IonBeamSequence[0])
        group.ReferencedBeamSequence.append(other.FractionGroupSequence[0].ReferencedBeamSequence[0])
    group.NumberOfBeams = len(first.IonBeamSequence)
    return renumbered(first, range(1, len(first.IonBeamSequence) + 1))


def assert_delivered(treated, dataset):
    """Every spot of the plan, by its place in the plan, got its meterset at its place of the isocentre plane."""
    assert treated.status == "complete", treated.summary
    spots = treated.spots
    references = {r.ReferencedBeamNumber: r for r in dataset.FractionGroupSequence[0].ReferencedBeamSequence}
    assert sorted(set(spots["beam_number"])) == sorted(item.BeamNumber for item in dataset.IonBeamSequence)
    for item in dataset.IonBeamSequence:
        scale = float(references[item.BeamNumber].BeamMeterset) / float(item.FinalCumulativeMetersetWeight)
        layer, spot, x, y, planned, delivered = treated.per_spot(item.BeamNumber)
        wanted = [(i, j) for i, la in enumerate(layers_of(item)) for j in np.flatnonzero(la.weight > 0)]
        assert list(zip(layer, spot, strict=True)) == wanted
        plan = layers_of(item)
        meterset = np.array([plan[i].weight[j] * scale for i, j in wanted])
        dx = x - np.array([plan[i].x[j] for i, j in wanted])
        dy = y - np.array([plan[i].y[j] for i, j in wanted])
        np.testing.assert_allclose(planned, meterset, rtol=2e-6)
        assert abs(delivered.sum() / meterset.sum() - 1) < 0.005
        assert np.quantile(np.abs(delivered / meterset - 1), 0.95) < 0.03
        assert np.sqrt(np.mean(dx**2 + dy**2)) < 1.0 and abs(dx.mean()) < 0.2 and abs(dy.mean()) < 0.2
        mine = spots["beam_number"] == item.BeamNumber
        rows = list(zip(spots["layer_index"][mine], spots["spot_index"][mine], strict=True))
        for axis in ("x", "y"):  # where they were sent, to the micrometre of a grant's rows
            np.testing.assert_allclose(
                spots[f"{axis}_planned_mm"][mine], [getattr(plan[i], axis)[j] for i, j in rows], atol=1e-3
            )
        energy = np.array([la.energy for la in plan])[spots["layer_index"][mine]]
        np.testing.assert_allclose(spots["energy_mev_u"][mine], energy, atol=1e-3)
