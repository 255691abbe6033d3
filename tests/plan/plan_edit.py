"""Short names for the parts of a plan that tests break."""

import numpy as np


def beam(ds, index=0):
    return ds.IonBeamSequence[index]


def cp(ds, index=0, of=0):
    return beam(ds, of).IonControlPointSequence[index]


def ref(ds, index=0):
    return ds.FractionGroupSequence[0].ReferencedBeamSequence[index]


def weights(ds):
    return np.array(cp(ds).ScanSpotMetersetWeights, dtype=float)
