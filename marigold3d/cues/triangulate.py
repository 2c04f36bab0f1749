"""Where rays of several frames meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..camera import normalised
from ..rigid import inverse
from ..types import Array, Intrinsics

STEPS = 5  # of Gauss-Newton after the linear solution; it converges in two or three


@dataclass(frozen=True, eq=False)
class Triangulated:
    """A point (3,) of the world, and how well K rays determine it.

    covariance (3, 3): for pixels with a standard deviation of one; error_px: largest reprojection error, infinite
    behind a camera; sin_angle: sine of the widest angle between two rays.
    """

    point: Array
    covariance: Array
    error_px: float
    sin_angle: float


def triangulate(uv: Array, T_world_camera: Array, camera: Intrinsics) -> Triangulated:
    """The point seen at pixels uv (K, 2) by K >= 2 cameras with poses (K, 4, 4): linear, then least reprojection error.

    Hartley & Zisserman, Multiple View Geometry, 12.2, on undistorted image-plane coordinates.
    """
    xy = normalised(uv, camera)
    origin = T_world_camera[:, :3, 3].mean(0)  # near the cameras, so that large survey coordinates lose no digits
    local = T_world_camera.copy()
    local[:, :3, 3] -= origin
    P = inverse(local)[:, :3]  # (K, 3, 4)
    rows = xy[:, :, None] * P[:, 2:] - P[:, :2]  # (K, 2, 4)
    *_, (x, y, z, w) = np.linalg.svd(rows.reshape(-1, 4))[2]
    point = np.array([x, y, z]) / (w if abs(w) > 1e-12 else 1e-12)
    focal = np.array([camera.fx, camera.fy])
    for _ in range(STEPS):
        error, J = _linearised(point, P, xy, focal)
        point = point - np.linalg.lstsq(J, error, rcond=None)[0]
    error, J = _linearised(point, P, xy, focal)
    in_front = np.all(point @ P[:, 2, :3].T + P[:, 2, 3] > 0)
    error_px = float(np.linalg.norm(error.reshape(-1, 2), axis=1).max()) if in_front else np.inf
    return Triangulated(point + origin, np.linalg.pinv(J.T @ J), error_px, _widest(xy, T_world_camera))


def _linearised(point: Array, P: Array, xy: Array, focal: Array) -> tuple[Array, Array]:
    """Reprojection errors (2 K,) in px at `point`, and their derivative (2 K, 3) by it."""
    in_cameras = P[:, :, :3] @ point + P[:, :, 3]  # (K, 3)
    z = np.where(np.abs(in_cameras[:, 2:]) < 1e-12, 1e-12, in_cameras[:, 2:])
    projected = in_cameras[:, :2] / z
    J = (P[:, :2, :3] - projected[:, :, None] * P[:, 2:, :3]) / z[:, :, None]  # (K, 2, 3)
    return ((projected - xy) * focal).ravel(), (J * focal[:, None]).reshape(-1, 3)


def _widest(xy: Array, T_world_camera: Array) -> float:
    rays = np.concatenate([xy, np.ones_like(xy[:, :1])], 1)
    rays = np.einsum("kij,kj->ki", T_world_camera[:, :3, :3], rays / np.linalg.norm(rays, axis=1, keepdims=True))
    return float(np.linalg.norm(np.cross(rays[:, None], rays[None]), axis=2).max())
