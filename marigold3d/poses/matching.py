"""Which pose of a file belongs to which frame of the clip, and whether a matrix is a pose at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images import natural_key
from ..rigid import from_quaternion_xyzw
from ..types import Array, BoolImage, Intrinsics, Trajectory

Rows = NDArray[np.int64]
"""(N,): for every frame of the clip the row of the file that holds its pose, -1 where there is none."""

RIGID_TOLERANCE = 1e-2  # text files round; beyond this the matrix is no rotation
MISCOUNT = 0.01  # share of the frames by which a container's header may be wrong, and never less than two frames


@dataclass(frozen=True, eq=False)
class ClipFrames:
    """The frames that want poses: `timestamps_s` (N,), `indices` (N,) in the source, and what else is known of them."""

    timestamps_s: Array
    indices: Rows
    source_count: int | None = None
    names: tuple[str, ...] | None = None

    @property
    def interval_s(self) -> float:
        """Time between two frames of the source."""
        if len(self.indices) < 2:
            return 0.04
        return float(np.median(np.diff(self.timestamps_s) / np.maximum(np.diff(self.indices), 1)))


@dataclass(frozen=True, eq=False)
class PosedFrames:
    """Poses found for a clip of N frames.

    has_pose: (N,) bool; T_world_camera: (M, 4, 4), rigid, of those M frames in order; intrinsics: the camera the file
    states, at the size it states, or None.
    """

    has_pose: BoolImage
    T_world_camera: Array
    intrinsics: Intrinsics | None = None

    def __len__(self) -> int:
        return len(self.T_world_camera)

    def trajectory(self, frame_timestamps_s: Array) -> Trajectory:
        """The posed frames as a path; `frame_timestamps_s` (N,) are those of the whole clip."""
        return Trajectory(frame_timestamps_s[self.has_pose], self.T_world_camera)


def posed(path: Path, T_world_camera: Array, rows: Rows, intrinsics: Intrinsics | None = None) -> PosedFrames:
    """Take the matched rows, and check that they are poses."""
    has_pose = rows >= 0
    return PosedFrames(has_pose, rigid_poses(path, T_world_camera[rows[has_pose]]), intrinsics)


def rigid_poses(path: Path, T: Array) -> Array:
    """Poses T (M, 4, 4) with rounding removed from the rotations; InputError when one is not rigid."""
    if not np.all(np.isfinite(T)):
        bad = int(np.argmin(np.isfinite(T).all((1, 2))))
        raise InputError(f"{path}: pose {bad} holds NaN or infinity: leave frames without a pose out of the file")
    R = T[:, :3, :3]
    error = np.abs(R @ np.swapaxes(R, 1, 2) - np.eye(3)).max((1, 2), initial=0.0)
    row_error = np.abs(T[:, 3] - [0, 0, 0, 1]).max(1, initial=0.0)
    wrong = (error > RIGID_TOLERANCE) | (row_error > RIGID_TOLERANCE) | (np.linalg.det(R) <= 0)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise InputError(f"{path}: pose {i} is not a camera-to-world matrix: {_diagnosis(T[i], error[i])}")
    U, _, Vt = np.linalg.svd(R)
    out = np.tile(np.eye(4), (len(T), 1, 1))
    out[:, :3, :3], out[:, :3, 3] = U @ Vt, T[:, :3, 3]
    return out


def poses_from_quaternions(path: Path, quaternion_xyzw: Array, translation: Array) -> Array:
    """(M, 4, 4) from x y z w and translations (M, 3); InputError when a quaternion is not of unit length."""
    numbers = np.concatenate([quaternion_xyzw, translation], 1)
    if not np.all(np.isfinite(numbers)):
        bad = int(np.argmin(np.isfinite(numbers).all(1)))
        raise InputError(f"{path}: pose {bad} holds NaN or infinity: leave frames without a pose out of the file")
    length = np.linalg.norm(quaternion_xyzw, axis=1)
    if np.any(np.abs(length - 1) > RIGID_TOLERANCE):
        bad = int(np.argmax(np.abs(length - 1)))
        raise InputError(
            f"{path}: quaternion {bad} has length {length[bad]:.4g}, not 1: check the order of the columns"
        )
    return from_quaternion_xyzw(quaternion_xyzw, translation)


def _diagnosis(T: Array, error: float) -> str:
    """What is probably wrong with a matrix that is not rigid."""
    scale = np.cbrt(abs(np.linalg.det(T[:3, :3])))
    if np.abs(T[3, :3]).max() > RIGID_TOLERANCE:
        return f"its last row is {np.round(T[3], 4).tolist()} instead of 0 0 0 1: transpose it"
    if np.linalg.det(T[:3, :3]) < 0:
        return "its rotation is a mirror image (determinant < 0): an axis was flipped; use x right, y down, z forward"
    if np.abs(T[:3, :3] @ T[:3, :3].T - scale**2 * np.eye(3)).max() < RIGID_TOLERANCE * scale**2:
        return f"its rotation is scaled by {scale:.4g}: divide the upper-left 3x3 by that"
    return f"its rotation is off by {error:.3g}: is it world-to-camera with a scale, or a projection matrix K [R t]?"


def match_times(path: Path, times_s: Array, clip: ClipFrames) -> Rows:
    """Nearest in time, within half a frame; whole numbers that run beyond the clip's end are frame indices instead."""
    tolerance_s = 0.5 * clip.interval_s
    last_s = float(clip.timestamps_s[-1])
    if np.all(times_s == np.round(times_s)) and times_s[-1] > last_s + tolerance_s:
        rows = _lookup(times_s.astype(np.int64), clip.indices)
        if (rows >= 0).any():
            return rows
    right = np.searchsorted(times_s, clip.timestamps_s).clip(1, max(len(times_s) - 1, 1))
    nearer = np.abs(times_s[right - 1] - clip.timestamps_s) <= np.abs(times_s[right % len(times_s)] - clip.timestamps_s)
    rows = np.where(nearer, right - 1, right % len(times_s))
    rows = np.where(np.abs(times_s[rows] - clip.timestamps_s) <= tolerance_s, rows, -1)
    if (rows < 0).all():
        raise InputError(
            f"{path}: its {len(times_s)} timestamps run from {times_s[0]:.6g} to {times_s[-1]:.6g}, the clip's "
            f"{len(rows)} frames from {clip.timestamps_s[0]:.6g} to {last_s:.6g} s: subtract the "
            "time of the first frame"
        )
    return rows


def match_rows(path: Path, count: int, clip: ClipFrames) -> Rows:
    """One pose a used frame when the counts agree, else one a frame of the source."""
    if count == len(clip.indices):
        return np.arange(count)
    source = clip.source_count
    if count > clip.indices[-1] and (source is None or abs(count - source) <= max(2, MISCOUNT * source)):
        return clip.indices
    of_source = f" of the {source} in the source" if source else f", the last being number {clip.indices[-1]}"
    raise InputError(
        f"{path}: {count} poses for {len(clip.indices)} frames{of_source}: give one pose a frame, or use a TUM "
        "file with timestamps"
    )


def match_names(path: Path, names: Sequence[str], clip: ClipFrames) -> Rows:
    """By file name where the clip is a folder of images, else by the number in the name, else by order.

    Numbers count the source's frames from 0, or from 1 where one of them equals the source's frame count.
    """
    stems = [Path(name).stem for name in names]
    if clip.names is not None:
        by_stem = {stem: row for row, stem in enumerate(stems)}
        rows = np.array([by_stem.get(Path(name).stem, -1) for name in clip.names])
        if (rows >= 0).any():
            return rows
    numbers = [int(digits[-1]) if (digits := re.findall(r"\d+", stem)) else -1 for stem in stems]
    by_number = _lookup(np.array(numbers) - _first_number(numbers, clip), clip.indices)
    if len(names) == len(clip.indices) and (by_number < 0).any():
        return np.array(sorted(range(len(names)), key=lambda row: natural_key(names[row])))
    if (by_number < 0).all():
        raise InputError(
            f"{path}: its {len(names)} images ({names[0]}, …) match none of the clip's {len(clip.indices)} frames "
            f"({clip.indices[0]} to {clip.indices[-1]}): name them by frame number, as in 000042.png"
        )
    return by_number


def _first_number(numbers: list[int], clip: ClipFrames) -> int:
    return int(clip.source_count is not None and 0 not in numbers and max(numbers) == clip.source_count)


def _lookup(keys: Rows, wanted: Rows) -> Rows:
    """For each of `wanted` the position of that value in `keys`, or -1."""
    position = {int(key): row for row, key in enumerate(keys)}
    return np.array([position.get(int(value), -1) for value in wanted], np.int64)
