"""Clouds as LAS and LAZ through laspy, and clouds of GLB files, which trimesh reads. Both need [export].

What was written is read back, and so are the points of other programs' files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError
from ..types import PointCloud, Units
from .glb import Y_DOWN_TO_Y_UP
from .needed import needed, require_points
from .ply import CHUNK_POINTS, blank_cloud

LAS_POINT_FORMAT = 7  # LAS 1.4 with 16-bit colour
LAS_STEPS = 2**31 - 2  # of the 32-bit integers that hold coordinates
LAS_UNITS = "units "  # begins the header's system identifier
COARSEST = 1e-5  # of a cloud's extent: coordinates that float32 holds in larger steps are not read


def write_las(path: str | Path, cloud: PointCloud) -> None:
    """Write LAS or, by the suffix .laz, compressed LAZ: points, 16-bit colour, normals, sigma, observations, frame.

    Coordinates are stored in steps of a power of ten, at most 5e-9 of the cloud's extent, so nothing visible is lost.
    """
    laspy = needed("laspy", "LAS files")
    require_points(len(cloud))
    header = _las_header(laspy, cloud)
    with atomic_path(path) as temporary, laspy.open(str(temporary), mode="w", header=header) as file:
        for start in range(0, len(cloud), CHUNK_POINTS):
            file.write_points(_las_points(laspy, header, cloud, slice(start, start + CHUNK_POINTS)))


def _las_points(laspy: Any, header: Any, cloud: PointCloud, part: slice) -> Any:
    record = laspy.ScaleAwarePointRecord.zeros(len(cloud.sigma[part]), header=header)
    record.x, record.y, record.z = cloud.points[part].T.astype(np.float64)
    record.red, record.green, record.blue = cloud.colors[part].T.astype(np.uint16) * 257  # 255 becomes 65535
    for i, name in enumerate(("nx", "ny", "nz")):
        record[name] = cloud.normals[part, i]
    record["sigma"], record["observations"] = cloud.sigma[part], cloud.observations[part]
    record["frame"] = cloud.frame_index[part]
    return record


def _las_header(laspy: Any, cloud: PointCloud) -> Any:
    header = laspy.LasHeader(point_format=LAS_POINT_FORMAT, version="1.4")
    low, high = cloud.points.min(0).astype(np.float64), cloud.points.max(0).astype(np.float64)
    header.offsets = low
    finest = max(float((high - low).max()), 1e-6) / LAS_STEPS
    header.scales = np.full(3, 10.0 ** np.ceil(np.log10(finest)))
    header.generating_software = f"marigold3d {__version__}"[:32]
    header.system_identifier = f"{LAS_UNITS}{cloud.units}"
    names = ("nx", "ny", "nz", "sigma")
    header.add_extra_dims([laspy.ExtraBytesParams(name=name, type=np.float32) for name in names])
    header.add_extra_dims([laspy.ExtraBytesParams(name=name, type=np.int32) for name in ("observations", "frame")])
    return header


def read_glb(path: str | Path) -> PointCloud:
    """Read the points of a GLB file, turned y down; normals zero, sigma NaN, frame -1.

    InputError when it is no GLB file or holds no points, OutputError when trimesh is missing.
    """
    trimesh = needed("trimesh", "GLB files")
    path = _existing(path)
    try:
        with path.open("rb") as file:
            scene = trimesh.load_scene(file, file_type="glb")
        clouds = [part for part in scene.dump() if isinstance(part, trimesh.PointCloud)]
    except Exception as error:  # trimesh raises whatever its parsing runs into
        raise _unreadable(path, "GLB", error) from error
    if not clouds:
        raise InputError(f"{path}: it holds no points; export it as a point cloud")
    points = np.concatenate([np.asarray(part.vertices, np.float32) for part in clouds])
    cloud = blank_cloud(len(points), _units(str(scene.metadata.get("units"))))
    cloud.points[:] = points * Y_DOWN_TO_Y_UP
    cloud.colors[:] = np.concatenate([_glb_colors(part) for part in clouds])
    return cloud


def _glb_colors(part: Any) -> NDArray[np.uint8]:
    colors = np.asarray(part.colors)
    return colors[:, :3].astype(np.uint8) if len(colors) else blank_cloud(len(part.vertices), "arbitrary").colors


def read_las(path: str | Path) -> PointCloud:
    """Read LAS or LAZ; what the file lacks is grey, zero, NaN or -1 as in `read_ply`.

    InputError when it is no LAS file, or its coordinates are too large for float32; OutputError when laspy is missing.
    """
    laspy = needed("laspy", "LAS files")
    path = _existing(path)
    try:
        las = laspy.read(str(path))
        xyz = np.asarray(las.xyz, np.float64)
        columns = {name: np.asarray(las[name]) for name in las.point_format.dimension_names}
    except Exception as error:  # laspy and lazrs raise whatever their parsing runs into
        raise _unreadable(path, "LAS", error) from error
    if len(xyz) < las.header.point_count:
        raise InputError(f"{path}: it ends after {len(xyz)} of {las.header.point_count} points; copy or write it again")
    if len(xyz) and np.spacing(np.float32(np.abs(xyz).max())) > COARSEST * np.ptp(xyz, axis=0).max() > 0:
        raise InputError(f"{path}: coordinates up to {np.abs(xyz).max():.0f} are too large; subtract an offset first")
    identifier = str(las.header.system_identifier)
    cloud = blank_cloud(len(xyz), _units(identifier.removeprefix(LAS_UNITS).strip("\0 ")))
    cloud.points[:] = xyz
    if {"red", "green", "blue"} <= set(columns):
        colors = np.column_stack([columns[name] for name in ("red", "green", "blue")])
        cloud.colors[:] = colors if colors.max(initial=0) <= 255 else colors // 257  # some writers use 8 of 16 bits
    for i, name in enumerate(("nx", "ny", "nz")):
        if name in columns:
            cloud.normals[:, i] = columns[name]
    for target, name in ((cloud.sigma, "sigma"), (cloud.observations, "observations"), (cloud.frame_index, "frame")):
        if name in columns:
            target[:] = columns[name]
    return cloud


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give a point cloud")
    return Path(path)


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path}: not a readable {kind} file ({reason}); copy or write it again")


def _units(name: str) -> Units:
    return cast(Units, name if name in get_args(Units) else "arbitrary")
