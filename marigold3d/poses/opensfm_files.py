"""OpenSfM's reconstruction.json with its tracks.csv: shots world-to-camera, pixels centred, over the long side.

An OpenSfM coordinate (x, y) of a w x h image is the pixel (x, y) * max(w, h) + (w, h) / 2, centres at +0.5 as here.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..errors import InputError
from ..lens import Lens
from ..rigid import inverse
from ..types import Array, Intrinsics
from .convention import Convention
from .observed import ObservedModel
from .records import PoseRecords

CONVENTION = Convention(world_to_camera=True)  # axis-angle, so no quaternions
TRACKS_VERSION = "OPENSFM_TRACKS_VERSION"


def pixels_of(normalised: Array, size: Array) -> Array:
    """Pixels (..., 2) of OpenSfM's image coordinates (..., 2) in images of `size` (..., 2), width and height."""
    return normalised * size.max(-1, keepdims=True) + size / 2


def normalised_of(uv: Array, size: Array) -> Array:
    """The inverse of `pixels_of`."""
    return (uv - size / 2) / size.max(-1, keepdims=True)


def read_opensfm(path: Path) -> ObservedModel:
    """The largest reconstruction of the file, with the observations of the tracks file beside it.

    Raises InputError when either is missing or damaged, or a camera is no perspective one.
    """
    try:
        models = json.loads(path.read_text(encoding="utf-8"))
        model: dict[str, Any] = max(models, key=lambda m: len(m["points"]))
        names = tuple(model["shots"])
        cameras = tuple(_camera(path, model["cameras"][shot["camera"]]) for shot in model["shots"].values())
        numbers = np.array([[*s["rotation"], *s["translation"]] for s in model["shots"].values()], np.float64)
        points = np.array([point["coordinates"] for point in model["points"].values()], np.float64)
        poses = _poses(numbers)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: not a reconstruction of OpenSfM ({error!r}); export it again") from error
    if not names or not len(points):
        raise InputError(f"{path}: it holds no shots or no points; reconstruct again")
    image_rows = {name: i for i, name in enumerate(names)}
    point_rows = {number: i for i, number in enumerate(model["points"])}
    seen = [
        (image_rows[image], point_rows[track], x, y)
        for image, track, x, y in _tracks(path)
        if image in image_rows and track in point_rows
    ]
    if not seen:
        raise InputError(f"{path}: its tracks see none of its points: are they of the same run?")
    table = np.array(seen)
    image = table[:, 0].astype(np.int64)
    uv = pixels_of(table[:, 2:], np.array([(c.width, c.height) for c in cameras])[image])
    return ObservedModel(names, poses, cameras, points, image, table[:, 1].astype(np.int64), uv)


def read_opensfm_poses(path: Path, models: list[Any]) -> PoseRecords:
    """Poses and camera of the reconstruction with most shots in `models`, the content of `path`; tracks are not needed.

    Raises InputError when it is damaged, or its shots have several cameras.
    """
    try:
        model: dict[str, Any] = max(models, key=lambda m: len(m["shots"]))
        shots: dict[str, Any] = model["shots"]
        poses = _poses(np.array([[*s["rotation"], *s["translation"]] for s in shots.values()], np.float64))
        used = sorted({str(shot["camera"]) for shot in shots.values()})
        entries = [model["cameras"][name] for name in used]
        if len(used) == 1:
            camera, lens = _camera_and_lens(path, entries[0])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: not a reconstruction of OpenSfM ({error!r}); export it again") from error
    if len(used) != 1:
        raise InputError(f"{path}: its shots have {len(used)} cameras, a clip has one: give them the same camera model")
    return PoseRecords(path, poses, CONVENTION, tuple(shots), camera=camera, lens=lens)


def _poses(numbers: Array) -> Array:
    """T_world_camera (M, 4, 4) from axis-angle and translation, world-to-camera, (M, 6)."""
    T = np.tile(np.eye(4), (len(numbers), 1, 1))
    if len(numbers):
        T[:, :3, :3] = Rotation.from_rotvec(numbers[:, :3]).as_matrix()
        T[:, :3, 3] = numbers[:, 3:]
    return inverse(T)


def _camera(path: Path, entry: dict[str, Any]) -> Intrinsics:
    """A camera whose pictures need not be undistorted; InputError of any other."""
    camera, lens = _camera_and_lens(path, entry)
    if lens is not None:
        kind = entry.get("projection_type", "perspective")
        raise InputError(f"{path}: a {kind} camera is not supported here; undistort first (opensfm undistort)")
    return camera


def _camera_and_lens(path: Path, entry: dict[str, Any]) -> tuple[Intrinsics, Lens | None]:
    """Any of OpenSfM's cameras but panoramas; lengths are in units of the image's long side."""
    width, height = int(entry["width"]), int(entry["height"])
    side = max(width, height)
    fx = float(entry.get("focal_x", entry.get("focal", 0.0))) * side
    fy = float(entry.get("focal_y", fx / side)) * side
    offset = np.array([float(entry.get("c_x", 0.0)), float(entry.get("c_y", 0.0))])
    cx, cy = pixels_of(offset, np.array([width, height]))
    k1, k2, p1, p2, k3, k4 = (float(entry.get(name, 0.0)) for name in ("k1", "k2", "p1", "p2", "k3", "k4"))
    K = fx, fy, float(cx), float(cy)
    kind = entry.get("projection_type", "perspective")
    try:
        match kind:
            case "fisheye" | "fisheye_opencv":  # the first has two coefficients of the same polynomial
                lens = Lens("OPENCV_FISHEYE", width, height, (*K, k1, k2, k3, k4))
            case "brown" | "perspective" | "simple_radial" | "radial" if k3:
                lens = Lens("FULL_OPENCV", width, height, (*K, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
            case "brown" | "perspective" | "simple_radial" | "radial":
                distortion = (k1, k2, p1, p2)
                return Intrinsics(*K, width, height, distortion if any(distortion) else None), None
            case _:
                raise InputError(f"a {kind} camera is not supported; undistort first (opensfm undistort)")
        return lens.pinhole, lens
    except InputError as error:  # which does not know the file
        raise InputError(f"{path}: {error}") from None


def _tracks(path: Path) -> list[tuple[str, str, float, float]]:
    """(image, track, x, y) of tracks.csv beside the reconstruction; all of its versions agree on these columns."""
    file = path.with_name(path.stem.replace("reconstruction", "tracks") + ".csv")
    if not file.is_file():
        raise InputError(f"{path}: needs {file.name} beside it, which says what each shot saw; copy it there")
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [r for r in csv.reader(stream, delimiter="\t") if r and not r[0].startswith(TRACKS_VERSION)]
        return [(row[0], row[1], float(row[3]), float(row[4])) for row in rows]
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{file}: not a tracks file of OpenSfM ({error}); write it again") from error
