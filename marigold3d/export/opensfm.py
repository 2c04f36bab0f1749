"""OpenSfM's reconstruction.json and tracks.csv; `poses.opensfm_files` reads both back."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..atomic import atomic_path
from ..poses.opensfm_files import TRACKS_VERSION, normalised_of
from ..rigid import inverse
from ..types import Intrinsics, PointCloud, Trajectory
from .tracks import Tracks
from .trajectories import require_names

CAMERA = "marigold3d"  # the camera's name in the file
SCALE = 0.001  # of a feature, share of the long side: the format asks for one, and projected points have none
UNSEGMENTED = -1
UPRIGHT = 1  # EXIF's orientation: frames are turned as they are read


def write_opensfm(
    folder: str | Path,
    trajectory: Trajectory,
    camera: Intrinsics,
    names: Sequence[str],
    cloud: PointCloud,
    tracks: Tracks,
) -> None:
    """Write a reconstruction of the poses and of the points that have `tracks`, as in all that OpenSfM makes itself.

    names: (N,) of the images, one a pose. The format has no units: a reference latitude and longitude is not written.
    """
    require_names(trajectory, names)
    model = {
        "cameras": {CAMERA: _camera(camera)},
        "shots": dict(zip(names, _shots(trajectory), strict=True)),
        "points": {
            str(row): {"color": cloud.colors[row].tolist(), "coordinates": cloud.points[row].astype(float).tolist()}
            for row in np.unique(tracks.point).tolist()
        },
    }
    with atomic_path(Path(folder) / "reconstruction.json") as temporary:
        temporary.write_text(json.dumps([model], indent=1) + "\n", encoding="utf-8")
    _write_tracks(Path(folder) / "tracks.csv", camera, names, cloud, tracks)


def _camera(camera: Intrinsics) -> dict[str, Any]:
    side = max(camera.width, camera.height)
    c_x, c_y = normalised_of(np.array([camera.cx, camera.cy]), np.array([camera.width, camera.height])).tolist()
    k1, k2, p1, p2 = camera.distortion or (0.0, 0.0, 0.0, 0.0)
    return {
        "projection_type": "brown",
        "width": camera.width,
        "height": camera.height,
        "focal_x": camera.fx / side,
        "focal_y": camera.fy / side,
        "c_x": c_x,
        "c_y": c_y,
        "k1": k1,
        "k2": k2,
        "p1": p1,
        "p2": p2,
        "k3": 0.0,
    }


def _shots(trajectory: Trajectory) -> list[dict[str, Any]]:
    T_camera_world = inverse(trajectory.T_world_camera)
    rotations = Rotation.from_matrix(T_camera_world[:, :3, :3]).as_rotvec().tolist()
    return [
        {"rotation": r, "translation": t, "camera": CAMERA, "orientation": UPRIGHT, "capture_time": time}
        for r, t, time in zip(
            rotations, T_camera_world[:, :3, 3].tolist(), trajectory.timestamps_s.tolist(), strict=True
        )
    ]


def _write_tracks(path: Path, camera: Intrinsics, names: Sequence[str], cloud: PointCloud, tracks: Tracks) -> None:
    size = np.array([camera.width, camera.height])
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(f"{TRACKS_VERSION}_v2\n")
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        for i, name in enumerate(names):
            seen = tracks.in_image(i)
            xy = normalised_of(seen.uv, size)
            for feature, (point, (x, y)) in enumerate(zip(seen.point.tolist(), xy.tolist(), strict=True)):
                color = cloud.colors[point].tolist()
                rows.writerow([name, point, feature, f"{x:.8f}", f"{y:.8f}", SCALE, *color, UNSEGMENTED, UNSEGMENTED])
