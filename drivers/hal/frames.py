"""IEC 61217 frames: fixed (f), gantry (g), patient support (s), table top (t), and DICOM patient (d).

Lengths in mm, angles in degrees, right-handed rotations. Fixed frame: origin at the isocentre, Z up, Y from the
isocentre toward the gantry bearing, X to the right for an observer who faces the gantry. At gantry 90 the source lies on +Xf
(PS3.3 C.8.8.25.6.1). Table top and patient relations are IEC 61217's; signs checked numerically.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def rotation_x(angle_deg: float) -> Matrix:
    """Right-handed rotation about x, shape (3, 3)."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def rotation_y(angle_deg: float) -> Matrix:
    """Right-handed rotation about y, shape (3, 3)."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def rotation_z(angle_deg: float) -> Matrix:
    """Right-handed rotation about z, shape (3, 3)."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def gantry_to_fixed(point_mm: Vector, gantry_angle_deg: float) -> Vector:
    """Express a point (or (n, 3) points) of the gantry frame in the fixed frame: p_f = Ry(g) p_g."""
    return np.asarray(point_mm, dtype=np.float64) @ rotation_y(gantry_angle_deg).T


def fixed_to_gantry(point_mm: Vector, gantry_angle_deg: float) -> Vector:
    """Inverse of `gantry_to_fixed`."""
    return np.asarray(point_mm, dtype=np.float64) @ rotation_y(gantry_angle_deg)


def support_to_fixed(point_mm: Vector, couch_angle_deg: float) -> Vector:
    """Patient support frame to fixed frame: p_f = Rz(t) p_s."""
    return np.asarray(point_mm, dtype=np.float64) @ rotation_z(couch_angle_deg).T


def table_top_to_support(point_mm: Vector, translation_mm: Vector, pitch_deg: float, roll_deg: float) -> Vector:
    """Table top frame to support frame: T + Rx(pitch) Ry(roll) p_t, T = (lateral, longitudinal, vertical) in mm."""
    rotation = rotation_x(pitch_deg) @ rotation_y(roll_deg)
    return np.asarray(translation_mm, dtype=np.float64) + np.asarray(point_mm, dtype=np.float64) @ rotation.T


def fixed_to_table_top(
    point_mm: Vector, translation_mm: Vector, couch_angle_deg: float, pitch_deg: float, roll_deg: float
) -> Vector:
    """Fixed frame to table top frame: the inverse of `table_top_to_support`, then `support_to_fixed`."""
    support = support_to_fixed(point_mm, -couch_angle_deg) - np.asarray(translation_mm, dtype=np.float64)
    return support @ (rotation_x(pitch_deg) @ rotation_y(roll_deg))


def patient_to_table_hfs(point_mm: Vector, isocentre_mm: Vector) -> Vector:
    """DICOM patient coordinates to table-top axes for head-first supine: x_t = x_d, y_t = z_d, z_t = -y_d."""
    d = np.asarray(point_mm, dtype=np.float64) - np.asarray(isocentre_mm, dtype=np.float64)
    return np.stack([d[..., 0], d[..., 2], -d[..., 1]], axis=-1)


def project_to_isocentre(x_mm: Vector, sad_mm: float, distance_mm: float) -> Vector:
    """Project a coordinate measured `distance_mm` upstream of the isocentre to the isocentre plane: x SAD / (SAD - d)."""
    return np.asarray(x_mm, dtype=np.float64) * (sad_mm / (sad_mm - distance_mm))


def wrap_angle_deg(angle_deg: float) -> float:
    """Bring an angle into (-180, 180]."""
    wrapped = (angle_deg + 180.0) % 360.0 - 180.0
    return 180.0 if wrapped == -180.0 else wrapped
