"""COLMAP models, text or binary, without COLMAP: cameras and camera-to-world poses of the registered images."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from ..lens import Lens
from ..rigid import inverse
from ..types import Array, Intrinsics
from .matching import poses_from_quaternions

MODELS = (  # (name, number of parameters), in the order of COLMAP's model ids
    *(("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8)),
    *(("OPENCV_FISHEYE", 8), ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5)),
    *(("THIN_PRISM_FISHEYE", 12), ("RAD_TAN_THIN_PRISM_FISHEYE", 16), ("SIMPLE_DIVISION", 4), ("DIVISION", 5)),
    *(("SIMPLE_FISHEYE", 3), ("FISHEYE", 4), ("EUCM", 6), ("EQUIRECTANGULAR", 2)),
)
EXPRESSIBLE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")  # by OpenCV's k1, k2, p1, p2

CameraRow = tuple[int, str, int, int, tuple[float, ...]]
"""camera id, model name, width, height, parameters"""

ImageRow = tuple[str, int, tuple[float, ...], bytes]
"""file name, camera id, (qw, qx, qy, qz, tx, ty, tz) world-to-camera, its 2D points as they stand in the file"""


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """`names` of the M registered images, their `T_world_camera` (M, 4, 4), and the one camera that took them.

    lens: what the frames are to be undistorted from before `camera` holds; None where it describes them as they are.
    """

    names: tuple[str, ...]
    T_world_camera: Array
    camera: Intrinsics
    lens: Lens | None = None


def find_model(folder: Path) -> Path | None:
    """The folder with cameras.txt or cameras.bin: `folder` itself, or where COLMAP's tools put it below."""
    places = (folder, folder / "sparse" / "0", folder / "sparse", folder / "0")
    return next((p for p in places if any((p / f"cameras.{end}").is_file() for end in ("txt", "bin"))), None)


def read_model(folder: Path) -> ColmapModel:
    """Read a model folder; InputError when it is damaged, empty, or taken by several cameras."""
    end = "bin" if (folder / "cameras.bin").is_file() else "txt"
    images_file = folder / f"images.{end}"
    images = read_images(images_file)
    cameras_file = folder / f"cameras.{end}"
    row = _the_camera(cameras_file, {camera_id for _, camera_id, *_ in images})
    names = tuple(name for name, *_ in images)
    return ColmapModel(names, image_poses(images_file, images), *camera_and_lens(cameras_file, row))


def read_images(file: Path, *, with_points: bool = False) -> list[ImageRow]:
    """Registered images of an images.txt or images.bin, their 2D points left empty unless wanted: those fill memory.

    Raises InputError when the file is damaged or empty.
    """
    try:
        with file.open("rb") as stream:
            rows = _binary_images(stream) if file.suffix == ".bin" else _text_images(stream)
            images = [(name, camera, pose, raw if with_points else b"") for name, camera, pose, raw in rows]
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise InputError(f"{file}: not a readable COLMAP image list ({error}); export the model again") from error
    if not images:
        raise InputError(f"{file}: no image is registered; reconstruct again")
    return images


def image_poses(file: Path, images: list[ImageRow]) -> Array:
    """T_world_camera (M, 4, 4) of the images of `file`."""
    numbers = np.array([pose for _, _, pose, _ in images])  # (M, 7)
    return inverse(poses_from_quaternions(file, numbers[:, [1, 2, 3, 0]], numbers[:, 4:]))


def read_cameras(file: Path) -> dict[int, CameraRow]:
    """Cameras of a cameras.txt or cameras.bin by id."""
    try:
        with file.open("rb") as stream:
            rows = list(_binary_cameras(stream) if file.suffix == ".bin" else _text_cameras(stream))
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise InputError(f"{file}: not a readable COLMAP camera list ({error}); export the model again") from error
    if not rows:
        raise InputError(f"{file}: it holds no camera")
    return {row[0]: row for row in rows}


def _the_camera(file: Path, used: set[int]) -> CameraRow:
    cameras = read_cameras(file)
    if not used <= set(cameras):
        raise InputError(f"{file}: camera {min(used - set(cameras))} is missing; export the model again")
    if len({cameras[i][1:] for i in used}) > 1:
        raise InputError(
            f"{file}: the images have {len(used)} cameras, a clip has one: run COLMAP with "
            "--ImageReader.single_camera 1"
        )
    return cameras[min(used)]


def camera_and_lens(file: Path, row: CameraRow) -> tuple[Intrinsics, Lens | None]:
    """The camera of a row, and where k1, k2, p1, p2 cannot express it, the lens to undistort frames from first."""
    _, model, width, height, params = row
    if model in EXPRESSIBLE:
        return intrinsics(file, row), None
    if model == "FULL_OPENCV" and len(params) == dict(MODELS)[model] and not any(params[8:]):
        return intrinsics(file, (row[0], "OPENCV", width, height, params[:8])), None
    try:
        lens = Lens(model, width, height, params)
        return lens.pinhole, lens
    except InputError as error:  # which does not know the file
        raise InputError(f"{file}: {error}") from None


def intrinsics(file: Path, row: CameraRow) -> Intrinsics:
    """The camera of a row; InputError for models that OpenCV's k1, k2, p1, p2 cannot express."""
    _, model, width, height, p = row
    match model, p:
        case "SIMPLE_PINHOLE", (f, cx, cy):
            fx, fy, distortion = f, f, (0.0, 0.0, 0.0, 0.0)
        case "PINHOLE", (fx, fy, cx, cy):
            distortion = (0.0, 0.0, 0.0, 0.0)
        case "SIMPLE_RADIAL", (f, cx, cy, k1):
            fx, fy, distortion = f, f, (k1, 0.0, 0.0, 0.0)
        case "RADIAL", (f, cx, cy, k1, k2):
            fx, fy, distortion = f, f, (k1, k2, 0.0, 0.0)
        case "OPENCV", (fx, fy, cx, cy, k1, k2, p1, p2):
            distortion = (k1, k2, p1, p2)
        case _:
            raise InputError(
                f"{file}: camera model {model} with {len(p)} parameters is not supported here: undistort first (colmap "
                "image_undistorter)"
            )
    try:
        return Intrinsics(fx, fy, cx, cy, width, height, distortion if any(distortion) else None)
    except InputError as error:  # which does not know the file
        raise InputError(f"{file}: {error}; export the model again") from None


def _text_cameras(file: BinaryIO) -> Iterator[CameraRow]:
    for line in _content(file):
        if fields := line.split():
            yield int(fields[0]), fields[1], int(fields[2]), int(fields[3]), tuple(map(float, fields[4:]))


def _text_images(file: BinaryIO) -> Iterator[ImageRow]:
    lines = _content(file)
    for line, points in zip_longest(lines, lines, fillvalue=""):  # every second line lists 2D points, and may be empty
        if fields := line.strip().split(maxsplit=9):
            yield fields[9], int(fields[8]), tuple(map(float, fields[1:8])), points.encode()


def _content(file: BinaryIO) -> Iterator[str]:
    return (line for raw in file if not (line := raw.decode("utf-8")).startswith("#"))


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """`size` bytes; ValueError when so many are not left, before memory for them is asked for."""
    if size > os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError("it ends early")
    return file.read(size)


def _unpack(file: BinaryIO, layout: str) -> tuple[float, ...]:
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))


def _binary_cameras(file: BinaryIO) -> Iterator[CameraRow]:
    for _ in range(struct.unpack("<Q", file.read(8))[0]):
        camera_id, model_id, width, height = struct.unpack("<iiQQ", file.read(24))
        name, count = MODELS[model_id]
        yield camera_id, name, width, height, _unpack(file, f"{count}d")


def _binary_images(file: BinaryIO) -> Iterator[ImageRow]:
    for _ in range(struct.unpack("<Q", file.read(8))[0]):
        _, *pose, camera_id = _unpack(file, "I7dI")
        name = b"".join(iter(lambda: _character(file), b"\0")).decode("utf-8")
        (points,) = struct.unpack("<Q", file.read(8))
        yield name, int(camera_id), tuple(pose), read_exactly(file, 24 * points)


def _character(file: BinaryIO) -> bytes:
    byte = file.read(1)
    if not byte:
        raise ValueError("it ends early")
    return byte
