"""Camera paths as TUM, COLMAP text, nerfstudio transforms.json and .npy; `poses.files` reads each of them back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import __version__
from ..atomic import atomic_path
from ..errors import InputError
from ..poses.convention import OPENGL_TO_OPENCV
from ..rigid import inverse, quaternion_xyzw
from ..types import Array, Intrinsics, PointCloud, Trajectory, Units
from .tracks import Tracks

UNKNOWN_ERROR = -1.0  # what COLMAP writes for a point whose reprojection error was not computed
CONVENTION = "camera to world; camera x right, y down, z forward (OpenCV)"


def image_names(frame_indices: Sequence[int], suffix: str = ".png") -> list[str]:
    """File names of source frames, 000042.png: what the readers match by number."""
    return [f"{index:06d}{suffix}" for index in frame_indices]


def write_tum(path: str | Path, trajectory: Trajectory, units: Units, note: str = "") -> None:
    """Write `timestamp tx ty tz qx qy qz qw` lines, camera-to-world; `note` becomes one more comment line."""
    comments = [f"marigold3d {__version__}", f"units {units}; {CONVENTION}", *filter(None, [" ".join(note.split())])]
    comments.append("timestamp tx ty tz qx qy qz qw")
    table = np.column_stack(
        [trajectory.timestamps_s, trajectory.centres, quaternion_xyzw(trajectory.T_world_camera)]
    )  # (N, 8)
    with atomic_path(path) as temporary:
        np.savetxt(temporary, table, fmt=["%.9f"] + ["%.12g"] * 7, header="\n".join(comments))


def write_poses_npy(path: str | Path, trajectory: Trajectory) -> None:
    """Write `T_world_camera` (N, 4, 4) float64."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, trajectory.T_world_camera)


def write_transforms(
    path: str | Path,
    trajectory: Trajectory,
    camera: Intrinsics,
    names: Sequence[str],
    units: Units,
    points_name: str | None = None,
) -> None:
    """Write a nerfstudio / instant-ngp transforms.json: camera-to-world with OpenGL camera axes.

    names: (N,) image paths relative to the file, one a pose; points_name: likewise a PLY file in the same world.
    """
    require_names(trajectory, names)
    matrices = trajectory.T_world_camera @ OPENGL_TO_OPENCV  # its own inverse
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, *(camera.distortion or (0.0, 0.0, 0.0, 0.0)))
    scene = {
        "camera_model": "OPENCV",
        "w": camera.width,
        "h": camera.height,
        **dict(zip(("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2"), numbers, strict=True)),
        "generator": f"marigold3d {__version__}",
        "units": units,
        **({"ply_file_path": points_name} if points_name else {}),
        "frames": [{"file_path": n, "transform_matrix": T.tolist()} for n, T in zip(names, matrices, strict=True)],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(scene, indent=1) + "\n", encoding="utf-8")


def write_colmap(
    folder: str | Path,
    trajectory: Trajectory,
    camera: Intrinsics,
    names: Sequence[str],
    units: Units,
    cloud: PointCloud | None = None,
    tracks: Tracks | None = None,
) -> None:
    """Write cameras.txt, images.txt and points3D.txt, which COLMAP, nerfstudio and gsplat read.

    names: (N,) image names without spaces, one a pose; cloud: the points (None: an empty list); tracks: which image
    sees which of them.
    """
    require_names(trajectory, names)
    if any(len(name.split()) != 1 for name in names):
        raise InputError("COLMAP's text files cannot hold image names with spaces: rename the images")
    note = f"# marigold3d {__version__}; units {units}; poses are world to camera; cameras x right, y down, z forward\n"
    tracks = tracks or Tracks.none()
    model = "OPENCV" if camera.distortion else "PINHOLE"
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, *(camera.distortion or ()))
    cameras = [f"1 {model} {camera.width} {camera.height} {_join(numbers)}\n"]
    _write_lines(Path(folder) / "cameras.txt", note, cameras)
    _write_lines(Path(folder) / "images.txt", note, _image_lines(trajectory.T_world_camera, names, tracks))
    _write_lines(Path(folder) / "points3D.txt", note, _point_lines(cloud, tracks) if cloud is not None else [])


def _image_lines(T_world_camera: Array, names: Sequence[str], tracks: Tracks) -> Iterator[str]:
    T_camera_world = inverse(T_world_camera)
    quaternions_wxyz = quaternion_xyzw(T_camera_world)[:, [3, 0, 1, 2]]
    for i, name in enumerate(names):
        seen = tracks.in_image(i)
        observations = (f"{u:.3f} {v:.3f} {row + 1}" for (u, v), row in zip(seen.uv, seen.point, strict=True))
        pose = _join((*quaternions_wxyz[i], *T_camera_world[i, :3, 3]))
        yield f"{i + 1} {pose} 1 {name}\n{' '.join(observations)}\n"


def _point_lines(cloud: PointCloud, tracks: Tracks) -> Iterator[str]:
    track_of = dict(tracks.by_point())
    for i in range(len(cloud)):
        x, y, z = cloud.points[i]
        r, g, b = cloud.colors[i]
        track = "".join(f" {image + 1} {place}" for image, place in track_of.get(i, ()))
        yield f"{i + 1} {x:.9g} {y:.9g} {z:.9g} {r} {g} {b} {UNKNOWN_ERROR:g}{track}\n"


def _write_lines(path: Path, note: str, lines: Iterator[str] | list[str]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(note)
        file.writelines(lines)


def _join(numbers: Sequence[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)  # to the last digit


def require_names(trajectory: Trajectory, names: Sequence[str]) -> None:
    """InputError unless there is a name for every pose."""
    if len(names) != len(trajectory):
        raise InputError(f"{len(trajectory)} poses need as many image names, got {len(names)}")
