"""Recordings of phones whose poses are ARKit's: Record3D's .r3d and Polycam's keyframes.

ARKit's cameras look along -z with y up, as OpenGL's do; its world is in metres with y up.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..types import Array, Intrinsics
from .convention import Convention, to_world_camera
from .matching import poses_from_quaternions
from .records import PoseRecords

MATRICES = Convention(opengl=True)
QUATERNIONS = Convention(opengl=True, quaternion="xyzw")
MOST_METADATA = 2**28  # bytes: hours of poses are less; anything larger is no metadata


def is_record3d(path: Path) -> bool:
    """Whether a file is named as Record3D's metadata, as it lies in an unpacked .r3d."""
    return path.name in ("metadata", "metadata.json")


def read_record3d(path: Path) -> PoseRecords:
    """Poses and camera of a .r3d, or of the `metadata` unpacked from it: one pose a frame, qx qy qz qw tx ty tz.

    Raises InputError when it is damaged.
    """
    try:
        content = _metadata(path)
        table = np.array(content["poses"], np.float64).reshape(len(content["poses"]), 7)
        camera = _record3d_camera(content)
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, InputError) as error:
        reason = str(error) if isinstance(error, InputError) else repr(error)
        raise InputError(f"{path}: not a recording of Record3D ({reason}); export it again as .r3d") from error
    if not len(table):
        raise InputError(f"{path}: the recording holds no poses; record again with Record3D's LiDAR camera")
    M = poses_from_quaternions(path, table[:, :4], table[:, 4:])
    return PoseRecords(path, to_world_camera(M, QUATERNIONS), QUATERNIONS, camera=camera)


def _metadata(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".r3d":
        return dict(json.loads(path.read_text(encoding="utf-8")))
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("metadata")
        if entry.file_size > MOST_METADATA:
            raise ValueError(f"{entry.file_size} bytes of metadata")
        return dict(json.loads(archive.read(entry)))


def _record3d_camera(content: dict[str, Any]) -> Intrinsics:
    """The typical frame's camera: autofocus moves ARKit's focal length by a percent."""
    width, height = int(content["w"]), int(content["h"])
    if content.get("perFrameIntrinsicCoeffs"):
        fx, fy, cx, cy = np.median(np.array(content["perFrameIntrinsicCoeffs"], np.float64)[:, :4], axis=0).tolist()
    else:
        K = np.array(content["K"], np.float64).reshape(3, 3)
        K = K if K[2, 2] == 1 and not K[2, :2].any() else K.T  # column by column, as Apple's matrices are stored
        (fx, _, cx), (_, fy, cy), _ = K.tolist()
    return Intrinsics(fx, fy, cx, cy, width, height)


def polycam_cameras(folder: Path) -> Path | None:
    """Where a Polycam export keeps its cameras, the globally optimised ones first; None if `folder` is no such."""
    for inner in ("", "keyframes"):
        for name in ("corrected_cameras", "cameras"):
            if any((folder / inner / name).glob("*.json")):
                return folder / inner / name
    return folder if folder.name in ("corrected_cameras", "cameras") and any(folder.glob("*.json")) else None


def read_polycam(folder: Path) -> PoseRecords:
    """Poses and camera of a folder with one JSON a keyframe, named as its image; InputError when one is damaged."""
    files = sorted(folder.glob("*.json"))
    matrices, cameras = [], []
    for file in files:
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
            matrices.append([[float(entry[f"t_{i}{j}"]) for j in range(4)] for i in range(3)])
            cameras.append([float(entry[name]) for name in ("fx", "fy", "cx", "cy", "width", "height")])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not a camera of Polycam ({error!r}); export the raw data again") from error
    M: Array = np.tile(np.eye(4), (len(files), 1, 1))
    M[:, :3] = matrices
    names = tuple(file.stem for file in files)
    T_world_camera = to_world_camera(M, MATRICES)
    return PoseRecords(folder, T_world_camera, MATRICES, names, camera=_typical(folder, np.array(cameras)))


def _typical(folder: Path, cameras: Array) -> Intrinsics:
    """The median camera of rows fx, fy, cx, cy, width, height (M, 6)."""
    if (cameras[:, 4:] != cameras[0, 4:]).any():
        raise InputError(f"{folder}: its keyframes differ in size: film without turning the phone to the other side")
    fx, fy, cx, cy, width, height = np.median(cameras, axis=0).tolist()
    return Intrinsics(fx, fy, cx, cy, int(width), int(height))
