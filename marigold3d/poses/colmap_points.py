"""Points of a COLMAP model, text or binary, and which image saw them where.

Not through pycolmap: its reader does not return from a points3D.bin that ends early.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Array
from .colmap_files import image_poses, intrinsics, read_cameras, read_exactly, read_images
from .observed import ObservedModel

OBSERVATION = np.dtype([("uv", "<f8", 2), ("point", "<i8")])
POINT_HEAD = struct.Struct("<Q3d3BdQ")  # id, x y z, r g b, error, length of the track
TRACK_BYTES = 8  # of one track element: image and feature, both of which the images file tells too


def read_observed_colmap(folder: Path) -> ObservedModel:
    """The model in `folder` (where cameras.* is); InputError when a file is missing or damaged, or nothing is seen."""
    end = "bin" if (folder / "cameras.bin").is_file() else "txt"
    images_file = folder / f"images.{end}"
    images = read_images(images_file, with_points=True)
    cameras = read_cameras(folder / f"cameras.{end}")
    missing = {camera_id for _, camera_id, *_ in images} - set(cameras)
    if missing:
        raise InputError(f"{folder}: camera {min(missing)} is missing; export the model again")
    ids, points = _read_points(folder / f"points3D.{end}")
    seen = [_observations(images_file, raw, end) for *_, raw in images]
    image = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
    observations = np.concatenate(seen)
    order = np.argsort(ids)
    at = np.searchsorted(ids[order], observations["point"]).clip(max=len(ids) - 1)
    point = order[at]
    known = ids[point] == observations["point"]  # features that became no point carry -1
    if not known.any():
        raise InputError(f"{folder}: its images see none of its points; export the model again")
    return ObservedModel(
        tuple(name for name, *_ in images),
        image_poses(images_file, images),
        tuple(intrinsics(folder / f"cameras.{end}", cameras[camera_id]) for _, camera_id, *_ in images),
        points,
        image[known],
        point[known],
        observations["uv"][known],
    )


def _read_points(file: Path) -> tuple[NDArray[np.int64], Array]:
    """Ids (P,) and world coordinates (P, 3)."""
    try:
        with file.open("rb") as stream:
            rows = list(_binary_points(stream) if file.suffix == ".bin" else _text_points(stream))
        ids = np.array([number for number, _ in rows], np.int64)
    except (OSError, ValueError, struct.error, IndexError, OverflowError) as error:
        raise InputError(f"{file}: not a readable COLMAP point list ({error}); export the model again") from error
    if not rows:
        raise InputError(f"{file}: the model has no points; reconstruct again")
    return ids, np.array([xyz for _, xyz in rows])


def _binary_points(stream: BinaryIO) -> Iterator[tuple[int, tuple[float, ...]]]:
    for _ in range(struct.unpack("<Q", stream.read(8))[0]):
        number, x, y, z, *_, length = POINT_HEAD.unpack(stream.read(POINT_HEAD.size))
        read_exactly(stream, TRACK_BYTES * length)
        yield number, (x, y, z)


def _text_points(stream: BinaryIO) -> Iterator[tuple[int, tuple[float, ...]]]:
    for line in stream:
        fields = line.split(maxsplit=4)
        if fields and not line.startswith(b"#"):
            yield int(fields[0]), (float(fields[1]), float(fields[2]), float(fields[3]))


def _observations(file: Path, raw: bytes, end: str) -> NDArray[np.void]:
    """(K,) of dtype OBSERVATION from an image's 2D points as they stand in the file."""
    try:
        if end == "bin":
            return np.frombuffer(raw, OBSERVATION)
        numbers = np.array(raw.split(), np.float64).reshape(-1, 3)
    except ValueError as error:
        raise InputError(f"{file}: the 2D points of an image are damaged ({error}); export the model again") from error
    out = np.zeros(len(numbers), OBSERVATION)
    out["uv"], out["point"] = numbers[:, :2], numbers[:, 2]
    return out
