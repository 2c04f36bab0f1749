"""Point clouds in whatever format a file's name says, and clouds made or moved for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..types import Array, PointCloud, Units
from .glb import write_glb
from .meshes import read_glb, read_las, write_las
from .ply import blank_cloud, read_ply, write_ply

CLOUD_READERS: dict[str, Callable[[Path], PointCloud]] = {
    ".ply": read_ply,
    ".las": read_las,
    ".laz": read_las,
    ".glb": read_glb,
}
CLOUD_WRITERS: dict[str, Callable[[Path, PointCloud], None]] = {
    ".ply": write_ply,
    ".las": write_las,
    ".laz": write_las,
    ".glb": write_glb,
}


def read_cloud(path: str | Path) -> PointCloud:
    """Read a cloud by its suffix. UsageError for an unknown one, InputError when the file cannot be used."""
    return _by_suffix(CLOUD_READERS, path)(Path(path))


def write_cloud(path: str | Path, cloud: PointCloud) -> None:
    """Write a cloud by its suffix. UsageError for an unknown one, OutputError when it cannot be written."""
    _by_suffix(CLOUD_WRITERS, path)(Path(path), cloud)


def _by_suffix(table: dict[str, Any], path: str | Path) -> Any:
    try:
        return table[Path(path).suffix.lower()]
    except KeyError:
        raise UsageError(f"{path}: choose a name that ends in {', '.join(table)}") from None


def cloud_of_points(points_xyz: NDArray[Any], colors: NDArray[Any], units: Units = "arbitrary") -> PointCloud:
    """A cloud of which no more is known: points (N, 3), colors (N, 3) uint8; normals zero, sigma NaN, frame -1."""
    cloud = blank_cloud(len(points_xyz), units)
    return replace(cloud, points=np.asarray(points_xyz, np.float32), colors=np.asarray(colors, np.uint8))


def thinned(cloud: PointCloud, most: int) -> PointCloud:
    """At most so many of the points, in their order, each as likely as another; the same ones every time."""
    return cloud if len(cloud) <= most else cloud.select(thinned_rows(len(cloud), most))


def thinned_rows(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of the rows 0..count-1, increasing; the same ones every time."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def transformed(cloud: PointCloud, matrix: Array) -> PointCloud:
    """The cloud under an affine (4, 4) map of its points.

    Normals stay normal to the surfaces; sigma grows with the mean scale. InputError when the map flattens the cloud.
    """
    if np.array_equal(matrix, np.eye(4)):
        return cloud
    linear = np.asarray(matrix[:3, :3], np.float64)
    volume = abs(float(np.linalg.det(linear)))
    if not 0 < volume < np.inf:
        raise InputError("the points are moved by a transform that flattens them: reset the layer's scale and affine")
    normals = cloud.normals @ np.linalg.inv(linear)  # rows times the inverse: columns times the inverse transpose
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return replace(
        cloud,
        points=(cloud.points @ linear.T + matrix[:3, 3]).astype(np.float32),
        normals=np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0).astype(np.float32),
        sigma=(cloud.sigma * np.cbrt(volume)).astype(np.float32),
    )
