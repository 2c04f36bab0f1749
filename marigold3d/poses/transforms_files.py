"""nerfstudio's and instant-ngp's transforms.json: camera-to-world with OpenGL camera axes, and one camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..lens import Lens
from ..types import Array, Intrinsics
from .convention import OPENGL, to_world_camera
from .matching import rigid_poses
from .records import PoseRecords

FISHEYE = ("k1", "k2", "k3", "k4")
PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "FULL_OPENCV")


def read_transforms(path: Path, scene: Any) -> PoseRecords:
    """The poses of `scene`, the content of `path`; InputError when they or the camera are incomplete."""
    try:
        names = tuple(str(frame["file_path"]) for frame in scene["frames"])
        T = np.array([frame["transform_matrix"] for frame in scene["frames"]], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a transforms.json ({error!r}): it needs frames with file_path") from error
    if T.ndim != 3 or T.shape[1:] not in ((4, 4), (3, 4)):
        raise InputError(f"{path}: needs a 4x4 transform_matrix for every frame")
    T_world_camera = to_world_camera(rigid_poses(path, square(T)), OPENGL)
    camera, lens = _camera(path, {**scene["frames"][0], **scene})
    return PoseRecords(path, T_world_camera, OPENGL, names, camera=camera, lens=lens)


def square(T: Array) -> Array:
    """(N, 4, 4) of (N, 3, 4) or (N, 4, 4)."""
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(T), 1, 4))
    return T if T.shape[1] == 4 else np.concatenate([T, last], 1)


def _camera(path: Path, entry: dict[str, Any]) -> tuple[Intrinsics | None, Lens | None]:
    """The camera, shared or the first frame's, and its lens; None when it does not state the image size."""
    if "w" not in entry or "h" not in entry:
        return None, None
    model = "OPENCV_FISHEYE" if entry.get("is_fisheye") else str(entry.get("camera_model", "OPENCV"))
    try:
        width, height = int(entry["w"]), int(entry["h"])
        if "fl_x" not in entry:
            return Intrinsics.from_fov(float(np.degrees(entry["camera_angle_x"])), width, height), None
        fx = float(entry["fl_x"])
        fy = float(entry.get("fl_y", fx))
        cx, cy = float(entry.get("cx", width / 2)), float(entry.get("cy", height / 2))
        k1, k2, p1, p2, k3, k4 = (float(entry.get(name) or 0.0) for name in ("k1", "k2", "p1", "p2", "k3", "k4"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its camera is incomplete ({error!r}); it needs w, h, fl_x, fl_y, cx, cy") from error
    if model == "OPENCV_FISHEYE":
        lens = Lens(model, width, height, (fx, fy, cx, cy, k1, k2, k3, k4))
    elif model in PINHOLES and (k3 or k4):  # OpenCV's order: k4 and more belong to the rational model
        lens = Lens("FULL_OPENCV", width, height, (fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, 0.0, 0.0))
    elif model in PINHOLES:
        distortion = (k1, k2, p1, p2)
        return Intrinsics(fx, fy, cx, cy, width, height, distortion if any(distortion) else None), None
    else:
        raise InputError(f"{path}: camera model {model} is not supported: undistort first (colmap image_undistorter)")
    return lens.pinhole, lens
