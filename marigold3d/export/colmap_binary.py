"""COLMAP's binary model: cameras.bin, images.bin and points3D.bin, little-endian, as COLMAP's file format states them.

The files have no room for comments: units and axes stand in `write_colmap`'s text alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..atomic import atomic_path
from ..rigid import inverse, quaternion_xyzw
from ..types import Intrinsics, PointCloud, Trajectory
from .ply import CHUNK_POINTS
from .tracks import Tracks
from .trajectories import UNKNOWN_ERROR, require_names

MODELS = {"PINHOLE": 1, "OPENCV": 4}  # COLMAP's numbers
CAMERA_ID = 1
POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track_length", "<u8")])
OBSERVATION = np.dtype([("uv", "<f8", 2), ("point", "<i8")])


def write_colmap_binary(
    folder: str | Path,
    trajectory: Trajectory,
    camera: Intrinsics,
    names: Sequence[str],
    cloud: PointCloud,
    tracks: Tracks | None = None,
) -> None:
    """Write the model that `write_colmap` writes as text; names: (N,) of the images, one a pose, spaces allowed."""
    require_names(trajectory, names)
    folder, tracks = Path(folder), tracks or Tracks.none()
    _write_camera(folder / "cameras.bin", camera)
    _write_images(folder / "images.bin", trajectory, names, tracks)
    _write_points(folder / "points3D.bin", cloud, tracks)


def _write_camera(path: Path, camera: Intrinsics) -> None:
    model = MODELS["OPENCV" if camera.distortion else "PINHOLE"]
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, *(camera.distortion or ()))
    content = struct.pack("<QIiQQ", 1, CAMERA_ID, model, camera.width, camera.height)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content + struct.pack(f"<{len(numbers)}d", *numbers))


def _write_images(path: Path, trajectory: Trajectory, names: Sequence[str], tracks: Tracks) -> None:
    T_camera_world = inverse(trajectory.T_world_camera)
    quaternions_wxyz = quaternion_xyzw(T_camera_world)[:, [3, 0, 1, 2]]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(names)))
        for i, name in enumerate(names):
            seen = tracks.in_image(i)
            observations = np.zeros(len(seen.point), OBSERVATION)
            observations["uv"], observations["point"] = seen.uv, seen.point + 1
            file.write(struct.pack("<I7dI", i + 1, *quaternions_wxyz[i], *T_camera_world[i, :3, 3], CAMERA_ID))
            file.write(name.encode() + b"\0" + struct.pack("<Q", len(observations)))
            observations.tofile(file)


def _write_points(path: Path, cloud: PointCloud, tracks: Tracks) -> None:
    """Points without a track are written many at a time."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(cloud)))
        start = 0
        for row, track in tracks.by_point():
            _write_block(file, cloud, start, row)
            point = _points(cloud, row, row + 1)
            point["track_length"] = len(track)
            point.tofile(file)
            (np.array(track, "<u4") + np.array([1, 0], "<u4")).tofile(file)  # ids count from 1, places from 0
            start = row + 1
        _write_block(file, cloud, start, len(cloud))


def _write_block(file: BinaryIO, cloud: PointCloud, start: int, end: int) -> None:
    for first in range(start, end, CHUNK_POINTS):
        _points(cloud, first, min(end, first + CHUNK_POINTS)).tofile(file)


def _points(cloud: PointCloud, start: int, end: int) -> NDArray[np.void]:
    points = np.zeros(end - start, POINT)
    points["id"] = np.arange(start, end) + 1
    points["xyz"], points["rgb"], points["error"] = cloud.points[start:end], cloud.colors[start:end], UNKNOWN_ERROR
    return points
