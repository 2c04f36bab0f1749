"""From aligned depth maps to one cloud: drop flying pixels, keep what views agree on, gather in voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..camera import depth_to_points
from ..config import FusionConfig
from ..errors import GeometryError
from ..multiview.consistency import View, compare, consistent, neighbour_positions
from ..progress import CloudPreview, Progress, Steps
from ..types import Array, DepthMap, Intrinsics, PointCloud, Units
from .edges import edge_mask
from .normals import grid_normals
from .support import supported
from .voxels import VoxelGrid

NEIGHBOURS = 6  # views a depth map is checked against
FAR_RATIO = 6.0  # depth beyond this multiple of the clip's median is left out unless --max-depth says otherwise
VOXEL_RATIO = 0.005  # voxel as a share of the clip's median depth ...
VOXEL_PIXELS = 1.5  # ... and never finer than so many pixels are apart there
EDGE_SLOPE = 7.0  # a surface may slant this much before it counts as an edge, whatever the pixels' size
TYPICAL_SIGMAS = 2.0  # times the clip's typical sigma is never too uncertain: what is only known roughly stays whole
PREVIEWED = 2000  # points of a view, about, that a front-end is shown
GRAZING = 0.2  # |cosine| between ray and normal under which a pixel sees a surface too flatly to place it


class Figures:
    """A dataclass of numbers for a run's report."""

    def as_dict(self) -> dict[str, float | int]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in self.__dict__.items()}


@dataclass(frozen=True, eq=False)
class FusionReport(Figures):
    """voxel and max_depth in scene units; shares of the valid pixels dropped by each filter."""

    voxel: float
    max_depth: float
    points: int
    dropped_edges: float
    dropped_uncertain: float
    dropped_inconsistent: float


@dataclass(frozen=True, eq=False)
class FusionInput:
    """What is fused: for each of M views its position, source index and pose; `depth(position)` reads a DepthMap.

    whole: depth before any of it was excluded, if some was: it says how large the scene is and how sure its depth.
    """

    positions: NDArray[np.int64]
    indices: NDArray[np.int64]
    T_world_camera: Array
    depth: Callable[[int], DepthMap]
    camera: Intrinsics
    units: Units
    whole: Callable[[int], DepthMap] | None = None


@dataclass(frozen=True, eq=False)
class Limits:
    """What a clip's scale and certainty make of the settings; lengths in scene units, sigmas as shares of depth."""

    median: float  # depth
    voxel: float
    max_depth: float
    edge_ratio: float
    typical_sigma: float
    max_sigma: float

    @classmethod
    def of(cls, views: FusionInput, config: FusionConfig) -> Limits:
        """GeometryError when no view has depth."""
        median, sigma = median_depth(views), _typical_sigma(views)
        return cls(
            median,
            config.voxel or max(VOXEL_RATIO, VOXEL_PIXELS / views.camera.fx) * median,
            config.max_depth or FAR_RATIO * median,
            max(config.edge_ratio, EDGE_SLOPE / views.camera.fx),
            sigma,
            max(config.max_sigma, TYPICAL_SIGMAS * sigma),
        )


def filtered(
    views: FusionInput, row: int, limits: Limits, config: FusionConfig
) -> tuple[DepthMap, DepthMap, DepthMap, DepthMap]:
    """A view's depth that is near enough; of that, what is no edge; what is certain; what other views do not deny.

    The last is averaged with what they confirm.
    """
    depth = views.depth(int(views.positions[row]))
    near = depth.restricted_to(depth.depth < limits.max_depth)
    solid = near.restricted_to(~edge_mask(near, limits.edge_ratio))
    sure = certain(solid, limits.max_sigma)
    return near, solid, sure, _checked(views, row, sure, limits.median, limits.max_sigma, config)


def fuse(
    views: FusionInput, colors: Iterator[tuple[int, NDArray[np.uint8]]], config: FusionConfig
) -> Steps[tuple[PointCloud, FusionReport]]:
    """Fuse the views; `colors` yields (row among the views, rgb (H, W, 3)) in order.

    Raises GeometryError when nothing survives the filters.
    """
    chosen = Limits.of(views, config)
    grid = VoxelGrid(chosen.voxel)
    pixels = edges = uncertain = inconsistent = 0
    for done, (row, rgb) in enumerate(colors):
        near, solid, sure, checked = filtered(views, row, chosen, config)
        preview = _add(grid, checked, rgb, views, row)
        pixels += int(near.valid.sum())
        edges += int(near.valid.sum() - solid.valid.sum())
        uncertain += int(solid.valid.sum() - sure.valid.sum())
        inconsistent += int(sure.valid.sum() - checked.valid.sum())
        yield Progress("fuse", done + 1, len(views.positions), preview)
    cloud = grid.cloud(min(config.min_observations, len(views.positions)), views.units)
    cloud = cloud.select(supported(cloud.points, grid.voxel))
    if len(cloud) == 0:
        raise GeometryError(
            "no point survived fusion: the views do not agree with each other; try --consistency 0.15 or "
            "--min-observations 1"
        )
    share = 1 / max(pixels, 1)
    return cloud, FusionReport(
        grid.voxel, chosen.max_depth, len(cloud), edges * share, uncertain * share, inconsistent * share
    )


def median_depth(views: FusionInput, samples: int = 12) -> float:
    """Median depth over a few views: the scene's own unit of length."""
    values = [float(np.median(m.depth[m.valid])) for m in _some_maps(views, samples)]
    if not values:
        raise GeometryError("no frame has valid depth to fuse")
    return float(np.median(values))


def certain(depth: DepthMap, max_sigma: float) -> DepthMap:
    """The pixels whose sigma is at most this share of their depth; all where the map has no sigma."""
    if depth.sigma is None:
        return depth
    return depth.restricted_to(depth.sigma <= max_sigma * depth.depth)


def _typical_sigma(views: FusionInput, samples: int = 12) -> float:
    """Median over a few views of sigma as a share of depth."""
    values = [
        float(np.median(m.sigma[m.valid] / m.depth[m.valid])) for m in _some_maps(views, samples) if m.sigma is not None
    ]
    return float(np.median(values)) if values else 0.0


def _some_maps(views: FusionInput, samples: int) -> Iterator[DepthMap]:
    picks = np.unique(np.linspace(0, len(views.positions) - 1, samples).round().astype(int))
    maps = ((views.whole or views.depth)(int(views.positions[i])) for i in picks)
    return (m for m in maps if m.valid.any())


def _checked(
    views: FusionInput, row: int, depth: DepthMap, median: float, max_sigma: float, config: FusionConfig
) -> DepthMap:
    """The depth map with what other views contradict removed, and averaged with what they confirm."""
    rows = neighbour_positions(views.T_world_camera, row, median, NEIGHBOURS)
    if not rows:
        return depth
    others = [View(certain(views.depth(int(views.positions[i])), max_sigma), views.T_world_camera[i]) for i in rows]
    verdict = compare(View(depth, views.T_world_camera[row]), others, views.camera, config.consistency_ratio)
    keep = depth.valid & consistent(verdict, len(others), config.min_observations)
    return DepthMap(np.where(keep, verdict.depth, depth.depth).astype(np.float32), keep, verdict.sigma)


def _add(grid: VoxelGrid, depth: DepthMap, rgb: NDArray[np.uint8], views: FusionInput, row: int) -> CloudPreview:
    """Add a view's points to the grid; every so many of them, to be looked at."""
    points, normals, placed = oriented(depth, views.camera, views.T_world_camera[row])
    keep = placed.valid
    sigma = depth.sigma_or_typical[keep]
    points, colors = points[keep], rgb[keep]
    grid.add(points, colors, normals[keep], sigma, int(views.indices[row]))
    some = np.s_[:: -(-len(points) // PREVIEWED) or 1]
    return CloudPreview(points[some].copy(), colors[some].copy())  # copies: views would keep whole frames alive


def oriented(
    depth: DepthMap, camera: Intrinsics, T_world_camera: Array
) -> tuple[NDArray[np.float32], NDArray[np.float32], DepthMap]:
    """World points and normals (H, W, 3) of a depth map, and the map without pixels that see a surface too flatly."""
    centre: Array = T_world_camera[:3, 3]
    points = depth_to_points(depth.depth, camera, T_world_camera)
    normals = grid_normals(points, centre)
    ray = centre.astype(np.float32) - points
    cosine = np.einsum("hwc,hwc->hw", ray, normals) / np.maximum(np.linalg.norm(ray, axis=2), 1e-12)
    return points, normals, depth.restricted_to(cosine > GRAZING)
