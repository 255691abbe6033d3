"""The path of the beam over a layer's spots: which order, how the unit goes from one to the next, and what that costs.

Where the plan leaves the order free, spots are taken line by line to and fro along x, the fast scanner; where it does not,
the plan's order is kept. Steps that are short enough keep the beam on (raster); longer ones are made with the beam off. Pure
geometry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivers.hal.capabilities import ScanMode
from drivers.hal.facility import Nozzle

Floats = NDArray[np.float64]
_SAME_LINE_MM = 0.05  # assumed: coordinates of one line of a grid differ by rounding only


def delivery_order(x_mm: Floats, y_mm: Floats, nozzle: Nozzle, *, free: bool) -> NDArray[np.intp]:
    """Order of delivery, shape (n,): the quicker of the plan's order and a raster where the order is free, else the plan's."""
    as_planned = np.arange(x_mm.size, dtype=np.intp)
    if not free or x_mm.size < 3:
        return as_planned
    raster = _to_and_fro(x_mm, y_mm)
    planned_s = float(_travel_s(x_mm, y_mm, nozzle).sum())
    raster_s = float(_travel_s(x_mm[raster], y_mm[raster], nozzle).sum())
    return raster if raster_s < planned_s else as_planned


def steps(x_mm: Floats, y_mm: Floats, nozzle: Nozzle, cutoff_s: float) -> tuple[Floats, ScanMode]:
    """Seconds with the beam off before each spot (the first has none), and the scan mode.

    Raster unless most steps are longer than the nozzle allows with the beam on: then each spot stands alone, as in QA grids.
    """
    off_s = np.zeros(x_mm.size)
    if x_mm.size < 2:
        return off_s, ScanMode.RASTER
    long = np.hypot(np.diff(x_mm), np.diff(y_mm)) > nozzle.beam_on_distance_max_mm
    mode = ScanMode.SPOT if 2 * int(long.sum()) > long.size else ScanMode.RASTER
    dark = np.ones_like(long) if mode is ScanMode.SPOT else long
    off_s[1:] = np.where(dark, _travel_s(x_mm, y_mm, nozzle) + nozzle.spot_settle_us * 1e-6 + cutoff_s, 0.0)
    return off_s, mode


def _travel_s(x_mm: Floats, y_mm: Floats, nozzle: Nozzle) -> Floats:
    """Seconds from each spot to the next, shape (n - 1,): both scanners move at once."""
    return np.maximum(
        np.abs(np.diff(x_mm)) / (nozzle.scan_speed_x_mm_ms * 1e3), np.abs(np.diff(y_mm)) / (nozzle.scan_speed_y_mm_ms * 1e3)
    )


def _to_and_fro(x_mm: Floats, y_mm: Floats) -> NDArray[np.intp]:
    """Line by line in y, alternately up and down in x. Scattered spots are gathered into lines of their mean spacing."""
    levels = np.sort(y_mm)
    lines = 1 + int(np.count_nonzero(np.diff(levels) > _SAME_LINE_MM))
    if lines > max(3.0, 2.0 * np.sqrt(x_mm.size)):
        pitch = max(np.sqrt(np.ptp(x_mm) * np.ptp(y_mm) / x_mm.size), _SAME_LINE_MM)
        lane = np.floor((y_mm - levels[0]) / pitch).astype(np.int64)
    else:
        edges = levels[1:][np.diff(levels) > _SAME_LINE_MM]
        lane = np.searchsorted(edges, y_mm, side="right")
    return np.lexsort((np.where(lane % 2 == 0, x_mm, -x_mm), lane))
