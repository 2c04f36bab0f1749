"""SE(3) and Sim(3) on plain arrays: apply, invert, interpolate, and Umeyama's alignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from .errors import GeometryError
from .types import Array


def transform(T: Array, points: Array) -> Array:
    """Apply T (4, 4) to points (..., 3)."""
    return points @ T[:3, :3].T + T[:3, 3]


def inverse(T: Array) -> Array:
    """Inverse of rigid T (..., 4, 4): the rotation is transposed, so no matrix is solved."""
    R_t = np.swapaxes(T[..., :3, :3], -1, -2)
    out = np.zeros_like(T)
    out[..., :3, :3] = R_t
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", R_t, T[..., :3, 3])
    out[..., 3, 3] = 1
    return out


def from_quaternion_xyzw(quaternion_xyzw: Array, translation: Array) -> Array:
    """(N, 4, 4) poses from quaternions (N, 4), x y z w, and translations (N, 3)."""
    T = np.tile(np.eye(4), (len(translation), 1, 1))
    if len(translation):
        T[:, :3, :3] = Rotation.from_quat(quaternion_xyzw).as_matrix()
        T[:, :3, 3] = translation
    return T


def quaternion_xyzw(T: Array) -> Array:
    """Unit quaternions (N, 4), x y z w with w >= 0, of poses (N, 4, 4)."""
    q = Rotation.from_matrix(T[:, :3, :3]).as_quat() if len(T) else np.zeros((0, 4))
    return q * np.where(q[:, 3:] < 0, -1.0, 1.0)


def interpolate(times_s: Array, T: Array, query_s: Array) -> Array:
    """Poses at `query_s` (M,) between poses T (N, 4, 4) at `times_s`: slerp and linear centres; never extrapolated."""
    if not len(times_s) or np.any(query_s < times_s[0]) or np.any(query_s > times_s[-1]):
        raise GeometryError("poses cannot be interpolated outside the time they cover")
    out = np.tile(np.eye(4), (len(query_s), 1, 1))
    if len(times_s) == 1:
        out[:] = T[0]
        return out
    out[:, :3, :3] = Slerp(times_s, Rotation.from_matrix(T[:, :3, :3]))(query_s).as_matrix()
    for axis in range(3):
        out[:, axis, 3] = np.interp(query_s, times_s, T[:, axis, 3])
    return out


@dataclass(frozen=True, eq=False)
class Similarity:
    """Sim(3): x -> scale * rotation @ x + translation."""

    scale: float
    rotation: Array
    translation: Array

    def apply(self, points: Array) -> Array:
        """Points (..., 3) carried over."""
        return self.scale * points @ self.rotation.T + self.translation

    def apply_to_poses(self, T_world_camera: Array) -> Array:
        """Camera poses (N, 4, 4) carried over; they stay rigid, the scale acts on the centres."""
        out = T_world_camera.copy()
        out[:, :3, :3] = self.rotation @ T_world_camera[:, :3, :3]
        out[:, :3, 3] = self.apply(T_world_camera[:, :3, 3])
        return out

    def as_matrix(self) -> Array:
        """(4, 4) of homogeneous coordinates."""
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = self.scale * self.rotation, self.translation
        return T

    def inverse(self) -> Similarity:
        R_t = self.rotation.T
        return Similarity(1 / self.scale, R_t, -R_t @ self.translation / self.scale)


def umeyama(source: Array, target: Array, *, with_scale: bool = True) -> Similarity:
    """Least-squares similarity that carries source (N, 3) onto target (N, 3).

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991, eq. 34-43.
    Raises GeometryError when the points do not determine a rotation (fewer than three, or all on a line).
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise GeometryError(f"alignment needs two (N, 3) point sets, got {source.shape} and {target.shape}")
    if len(source) < 3 or not np.all(np.isfinite([source, target])):
        raise GeometryError(f"alignment needs three finite points or more, got {len(source)}")
    mu_s, mu_t = source.mean(0), target.mean(0)  # eq. 34, 35
    s, t = source - mu_s, target - mu_t
    U, D, Vt = np.linalg.svd(t.T @ s / len(s))  # eq. 38
    if D[1] <= 1e-9 * max(D[0], 1e-300):
        raise GeometryError("alignment needs three points that are not on one line")
    S = np.diag([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])  # eq. 39
    R = U @ S @ Vt  # eq. 40
    scale = float((D * np.diag(S)).sum() / (s**2).sum() * len(s)) if with_scale else 1.0  # eq. 42
    return Similarity(scale, R, mu_t - scale * R @ mu_s)  # eq. 41
