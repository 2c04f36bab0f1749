"""Projection and back-projection of a (possibly distorted) pinhole camera. Conventions: see `types`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import Array, BoolImage, Intrinsics

MAX_STEP = 0.5  # of one Newton step on the image plane, so that points outside the lens stay finite


def project(points_camera: Array, camera: Intrinsics) -> Array:
    """Pixels uv (..., 2) of camera-frame points (..., 3); NaN behind the camera."""
    z = points_camera[..., 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = np.where(z > 0, points_camera[..., :2] / z, np.nan)
    xy = distort(xy, camera)
    return np.stack([camera.fx * xy[..., 0] + camera.cx, camera.fy * xy[..., 1] + camera.cy], -1)


def on_image(points_camera: Array, camera: Intrinsics) -> tuple[Array, BoolImage]:
    """Pixels uv (N, 2) of camera-frame points (N, 3), and which of them lie before the camera and inside its image."""
    uv = project(points_camera, camera)
    with np.errstate(invalid="ignore"):  # behind the camera there is no pixel
        return uv, np.asarray((uv > 0).all(1) & (uv < (camera.width, camera.height)).all(1))


def unproject(uv: Array, depth: Array, camera: Intrinsics) -> Array:
    """Camera-frame points (..., 3) of pixels uv (..., 2) at z-depth (...)."""
    return np.concatenate([normalised(uv, camera), np.ones_like(uv[..., :1])], -1) * depth[..., None]


def normalised(uv: Array, camera: Intrinsics) -> Array:
    """Undistorted image-plane coordinates x/z, y/z (..., 2) of pixels uv (..., 2)."""
    xy = np.stack([(uv[..., 0] - camera.cx) / camera.fx, (uv[..., 1] - camera.cy) / camera.fy], -1)
    return undistort(xy, camera)


def pixel_grid(width: int, height: int) -> Array:
    """uv (H, W, 2) of every pixel centre."""
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)


def ray_grid(camera: Intrinsics) -> NDArray[np.float32]:
    """(H, W, 3) float32: the camera-frame ray with z = 1 through every pixel; times z-depth it is the point."""
    return _ray_grid(camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, camera.distortion)


@lru_cache(maxsize=8)
def _ray_grid(*camera: Any) -> NDArray[np.float32]:
    """Every frame of a clip asks for the same rays, and undistorting them takes longer than using them."""
    xy = normalised(pixel_grid(camera[4], camera[5]), Intrinsics(*camera))
    rays = np.concatenate([xy, np.ones_like(xy[..., :1])], -1).astype(np.float32)
    rays.flags.writeable = False
    return rays


def distort(xy: Array, camera: Intrinsics) -> Array:
    """Apply the Brown-Conrady model with k1, k2, p1, p2 (OpenCV's order) to image-plane coordinates (..., 2)."""
    if camera.distortion is None:
        return xy
    k1, k2, p1, p2 = camera.distortion
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + k2 * r2)
    return np.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def undistort(xy: Array, camera: Intrinsics, iterations: int = 10) -> Array:
    """Inverse of `distort` by Newton's method; a fixed-point iteration fails on strong pincushion lenses.

    Beyond the radius at which a barrel model folds back, no inverse exists and the result is a bounded guess.
    """
    if camera.distortion is None:
        return xy
    out = xy
    for _ in range(iterations):
        error = xy - distort(out, camera)
        (xx, off, yy), determinant = _distortion_jacobian(out, camera.distortion)
        step = np.stack([yy * error[..., 0] - off * error[..., 1], xx * error[..., 1] - off * error[..., 0]], -1)
        out = out + np.clip(step / determinant[..., None], -MAX_STEP, MAX_STEP)
    return out


def _distortion_jacobian(
    xy: Array, distortion: tuple[float, float, float, float]
) -> tuple[tuple[Array, Array, Array], Array]:
    """Entries (xx, xy, yy) of the symmetric derivative of `distort` at xy (..., 2), and its determinant, never zero."""
    k1, k2, p1, p2 = distortion
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial, slope = 1 + r2 * (k1 + k2 * r2), 2 * (k1 + 2 * k2 * r2)
    xx = radial + x * x * slope + 2 * p1 * y + 6 * p2 * x
    yy = radial + y * y * slope + 6 * p1 * y + 2 * p2 * x
    off = x * y * slope + 2 * p1 * x + 2 * p2 * y
    determinant = xx * yy - off * off
    return (xx, off, yy), np.where(np.abs(determinant) < 1e-9, 1e-9, determinant)


def depth_to_points(depth: NDArray[np.float32], camera: Intrinsics, T_world_camera: Array) -> NDArray[np.float32]:
    """World points (H, W, 3) float32 of a z-depth map (H, W)."""
    points = ray_grid(camera) * depth[..., None]
    return points @ T_world_camera[:3, :3].T.astype(np.float32) + T_world_camera[:3, 3].astype(np.float32)
