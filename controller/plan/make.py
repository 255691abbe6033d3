"""Making deliverable plans: a target in water becomes beams, layers and spots, written as a DICOM RT Ion Plan.

    spec = PlanSpec(shape="sphere", diameter_mm=50.0, depth_mm=150.0, dose_gy=2.0, angles_deg=(30.0,))
    write_plan(spec, load_facility("asan"), Path("sphere.dcm"))

Spots stand on a square grid inside the target's cross-section at each depth; their numbers of ions make the physical dose
flat (`make_dose`); spots too small for the machine are merged along the scan path. The same spec gives the same bytes. Not
responsible for anatomy, radiobiology or robustness: these plans are for machines, tests and training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.plan.counting import Conversion, LibraryView, smallest_ions
from controller.plan.deliverability import machine_angle_deg
from controller.plan.errors import PlanError, Why
from controller.plan.make_dose import GY_MM3_PER_MEV, BraggCurve, energy_mev_u, range_mm, spread_out
from controller.plan.make_shapes import SHAPES, Shape
from controller.plan.nominal import NominalLibrary
from controller.plan.raster import delivery_order
from drivers.hal.facility import Facility, RangeShifter, Room, SpeciesOffer
from drivers.hal.frames import gantry_to_fixed
from drivers.hal.ions import IONS, Ion

Floats = NDArray[np.float64]

HEADROOM = 1.05  # over the machine's smallest spot, so that rounding and a re-measured library leave it deliverable
_DEPTH_STEP_MM = 1.0


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """What to make. None takes the shape's own value.

    Args:
        shape: one of `make_shapes.SHAPES`.
        species: symbol of an ion the facility offers.
        diameter_mm: largest width of the target (of the grid for ``qa-grid``).
        size_mm: widths x, y, z of a box or ellipsoid, instead of `diameter_mm`; for single-part shapes.
        depth_mm: water in front of the isocentre, which is the target's centre.
        dose_gy: physical dose to the target, over all beams.
        angles_deg: one beam per gantry angle.
        couch_angle_deg: patient support angle.
        room: room of the facility; the plan names its machine.
        paintings, spot_spacing_mm, layer_spacing_mm, fractions: as their names say.
        spot_mu: meterset of each spot of a ``qa-grid``.
        approval: ApprovalStatus.
        seed: enters the UIDs only.
        label: RTPlanLabel.
        scale: BeamMeterset over FinalCumulativeMetersetWeight; anything but 1 keeps readers honest.
        patient_id, patient_name: of a phantom.
    """

    shape: str = "sphere"
    species: str = "C"
    diameter_mm: float | None = None
    size_mm: tuple[float, float, float] | None = None
    depth_mm: float | None = None
    dose_gy: float | None = None
    angles_deg: tuple[float, ...] = ()
    couch_angle_deg: float = 0.0
    room: str = "G1"
    paintings: int | None = None
    spot_spacing_mm: float | None = None
    layer_spacing_mm: float | None = None
    fractions: int | None = None
    spot_mu: float = 10.0
    approval: str = "APPROVED"
    seed: int = 0
    label: str = ""
    scale: float = 1.25
    patient_id: str = "PHANTOM"
    patient_name: str = "Phantom^Water"


@dataclass(frozen=True, slots=True, eq=False)
class MadeLayer:
    """Spots of one energy, in scan order; arrays of shape (n,), meterset in MU over all paintings."""

    energy_mev_u: float
    x_mm: Floats
    y_mm: Floats
    meterset_mu: Floats


@dataclass(frozen=True, slots=True, eq=False)
class MadeBeam:
    """One beam before it is written."""

    number: int
    gantry_angle_deg: float
    dose_gy: float
    layers: tuple[MadeLayer, ...]
    range_shifter: RangeShifter | None

    @property
    def meterset_mu(self) -> float:
        """Sum over layers and spots."""
        return float(sum(layer.meterset_mu.sum() for layer in self.layers))


@dataclass(frozen=True, slots=True)
class _Recipe:
    """A spec with every value settled."""

    shape: Shape
    ion: Ion
    offer: SpeciesOffer
    room: Room
    depth_mm: float
    dose_gy: float
    angles_deg: tuple[float, ...]
    paintings: int
    spot_spacing_mm: float
    layer_spacing_mm: float
    fractions: int


def write_plan(spec: PlanSpec, facility: Facility, path: str | Path, library: LibraryView | None = None) -> Path:
    """Make a plan and write it; returns the path. Raises PlanError as `make_plan`, OSError when it cannot be written."""
    file = Path(path)
    content = make_plan(spec, facility, library)
    if file.exists() and not file.is_file():  # a pipe or a terminal
        file.write_bytes(content)
        return file
    draft = file.with_name(f".{file.name}.part")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)  # a plan that is there is whole
        raise
    return file


def make_plan(spec: PlanSpec, facility: Facility, library: LibraryView | None = None) -> bytes:
    """Make a plan: the bytes of a DICOM file.

    Args:
        spec: what to make.
        facility: where it shall be deliverable.
        library: for ions per MU; textbook numbers when None.

    Raises:
        PlanError: the recipe cannot be met (code 6302), with what would help.
    """
    from controller.plan.make_dicom import write_dicom

    recipe = _settle(spec, facility)
    beams = make_beams(spec, facility, library)
    return write_dicom(spec, recipe.ion, recipe.room, recipe.fractions, recipe.paintings, recipe.dose_gy, beams)


def make_beams(spec: PlanSpec, facility: Facility, library: LibraryView | None = None) -> tuple[MadeBeam, ...]:
    """The beams of a spec, before they are written. Raises PlanError as `make_plan`."""
    recipe = _settle(spec, facility)
    view = library if library is not None else NominalLibrary(facility.meterset)
    make = _grid_beam if spec.shape == "qa-grid" else _dose_beam
    return tuple(make(number, angle, spec, recipe, facility, view) for number, angle in enumerate(recipe.angles_deg, start=1))


def _settle(spec: PlanSpec, facility: Facility) -> _Recipe:
    """Fill in the shape's values and check what was asked."""
    shape = SHAPES.get(spec.shape)
    if shape is None:
        raise _unmakeable(f"there is no shape {spec.shape!r}", f"shapes: {', '.join(SHAPES)}")
    ion = IONS.get(spec.species)
    offer = facility.accelerator.offer(spec.species)
    if ion is None or offer is None:
        have = ", ".join(s.symbol for s in facility.accelerator.species)
        raise _unmakeable(f"facility {facility.name} does not offer species {spec.species!r}", f"it offers {have}")
    room = facility.room(spec.room)
    parts = shape.parts
    if spec.size_mm is not None:
        if len(parts) != 1:
            raise _unmakeable(f"shape {shape.name} has a fixed proportion", "give a diameter instead of a size")
        x, y, z = (width / 2.0 for width in spec.size_mm)
        parts = (type(parts[0])((0.0, 0.0, 0.0), (x, y, z), parts[0].round),)
    elif spec.diameter_mm is not None:
        parts = shape.scaled(spec.diameter_mm / shape.extent_mm)
    values = {
        "depth": spec.depth_mm if spec.depth_mm is not None else shape.depth_mm,
        "dose": spec.dose_gy if spec.dose_gy is not None else shape.dose_gy,
        "paintings": spec.paintings if spec.paintings is not None else shape.paintings,
        "spot spacing": spec.spot_spacing_mm if spec.spot_spacing_mm is not None else shape.spot_spacing_mm,
        "layer spacing": spec.layer_spacing_mm if spec.layer_spacing_mm is not None else shape.layer_spacing_mm,
        "fractions": spec.fractions if spec.fractions is not None else shape.fractions,
        "scale": spec.scale,
        "target size": 2.0 * min(min(p.half_mm) for p in parts),
        "meterset per spot": spec.spot_mu,
    }
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0.0):
            raise _unmakeable(f"{name} must be above 0, is {value:g}", "give another value")
    angles = spec.angles_deg or _reachable(shape.angles_deg, room)
    for angle in angles:
        if machine_angle_deg(room, angle) is None:
            raise _unmakeable(f"room {room.name} cannot reach {angle:g} deg", "choose another angle or room")
    return _Recipe(
        shape=Shape(shape.name, parts),
        ion=ion,
        offer=offer,
        room=room,
        depth_mm=values["depth"],
        dose_gy=values["dose"],
        angles_deg=angles,
        paintings=int(values["paintings"]),
        spot_spacing_mm=values["spot spacing"],
        layer_spacing_mm=values["layer spacing"],
        fractions=int(values["fractions"]),
    )


def _reachable(angles_deg: tuple[float, ...], room: Room) -> tuple[float, ...]:
    """The shape's own angles that the room has, or its first port."""
    fitting = tuple(angle for angle in angles_deg if machine_angle_deg(room, angle) is not None)
    return fitting or room.ports_deg[:1] or angles_deg


def _unmakeable(message: str, hint: str) -> PlanError:
    return PlanError(message, code=Why.RECIPE, hint=hint)


def _dose_beam(
    number: int, angle_deg: float, spec: PlanSpec, recipe: _Recipe, facility: Facility, library: LibraryView
) -> MadeBeam:
    """A beam that gives its share of the dose to the target."""
    dose = recipe.dose_gy / len(recipe.angles_deg)
    x_mm, y_mm, depth_mm, inside = _columns(recipe, angle_deg, spec.couch_angle_deg)
    distal, proximal = float(depth_mm[inside.any(axis=0)].max()), float(depth_mm[inside.any(axis=0)].min())
    shifter = _range_shifter(recipe, proximal)
    energies = _energies(recipe, proximal, distal, shifter.wet_mm if shifter else 0.0)
    curves = [BraggCurve(recipe.ion, float(e), shifter.wet_mm if shifter else 0.0) for e in energies]
    # Fluence of a square grid: one spot per spacing squared.
    per_ion = GY_MM3_PER_MEV / recipe.spot_spacing_mm**2
    basis = np.stack([curve.at(depth_mm) for curve in curves], axis=1) * per_ion
    peaks = np.array([curve.range_mm for curve in curves])
    reach = recipe.layer_spacing_mm / 2.0 + _DEPTH_STEP_MM
    near = (np.abs(depth_mm[:, None] - peaks) <= reach).astype(np.float64)
    allowed = (inside.astype(np.float64) @ near) > 0.0
    ions = spread_out(inside, allowed, basis, dose)
    layers = []
    for index, energy in enumerate(energies):
        rows = np.flatnonzero(ions[:, index] > 0.0)
        layer = _layer(x_mm[rows], y_mm[rows], ions[rows, index], float(energy), recipe, facility, library)
        if layer is not None:
            layers.append(layer)
    if not layers:
        raise _unmakeable(
            "every spot would be below what the machine can deliver", "raise the dose or the spacing, or lower the paintings"
        )
    return MadeBeam(number, angle_deg, dose, tuple(layers), shifter)


def _columns(recipe: _Recipe, angle_deg: float, couch_angle_deg: float) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """(x, y) of the grid columns that meet the target, depths, and where the target is, shape (columns, depths)."""
    reach = recipe.shape.reach_mm
    nozzle = recipe.room.nozzle
    # One line beyond the field is enough to see that the target does not fit.
    ticks_x, ticks_y = (
        np.arange(-half, half + 1) * recipe.spot_spacing_mm
        for half in (
            int(min(np.ceil(reach / recipe.spot_spacing_mm), field // (2.0 * recipe.spot_spacing_mm) + 1))
            for field in (nozzle.field_x_mm, nozzle.field_y_mm)
        )
    )
    grid_x, grid_y = (a.ravel() for a in np.meshgrid(ticks_x, ticks_y))
    z_mm = np.arange(np.ceil(reach), -np.ceil(reach) - _DEPTH_STEP_MM, -_DEPTH_STEP_MM)
    points = np.empty((grid_x.size, z_mm.size, 3))
    points[..., 0], points[..., 1], points[..., 2] = grid_x[:, None], grid_y[:, None], z_mm
    fixed = gantry_to_fixed(points.reshape(-1, 3), angle_deg)
    # The target turns with the couch: p_f = Rz(couch) p_s, so look at it from the other side.
    c, s = np.cos(np.radians(couch_angle_deg)), np.sin(np.radians(couch_angle_deg))
    seen = np.stack([c * fixed[:, 0] + s * fixed[:, 1], -s * fixed[:, 0] + c * fixed[:, 1], fixed[:, 2]], axis=1)
    inside = recipe.shape.holds(seen).reshape(grid_x.size, z_mm.size)
    keep = inside.any(axis=1)
    if not keep.any():
        raise _unmakeable("the target is smaller than the spot grid", "make it larger or the spacing smaller")
    if np.abs(grid_x[keep]).max() > nozzle.field_x_mm / 2.0 or np.abs(grid_y[keep]).max() > nozzle.field_y_mm / 2.0:
        raise _unmakeable(
            f"the target is wider than the field of {nozzle.field_x_mm:g} x {nozzle.field_y_mm:g} mm", "make the target smaller"
        )
    return grid_x[keep], grid_y[keep], recipe.depth_mm - z_mm, inside[keep]


def _range_shifter(recipe: _Recipe, proximal_mm: float) -> RangeShifter | None:
    """The thinnest installed range shifter that the target's near side needs, if any."""
    least = float(range_mm(recipe.ion, recipe.offer.energy_min_mev_u))
    if proximal_mm <= 0.0:
        raise _unmakeable(f"the target begins {-proximal_mm:.0f} mm in front of the water", "increase the depth")
    if proximal_mm >= least:
        return None
    for shifter in sorted(recipe.room.nozzle.range_shifters, key=lambda s: s.wet_mm):
        if proximal_mm + shifter.wet_mm >= least:
            return shifter
    raise _unmakeable(
        f"the target begins at {proximal_mm:.0f} mm; {recipe.ion.symbol} reaches no less than {least:.0f} mm",
        "increase the depth",
    )


def _energies(recipe: _Recipe, proximal_mm: float, distal_mm: float, wet_mm: float) -> Floats:
    """Offered energies, highest first, whose ranges step through the target."""
    most = float(range_mm(recipe.ion, recipe.offer.energy_max_mev_u)) - wet_mm
    if distal_mm > most:
        raise _unmakeable(
            f"the target reaches {distal_mm:.0f} mm deep; {recipe.ion.symbol} reaches {most:.0f} mm", "reduce depth or size"
        )
    depths = np.arange(distal_mm, proximal_mm - recipe.layer_spacing_mm / 2.0, -recipe.layer_spacing_mm)
    offered = [recipe.offer.nearest_energy_mev_u(float(e)) for e in energy_mev_u(recipe.ion, depths + wet_mm)]
    return np.array(sorted(dict.fromkeys(offered), reverse=True))


def _layer(
    x_mm: Floats, y_mm: Floats, ions: Floats, energy: float, recipe: _Recipe, facility: Facility, library: LibraryView
) -> MadeLayer | None:
    """Spots in scan order with deliverable metersets; None where nothing deliverable is left."""
    conversion = Conversion.of(library, recipe.ion, energy, "MU", recipe.room.name)
    least = _least_mu(recipe, facility, conversion)
    order = delivery_order(x_mm, y_mm, recipe.room.nozzle, free=True)
    merged = merge_small(ions[order] / conversion.ions_per_unit, least)
    kept = order[merged > 0.0]
    return MadeLayer(energy, x_mm[kept], y_mm[kept], merged[merged > 0.0]) if kept.size else None


def _least_mu(recipe: _Recipe, facility: Facility, conversion: Conversion) -> float:
    """The smallest spot to make, MU over all paintings."""
    for_cutoff = smallest_ions(recipe.offer, facility.accelerator, conversion) / conversion.ions_per_unit
    return HEADROOM * recipe.paintings * max(recipe.room.nozzle.spot_min_mu, for_cutoff)


def merge_small(meterset: Floats, least: float) -> Floats:
    """Spots below `least` are carried on along the path until enough has gathered; the total is kept where a spot remains.

    Returns an array of the same shape with zeros where a spot was given up. What is left at the end joins the last spot; a path
    that gathers less than `least` in all is given up.
    """
    if meterset.size == 0 or float(meterset.min()) >= least:
        return meterset
    out = np.zeros_like(meterset)
    carried, last = 0.0, -1
    for row, value in enumerate(meterset.tolist()):
        carried += value
        if carried >= least:
            out[row], carried, last = carried, 0.0, row
    if last >= 0:
        out[last] += carried
    return out


def _grid_beam(
    number: int, angle_deg: float, spec: PlanSpec, recipe: _Recipe, facility: Facility, library: LibraryView
) -> MadeBeam:
    """One layer of equal spots on a wide grid, the corner at +x +y left out."""
    half_x, half_y, _ = recipe.shape.parts[0].half_mm
    nozzle = recipe.room.nozzle
    if half_x > nozzle.field_x_mm / 2.0 or half_y > nozzle.field_y_mm / 2.0:
        raise _unmakeable(
            f"the grid reaches {max(half_x, half_y):g} mm, the field {min(nozzle.field_x_mm, nozzle.field_y_mm) / 2.0:g} mm",
            "make the grid smaller",
        )
    ticks = [np.arange(-int(h // recipe.spot_spacing_mm), int(h // recipe.spot_spacing_mm) + 1) for h in (half_x, half_y)]
    grid_x, grid_y = (a.ravel() * recipe.spot_spacing_mm for a in np.meshgrid(*ticks))
    keep = ~((grid_x == grid_x.max()) & (grid_y == grid_y.max())) if grid_x.size > 1 else np.ones(1, dtype=bool)
    shifter = _range_shifter(recipe, recipe.depth_mm)
    energy = float(_energies(recipe, recipe.depth_mm, recipe.depth_mm, shifter.wet_mm if shifter else 0.0)[0])
    conversion = Conversion.of(library, recipe.ion, energy, "MU", recipe.room.name)
    least = _least_mu(recipe, facility, conversion)
    if spec.spot_mu < least:
        raise _unmakeable(f"spots of {spec.spot_mu:g} MU are below what can be delivered", f"at least {least:.3g} MU")
    order = delivery_order(grid_x[keep], grid_y[keep], nozzle, free=True)
    x_mm, y_mm = grid_x[keep][order], grid_y[keep][order]
    return MadeBeam(number, angle_deg, 0.0, (MadeLayer(energy, x_mm, y_mm, np.full(x_mm.size, spec.spot_mu)),), shifter)
