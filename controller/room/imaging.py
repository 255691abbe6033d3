"""Image guidance: take the registered correction, refuse what is too large, apply it, image again until the rest is small.

Not responsible for images or registration (the imager's), for moving the couch (`positioning`), or for accepting the position
(the operator's).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from controller.room.positioning import Positioner, Targets
from drivers.hal.capabilities import COUCH_AXES, Imager
from drivers.hal.errors import CommandRejected, DataError, DeviceError
from drivers.hal.facility import CouchLimits

RESIDUAL_MM = 1.0  # set-up tolerance to allow beam, 1.0 mm / 1.0 deg (assumed)
RESIDUAL_DEG = 1.0
ATTEMPTS_MAX = 4  # images, the first included (assumed): a couch that does not converge is not well


@dataclass(frozen=True, slots=True)
class CorrectionLimits:
    """The largest correction that may be applied at all, and the largest that may be left, per axis."""

    apply_mm: float = 20.0  # assumed
    apply_deg: float = 3.0
    residual_mm: float = RESIDUAL_MM
    residual_deg: float = RESIDUAL_DEG

    @classmethod
    def of(cls, couch: CouchLimits) -> CorrectionLimits:
        """The limits of a room's couch."""
        return cls(apply_mm=couch.correction_max_mm, apply_deg=couch.correction_max_deg)

    def apply(self) -> dict[str, float]:
        """The largest correction by axis, mm and deg."""
        return {axis: self.apply_mm if axis.endswith("_mm") else self.apply_deg for axis in COUCH_AXES}

    def residual(self) -> dict[str, float]:
        """The largest rest by axis, mm and deg."""
        return {axis: self.residual_mm if axis.endswith("_mm") else self.residual_deg for axis in COUCH_AXES}


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome: targets with all corrections in them, the sum of corrections, and what the last image left."""

    targets: Targets
    correction: Mapping[str, float]
    residual: Mapping[str, float]
    images: int


def complete(correction: Mapping[str, float]) -> dict[str, float]:
    """The six axes of a correction. Raises DataError (5302) when one is missing or not finite."""
    bad = [axis for axis in COUCH_AXES if not math.isfinite(correction.get(axis, math.nan))]
    if bad:
        raise DataError(
            f"the registration gives no number for {', '.join(bad)}", code=5302, device="imager", hint="image again"
        )
    return {axis: float(correction[axis]) for axis in COUCH_AXES}


def beyond(correction: Mapping[str, float], limit_mm: float, limit_deg: float) -> list[str]:
    """Every axis whose correction is larger than its limit, in words with numbers."""
    found = []
    for axis in COUCH_AXES:
        name, unit = axis.rsplit("_", 1)
        limit = limit_mm if unit == "mm" else limit_deg
        if abs(correction[axis]) > limit:
            found.append(f"{name} {correction[axis]:+.2f} {unit} (limit {limit:g} {unit})")
    return found


async def align(
    imager: Imager,
    positioner: Positioner,
    targets: Targets,
    limits: CorrectionLimits,
    report: Callable[[str, Mapping[str, float]], Awaitable[None] | None] | None = None,
) -> Verified:
    """Image, correct, image again, until the residual of an image is within tolerance.

    Args:
        imager: gives registered corrections.
        positioner: moves the couch.
        targets: where everything stands now.
        limits: of a correction and of the residual.
        report: told ("image", correction) after each image.

    Raises:
        CommandRejected: 4303, the correction or the sum of corrections is too large; the couch has not moved for it.
        DeviceError: 3303, the residual did not become small.
    """
    total = dict.fromkeys(COUCH_AXES, 0.0)
    correction = total
    for image in range(1, ATTEMPTS_MAX + 1):
        correction = complete(await imager.registered_correction())
        if report is not None and (pending := report("image", correction)) is not None:
            await pending
        if not beyond(correction, limits.residual_mm, limits.residual_deg):
            return Verified(targets, total, correction, image)
        total = {axis: total[axis] + correction[axis] for axis in COUCH_AXES}
        for what, values in (("correction", correction), ("sum of corrections", total)):
            if too_large := beyond(values, limits.apply_mm, limits.apply_deg):
                raise CommandRejected(
                    f"{what} too large: {'; '.join(too_large)}",
                    code=4303,
                    device="imager",
                    hint="set the patient up again, check patient, plan and couch",
                )
        if image < ATTEMPTS_MAX:
            targets = targets.corrected(correction)
            await positioner.correct_couch(targets)
    rest = "; ".join(beyond(correction, limits.residual_mm, limits.residual_deg))
    raise DeviceError(
        f"after {ATTEMPTS_MAX} images the position is still off by {rest}",
        code=3303,
        device="imager",
        hint="check the couch and the patient's fixation",
    )
