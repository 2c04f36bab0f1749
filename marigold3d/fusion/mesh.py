"""From depth maps to one mesh: the views that fusion keeps, merged in a distance field, and its surface cleaned up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import FusionConfig
from ..errors import UsageError
from ..progress import Progress, Steps
from ..types import TriangleMesh
from .blocks import BlockStore
from .fuse import Figures, FusionInput, Limits, filtered, oriented
from .surface import extract_surface, simplified, without_small_parts
from .tsdf import TsdfVolume

LEAST_SHARE = 0.5  # of `min_observations` typical observations, that voxels must weigh to carry a surface
SMALLEST_PART = 800  # triangles: a patch of 20 x 20 voxels
SIGMA_WITHOUT = 0.01  # share of depth, where no map has a sigma


@dataclass(frozen=True, eq=False)
class MeshReport(Figures):
    """voxel in scene units; blocks of the distance field; triangles found, and kept; vertices kept."""

    voxel: float
    blocks: int
    found: int
    triangles: int
    vertices: int


def fuse_mesh(
    views: FusionInput,
    colors: Iterator[tuple[int, NDArray[np.uint8]]],
    config: FusionConfig,
    folder: Path,
    triangles: int | None = None,
) -> Steps[tuple[TriangleMesh, MeshReport]]:
    """The surface of the views; `colors` yields (row among the views, rgb (H, W, 3)) in order.

    folder: for what does not fit in memory; it is removed. triangles: about so many at most.
    Raises GeometryError when there is no surface, OutputError on a full disk.
    """
    if triangles is not None and triangles < 4:
        raise UsageError(f"a mesh needs 4 triangles at least, got {triangles}")
    limits = Limits.of(views, config)
    try:
        volume = TsdfVolume(limits.voxel, BlockStore(folder), limits.typical_sigma or SIGMA_WITHOUT)
        for done, (row, rgb) in enumerate(colors, 1):
            T_world_camera = views.T_world_camera[row]
            *_, checked = filtered(views, row, limits, config)
            *_, placed = oriented(checked, views.camera, T_world_camera)
            volume.integrate(placed, rgb, views.camera, T_world_camera)
            yield Progress("mesh", done, len(views.positions))
        least = LEAST_SHARE * min(config.min_observations, len(views.positions))
        whole = yield from extract_surface(volume.store, limits.voxel, least, views.units)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    mesh = without_small_parts(whole, SMALLEST_PART)
    if triangles is not None:
        mesh = simplified(mesh, triangles)
    return mesh, MeshReport(limits.voxel, len(volume.store), len(whole), len(mesh), len(mesh.vertices))
