"""A sparse reconstruction as plain arrays: the depth cues it gives a frame, and poses between its keyframes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..camera import on_image
from ..rigid import interpolate, inverse, transform
from ..types import Array, Intrinsics, SparseCues, Units

REPROJECTION_PX = 1.0  # standard deviation of a keypoint, px at the size the features were found at
MIN_SIN_ANGLE = np.sin(np.radians(1.0))  # points seen under a smaller angle carry no depth
MAX_GAP_S = 1.0  # poses are interpolated between registered frames no farther apart than this ...
MAX_GAP_SHIFT = 0.5  # ... and whose views have moved by no more than this share of the image


@dataclass(frozen=True, eq=False)
class SparseModel:
    """Keyframe poses and points of one consistent reconstruction, in arbitrary units.

    camera: at the size the depth maps will have. frames (M,): positions of registered frames among the used ones,
    increasing; T_world_camera (M, 4, 4); points (P, 3) world; sin_angle (P,): sine of the widest angle between a
    point's rays; seen_frame (O,) in 0..M-1 and seen_point (O,) in 0..P-1: which frame saw which point. focal_sigma_px:
    standard deviation of the focal length where it was estimated, NaN where it was known.
    other_models (K,): keyframes of each of the models that do not hold together with this one.
    """

    camera: Intrinsics
    frames: NDArray[np.int64]
    T_world_camera: Array
    points: Array
    sin_angle: Array
    seen_frame: NDArray[np.int64]
    seen_point: NDArray[np.int64]
    focal_sigma_px: float = float("nan")
    other_models: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def name(self) -> str:
        return "structure from motion"

    @property
    def units(self) -> Units:
        return "arbitrary"

    @property
    def count(self) -> int:
        return len(self.points)

    @property
    def of_single_frames(self) -> bool:
        return False

    def points_near(self, position: int) -> NDArray[np.int64]:
        """Points seen by the registered frame at `position`, or by the ones before and after it."""
        after = int(np.searchsorted(self.frames, position))
        if after < len(self.frames) and self.frames[after] == position:
            near = [after]
        else:
            near = [i for i in (after - 1, after) if 0 <= i < len(self.frames)]
        return self.points_of(near)

    def points_of(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Points that any of the registered frames in these rows sees, increasing."""
        order, starts = self._by_frame
        return np.unique(
            self.seen_point[np.concatenate([order[:0], *(order[starts[i] : starts[i + 1]] for i in rows)])]
        )

    @cached_property
    def _by_frame(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Observations in order of their frames (O,), and where each frame's begin (M + 1,)."""
        order = np.argsort(self.seen_frame, kind="stable")
        return order, np.searchsorted(self.seen_frame[order], np.arange(len(self.frames) + 1))

    def cues(self, position: int, T_world_camera: Array) -> tuple[SparseCues, NDArray[np.int64]]:
        """Depth cues of the frame at `position` with pose (4, 4), and the index of the point behind each (N,).

        Sigma is the depth error that a keypoint error of one pixel makes under the point's widest ray angle.
        """
        ids = self.points_near(position)
        in_camera = transform(inverse(T_world_camera), self.points[ids])
        uv, inside = on_image(in_camera, self.camera)
        z = in_camera[:, 2]
        keep = inside & (self.sin_angle[ids] > MIN_SIN_ANGLE)
        sigma = z[keep] * REPROJECTION_PX / (self.camera.fx * self.sin_angle[ids][keep])
        return SparseCues(uv[keep], z[keep], sigma, "sfm"), ids[keep]

    def of_frames(self, keep: NDArray[np.bool_]) -> SparseModel:
        """The model without the frames that `keep` (M,) leaves out, and without what they saw."""
        seen = keep[self.seen_frame]
        return replace(
            self,
            frames=self.frames[keep],
            T_world_camera=self.T_world_camera[keep],
            seen_frame=(np.cumsum(keep) - 1)[self.seen_frame[seen]],
            seen_point=self.seen_point[seen],
        )

    def scaled(self, factor: float) -> SparseModel:
        """The same model in units `factor` times finer."""
        T = self.T_world_camera.copy()
        T[:, :3, 3] *= factor
        return replace(self, T_world_camera=T, points=self.points * factor)

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """For the run's cache."""
        c = self.camera
        numbers = [c.fx, c.fy, c.cx, c.cy, c.width, c.height, *(c.distortion or (np.nan,) * 4)]
        arrays = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self) if f.name != "camera"}
        return {**arrays, "camera": np.array(numbers)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> SparseModel:
        fx, fy, cx, cy, width, height, *distortion = arrays.pop("camera").tolist()
        known = None if np.isnan(distortion[0]) else tuple(distortion)
        focal_sigma_px = float(arrays.pop("focal_sigma_px", np.array(np.nan)))
        camera = Intrinsics(fx, fy, cx, cy, int(width), int(height), known)
        return cls(camera, **arrays, focal_sigma_px=focal_sigma_px)


def widest_sine(centres: Array, points: Array, seen_frame: NDArray[np.int64], seen_point: NDArray[np.int64]) -> Array:
    """(P,) sine of the widest angle between each point's first, middle and last ray: about the track's widest."""
    order = np.lexsort((seen_frame, seen_point))
    frame, point = seen_frame[order], seen_point[order]
    first = np.searchsorted(point, np.arange(len(points)))
    last = np.searchsorted(point, np.arange(len(points)), side="right") - 1
    seen = last >= first
    sine = np.zeros(len(points))
    picks = [frame[np.clip(i, 0, len(frame) - 1)] for i in (first, (first + last) // 2, last)]
    rays = [points - centres[p] for p in picks]
    rays = [r / np.maximum(np.linalg.norm(r, axis=1, keepdims=True), 1e-12) for r in rays]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        sine = np.maximum(sine, np.linalg.norm(np.cross(rays[a], rays[b]), axis=1))
    return np.where(seen, sine, 0.0)


def complete_poses(model: SparseModel, timestamps_s: Array) -> tuple[NDArray[np.bool_], Array]:
    """Poses of all T used frames: registered ones as they are, those between by interpolation where that is safe.

    Returns which frames have a pose (T,) and T_world_camera (T, 4, 4) (identity elsewhere). Safe is: between two
    registered frames less than MAX_GAP_S apart whose viewing directions differ by less than half the field of view.
    """
    return poses_between(model.frames, model.T_world_camera, timestamps_s, model.camera)


def poses_between(
    frames: NDArray[np.int64], T_of_frames: Array, timestamps_s: Array, camera: Intrinsics
) -> tuple[NDArray[np.bool_], Array]:
    """The same for frames (M,) with poses (M, 4, 4), increasing."""
    posed = np.zeros(len(timestamps_s), bool)
    T = np.tile(np.eye(4), (len(timestamps_s), 1, 1))
    posed[frames] = True
    T[frames] = T_of_frames
    half_view = np.radians(camera.fov_x_deg * MAX_GAP_SHIFT)
    for i, (a, b) in enumerate(pairwise(frames)):
        turn = np.arccos(np.clip(T_of_frames[i, :3, 2] @ T_of_frames[i + 1, :3, 2], -1, 1))
        if b - a > 1 and timestamps_s[b] - timestamps_s[a] <= MAX_GAP_S and turn < half_view:
            between = np.arange(a + 1, b)
            pair = T_of_frames[i : i + 2]
            T[between] = interpolate(timestamps_s[[a, b]], pair, timestamps_s[between])
            posed[between] = True
    return posed, T
