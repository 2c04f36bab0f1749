"""Intrinsics from a file: a 3x3 matrix, camera.json, or COLMAP's cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..lens import Lens
from ..types import Intrinsics
from .colmap_files import camera_and_lens, find_model, read_cameras

SUPPORTED = "give a text file with a 3x3 camera matrix, a camera.json, or COLMAP's cameras.txt"
ASPECT_TOLERANCE = 0.01  # relative; sizes of the same aspect differ by rounding


def read_camera(path: str | Path, width: int, height: int) -> Intrinsics:
    """The camera of `path` for images of width x height pixels.

    A bare 3x3 matrix is taken to be at that size already; other files state theirs and are scaled to it.
    Of a lens that k1, k2, p1, p2 cannot express (see `read_lens`), the camera of the undistorted images.
    Raises InputError when the file is missing, damaged, or made for another aspect ratio.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such camera file; {SUPPORTED}")
    try:
        return _read(path, width, height)
    except InputError as error:  # what `Intrinsics` refuses does not name the file
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None


def read_lens(path: str | Path) -> Lens | None:
    """The lens of COLMAP's cameras at `path`, where images must be undistorted first; None of other files, or none."""
    path = Path(path)
    file = _cameras_file(path) if path.is_dir() else path if path.stem == "cameras" and path.is_file() else None
    return None if file is None else _only_camera(file)[1]


def _read(path: Path, width: int, height: int) -> Intrinsics:
    if path.is_dir():
        return fitted(path, _from_colmap(path), width, height)
    if path.suffix.lower() == ".json":
        return fitted(path, _from_json(path), width, height)
    if path.stem == "cameras":
        return fitted(path, _only_camera(path)[0], width, height)
    return _from_matrix(path, width, height)


def fitted(path: Path, camera: Intrinsics, width: int, height: int) -> Intrinsics:
    """The camera that `path` states, scaled to width x height; InputError when their aspect ratios differ."""
    if abs(camera.width * height / (camera.height * width) - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"{path}: the camera is for {camera.width}x{camera.height}, the clip is {width}x{height}: calibrate at the "
            "clip's aspect ratio and orientation"
        )
    return camera.scaled_to(width, height)


def _from_colmap(folder: Path) -> Intrinsics:
    file = _cameras_file(folder)
    if file is None:
        raise InputError(f"{folder}: holds no COLMAP model (cameras.txt or .bin); {SUPPORTED}")
    return _only_camera(file)[0]


def _cameras_file(folder: Path) -> Path | None:
    model = find_model(folder)
    return model and next(f for end in ("bin", "txt") if (f := model / f"cameras.{end}").is_file())


def _only_camera(path: Path) -> tuple[Intrinsics, Lens | None]:
    cameras = list(read_cameras(path).values())
    if len({camera[1:] for camera in cameras}) > 1:
        raise InputError(f"{path}: it holds {len(cameras)} cameras, a clip has one: keep the line of that camera")
    return camera_and_lens(path, cameras[0])


def _from_json(path: Path) -> Intrinsics:
    """A camera.json as `Intrinsics.as_dict` describes it."""
    try:
        entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fx, fy, cx, cy = (float(entry[name]) for name in ("fx", "fy", "cx", "cy"))
        size = int(entry["width"]), int(entry["height"])
        k = tuple(float(number) for number in entry.get("distortion") or ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a camera.json ({error!r}); it needs fx, fy, cx, cy, width, height") from error
    if len(k) not in (0, 4):
        raise InputError(f"{path}: distortion must be k1, k2, p1, p2, got {len(k)} numbers")
    return Intrinsics(fx, fy, cx, cy, *size, (k[0], k[1], k[2], k[3]) if any(k) else None)


def _from_matrix(path: Path, width: int, height: int) -> Intrinsics:
    try:
        K = np.array(path.read_text(encoding="utf-8").replace(",", " ").split(), np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a camera matrix ({str(error).splitlines()[0]}); {SUPPORTED}") from error
    if K.size != 9:
        raise InputError(f"{path}: a camera matrix has 9 numbers, this file {K.size}; {SUPPORTED}")
    K = K.reshape(3, 3)
    if np.all(np.isfinite(K)) and not np.allclose(K[[1, 2, 2, 2], [0, 0, 1, 2]], [0, 0, 0, 1], atol=1e-6):
        raise InputError(f"{path}: not a camera matrix (its last row must be 0 0 1): is it transposed?")
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return Intrinsics(fx, fy, cx, cy, width, height)
