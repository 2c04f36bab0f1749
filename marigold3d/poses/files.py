"""Camera poses and cameras from the files other tools write, brought to `T_world_camera` and OpenCV axes.

| file | poses in it | matched to the clip's frames by |
|---|---|---|
| `.txt`, `.tum` | TUM: timestamp tx ty tz qx qy qz qw, camera-to-world | timestamp, or frame index |
| folder with `cameras.*`, `images.*` | COLMAP, text or binary, world-to-camera | name, number or order |
| `transforms.json` or its folder | nerfstudio, instant-ngp: camera-to-world, OpenGL axes | name, number or order |
| `.npy` | (N, 4, 4) or (N, 3, 4) camera-to-world; a row of NaN is a frame without a pose | row |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Array, Intrinsics, Trajectory
from .camera_files import read_camera
from .colmap_files import find_model, read_model
from .matching import (
    ClipFrames,
    PosedFrames,
    match_names,
    match_rows,
    match_times,
    posed,
    poses_from_quaternions,
    rigid_poses,
)

__all__ = ["PosedFrames", "read_camera", "read_poses", "read_tum"]

OPENGL_TO_OPENCV = np.diag(
    [1.0, -1.0, -1.0, 1.0]
)  # on a camera's own axes: y up and z backward to y down and z forward
SUPPORTED = "give a TUM .txt, a COLMAP model folder, a transforms.json or an .npy of camera-to-world matrices"


def read_poses(
    path: str | Path,
    frame_timestamps_s: Array,
    frame_indices: Sequence[int] | NDArray[np.integer[Any]],
    *,
    source_frame_count: int | None = None,
    frame_names: Sequence[str] | None = None,
) -> PosedFrames:
    """Poses of the clip's frames, from any of the formats above.

    frame_timestamps_s, frame_indices: (N,), of the frames in use; source_frame_count: frames of the whole source, if
    known; frame_names: file names of the frames in use, where the source is a folder of images.
    Raises InputError when the file is missing, unknown or damaged, matches no frame, or holds no rigid matrices.
    """
    path = Path(path)
    names = tuple(frame_names) if frame_names is not None else None
    clip = ClipFrames(np.asarray(frame_timestamps_s, float), np.asarray(frame_indices), source_frame_count, names)
    if not path.exists():
        raise InputError(f"{path}: no such pose file; {SUPPORTED}")
    if path.is_dir():
        return _from_folder(path, clip)
    if path.suffix.lower() == ".npy":
        return _from_npy(path, clip)
    if path.suffix.lower() == ".json":
        return _from_transforms(path, clip)
    if path.name.split(".")[0] in ("cameras", "images") and find_model(path.parent):
        return _from_folder(path.parent, clip)
    if path.suffix.lower() in (".txt", ".tum"):
        times_s, T = _tum_rows(path)
        return posed(path, T, match_times(path, times_s, clip))
    raise InputError(f"{path}: unknown kind of pose file; {SUPPORTED}")


def read_tum(path: str | Path) -> Trajectory:
    """A TUM trajectory as it stands; InputError when it is missing or damaged."""
    return Trajectory(*_tum_rows(Path(path)))


def _tum_rows(path: Path) -> tuple[Array, Array]:
    """Timestamps (M,), increasing, and T_world_camera (M, 4, 4)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.replace(",", " ").split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        table = np.array(rows, np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a TUM trajectory ({str(error).splitlines()[0]}); {SUPPORTED}") from error
    if table.ndim != 2 or table.shape[1] != 8:
        raise InputError(f"{path}: not a TUM trajectory: each line needs timestamp tx ty tz qx qy qz qw")
    table = table[np.argsort(table[:, 0], kind="stable")]
    if not np.all(np.diff(table[:, 0]) > 0):
        raise InputError(f"{path}: a timestamp is NaN or occurs twice: keep one line each")
    return table[:, 0], poses_from_quaternions(path, table[:, 4:], table[:, 1:4])


def _from_folder(folder: Path, clip: ClipFrames) -> PosedFrames:
    model_folder = find_model(folder)
    if model_folder is not None:
        model = read_model(model_folder)
        return posed(model_folder, model.T_world_camera, match_names(model_folder, model.names, clip), model.camera)
    if (folder / "transforms.json").is_file():
        return _from_transforms(folder / "transforms.json", clip)
    raise InputError(f"{folder}: holds neither a COLMAP model (cameras.txt or .bin) nor transforms.json; {SUPPORTED}")


def _from_npy(path: Path, clip: ClipFrames) -> PosedFrames:
    try:
        T = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(
            f"{path}: not a numeric .npy file ({str(error).splitlines()[0]}); save it with numpy.save"
        ) from error
    if T.ndim != 3 or T.shape[1:] not in ((4, 4), (3, 4)):
        raise InputError(f"{path}: poses must be (N, 4, 4) or (N, 3, 4) camera-to-world matrices, got {T.shape}")
    rows = match_rows(path, len(T), clip)
    rows = np.where(np.isnan(T[rows, :3]).all((1, 2)), -1, rows)
    if (rows < 0).all():
        raise InputError(f"{path}: every pose of the clip's frames is NaN; {SUPPORTED}")
    return posed(path, _square(T), rows)


def _square(T: Array) -> Array:
    """(N, 4, 4) of (N, 3, 4) or (N, 4, 4)."""
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(T), 1, 4))
    return T if T.shape[1] == 4 else np.concatenate([T, last], 1)


def _from_transforms(path: Path, clip: ClipFrames) -> PosedFrames:
    try:
        scene = json.loads(path.read_text(encoding="utf-8"))
        names = [str(frame["file_path"]) for frame in scene["frames"]]
        T = np.array([frame["transform_matrix"] for frame in scene["frames"]], np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a transforms.json ({error!r}); {SUPPORTED}") from error
    if T.ndim != 3 or T.shape[1:] not in ((4, 4), (3, 4)):
        raise InputError(f"{path}: needs a 4x4 transform_matrix for every frame")
    T_world_camera = rigid_poses(path, _square(T)) @ OPENGL_TO_OPENCV
    return posed(path, T_world_camera, match_names(path, names, clip), _transforms_camera(path, scene))


def _transforms_camera(path: Path, scene: dict[str, Any]) -> Intrinsics | None:
    """The camera of a transforms.json, shared or its first frame's; None when it does not state the image size."""
    model = scene.get("camera_model", "OPENCV")
    if (
        model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")
        or scene.get("k3")
        or scene.get("is_fisheye")
    ):
        raise InputError(f"{path}: camera model {model} is not supported: undistort first (colmap image_undistorter)")
    entry = {**scene["frames"][0], **scene}
    if "w" not in entry or "h" not in entry:
        return None
    try:
        width, height = int(entry["w"]), int(entry["h"])
        if "fl_x" not in entry:
            return Intrinsics.from_fov(float(np.degrees(entry["camera_angle_x"])), width, height)
        fx = float(entry["fl_x"])
        centre = float(entry.get("cx", width / 2)), float(entry.get("cy", height / 2))
        k1, k2, p1, p2 = (float(entry.get(name, 0.0)) for name in ("k1", "k2", "p1", "p2"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its camera is incomplete ({error!r}); it needs w, h, fl_x, fl_y, cx, cy") from error
    distortion = (k1, k2, p1, p2)
    fy = float(entry.get("fl_y", fx))
    return Intrinsics(fx, fy, *centre, width, height, distortion if any(distortion) else None)
