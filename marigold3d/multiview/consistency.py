"""What other views say of a depth map: who agrees, who sees through it, and the depth they agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from ..camera import project, ray_grid
from ..rigid import inverse, transform
from ..types import Array, BoolImage, DepthMap, Intrinsics

BASELINE_SPREAD = 0.5  # neighbours are sought up to this share of the depth away
SAME_SURFACE = 1.05  # carried depths that differ less are one surface
EDGE_RATIO = 1.06  # a step in depth from which a surface is the nearer side of an outline


@dataclass(frozen=True, eq=False)
class Verdict:
    """agree, contradict (H, W) int16: views that see the same surface, or look through it to one farther away.

    depth (H, W): the agreeing views' mean, weighted by 1/sigma^2; sigma (H, W): of that mean.
    """

    agree: NDArray[np.int16]
    contradict: NDArray[np.int16]
    depth: NDArray[np.float32]
    sigma: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class View:
    """A depth map and its camera pose."""

    depth: DepthMap
    T_world_camera: Array


def compare(view: View, others: Sequence[View], camera: Intrinsics, ratio: float, step: int = 1) -> Verdict:
    """Project every `step`-th pixel of `view` into the others and compare depths.

    Agreement: within `ratio` of the depth, or two sigmas, whichever is more. A view contradicts when it sees a surface
    farther away along the ray; one that sees a nearer surface is merely occluded and says nothing.
    """
    z = view.depth.depth[::step, ::step]
    valid = view.depth.valid[::step, ::step]
    points = ray_grid(camera)[::step, ::step] * z[..., None]  # (h, w, 3) in this camera
    variance = _sigma(view.depth)[::step, ::step] ** 2
    weight, total = 1 / variance, z / variance
    agree, contradict = np.zeros(z.shape, np.int16), np.zeros(z.shape, np.int16)
    for other in others:
        T_other_view = (inverse(other.T_world_camera) @ view.T_world_camera).astype(np.float32)
        seen = (points @ T_other_view[:3, :3].T + T_other_view[:3, 3]).astype(np.float32)
        row, column, inside = pixels_under(seen, camera)
        inside &= valid
        z_other = np.where(inside, other.depth.depth[row, column], 0)
        inside &= other.depth.valid[row, column]
        sigma_other = np.where(inside, _sigma(other.depth)[row, column], 1)
        difference = seen[..., 2] - z_other
        tolerance = np.maximum(ratio * z_other, 2 * np.sqrt(np.minimum(variance, (ratio * z) ** 2)))
        same = inside & (np.abs(difference) < tolerance)
        agree += same
        contradict += inside & (difference < -1.5 * tolerance)
        # The other view's surface, brought back along this ray: to first order z shifts by the difference of depths.
        w = same / sigma_other**2
        weight = weight + w
        total = total + w * (z - difference)
    return Verdict(agree, contradict, (total / weight).astype(np.float32), np.sqrt(1 / weight).astype(np.float32))


def consistent(verdict: Verdict, views: int, required: int) -> NDArray[np.bool_]:
    """(H, W) True where enough views agree and no majority contradicts. With few views, fewer are required."""
    return (verdict.agree >= min(required, max(views, 0))) & (verdict.contradict <= verdict.agree)


def neighbour_positions(T_world_camera: Array, index: int, depth: float, count: int) -> list[int]:
    """Rows of T_world_camera (N, 4, 4) that see much of what `index` sees, baselines spread up to half the depth.

    Frames that look more than 40 degrees elsewhere are left out.
    """
    offset = np.linalg.norm(T_world_camera[:, :3, 3] - T_world_camera[index, :3, 3], axis=1)
    facing = T_world_camera[:, :3, 2] @ T_world_camera[index, :3, 2]
    candidates = np.flatnonzero((facing > np.cos(np.radians(40))) & (offset < BASELINE_SPREAD * depth))
    candidates = candidates[candidates != index]
    if len(candidates) <= count:
        return candidates.tolist()  # type: ignore[no-any-return]
    order = candidates[np.argsort(offset[candidates])]
    return order[np.linspace(0, len(order) - 1, count + 1).round().astype(int)[1:]].tolist()  # type: ignore[no-any-return]


def pixels_under(
    points: NDArray[np.float32], camera: Intrinsics
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Pixel (row, column) each camera-frame point (h, w, 3) falls on, and whether it falls on any."""
    uv = project(points, camera)
    with np.errstate(invalid="ignore"):
        inside = (uv[..., 0] >= 0) & (uv[..., 0] < camera.width) & (uv[..., 1] >= 0) & (uv[..., 1] < camera.height)
    uv = np.where(inside[..., None], uv, 0)
    return uv[..., 1].astype(np.intp), uv[..., 0].astype(np.intp), inside


def _sigma(depth: DepthMap) -> NDArray[np.float32]:
    """Sigma with a floor of half a per cent, so that no pixel outvotes all others; 5 % where the map has none."""
    return np.maximum(depth.sigma_or_typical, 0.005 * np.maximum(depth.depth, 1e-6)).astype(np.float32)


def carried(sources: Sequence[View], T_world_camera: Array, camera: Intrinsics) -> DepthMap:
    """What other views measured, as a camera at T_world_camera (4, 4) sees it: pixel for pixel, with holes.

    The nearest surface wins a pixel; what several views say of it is averaged. sigma is relative to the depth they had.
    """
    found: list[tuple[NDArray[np.intp], Array, Array]] = []
    size = camera.width * camera.height
    nearest = np.full(size, np.inf)
    for source in sources:
        rows, columns = np.nonzero(source.depth.valid)
        z = source.depth.depth[rows, columns].astype(float)
        T_camera_source = inverse(T_world_camera) @ source.T_world_camera
        points = transform(T_camera_source, ray_grid(camera)[rows, columns] * z[:, None])
        row, column, inside = pixels_under(points.astype(np.float32), camera)
        at, here = (row * camera.width + column)[inside], points[inside, 2]
        np.minimum.at(nearest, at, here)
        found.append((at, here, (_sigma(source.depth)[rows, columns] / z)[inside]))
    total, weight = np.zeros(size), np.zeros(size)
    for at, here, share in found:
        front = here < nearest[at] * SAME_SURFACE
        w = 1 / share[front] ** 2
        total += np.bincount(at[front], w * np.log(here[front]), size)
        weight += np.bincount(at[front], w, size)
    seen = (weight > 0).reshape(camera.height, camera.width)
    weight = np.maximum(weight, 1e-12)
    depth = np.where(seen, np.exp(total / weight).reshape(seen.shape), 0).astype(np.float32)
    return DepthMap(depth, seen, (depth / np.sqrt(weight).reshape(seen.shape)).astype(np.float32))


def clear_of_edges(depth: DepthMap, radius_px: int) -> BoolImage:
    """Valid pixels (H, W) without a farther surface within radius_px.

    A window that overlaps an outline matches by the nearer surface's texture, so that surface is found too wide.
    """
    farthest = maximum_filter(np.where(depth.valid, depth.depth, 0), 2 * radius_px + 1)
    clear: BoolImage = depth.valid & (farthest < EDGE_RATIO * depth.depth)
    return clear
