"""Clouds and meshes for other programs: glTF (GLB) through trimesh, LAS and LAZ through laspy. Both need [export]."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError, OutputError
from ..types import PointCloud, Units

Y_DOWN_TO_Y_UP = np.array([1, -1, -1], np.float32)  # glTF is y up, z towards the viewer: half a turn about x
LAS_POINT_FORMAT = 7  # LAS 1.4 with 16-bit colour
LAS_STEPS = 2**31 - 2  # of the 32-bit integers that hold coordinates


def write_glb(path: str | Path, cloud: PointCloud) -> None:
    """Write the points as GLB, turned y up. OutputError when trimesh is missing or the file cannot be written."""
    trimesh = _needed("trimesh", "GLB files")
    alpha = np.full((len(cloud), 1), 255, np.uint8)
    _require_points(len(cloud))
    points = trimesh.PointCloud(cloud.points * Y_DOWN_TO_Y_UP, colors=np.concatenate([cloud.colors, alpha], 1))
    _write_scene(trimesh, path, points, cloud.units)


def write_mesh_glb(
    path: str | Path,
    vertices: NDArray[np.floating[Any]],
    faces: NDArray[np.integer[Any]],
    colors: NDArray[np.uint8],
    units: Units,
) -> None:
    """Write a triangle mesh as GLB, turned y up: vertices (V, 3) world, faces (F, 3), colors (V, 3)."""
    trimesh = _needed("trimesh", "GLB files")
    _require_points(len(vertices))
    turned = np.asarray(vertices, np.float32) * Y_DOWN_TO_Y_UP
    mesh = trimesh.Trimesh(turned, faces, vertex_colors=colors, process=False)
    _write_scene(trimesh, path, mesh, units)


def _write_scene(trimesh: Any, path: str | Path, geometry: Any, units: Units) -> None:
    scene = trimesh.Scene(geometry)
    scene.metadata.update(generator=f"marigold3d {__version__}", units=units)
    with atomic_path(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb"))


def write_las(path: str | Path, cloud: PointCloud) -> None:
    """Write LAS or, by the suffix .laz, compressed LAZ: points, 16-bit colour, normals, sigma, observations, frame.

    Coordinates are stored in steps of a power of ten, at most 5e-9 of the cloud's extent, so nothing visible is lost.
    """
    laspy = _needed("laspy", "LAS files")
    _require_points(len(cloud))
    las = laspy.LasData(_las_header(laspy, cloud))
    las.x, las.y, las.z = cloud.points.T.astype(np.float64)
    las.red, las.green, las.blue = cloud.colors.T.astype(np.uint16) * 257  # 255 becomes 65535
    for i, name in enumerate(("nx", "ny", "nz")):
        las[name] = cloud.normals[:, i]
    las["sigma"], las["observations"], las["frame"] = cloud.sigma, cloud.observations, cloud.frame_index
    with atomic_path(path) as temporary:
        las.write(str(temporary))


def _las_header(laspy: Any, cloud: PointCloud) -> Any:
    header = laspy.LasHeader(point_format=LAS_POINT_FORMAT, version="1.4")
    low, high = cloud.points.min(0).astype(np.float64), cloud.points.max(0).astype(np.float64)
    header.offsets = low
    finest = max(float((high - low).max()), 1e-6) / LAS_STEPS
    header.scales = np.full(3, 10.0 ** np.ceil(np.log10(finest)))
    header.generating_software = f"marigold3d {__version__}"[:32]
    header.system_identifier = f"units {cloud.units}"
    names = ("nx", "ny", "nz", "sigma")
    header.add_extra_dims([laspy.ExtraBytesParams(name=name, type=np.float32) for name in names])
    header.add_extra_dims([laspy.ExtraBytesParams(name=name, type=np.int32) for name in ("observations", "frame")])
    return header


def _needed(module: str, what: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise OutputError(f"{what} need {module}: pip install 'marigold3d[export]'") from error


def _require_points(count: int) -> None:
    if not count:
        raise InputError("the cloud is empty: there is nothing to export")
